"""Some rows of the real Fashion-MNIST, so that tests which only need a run to hurt have a short one."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

TRAINED = 12_240
"""Training rows: three workers have 4,080 each, which are 47 batches of 86 rows and 48 of 85."""
HELD_OUT = 2_000
"""Rows of validation, and as many of test."""


def some() -> dict[str, Any]:
    """The first rows, as `data.format: tests.fashion:some` has them."""
    from distml.config import Config
    from distml.data.formats import fashion_mnist
    from distml.storage import Storage

    with tempfile.TemporaryDirectory() as folder:
        whole = fashion_mnist.open_builtin(Config.resolve({}), Storage(folder))
    result: dict[str, Any] = {"classes": list(fashion_mnist.CLASSES)}
    for name, split, start, count in (
        ("train", "train", 0, TRAINED),
        ("validation", "train", TRAINED, HELD_OUT),
        ("test", "test", 0, HELD_OUT),
    ):
        rows, chosen = whole.splits[split], np.arange(start, start + count)
        result[name] = (rows.gather(chosen).images, rows.labels[chosen])
    return result

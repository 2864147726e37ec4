"""A function of the user's that returns the data: `data.format: module:function` (driver)."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from distml.data.formats.arrays import of_splits
from distml.data.source import Origin, Source
from distml.errors import DataError


def open_function(form: str, path: str | None) -> Source:
    """Call the user's function, with `data.path` where that is set.

    Raises:
        DataError: It cannot be imported, or what it returns is no data set.
    """
    module, _, name = form.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(
            f"data.format = {form}: {error}.", "Run where the module can be imported, or set PYTHONPATH."
        ) from None
    given = function() if path is None else function(path)
    if not isinstance(given, Mapping) or "train" not in given:
        raise DataError(f"{form} returned {type(given).__name__}, not a dict with 'train'.")
    unknown = set(given) - {"train", "validation", "test", "classes"}
    if unknown:
        raise DataError(f"{form} returned unknown entries {sorted(map(str, unknown))}.")
    parts = {split: _pair(given[split], form, split) for split in given if split != "classes"}
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(images.tobytes())
        digest.update(labels.tobytes())
    names = given.get("classes")
    return of_splits(parts, names, (Origin(name, form, digest.hexdigest()),), form)


def _pair(given: Any, form: str, split: str) -> tuple[Any, Any]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{form} returned no (images, labels) for {split}.")
    return np.asarray(given[0]), np.asarray(given[1])

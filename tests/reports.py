"""Reports of synthetic runs, for tests that parse them and open them in a browser."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from distml.config import Config
from distml.data import shards
from distml.reports import page
from distml.tasks.classification import Classification

CLASSES = ["cat", "dog", "<b>bird</b>"]


def history(epochs: int) -> list[dict[str, Any]]:
    """What each epoch of a run measured."""
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 1 / epoch,
            "val_loss": 1.1 / epoch,
            "accuracy": 1 - 0.5 / epoch,
            "val_accuracy": 1 - 0.6 / epoch,
            "samples_per_s": 1000.0,
        }
        for epoch in range(1, epochs + 1)
    ]


def rendered(
    classes: list[str] = CLASSES,
    epochs: int = 4,
    shape: tuple[int, int, int] = (8, 8, 1),
    about: dict[str, Any] | None = None,
    photos: Sequence[page.Photo] = (),
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> str:
    """The page of a run on 600 rows a split.

    `about` changes the manifest, `settings` the configuration, `changes` the report.
    """
    random = np.random.default_rng(0)
    labels = np.arange(600, dtype=np.int32) % len(classes)
    predicted = np.where(random.random(600) < 0.8, labels, 0).astype(np.int32)
    losses = random.random(600).astype(np.float32)
    task = Classification(tuple(classes))
    outputs = np.eye(len(classes), dtype=np.float32)[predicted]
    worst = task.mistakes(labels, outputs, losses, 7)
    evaluation = task.evaluate(labels, outputs, losses).to_json()
    report = {
        "evaluation": {"validation": evaluation, "test": evaluation},
        "history": history(epochs),
        "worst": [list(mistake) for mistake in worst],
    } | changes
    rows = {"train": 4000, "validation": 600, "test": 600}
    manifest = shards.Manifest("pets", shape, tuple(classes), rows, {}, (), 0, 0.1, 1, "data/pets")
    manifest = dataclasses.replace(manifest, **about or {})
    images = random.integers(0, 256, (len(report["worst"]), *shape), np.uint8)
    times = {"training steps": 30.0, "import TensorFlow": 10.0, "waiting for data": 0.001}
    facts = page.Facts("mine", "0" * 32, "1" * 40, 2, 1.7e9, 1234.5, 5678, times)
    known = {row: (images[row], classes[row % len(classes)]) for row in range(min(3, len(images)))}
    config = Config.resolve({"run": {"name": "mine"}} | (settings or {}))
    return page.render(config, manifest, report, facts, images, photos, known)

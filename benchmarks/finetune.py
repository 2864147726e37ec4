"""Training on a pretrained network: frozen epochs and full ones, against Keras 3's own `fit` on both cores.

The network, the images, the batch and the optimizer are the same; the images are drawn, the weights random.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import harness, ours, report

if TYPE_CHECKING:
    import keras

SIZE, ROWS, BATCH, CLASSES = 160, 640, 32, 10
FROZEN, FULL = 3, 3
REPEATS = int(os.environ.get("REPEATS", "2"))


def drawn() -> dict[str, Any]:
    """The data, as `data.format: benchmarks.finetune:drawn` loads them."""
    numbers = np.random.default_rng(0)
    shape = (SIZE, SIZE, 3)
    labels = (np.arange(ROWS) % CLASSES).astype(np.int32)
    images = numbers.integers(0, 256, (ROWS, *shape), np.uint8)
    classes = [str(number) for number in range(CLASSES)]
    return {"classes": classes, "train": (images, labels), "test": (images[::-16], labels[::-16])}


def network(shape: tuple[int, int, int], classes: int) -> keras.Model:
    """EfficientNet-Lite0, which takes raw pixels."""
    from distml.models import backbones

    return backbones.classifier("efficientnet_lite0", shape, classes)


network.raw_pixels = True  # type: ignore[attr-defined]


def _ours(folder: str) -> Any:
    flags = {
        "data.name": "drawn",
        "data.format": "benchmarks.finetune:drawn",
        "model.name": "benchmarks.finetune:network",
        "model.freeze_epochs": FROZEN,
        "train.workers": 2,
        "train.epochs": FROZEN + FULL,
        "train.global_batch_size": BATCH,
        "train.stall_timeout_s": 600,
    }
    return ours.train(Path(folder), *(f"--{key}={value}" for key, value in flags.items()))


def _speed(result: dict[str, Any], frozen: bool) -> float:
    """Images a second of the fastest epoch but the first of its kind."""
    history = result["history"][1:FROZEN] if frozen else result["history"][FROZEN + 1 :]
    return max(float(epoch["samples_per_s"]) for epoch in history)


def measure() -> Sequence[report.Figure]:
    """Measure both in turn."""
    peer = ["-m", "benchmarks.peers.keras_fit", "--epochs", "3"]
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        results = harness.alternate(
            {"distml": _ours(folder), "keras_fit": lambda: harness.run([sys.executable, *peer])}, REPEATS
        )
    fits = results["keras_fit"]
    return [
        report.Figure(
            "images/s of frozen epochs after the first vs Keras fit, frozen",
            [_speed(result, frozen=True) for result in results["distml"]],
            report.pick(fits, "frozen_images_per_s"),
            20,
            "at least",
        ),
        report.Figure(
            "images/s of full fine-tuning, 2 workers, vs Keras fit on both cores",
            [_speed(result, frozen=False) for result in results["distml"]],
            report.pick(fits, "full_images_per_s"),
            1.0,
            "at least",
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

"""Training on a pretrained network: frozen epochs and full ones, against Keras 3's `fit` and PyTorch.

The network, the images, the batch and the optimizer are the same; the images are drawn, the weights random.
$TORCH names an environment with torch and torchvision; without it, PyTorch is not measured.
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


def _ours(folder: str, **other: Any) -> Any:
    flags = {
        "data.name": "drawn",
        "data.format": "benchmarks.finetune:drawn",
        "model.name": "benchmarks.finetune:network",
        "model.freeze_epochs": FROZEN,
        "train.workers": 2,
        "train.epochs": FROZEN + FULL,
        "train.global_batch_size": BATCH,
        "train.stall_timeout_s": 600,
    } | other
    return ours.train(Path(folder), *(f"--{key}={value}" for key, value in flags.items()))


def _fastest(epochs: Sequence[dict[str, Any]]) -> float:
    """Images a second of the fastest epoch after the first of its kind."""
    return max(float(epoch["samples_per_s"]) for epoch in epochs[1:])


def _against_keras() -> list[report.Figure]:
    peer = ["-m", "benchmarks.peers.keras_fit", "--epochs", "3"]
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        results = harness.alternate(
            {"distml": _ours(folder), "keras_fit": lambda: harness.run([sys.executable, *peer])}, REPEATS
        )
    fits = results["keras_fit"]
    return [
        report.Figure(
            "images/s of frozen epochs after the first vs Keras fit, frozen",
            [_fastest(result["history"][:FROZEN]) for result in results["distml"]],
            report.pick(fits, "frozen_images_per_s"),
            20,
        ),
        report.Figure(
            "images/s of full fine-tuning, 2 workers, vs Keras fit on both cores",
            [_fastest(result["history"][FROZEN:]) for result in results["distml"]],
            report.pick(fits, "full_images_per_s"),
            1.0,
        ),
    ]


def _against_torch() -> list[report.Figure]:
    """MobileNetV2 in float32, and in bfloat16 where the processor has it; emulated, it takes minutes."""
    from distml.training import worker

    precisions = {"float32": "float32"}
    if (native := worker.precision("auto", use_gpu=False)) != "float32":
        precisions["bfloat16"] = native
    given = {"size": SIZE, "rows": ROWS, "batch": BATCH, "epochs": FULL, "precisions": ",".join(precisions)}
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    command = [
        str(Path(os.environ.get("TORCH", ".venv-torch"), "bin", "python")),
        "-m",
        "benchmarks.peers.torch_fit",
        *words,
    ]
    kept: dict[str, Any] = {"model.name": "mobilenet_v2", "model.freeze_epochs": 0, "train.epochs": FULL}
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        calls = {
            name: _ours(folder, **kept, **{"train.precision": precision})
            for name, precision in precisions.items()
        }
        results = harness.alternate(calls | {"torch": lambda: harness.run(command)}, REPEATS)
    return [
        report.Figure(
            f"images/s of MobileNetV2 at {SIZE}, {name}, 2 workers, vs PyTorch, channels last",
            [_fastest(result["history"]) for result in results[name]],
            report.pick(results["torch"], f"{name}_images_per_s"),
            0.9,
        )
        for name in precisions
    ]


def measure() -> Sequence[report.Figure]:
    """Measure all in turn, or what $PARTS names: keras, torch."""
    parts = {"keras": _against_keras, "torch": _against_torch}
    chosen = os.environ.get("PARTS", "keras,torch" if "TORCH" in os.environ else "keras").split(",")
    return [figure for name in chosen for figure in parts[name]()]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

"""Quality beside plain accuracy: a long tail of classes with and without balancing, labels, and a number.

The long tail is Fashion-MNIST with its classes halved in steps, from all rows of a class down to 1 in 32; the
test rows are as they were. Labels and the number are of pictures that are drawn: which colours there are, and
the angle of a bar. `ONLY` names one of `long_tail`, `labels` and `number`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness, ours, report

MOST, STEPS, SEEDS = 3000, 6, (0, 1, 2)
PICTURES = 1600


def long_tail() -> dict[str, Any]:
    """The data, as `data.format: benchmarks.tasks:long_tail` loads them."""
    from distml.config import Config
    from distml.data.formats import fashion_mnist
    from distml.storage import Storage

    source = fashion_mnist.open_builtin(Config(), Storage(Config().storage.root))
    splits = {}
    for split, rows in source.splits.items():
        kept = np.arange(len(rows.labels))
        if split == "train":
            sizes = [MOST >> (label * STEPS // len(source.classes)) for label in range(len(source.classes))]
            kept = np.sort(
                np.concatenate([np.flatnonzero(rows.labels == at)[:size] for at, size in enumerate(sizes)])
            )
        splits[split] = (rows.gather(kept).images, rows.labels[kept])
    return {"classes": list(source.classes), **splits}


def _train(folder: str, *flags: str) -> Any:
    plain = ["--tracking.system_metrics", "false", "--train.workers", "1"]
    return ours.train(Path(folder), *plain, *flags)()


def _tailed(folder: str, seed: int, *flags: str) -> tuple[Any, Any, Any]:
    """Task, test targets and outputs of a network that was trained on the long tail."""
    from distml.artifacts.predictor import Predictor

    data = ["--data.name", "long-tail", "--data.format", "benchmarks.tasks:long_tail"]
    network = ["--model.options", "{filters: [8, 16], dense: 32}", "--train.epochs", "8"]
    size = ["--train.global_batch_size", "128", "--train.learning_rate", "3.0e-3"]
    result = _train(folder, *data, *network, *size, "--run.seed", str(seed), *flags)
    predictor = Predictor.load(Path(result["artifacts"]))
    images, labels = long_tail()["test"]
    return predictor.task, labels, predictor.predict(images)


def _interval(task: Any, labels: Any, balanced: Any, plain: Any) -> tuple[float, float]:
    """The 95 % interval of the gain in macro-F1, over resamples of the test rows."""
    from distml.tasks import quality

    def gain(rows: Any) -> float:
        values = [task.value("macro_f1", labels[rows], outputs[rows]) for outputs in (balanced, plain)]
        return float(values[0] - values[1])

    return quality.interval(gain, len(labels))


def _long_tail(folder: str) -> list[report.Figure]:
    """Macro-F1 with balanced class weights and without, and how far the gain is from the noise."""
    reached: dict[str, list[float]] = {"balanced": [], "none": []}
    ends = []
    for seed in SEEDS:
        task, labels, plain = _tailed(folder, seed)
        balanced = _tailed(folder, seed, "--train.class_weights", "balanced")[2]

        for name, outputs in (("balanced", balanced), ("none", plain)):
            reached[name].append(task.value("macro_f1", labels, outputs))
        ends.append(_interval(task, labels, balanced, plain))
        gain = reached["balanced"][-1] - reached["none"][-1]
        harness.say(f"seed {seed}: gain {gain:+.4f}, 95 % interval {ends[-1]}")
    name = "macro-F1 on a long tail (1 to 1:32), class_weights balanced vs none"
    low = min(low for low, _ in ends)
    return [
        report.Figure(name, reached["balanced"], reached["none"], 1.0),
        report.Figure("lowest end of the 95 % interval of that gain + 1", [1 + low], [1.0], 1.0),
    ]


def _drawn(folder: str, kind: str) -> list[report.Figure]:
    from tests import drawn

    draw, metric, bar = {
        "multilabel": (drawn.colours, "macro_f1", 0.98),
        "regression": (drawn.bars, "mae", 2.0),
    }[kind]
    pictures = draw(Path(folder, f"pictures-{kind}"), PICTURES)
    label = {"multilabel": "labels", "regression": "angle"}[kind]
    flags = ["--task.kind", kind, "--data.name", kind, "--data.path", str(pictures)]
    flags += ["--data.label_column", label, "--data.val_fraction", "0.15", "--train.restore_best", "true"]
    flags += ["--model.options", "{filters: [16, 32]}", "--train.epochs", "30"]
    flags += ["--train.global_batch_size", "64", "--train.learning_rate", "3.0e-3"]
    result = _train(folder, *flags)
    name = f"{kind} of drawn pictures, test {metric}"
    sense: Any = "at least" if kind == "multilabel" else "at most"
    return [report.Figure(name, [float(result[f"test_{metric}"])], [bar], 1.0, sense)]


def measure() -> Sequence[report.Figure]:
    """Measure all, or what `ONLY` names."""
    only = os.environ.get("ONLY")
    figures: list[report.Figure] = []
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        if only in (None, "long_tail"):
            figures += _long_tail(folder)
        for name, kind in (("labels", "multilabel"), ("number", "regression")):
            if only in (None, name):
                figures += _drawn(folder, kind)
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

"""Test accuracy and wall time of the two configurations that promise one, against the promised figures."""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks import ours, report

PROMISED = {"fashion_mnist": (0.90, 180.0), "accuracy": (0.935, 480.0)}
"""Test accuracy at least, and seconds at most, on 2 cores."""


def measure() -> Sequence[report.Figure]:
    """Run each configuration; `ONLY` names one of them, `SEEDS` the seeds."""
    root, figures = ours.root(), []
    for name, (accuracy, seconds) in PROMISED.items():
        if os.environ.get("ONLY", name) != name:
            continue
        results = [
            ours.train(root, "--config", f"configs/{name}.yaml", f"--run.seed={seed}")()
            for seed in os.environ.get("SEEDS", "0").split(",")
        ]
        figures.append(
            report.Figure(f"{name}: test accuracy", report.pick(results, "test_accuracy"), [accuracy], 1.0)
        )
        figures.append(
            report.Figure(f"{name}: wall s", report.pick(results, "wall_s"), [seconds], 1.0, "at most")
        )
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

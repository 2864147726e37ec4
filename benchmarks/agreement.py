"""Loss by epoch of one and of two workers with the same global batch and seed: the largest difference."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import ours, report


def measure() -> Sequence[report.Figure]:
    """Train with one worker and with two."""
    root = ours.root()
    single, double = (
        ours.train(root, "--train.epochs=4", f"--train.workers={workers}")() for workers in (1, 2)
    )
    gaps = [
        abs(mine["loss"] - other["loss"]) / other["loss"]
        for mine, other in zip(double["history"], single["history"], strict=True)
    ]
    return [
        report.Figure(
            "largest relative loss difference, 1 and 2 workers", [max(gaps)], [0.02], 1.0, "at most"
        )
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

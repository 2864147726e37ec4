"""What Ray Data, checkpoints and tracking cost a steady epoch, against the step over a tensor in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from benchmarks import harness, ours, report

WORKERS, EPOCHS, BATCH = 2, 4, 256
REPEATS = int(os.environ.get("REPEATS", "3"))


def _row_seconds(result: dict[str, Any]) -> float:
    """Microseconds a row, all that an epoch spends outside validation counted in; the fastest epoch."""
    parts = ("train_s", "checkpoint_s", "report_s")
    seconds: float = min(
        sum(epoch.get(part, 0.0) for part in parts) / (epoch["samples_per_s"] * epoch["train_s"]) * 1e6
        for epoch in result["history"][1:]
    )
    return seconds


def measure() -> Sequence[report.Figure]:
    """Measure both in turn."""
    data, root = harness.data_folder(), ours.root()
    flags = [f"--train.workers={WORKERS}", f"--train.epochs={EPOCHS}", f"--train.global_batch_size={BATCH}"]
    results = harness.alternate(
        {
            "distml": ours.train(root, *flags),
            "bare_step": harness.peer("bare_step", WORKERS, EPOCHS, BATCH, data),
        },
        REPEATS,
    )
    whole = [_row_seconds(result) for result in results["distml"]]
    bare = [1e6 / speed for speed in report.pick(results["bare_step"], "steady_samples_per_s")]
    return [report.Figure("microseconds a row vs the bare step", whole, bare, 1.05, "at most")]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

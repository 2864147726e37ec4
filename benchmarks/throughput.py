"""Steady samples a second and wall time of the whole command: two CPU workers, `convnet`, batch 256.

Peers: plain TensorFlow (throughput and wall time) and Ray Train as documented (throughput). The peers compute
in float32; distml does so, too, and beside it with `train.precision auto`, as the README's command has it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from benchmarks import harness, ours, report

WORKERS, EPOCHS, BATCH = 2, 4, 256
REPEATS = int(os.environ.get("REPEATS", "3"))


def measure() -> Sequence[report.Figure]:
    """Measure all three in turn."""
    data = harness.data_folder()
    root = ours.root()
    flags = [f"--train.workers={WORKERS}", f"--train.epochs={EPOCHS}", f"--train.global_batch_size={BATCH}"]
    flags.append("--data.val_fraction=0.01")  # both sides train on (nearly) the same 60,000 rows
    command = ours.train(root, *flags)
    command()  # ingests this split
    results = harness.alternate(
        {
            "distml": command,
            "distml auto": ours.train(root, *flags, "--train.precision=auto"),
            "plain_mwms": harness.peer("plain_mwms", WORKERS, EPOCHS, BATCH, data),
            "ray_docs": harness.peer("ray_docs", WORKERS, EPOCHS, BATCH, data),
        },
        REPEATS,
    )
    speed = [ours.best_samples_per_s(result) for result in results["distml"]]
    automatic = [ours.best_samples_per_s(result) for result in results["distml auto"]]
    plain, documented = results["plain_mwms"], results["ray_docs"]
    return [
        report.Figure("samples/s vs plain MWMS", speed, report.pick(plain, "steady_samples_per_s"), 1.25),
        report.Figure(
            "samples/s vs Ray as documented", speed, report.pick(documented, "steady_samples_per_s"), 3.0
        ),
        report.Figure(
            "the same, precision auto", automatic, report.pick(documented, "steady_samples_per_s"), 3.0
        ),
        report.Figure(
            "wall s vs plain MWMS",
            report.pick(results["distml"], "wall_s"),
            report.pick(plain, "wall_s"),
            1.15,
            "at most",
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

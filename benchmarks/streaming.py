"""A data set four times the memory budget: peak memory of a worker, and speed against memory.

The rows are synthetic: what is measured is movement, not learning.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks import harness, ours, report
from distml.data import schema

BUDGET = 100_000_000
ROWS = 4 * BUDGET // 784
ALLOWED_RSS = BUDGET + 1_200_000_000
REPEATS = int(os.environ.get("REPEATS", "2"))


def write(folder: Path) -> None:
    """Write `ROWS` random 28x28 images in files of 20,000, a tenth of them as the test split."""
    import pyarrow.parquet as pq

    numbers = np.random.default_rng(0)
    for split, total in (("train", ROWS), ("test", 2000)):
        (folder / split).mkdir(parents=True)
        for number, first in enumerate(range(0, total, 20_000)):
            count = min(20_000, total - first)
            images = numbers.integers(0, 256, (count, 28, 28, 1), np.uint8)
            labels = numbers.integers(0, 10, count).astype(np.int32)
            table = schema.to_table(images, labels, np.arange(count, dtype=np.int64)).select(
                ["image", "label"]
            )
            pq.write_table(table, folder / split / f"{number:03d}.parquet", compression="none")


class _Watch(threading.Thread):
    """Keeps the largest resident size of any training worker on this machine."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.done = 0, threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.2):
            for process in psutil.process_iter(["cmdline", "memory_info"]):
                if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                    self.peak = max(self.peak, process.info["memory_info"].rss)


def _call(root: Path, data: Path, budget: int) -> Any:
    flags = [
        f"--data.path={data}",
        "--data.format=parquet",
        "--data.name=synthetic",
        "--data.val_fraction=0.01",
    ]
    flags += [f"--data.memory_budget_bytes={budget}", "--train.epochs=2", "--train.global_batch_size=256"]

    def call() -> Any:
        watch = _Watch()
        watch.start()
        result = ours.train(root, *flags)()
        watch.done.set()
        watch.join()
        return {key: value for key, value in result.items() if key != "history"} | {
            "samples_per_s": ours.best_samples_per_s(result),
            "peak_rss": watch.peak,
        }

    return call


def measure() -> Sequence[report.Figure]:
    """Train streamed and in memory in turn."""
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        root, data = Path(folder, "storage"), Path(folder, "data")
        write(data)
        began = time.monotonic()
        calls = {"streamed": _call(root, data, BUDGET), "in memory": _call(root, data, 10 * BUDGET)}
        results = harness.alternate(calls, REPEATS)
        harness.say(f"measured in {time.monotonic() - began:.0f} s")
    streamed = results["streamed"]
    return [
        report.Figure(
            "peak worker RSS, bytes", report.pick(streamed, "peak_rss"), [ALLOWED_RSS], 1.0, "at most"
        ),
        report.Figure(
            "samples/s vs in memory",
            report.pick(streamed, "samples_per_s"),
            report.pick(results["in memory"], "samples_per_s"),
            0.6,
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

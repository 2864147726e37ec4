"""How time and memory grow: with rows, versions, logged requests, workers, replicas and nodes.

Each curve is measured at several sizes and fitted: flat, linear or worse. The figures are written as PNG into
$FIGURES, else into docs/assets. $PARTS names parts (rows, versions, requests, workers, replicas, nodes), and
$SIZES_ROWS and so on other sizes, as "1000,4000".
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from benchmarks import harness, ours, report
from distml.serving import ingress

REPEATS = int(os.environ.get("REPEATS", "2"))
FLAT, LINEAR = 1.2, 1.1
"""Largest ratio that still counts: of the last value to the first, and of the last two costs per unit."""
_ROWS = "DISTML_BENCH_ROWS"
_SMOKE = "--config=configs/smoke.yaml"
_PYTHON = [sys.executable, "-m"]
_MEASURE = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A small process in between: on Linux a child's peak begins with that of the process that started it."""


@dataclass
class Curve:
    """One quantity against one size.

    Args:
        name: What was measured.
        unit: Of the values.
        size: What grows.
        allowed: What it may be.
        values: Measurements by size, in order of size.
    """

    name: str
    unit: str
    size: str
    allowed: Literal["flat", "linear"] = "flat"
    values: dict[int, list[float]] = field(default_factory=dict)

    def add(self, size: int, value: float) -> None:
        """Note a measurement."""
        self.values.setdefault(size, []).append(value)

    @property
    def medians(self) -> dict[int, float]:
        """Median by size."""
        return {size: statistics.median(values) for size, values in self.values.items()}

    @property
    def shape(self) -> str:
        """How it grows: flat, linear or worse; the exponent is that between the two largest sizes."""
        sizes, values = list(self.medians), list(self.medians.values())
        if max(values) <= FLAT * max(values[0], 1e-9):
            return "flat"
        exponent = math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2])
        return f"{'linear' if exponent <= LINEAR else 'worse than linear'}, exponent {exponent:.2f}"

    def figure(self) -> report.Figure:
        """The last value against what the first allows."""
        sizes = list(self.values)
        first, last = self.values[sizes[0]], self.values[sizes[-1]]
        grown = 1.0 if self.allowed == "flat" else sizes[-1] / sizes[0]
        bar = FLAT if self.allowed == "flat" else LINEAR
        span = f"{sizes[0]:,} to {sizes[-1]:,} {self.size}"
        name = f"{self.name}, {self.unit}, {span}: {self.shape}"
        return report.Figure(name, last, [value * grown for value in first], bar, "at most")


def rows() -> list[Curve]:
    """Preparing and training on rows that are drawn."""
    prepared = Curve("prepare", "s", "rows", "linear")
    memory = Curve("prepare, peak memory", "MB", "rows", "linear")
    trained = Curve("train an epoch", "s", "rows", "linear")
    flags = ["--data.name=drawn", "--data.format=benchmarks.growth:drawn", "--data.shards=8"]
    for size in _sizes("ROWS", 1_000, 4_000, 16_000, 64_000):
        with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
            known = {_ROWS: str(size)}
            root = f"--storage.root={folder}"
            seconds, peak = _timed([*_PYTHON, "distml.ingest", *flags, root], known)
            prepared.add(size, seconds)
            memory.add(size, peak)
            result = ours.train(Path(folder), _SMOKE, "--train.workers=1", *flags, environment=known)()
            trained.add(size, result["history"][-1]["train_s"])
    return [prepared, memory, trained]


def drawn() -> dict[str, Any]:
    """Rows of 28x28, as many as the environment says; `data.format: benchmarks.growth:drawn` loads them."""
    count = int(os.environ[_ROWS])
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (count, 28, 28, 1), np.uint8)
    labels = (np.arange(count) % 10).astype(np.int32)
    classes = [str(number) for number in range(10)]
    return {"classes": classes, "train": (images, labels), "test": (images[:500], labels[:500])}


def versions() -> list[Curve]:
    """Commands of a registry that has many versions and runs."""
    root, smoke = _champion()
    commands = {"promote a version": ["promote", "--version=1", "--dry-run"], "doctor": ["doctor"]}
    curves = {name: Curve(name, "s", "versions") for name in [*commands, "start of serve", "leaderboard"]}
    for size in _sizes("VERSIONS", 10, 100, 1_000):
        _register(root, size)
        for _ in range(REPEATS):
            for name, (verb, *flags) in commands.items():
                curves[name].add(size, _timed([*_PYTHON, f"distml.{verb}", *smoke, *flags])[0])
            with _serving(smoke) as (_, took):
                curves["start of serve"].add(size, took)
            curves["leaderboard"].add(size, _leaderboard(size))
    curves["leaderboard"].allowed = "linear"
    return list(curves.values())


def _register(root: Path, size: int) -> None:
    """Fill the registry up to a number of versions, each with a run of its own."""
    from distml import tracking
    from distml.config import Config

    config = Config.load("configs/smoke.yaml", **{"storage.root": str(root)})
    client, name = tracking.client(config), config.tracking.registered_model
    first = client.get_model_version(name, "1")
    experiment = client.get_run(first.run_id).info.experiment_id
    for number in range(len(client.search_model_versions(f"name = '{name}'", max_results=10_000)), size):
        run = client.create_run(experiment, run_name=f"more-{number}")
        client.log_metric(run.info.run_id, "val_accuracy", 0.5)
        client.set_terminated(run.info.run_id)
        client.create_model_version(name, first.source, run.info.run_id, tags=dict(first.tags))


def _leaderboard(size: int) -> float:
    """Seconds to order and print a sweep of that many candidates."""
    from rich.console import Console

    from distml.selection import leaderboard

    board = [
        leaderboard.Row(f"candidate-{number}", f"run-{number}", val_accuracy=number / size)
        for number in range(size)
    ]
    began = time.perf_counter()
    leaderboard.result(board)
    with Path(os.devnull).open("w") as nowhere:
        leaderboard.show(Console(file=nowhere, width=120), board)
    return time.perf_counter() - began


def requested() -> list[Curve]:
    """Drift of many logged requests."""
    root, smoke = _champion()
    seconds = Curve("drift", "s", "logged requests", "linear")
    memory = Curve("drift, peak memory", "MB", "logged requests", "linear")
    written = 0
    for size in _sizes("REQUESTS", 10_000, 100_000, 1_000_000):
        _log_requests(root, size - written, written)
        written = size
        for _ in range(REPEATS):
            took, peak = _timed([*_PYTHON, "distml", "drift", *smoke])
            seconds.add(size, took)
            memory.add(size, peak)
    return [seconds, memory]


def _log_requests(root: Path, count: int, before: int) -> None:
    """Write rows of the request log, 10,000 a file, as replicas do without images."""
    from distml.config import Config
    from distml.data import ingestion, shards
    from distml.serving import request_log
    from distml.storage import Storage

    config = Config.load("configs/smoke.yaml", **{"storage.root": str(root)})
    storage = Storage(str(root))
    manifest = ingestion.prepare(config, storage)
    images, _ = shards.read(storage, manifest, "test")

    @dataclass(frozen=True)
    class Served:
        name: str
        version: int
        task: Any
        predicted: None = None
        usual: None = None

    served = Served(config.tracking.registered_model, 1, manifest.task)
    numbers = np.random.default_rng(before)
    per_file = 10_000
    for at in range(0, count, per_file):
        chosen = images[numbers.integers(0, len(images), per_file)]
        outputs = numbers.dirichlet(np.ones(10), per_file).astype(np.float32)
        when = time.time() - 3600 + at / 1000
        entry = request_log.Entry(when, f"request-{before + at}", served, chosen, outputs, 0.001)
        request_log.write(storage, [entry], with_images=False)


def workers() -> list[Curve]:
    """What Ray, the driver and events cost outside the step, and the start of the group."""
    cost = Curve("outside the step, a step", "ms", "workers", "linear")
    began = Curve("start of the group", "s", "workers", "linear")
    root = ours.root()
    for size in _sizes("WORKERS", 1, 2, 4, 8):
        flags = [f"--train.workers={size}", "--train.epochs=3", f"--train.global_batch_size={128 * size}"]
        for _ in range(REPEATS):
            result = ours.train(root, _SMOKE, "--train.cpus_per_worker=0.25", *flags)()
            epochs = result["history"][1:]
            outside = sum(epoch.get("checkpoint_s", 0) + epoch.get("report_s", 0) for epoch in epochs)
            steps = result["steps"] / result["epochs"] * len(epochs)
            cost.add(size, 1000 * outside / steps)
            began.add(size, result["wall_s"] - sum(epoch["train_s"] for epoch in result["history"]))
    return [cost, began]


def replicas() -> list[Curve]:
    """Start and memory of an endpoint with several replicas."""
    _, smoke = _champion()
    start = Curve("start of serve", "s", "replicas", "linear")
    memory = Curve("memory of replicas and HAProxy", "MB", "replicas", "linear")
    for size in _sizes("REPLICAS", 1, 2, 4):
        counts = [f"--serve.replicas.min={size}", f"--serve.replicas.max={size}"]
        flags = ["--serve.cpus_per_replica=0.5", *counts]  # on two cores, too
        for _ in range(REPEATS):
            with _serving([*smoke, *flags]) as (process, took):
                start.add(size, took)
                memory.add(size, ours.memory_bytes(process) / 2**20)
    return [start, memory]


def nodes() -> list[Curve]:
    """Training on a cluster of several raylets: what joining nodes adds to a whole command."""
    from ray.cluster_utils import Cluster

    wall = Curve("whole command, 2 workers", "s", "raylets")
    root = ours.root()
    for size in _sizes("NODES", 1, 3, 5):
        quiet = {"include_dashboard": False, "object_store_memory": 200_000_000}
        cluster = Cluster(initialize_head=True, head_node_args=quiet | {"num_cpus": 3})
        try:
            for _ in range(size - 1):
                cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
            for _ in range(REPEATS):
                result = ours.train(root, _SMOKE, environment={"RAY_ADDRESS": cluster.address})()
                wall.add(size, result["wall_s"])
        finally:
            cluster.shutdown()
    return [wall]


PARTS: Mapping[str, Callable[[], list[Curve]]] = {
    "rows": rows,
    "versions": versions,
    "requests": requested,
    "workers": workers,
    "replicas": replicas,
    "nodes": nodes,
}


def _champion() -> tuple[Path, list[str]]:
    """A storage root whose only version is champion, and the flags that name it."""
    root = ours.root()
    ours.promoted(root, _SMOKE)
    return root, [_SMOKE, f"--storage.root={root}"]


def _sizes(name: str, *usual: int) -> Sequence[int]:
    given = os.environ.get(f"SIZES_{name}")
    return tuple(int(size) for size in given.split(",")) if given else usual


def _timed(command: Sequence[str], environment: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Seconds of a command and the peak of its own memory in MB."""
    began = time.perf_counter()
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, *command],
            cwd=harness.ROOT,
            env=os.environ | dict(environment or {}),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )
        if done.returncode:
            log.seek(0)
            said = log.read()[-2000:].decode(errors="replace")
            raise harness.BenchmarkError(f"{' '.join(command)}: exit code {done.returncode}\n{said}")
    return time.perf_counter() - began, float(done.stdout) / 1024


def _serving(flags: Sequence[str]) -> contextlib.AbstractContextManager[tuple[psutil.Process, float]]:
    """An endpoint at a free port: its process, and the seconds until it was ready."""
    port = ingress.free_ports()[0]
    return ours.endpoint([*flags, f"--serve.port={port}"], f"http://127.0.0.1:{port}")


def draw(name: str, curves: Sequence[Curve], folder: Path) -> None:
    """Draw the curves of a part, both axes logarithmic, with what linear growth would be."""
    from matplotlib.ticker import LogLocator

    from distml.reports.figures import FIRST, MUTED, blank

    figure = blank(3.2 * len(curves) + 0.4, 2.9)
    for axes, curve in zip(np.atleast_1d(figure.subplots(1, len(curves))), curves, strict=True):
        sizes, values = list(curve.medians), list(curve.medians.values())
        axes.loglog(sizes, values, "o-", color=FIRST)
        axes.loglog(sizes, [values[0] * size / sizes[0] for size in sizes], ":", color=MUTED)
        axes.set_ylim(0.7 * min(values), 3 * max(values))
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(f"{curve.name} ({curve.unit})\n{curve.shape}", fontsize=9)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel(curve.size, color=MUTED)
    figure.savefig(folder / f"growth-{name}.png", dpi=110)


def measure() -> Sequence[report.Figure]:
    """Measure all, or the parts that $PARTS names; draws each."""
    folder = Path(os.environ.get("FIGURES", harness.ROOT / "docs" / "assets"))
    figures = []
    for name in os.environ.get("PARTS", ",".join(PARTS)).split(","):
        curves = PARTS[name]()
        harness.say(json.dumps({curve.name: curve.values for curve in curves}))
        draw(name, curves, folder)
        figures += [curve.figure() for curve in curves]
    return figures


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

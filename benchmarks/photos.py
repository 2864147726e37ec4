"""Preparing photographs: against a Pillow loop, against `datasets`, as they become more, streamed as JPEG.

$PHOTOS names a folder of class folders of JPEGs; without it, photographs are drawn. $PEERS is the environment
of the peers, which `make bench` makes in .venv-peers.

python -m benchmarks.photos [FOLDER]
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from benchmarks import harness, report

SIDE = 224
REPEATS = int(os.environ.get("REPEATS", "2"))
GROWTH = tuple(int(count) for count in os.environ.get("GROWTH", "1000,4000,16000").split(","))

# VmHWM, since what getrusage tells begins with the peak of the process that started this one.
_INGEST = """
import json, os, re, sys, time
cores = int(sys.argv.pop(1))
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
from distml import api
from distml.config import Config
from distml.data import jobs
ray = sys.argv.pop(1)
if ray != "auto":
    jobs.RAY_FROM_S = 0.0 if ray == "yes" else 1e9
config = Config.model_validate(json.loads(sys.argv[1]))
began, before = time.perf_counter(), time.process_time()
manifest = api.ingest(config)
seconds = time.perf_counter() - began
cpu_s = time.process_time() - before
rss = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
print(json.dumps({
    "seconds": seconds, "rows": sum(manifest.rows.values()), "digest": manifest.digest,
    "cpu_s": cpu_s, "rss_mb": rss / 1024,
}))
"""


def draw(folder: Path, count: int) -> Path:
    """Draw photographs: smooth shapes under fine noise, JPEGs of 400 x 533 like those of shops."""
    numbers = np.random.default_rng(0)
    for number in range(count):
        into = folder / f"class{number % 10}"
        into.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 6, 3), np.uint8))
        picture = coarse.resize((400, 533), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(3))
        noise = numbers.normal(0, 6, (533, 400, 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
        picture.save(into / f"{number:06d}.jpg", quality=90)
    return folder


def photographs() -> Path:
    """The folder that was named, or a drawn one."""
    named = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("PHOTOS")
    return Path(named) if named else draw(Path(tempfile.mkdtemp(prefix="distml-photos-")), 3_000)


def ingest(folder: Path, cores: int, ray: str = "auto", **data: Any) -> Callable[[], Any]:
    """Return a call that prepares a folder in a storage root of its own and returns what it took."""

    def call() -> Any:
        root = tempfile.mkdtemp(prefix="distml-bench-")
        given = {"path": str(folder), "image_size": SIDE, "encoding": "raw"} | data
        config = {"data": given, "storage": {"root": root}, "run": {"name": "photos"}}
        try:
            return harness.run([sys.executable, "-c", _INGEST, str(cores), ray, json.dumps(config)])
        finally:
            shutil.rmtree(root, ignore_errors=True)

    return call


def divided(folder: Path, into: Path, count: int) -> Path:
    """Lay out `count` photographs in three splits by links, so that no cut has to be made; they repeat."""
    files = sorted(folder.rglob("*.jpg"))
    for number in range(count):
        file = files[number % len(files)]
        split = ("validation", "test")[number % 10] if number % 10 < 2 else "train"
        place = into / split / file.parent.name / f"{number:06d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(file, place)
    return into


def peer_datasets(folder: Path) -> Callable[[], Any]:
    """Return a call that runs the peer that needs an environment of its own."""
    python = Path(os.environ.get("PEERS", harness.ROOT / ".venv-peers")) / "bin" / "python"

    def call() -> Any:
        output = tempfile.mkdtemp(prefix="distml-peer-")
        words = [str(folder), str(SIDE), "2", output]
        try:
            return harness.run([str(python), "-m", "benchmarks.peers.image_datasets", *words])
        finally:
            shutil.rmtree(output, ignore_errors=True)

    return call


def per_second(results: Sequence[Any]) -> list[float]:
    """Pictures a second."""
    return [result["rows"] / result["seconds"] for result in results]


def against_others(photos: Path) -> list[report.Figure]:
    """Two CPUs against a loop on one, against one of ours, and against `datasets`."""
    folder = divided(photos, Path(tempfile.mkdtemp(prefix="distml-divided-")), 3_000)
    loop = [sys.executable, "-m", "benchmarks.peers.pillow_loop", str(folder), str(SIDE)]
    results = harness.alternate(
        {
            "two": ingest(folder, 2),
            "one": ingest(folder, 1),
            "pillow": functools.partial(harness.run, loop),
            "datasets": peer_datasets(folder),
        },
        REPEATS,
    )
    both, single = per_second(results["two"]), per_second(results["one"])
    cpu = [result["rows"] / result["cpu_s"] for result in results["two"]]
    loop_cpu = [result["rows"] / result["cpu_s"] for result in results["pillow"]]
    return [
        report.Figure(
            "pictures/s on two CPUs vs a Pillow loop on one", both, per_second(results["pillow"]), 1.5
        ),
        report.Figure("pictures a CPU-second vs a Pillow loop, which writes nothing", cpu, loop_cpu, 1.5),
        report.Figure("pictures/s on two CPUs vs on one", both, single, 1.8),
        report.Figure("pictures/s vs datasets, num_proc=2", both, per_second(results["datasets"]), 1.3),
    ]


def growth(photos: Path) -> list[report.Figure]:
    """Seconds a picture and the driver's memory, from few pictures to many."""
    above = Path(tempfile.mkdtemp(prefix="distml-growth-"))
    folders = {count: divided(photos, above / str(count), count) for count in GROWTH}
    results = harness.alternate(
        {str(count): ingest(folder, 2, ray="no") for count, folder in folders.items()}, REPEATS
    )
    few, many = results[str(GROWTH[0])], results[str(GROWTH[-1])]
    times = [[1000 * result["seconds"] / result["rows"] for result in some] for some in (many, few)]
    memory = [[result["rss_mb"] for result in some] for some in (many, few)]
    span = f"{GROWTH[-1]:,} vs {GROWTH[0]:,} pictures"
    return [
        report.Figure(f"ms a picture, {span}", times[0], times[1], 1.1, "at most"),
        report.Figure(
            f"peak MB of the driver, {span}, and 100", memory[0], [m + 100 for m in memory[1]], 1, "at most"
        ),
    ]


def waiting(photos: Path) -> list[report.Figure]:
    """A rank's wait for data while compressed rows are streamed, as a share of the epoch."""
    folder = divided(photos, Path(tempfile.mkdtemp(prefix="distml-stream-")), 1_000)
    root = tempfile.mkdtemp(prefix="distml-bench-")
    flags = {
        "data.path": folder, "data.image_size": SIDE, "data.encoding": "jpeg", "storage.root": root,
        "data.memory_budget_bytes": 20_000_000, "model.name": "efficientnet_lite0", "train.epochs": 2,
        "train.global_batch_size": 32, "train.workers": 1, "run.name": "stream",
    }  # fmt: skip
    command = [sys.executable, "-m", "distml.train", *(f"--{key}={value}" for key, value in flags.items())]
    result = harness.run(command, limit_s=1500)
    history = json.loads((Path(result["artifacts"]) / "report.json").read_text())["history"]
    shares = [epoch["data_wait_s"] / epoch["train_s"] for epoch in history[1:] or history]
    return [report.Figure("share of the epoch a rank waits for rows", shares, [1.0], 0.03, "at most")]


PARTS = {"others": against_others, "growth": growth, "waiting": waiting}


def measure() -> Sequence[report.Figure]:
    """Measure all, or the parts that $PARTS names."""
    photos = photographs()
    chosen = os.environ.get("PARTS", ",".join(PARTS)).split(",")
    return [figure for name in chosen for figure in PARTS[name](photos)]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

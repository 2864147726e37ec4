"""Start-up: wall time of `distml --help`, and from `distml train` to its first step.

`$BEFORE` names a checkout of another commit, which is run in turn with this one; without it the figures are
compared with bounds. `$REPEATS` runs of each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness, report

REPEATS = int(os.environ.get("REPEATS", "5"))
HELP_S, TRAIN_S = 0.5, 30.0
"""Bounds where there is no other checkout."""
NOISE = 1.05
"""How much slower than the other checkout is still the same."""
FIRST_STEP = re.compile(r"training.* on \d+ workers?: ")
"""The line that the driver prints when every rank is about to do its first step."""
_LIMIT_S = 300


def _words(verb: str, *flags: str) -> list[str]:
    """The command of a verb by its module, which every commit has."""
    return [sys.executable, "-m", f"distml.{verb}", *flags]


def _environment(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout)}


def _help(checkout: Path) -> Callable[[], float]:
    def call() -> float:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "distml", "--help"],
            cwd=checkout,
            env=_environment(checkout),
            capture_output=True,
            check=False,
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise harness.BenchmarkError(f"distml --help of {checkout}: exit code {done.returncode}")
        return seconds

    return call


def _first_step(checkout: Path, root: Path) -> Callable[[], float]:
    """Return a call that trains until the first step begins and then interrupts the run."""
    taken = iter(range(1000))

    def call() -> float:
        flags = ["--config", "configs/smoke.yaml", "--storage.root", str(root)]
        began, seconds, last = time.monotonic(), None, ""
        with subprocess.Popen(
            _words("train", *flags, "--run.name", f"start-{next(taken)}"),
            cwd=checkout,
            env=_environment(checkout),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as run:
            assert run.stderr is not None
            for line in run.stderr:
                last = line.strip() or last
                if seconds is None and FIRST_STEP.search(line):
                    seconds = time.monotonic() - began
                    run.send_signal(signal.SIGINT)
            run.wait(_LIMIT_S)
        if seconds is None:
            raise harness.BenchmarkError(f"distml train of {checkout} ended before its first step: {last}")
        return seconds

    return call


def _prepared(checkout: Path, folder: Path) -> Path:
    """A storage root with the data ingested and the tracking database made, by the checkout's own code."""
    root = folder / "storage"
    for verb in ("ingest", "train"):
        command = _words(verb, "--config", "configs/smoke.yaml", "--storage.root", str(root))
        harness.run(command, _environment(checkout), checkout=checkout)
    return root


def measure() -> Sequence[report.Figure]:
    """Measure both checkouts in turn."""
    checkouts = {"distml": harness.ROOT}
    if "BEFORE" in os.environ:
        checkouts["before"] = Path(os.environ["BEFORE"]).resolve()
    with tempfile.TemporaryDirectory(prefix="distml-bench-") as folder:
        roots = {name: _prepared(path, Path(folder, name)) for name, path in checkouts.items()}
        helps: dict[str, Callable[[], Any]] = {
            name: _help(path) for name, path in checkouts.items() if (path / "distml/__main__.py").exists()
        }
        starts: dict[str, Callable[[], Any]] = {
            name: _first_step(path, roots[name]) for name, path in checkouts.items()
        }
        shown, began = harness.alternate(helps, REPEATS), harness.alternate(starts, REPEATS)
    bar = NOISE if "before" in checkouts else 1.0
    return [
        report.Figure("s of distml --help", shown["distml"], shown.get("before", [HELP_S]), bar, "at most"),
        report.Figure(
            "s from distml train to the first step",
            *(began["distml"], began.get("before", [TRAIN_S]), bar, "at most"),
        ),
    ]


if __name__ == "__main__":
    raise SystemExit(report.main(measure))

"""Our side of every training benchmark: the command as a user types it, in a storage root of its own."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness

_TAKEN = itertools.count()


def root() -> Path:
    """A storage root with the data ingested and the tracking database made: what a second run finds."""
    folder = Path(tempfile.mkdtemp(prefix="distml-bench-"))
    harness.run([sys.executable, "-m", "distml.ingest", "--storage.root", str(folder)])
    train(folder, "--config", "configs/smoke.yaml")()
    return folder


def train(folder: Path, *flags: str) -> Callable[[], Any]:
    """Return a call that trains a new run and returns its result line with its `history` by epoch."""

    def call() -> Any:
        name = f"bench-{next(_TAKEN):03d}"
        command = [sys.executable, "-m", "distml.train", *flags]
        result = harness.run([*command, "--storage.root", str(folder), "--run.name", name])
        report = json.loads((Path(result["artifacts"]) / "report.json").read_text())
        return result | {"history": report["history"]}

    return call


def slim(result: dict[str, Any]) -> dict[str, Any]:
    """A result without its history, to print."""
    return {key: value for key, value in result.items() if key != "history"}


def best_samples_per_s(result: dict[str, Any]) -> float:
    """Rows a second of the fastest epoch after the first, which is what the peers report."""
    history = result["history"]
    return max(float(epoch["samples_per_s"]) for epoch in history[1:] or history)

"""Our side of every benchmark: the commands as a user types them, in a storage root of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import harness

_TAKEN = itertools.count()
_START_S = 180


def root() -> Path:
    """A storage root with the data ingested and the tracking database made: what a second run finds."""
    folder = Path(tempfile.mkdtemp(prefix="distml-bench-"))
    harness.run([sys.executable, "-m", "distml.ingest", "--storage.root", str(folder)])
    train(folder, "--config", "configs/smoke.yaml")()
    return folder


def promoted(folder: Path, *flags: str) -> None:
    """Make version 1 of the registered model the champion."""
    command = [sys.executable, "-m", "distml.promote", *flags]
    harness.run([*command, "--storage.root", str(folder), "--version", "1"])


def train(folder: Path, *flags: str, environment: Mapping[str, str] | None = None) -> Callable[[], Any]:
    """Return a call that trains a new run and returns its result line with its `history` by epoch."""

    def call() -> Any:
        name = f"bench-{next(_TAKEN):03d}"
        command = [sys.executable, "-m", "distml.train", *flags]
        result = harness.run([*command, "--storage.root", str(folder), "--run.name", name], environment)
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


@contextlib.contextmanager
def endpoint(
    flags: Sequence[str], url: str, checkout: Path = harness.ROOT
) -> Iterator[tuple[psutil.Process, float]]:
    """Serve until the body ends; gives the command's process and the seconds until it was ready.

    Args:
        flags: Of `distml serve`, with its storage root and port.
        url: Where it answers then.
        checkout: Whose code serves.

    Raises:
        BenchmarkError: It does not start; with the end of what it said.
    """
    command = [sys.executable, "-m", "distml.serve", *flags]
    environment, began = os.environ | {"PYTHONPATH": str(checkout)}, time.monotonic()
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            while not _ready(url):
                if process.poll() is not None or time.monotonic() - began > _START_S:
                    log.seek(0)
                    raise harness.BenchmarkError(f"no endpoint at {url}: {log.read()[-1500:].decode()}")
                time.sleep(0.1)
            yield psutil.Process(process.pid), time.monotonic() - began
        finally:
            process.send_signal(signal.SIGTERM)


def _ready(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{url}/readyz", timeout=5, verify=False).status_code == 200  # noqa: S501
    return False


def memory_bytes(process: psutil.Process) -> int:
    """Resident memory of replicas and HAProxy below the command of an endpoint."""
    total = 0
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if re.search("ServeReplica|haproxy", " ".join(child.cmdline())):
                total += child.memory_info().rss
    return total

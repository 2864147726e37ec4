"""Runs what is measured: commands that end in a JSON line, ours and the peer's alternately."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distml.config import Config
from distml.data.formats import fashion_mnist
from distml.storage import Storage

ROOT = Path(__file__).parents[1]


class BenchmarkError(RuntimeError):
    """A measured command failed, or said nothing that can be read; the message is for the person."""


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    limit_s: float = 900,
    checkout: Path = ROOT,
) -> Any:
    """Run a command from a checkout's root and return the JSON of its last line on standard output.

    Args:
        command: Words; the first is usually `sys.executable`.
        environment: Added to this process's environment.
        limit_s: Seconds after which the command is killed.
        checkout: Where it runs.

    Raises:
        BenchmarkError: It failed, took too long or printed no JSON; with the end of what it said.
    """
    said = " ".join(command)
    try:
        done = subprocess.run(
            command,
            cwd=checkout,
            env=os.environ | dict(environment or {}),
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{said}: not finished after {limit_s:g} s") from None
    if done.returncode:
        raise BenchmarkError(f"{said}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        raise BenchmarkError(f"{said}: no JSON on the last line\n{done.stdout[-1000:]}") from None


def peer(name: str, workers: int, epochs: int, batch: int, data: str) -> Callable[[], Any]:
    """Return a call that runs a peer and returns its figures.

    Args:
        name: Module under `benchmarks.peers`.
        workers: Worker processes.
        epochs: Epochs to train.
        batch: Rows per step over all workers.
        data: Folder of the IDX files, as `data_folder` returns it.
    """
    settings = {"workers": workers, "epochs": epochs, "batch": batch, "data": data}
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    return lambda: run([sys.executable, "-m", f"benchmarks.peers.{name}", *flags])


def alternate(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
    """Call each in turn, A B A B, so that changes on the machine affect all of them equally.

    Args:
        calls: What to call, by the name to show.
        repeats: How often each is called.

    Returns:
        What each call returned, in order.
    """
    results: dict[str, list[Any]] = {name: [] for name in calls}
    for turn in range(1, repeats + 1):
        for name, call in calls.items():
            began = time.monotonic()
            results[name].append(call())
            said = json.dumps(results[name][-1])
            said = said if len(said) < 1000 else f"{said[:1000]}..."  # with its history by epoch
            say(f"{name} {turn}/{repeats}: {said} in {time.monotonic() - began:.0f} s")
    return results


def say(text: str) -> None:
    """Write a line of progress to standard error."""
    print(text, file=sys.stderr, flush=True)


def data_folder() -> str:
    """Return a folder with Fashion-MNIST's four .gz files: $FMNIST, distml's cache or the system's.

    Raises:
        BenchmarkError: The cache cannot be filled.
    """
    storage = Storage(Config().storage.root)
    named = os.environ.get("FMNIST")
    folders = (
        [named]
        if named
        else [*(cache.root for cache in fashion_mnist.caches(storage)), str(fashion_mnist.INSTALLED)]
    )

    def _installed_data() -> str | None:
        return next(
            (
                place
                for place in folders
                if all(Path(place, f"{name}.gz").exists() for name in fashion_mnist.FILES)
            ),
            None,
        )

    if not named and not _installed_data():
        fashion_mnist.open_builtin(Config(), storage)
    folder = _installed_data()
    if folder is None:
        raise BenchmarkError(f"Fashion-MNIST is in none of {', '.join(folders)}; set FMNIST")
    return folder

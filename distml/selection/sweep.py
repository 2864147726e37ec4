"""Runs a sweep: trains each candidate, resumes finished ones, has `leaderboard` rank all (driver).

Each candidate is an ordinary resumable run; together they have one parent on the tracking server and one
start of Ray. Running the sweep again takes finished candidates from their records and trains the rest.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import logging
import os
import shlex
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape

from distml.config import Config
from distml.config.load import flatten
from distml.data import ingestion
from distml.errors import DistmlError
from distml.runtime import cluster
from distml.selection import candidates, leaderboard, record
from distml.selection.candidates import Candidate, Child, Train
from distml.selection.leaderboard import Row
from distml.selection.record import Parent
from distml.storage import Storage
from distml.tracking import runs

logger = logging.getLogger(__name__)


def run(config: Config, train: Train) -> dict[str, Any]:
    """Train every candidate that is not finished, compare all of them.

    Args:
        config: With `sweep.candidates` or `sweep.search`.
        train: Trains one of them.

    Returns:
        The result line: that of the best candidate by validation accuracy, and the `leaderboard`.

    Raises:
        ConfigError: A candidate cannot be trained; nothing was started.
        DistmlError: The cluster, the data or the storage cannot be used.
    """
    began = time.monotonic()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    storage = Storage(config.storage.root)
    if config.sweep.search:
        return _search(config, storage, train, console, began)
    chosen = candidates.candidates(config)
    names = {candidate.name: candidate.config.run.name for candidate in chosen}
    with runs.alone(config, storage, record.FOLDER):
        rows = _finished(chosen, storage)
        if rows:
            console.print(f"finished before: [bold]{escape(', '.join(rows))}[/bold]")
        if len(rows) == len(chosen) and (known := record.finished(storage, config, names)):
            rows = record.complete_finished(config, storage, known, rows)
            return _shown(console, config, rows, known.result, began)
        parent = Parent(config, storage, record.begin(config, storage, names))
        try:
            waiting = [candidate for candidate in chosen if candidate.name not in rows]
            rows |= _train(config, storage, waiting, parent, train, console)
        except BaseException:
            parent.close("KILLED")
            raise
        rows = record.try_complete(config, storage, rows)
        return _shown(console, config, rows, parent.finish([rows[name] for name in names]), began)


def _search(config: Config, storage: Storage, train: Train, console: Console, began: float) -> dict[str, Any]:
    """The same, with candidates that Ray Tune draws."""
    from distml.selection import search  # imports Ray Tune

    assert config.sweep.search is not None
    candidates.check_space(config)
    recipe = runs.binding(config) | flatten({"sweep.search": config.sweep.search.model_dump(mode="json")})
    with runs.alone(config, storage, record.FOLDER):
        before = None if config.run.restart else record.find(storage, config.run.name)
        sweep = record.begin(config, storage, {}, recipe)
        if before is not None and before.status == "finished":
            before.save(storage)
            console.print("finished before")
            rows = record.complete_finished(config, storage, before, leaderboard.of_line(before.result))
            return _shown(console, config, rows, before.result, began)
        parent = Parent(config, storage, sweep)
        try:
            rows = search.run(config, storage, parent, train, console)
        except BaseException:
            parent.close("KILLED")
            raise
        rows = record.try_complete(config, storage, rows)
        return _shown(console, config, rows, parent.finish(list(rows.values()), search=True), began)


def _finished(chosen: list[Candidate], storage: Storage) -> dict[str, Row]:
    """The rows of candidates that were trained before."""
    taken = {candidate.name: (candidate, runs.taken(candidate.config, storage)) for candidate in chosen}
    return {
        name: leaderboard.of_result(name, trained.name, candidate.overrides, trained.result)
        for name, (candidate, trained) in taken.items()
        if trained is not None
    }


def _shown(
    console: Console, config: Config, rows: dict[str, Row], result: dict[str, Any], began: float
) -> dict[str, Any]:
    """Print the table and what to type next; returns the result line."""
    leaderboard.show(console, list(rows.values()))
    again = escape(shlex.join(["--run", config.run.name, "--storage.root", config.storage.root]))
    console.print(f"[bold]figure[/bold]     {escape(str(result['figure']))}")
    console.print(f"[bold]next[/bold]       python -m distml.promote --config FILE {again}")
    return result | {"wall_s": round(time.monotonic() - began, 2)}


def _train(
    config: Config,
    storage: Storage,
    waiting: list[Candidate],
    parent: Parent,
    train: Train,
    console: Console,
) -> dict[str, Row]:
    """Train what is not finished, side by side where each has cores of its own."""
    if not waiting:
        return {}
    trains = [candidate.config.train for candidate in waiting]
    largest = max(trains, key=lambda train: train.max_workers * train.cpus_per_worker)
    sized = config.model_copy(update={"train": largest})
    cores = os.cpu_count() or 1
    with cluster.connect(sized, candidates.concurrent(config.sweep.concurrent, trains, cores)) as ray_cluster:
        gpus = ray_cluster.resources.get("GPU", 0)
        cpus = cores if ray_cluster.local else ray_cluster.resources.get("CPU", 0)
        side_by_side = candidates.concurrent(config.sweep.concurrent, trains, cpus, int(gpus))
        for candidate in waiting:
            cluster.require_plan(candidate.config, ray_cluster)
        ingestion.prepare(config, storage)
        console.print(
            f"sweep [bold]{escape(config.run.name)}[/bold]: {len(waiting)} to train, {side_by_side} at a "
            f"time (sweep.concurrent {config.sweep.concurrent}), {ray_cluster.shown}"
        )

        def go(candidate: Candidate) -> Row:
            child = Child(candidate.name, ray_cluster, parent.key)
            return _row(candidate, lambda: train(candidate.config, child))

        if side_by_side == 1:  # on the main thread, where Ray Train listens to Ctrl-C
            return {candidate.name: go(candidate) for candidate in waiting}
        return _side_by_side(waiting, go, side_by_side)


def _side_by_side(waiting: list[Candidate], go: Callable[[Candidate], Row], count: int) -> dict[str, Row]:
    pool = concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="candidate")
    try:
        futures = {candidate.name: pool.submit(go, candidate) for candidate in waiting}
        return {name: future.result() for name, future in futures.items()}
    finally:
        # Interrupted, the others end when the connection is closed behind them.
        pool.shutdown(wait=False, cancel_futures=True)


def _row(candidate: Candidate, train: Callable[[], dict[str, Any]]) -> Row:
    """Train a candidate; that it fails is no reason to leave the others out."""
    row = Row(candidate.name, candidate.config.run.name, candidate.overrides)
    try:
        return leaderboard.of_result(row.candidate, row.run, row.overrides, train())
    except DistmlError as error:
        return dataclasses.replace(row, status="failed", error=str(error))
    except Exception as error:  # of this product: the traceback for a report, the other candidates trained
        logger.exception("candidate %s stopped on an unexpected error", candidate.name)
        return dataclasses.replace(row, status="failed", error=f"{type(error).__name__}: {error}")

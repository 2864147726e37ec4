"""Versions of candidates whose runs ended while the tracking server was away (driver)."""

from __future__ import annotations

import dataclasses
import logging

from distml import tracking
from distml.config import Config
from distml.errors import TrackingError
from distml.selection import leaderboard
from distml.selection.leaderboard import Row
from distml.selection.record import Sweep
from distml.storage import Storage
from distml.tracking import runs

logger = logging.getLogger(__name__)


def complete(config: Config, storage: Storage, rows: dict[str, Row], wait_s: float) -> dict[str, Row]:
    """Return the rows with the versions of runs that the server is told of only now.

    Args:
        config: Of the sweep.
        storage: Holds the records of the runs and the spool.
        rows: By candidate.
        wait_s: Seconds to wait for a server that is away.

    Raises:
        TrackingError: It is away for longer, or refuses a run.
    """
    known = dict(rows)
    for name, row in rows.items():
        found = runs.finished(storage, row.run) if _is_missing(row) else None
        if found is not None:
            result = tracking.register(config, storage, found, wait_s).result
            known[name] = dataclasses.replace(row, version=result["version"], run_id=result["run_id"])
    return known


def try_complete(config: Config, storage: Storage, rows: dict[str, Row]) -> dict[str, Row]:
    """Return the same at the end of a sweep, which does not fail because the server is away."""
    try:
        return complete(config, storage, rows, 0.0)
    except TrackingError as error:
        logger.warning("%s", error)
        return rows


def again(config: Config, storage: Storage, sweep: Sweep, rows: dict[str, Row]) -> dict[str, Row]:
    """Return the rows of a finished sweep; what is not registered is, and the record of the sweep follows.

    Args:
        config: Of the sweep; `tracking.wait_s` says how long to wait for the server.
        storage: Holds the records and the spool.
        sweep: Its record.
        rows: By candidate.

    Raises:
        TrackingError: The server is away for longer, or refuses a run.
    """
    if not any(_is_missing(row) for row in rows.values()):
        return rows
    rows = complete(config, storage, rows, config.tracking.wait_s)
    best = leaderboard.result(list(rows.values()), config.sweep.search is not None)
    sweep.run_id = tracking.find(config, sweep.key) or sweep.run_id
    sweep.result |= best | {"parent_run_id": sweep.run_id}
    sweep.save(storage)
    return rows


def _is_missing(row: Row) -> bool:
    return row.status == "finished" and not row.version

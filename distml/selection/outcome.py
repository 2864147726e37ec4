"""What became of the trials of a search (driver)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from distml import tracking
from distml.config import Config
from distml.selection import leaderboard
from distml.selection.candidates import Candidate, candidate
from distml.selection.leaderboard import Row
from distml.selection.trial import name
from distml.storage import Storage
from distml.tracking import runs

if TYPE_CHECKING:
    from ray.tune import ResultGrid


def rows(config: Config, storage: Storage, results: ResultGrid) -> list[Row]:
    """Return a row for every trial, from the record of its run; what did not finish was stopped or failed.

    Args:
        config: Of the sweep.
        storage: Holds the records.
        results: Of Ray Tune.
    """
    known = []
    for found in results:
        trial = name(found.path.rstrip("/").rpartition("/")[2])
        chosen = candidate(config, found.config or {}, trial)
        known.append(_row(chosen, storage, found))
    return sorted(known, key=lambda row: row.candidate)


def _row(chosen: Candidate, storage: Storage, found: Any) -> Row:
    run = chosen.config.run.name
    plain = chosen.config.model_copy(update={"run": chosen.config.run.model_copy(update={"restart": False})})
    if done := runs.taken(plain, storage):
        return leaderboard.of_result(chosen.name, run, chosen.overrides, done.result)
    metrics = found.metrics or {}
    reached: dict[str, Any] = {"val_accuracy": metrics.get("val_accuracy"), "epochs": metrics.get("epoch")}
    if found.error is not None:
        cause = str(found.error).strip().splitlines()[-1][:300]
        return Row(chosen.name, run, chosen.overrides, "failed", **reached, error=cause)
    _close(chosen, storage)
    return Row(chosen.name, run, chosen.overrides, "stopped", **reached, wall_s=metrics.get("time_total_s"))


def _close(chosen: Candidate, storage: Storage) -> None:
    """End the run of a trial that was stopped: its own process had no time to."""
    record = runs.newest(storage, chosen.config.run.name)
    if record is None:
        return
    tracker = tracking.Tracker(chosen.config, f"{record.name}-{record.generation:03d}-stopped")
    tags = {"distml.stopped": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    tracker.put("open", name=record.name, tags=tags, params={}, key=record.key)
    tracker.put("close", status="KILLED", tags={})
    tracker.close()
    record.status, record.run_id = "stopped", tracker.sender.run_id
    record.save(storage)

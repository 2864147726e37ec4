"""The stored state of a sweep: its file below the storage root and its parent run in MLflow (driver).

`sweeps/<run.name>/<generation>/sweep.json` names the runs of the candidates. Each is an ordinary run with a
record of its own below `runs/`. Candidates whose runs ended while the tracking server was unreachable get
their versions when it is back.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distml import tracking
from distml.config import Config
from distml.config.load import flatten
from distml.errors import ConfigError, StorageError, TrackingError
from distml.selection import leaderboard
from distml.selection.leaderboard import Row
from distml.storage import Storage
from distml.tracking import runs
from distml.tracking.operations import CloseRun, LogArtifacts, LogText, OpenRun
from distml.tracking.runs import RunPaths, changes, numbered

logger = logging.getLogger(__name__)

FOLDER = runs.SWEEPS
RECORD = "sweep.json"


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        name: `run.name` of its configuration.
        generation: Counts restarts from the beginning.
        key: Identifies the parent run on the tracking server.
        run_id: MLflow run that is the parent, once known.
        status: running, failed or finished.
        runs: Name of the run of each candidate, by candidate.
        recipe: Keys that a resumed search must not change.
        result: The result line of a finished sweep.
    """

    name: str
    generation: int
    key: str
    run_id: str | None = None
    status: str = "running"
    runs: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The sweep's folder below the storage root."""
        return RunPaths(self.name, self.generation, under=FOLDER).folder

    def save(self, storage: Storage) -> None:
        """Write the record, whole or not at all."""
        storage.write_bytes(json.dumps(dataclasses.asdict(self), indent=1).encode(), *self.parts, RECORD)


def find(storage: Storage, name: str) -> Sweep | None:
    """Return the newest sweep of a name, None where there is none.

    Raises:
        StorageError: Its record is damaged, or the storage cannot be read.
    """
    for generation in sorted(storage.names(FOLDER, name), reverse=True):
        if storage.exists(FOLDER, name, generation, RECORD):
            try:
                sweep = Sweep(**json.loads(storage.read_text(FOLDER, name, generation, RECORD)))
                for line in (sweep.result, *sweep.result.get("leaderboard", [])):
                    numbered(line)
                return sweep
            except (ValueError, TypeError) as error:
                where = storage.uri(FOLDER, name, generation, RECORD)
                raise StorageError(
                    f"{where} is damaged ({error}).", "Restore it, or pass --run.restart true."
                ) from None
    return None


def finished(storage: Storage, config: Config, runs: dict[str, str]) -> Sweep | None:
    """Return the finished sweep of exactly these runs, None where there is something to do.

    Raises:
        StorageError: The record is damaged, or the storage cannot be read.
    """
    sweep = None if config.run.restart else find(storage, config.run.name)
    return sweep if sweep and (sweep.status, sweep.runs) == ("finished", runs) else None


def begin(
    config: Config, storage: Storage, runs: dict[str, str], recipe: dict[str, Any] | None = None
) -> Sweep:
    """Go on with the sweep of this name, with these candidates; begin one where there is none.

    Args:
        config: Names the sweep.
        storage: Holds its record.
        runs: Name of the run of each candidate; {} where a search will name them.
        recipe: Of a search, which cannot go on with another one.

    Raises:
        ConfigError: A search of this name has begun with another recipe.
        StorageError: The record is damaged or cannot be written.
    """
    name, recipe = config.run.name, json.loads(json.dumps(recipe or {}))
    sweep = None if config.run.restart else find(storage, name)
    if sweep is None:
        known = [int(folder) for folder in storage.names(FOLDER, name) if folder.isdigit()]
        sweep = Sweep(name, max(known, default=0) + 1, uuid.uuid4().hex, recipe=recipe)
    if sweep.recipe != recipe:
        changed = changes(sweep.recipe, recipe)
        raise ConfigError(
            f"sweep {name} cannot resume with another configuration: {'; '.join(changed[:4])}.",
            "Choose another --run.name, or pass --run.restart true to begin again.",
        )
    sweep.runs, sweep.status = runs or sweep.runs, "running"
    sweep.save(storage)
    return sweep


class Parent:
    """A sweep on the tracking server. Final.

    Args:
        config: Of the sweep.
        storage: Holds its record.
        sweep: Its record.
    """

    def __init__(self, config: Config, storage: Storage, sweep: Sweep) -> None:
        self._config, self._storage, self._sweep = config, storage, sweep
        self._tracker = tracking.Tracker(config, f"{sweep.name}-sweep-{sweep.generation:03d}", sweep.run_id)
        flat = flatten(config.model_dump(mode="json"))
        params = {path: str(value)[:500] for path, value in flat.items()}
        tags = {"distml.sweep": sweep.name, "distml.config_digest": config.digest()}
        self._tracker.put(OpenRun(sweep.name, tags, params, sweep.key))

    @property
    def key(self) -> tuple[str, str]:
        """Name and key by which the runs of the sweep find their parent."""
        return self._sweep.name, self._sweep.key

    @property
    def parts(self) -> tuple[str, ...]:
        """The sweep's folder below the storage root."""
        return self._sweep.parts

    def finish(self, rows: list[Row], search: bool = False) -> dict[str, Any]:
        """Draw the figure, record how the sweep ended and close it.

        Args:
            rows: Of the candidates.
            search: Whether they are points of a search space.

        Returns:
            The result line.
        """
        result = leaderboard.result(rows, search)
        self._sweep.runs = {row.candidate: row.run for row in rows}
        parts = (*self._sweep.parts, "figures")
        with tempfile.TemporaryDirectory() as folder:
            name = leaderboard.draw(Path(folder), leaderboard.order(rows), search)
            self._storage.upload(folder, *parts)
        self._tracker.put(LogArtifacts(list(parts), "figures"))
        self._tracker.put(LogText("leaderboard.json", json.dumps(result["leaderboard"], indent=1)))
        best = {
            key: value
            for key in (f"{split}_{result['metric']}" for split in ("val", "test"))
            if (value := result.get(key)) is not None
        }
        self._tracker.metrics("best", 0, best)
        self._send("FINISHED" if result["status"] == "finished" else "FAILED")
        self._sweep.result = result | {
            "sweep": self._sweep.name,
            "parent_run_id": self._sweep.run_id,
            "model": self._config.tracking.registered_model,
            "tracking_uri": tracking.uri(self._config),
            "figure": self._storage.uri(*parts, name),
        }
        self._sweep.save(self._storage)
        return self._sweep.result

    def close(self, status: str) -> None:
        """Close a sweep that did not come to its end.

        Args:
            status: FAILED or KILLED, as MLflow says.
        """
        self._send(status)
        self._sweep.save(self._storage)

    def _send(self, status: str) -> None:
        self._tracker.put(CloseRun(status))
        self._tracker.close()
        self._sweep.run_id = self._tracker.sender.run_id or self._sweep.run_id
        self._sweep.status = {"FINISHED": "finished", "FAILED": "failed"}.get(status, "running")


def complete(config: Config, storage: Storage, rows: dict[str, Row], wait_s: float) -> dict[str, Row]:
    """Return the rows with the versions of runs that are registered only now.

    Args:
        config: Of the sweep.
        storage: Holds the records of the runs and the spool.
        rows: By candidate.
        wait_s: Seconds to wait for a server that is unreachable.

    Raises:
        TrackingError: It is unreachable for longer, or rejects a run.
    """
    known = dict(rows)
    for name, row in rows.items():
        trained = runs.finished(storage, row.run) if _is_unregistered(row) else None
        if trained is not None:
            result = tracking.register(config, storage, trained, wait_s).result
            known[name] = dataclasses.replace(row, version=result["version"], run_id=result["run_id"])
    return known


def try_complete(config: Config, storage: Storage, rows: dict[str, Row]) -> dict[str, Row]:
    """Return the same at the end of a sweep, which does not fail because the server is unreachable."""
    try:
        return complete(config, storage, rows, 0.0)
    except TrackingError as error:
        logger.warning("%s", error)
        return rows


def complete_finished(config: Config, storage: Storage, sweep: Sweep, rows: dict[str, Row]) -> dict[str, Row]:
    """Return the rows of a finished sweep; registers what is not, and updates the record of the sweep.

    Args:
        config: Of the sweep; `tracking.wait_s` says how long to wait for the server.
        storage: Holds the records and the spool.
        sweep: Its record.
        rows: By candidate.

    Raises:
        TrackingError: The server is unreachable for longer, or rejects a run.
    """
    if not any(_is_unregistered(row) for row in rows.values()):
        return rows
    rows = complete(config, storage, rows, config.tracking.wait_s)
    best = leaderboard.result(list(rows.values()), config.sweep.search is not None)
    sweep.run_id = tracking.find(config, sweep.key) or sweep.run_id
    sweep.result |= best | {"parent_run_id": sweep.run_id}
    sweep.save(storage)
    return rows


def _is_unregistered(row: Row) -> bool:
    return row.status == "finished" and not row.version

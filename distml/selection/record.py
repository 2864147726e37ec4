"""The record of a sweep: which runs belong to it and how it ended (driver).

`sweeps/<run.name>/<generation>/sweep.json`. Each candidate is an ordinary run with a record of its own
below `runs/`; what is kept here is what makes them one.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from dataclasses import dataclass, field
from typing import Any

from distml.config import Config, binding
from distml.errors import ConfigError, StorageError
from distml.storage import Storage
from distml.tracking.runs import RunPaths, numbered

FOLDER = "sweeps"
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
        recipe: What a search that goes on must share with its beginning.
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
    found = None if config.run.restart else find(storage, config.run.name)
    return found if found and (found.status, found.runs) == ("finished", runs) else None


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
    found = None if config.run.restart else find(storage, name)
    if found is None:
        known = [int(one) for one in storage.names(FOLDER, name) if one.isdigit()]
        found = Sweep(name, max(known, default=0) + 1, uuid.uuid4().hex, recipe=recipe)
    if found.recipe != recipe:
        changed = binding.changes(found.recipe, recipe)
        raise ConfigError(
            f"sweep {name} cannot go on as another one: {'; '.join(changed[:4])}.",
            "Choose another --run.name, or pass --run.restart true to begin again.",
        )
    found.runs, found.status = runs or found.runs, "running"
    found.save(storage)
    return found

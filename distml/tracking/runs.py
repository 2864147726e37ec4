"""The state of a training run below the storage root: whether it is new, resumed or finished (driver).

`runs/<name>/<generation>/run.json` says what is being trained and how far it came. Starting the same
name again resumes an unfinished run; `run.restart` begins the next generation.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from distml.config import Config
from distml.config.load import flatten
from distml.errors import ConfigError, StorageError
from distml.storage import Storage
from distml.tasks import quality

FOLDER, SWEEPS = "runs", "sweeps"
"""Folders below the storage root: records of runs, and of sweeps."""
RECORD = "run.json"

_BINDING = ("task", "data", "model", "train", "run.seed")
_FREE = (
    "data.memory_budget_bytes",
    "data.mirrors",
    "train.checkpoint_every_epochs",
    "train.checkpoints_kept",
    "train.cpus_per_worker",
    "train.device",
    "train.elastic_check_s",
    "train.log_every_steps",
    "train.max_failures",
    "train.max_preemptions",
    "train.stall_timeout_s",
    "train.tensorboard",
    "train.workers",
)


def binding(config: Config) -> dict[str, Any]:
    """Return what binds a run or a sweep, by dotted path: the keys that it may not change when it goes on."""
    flat = flatten(config.model_dump(mode="json"))
    return {
        path: value
        for path, value in flat.items()
        if path not in _FREE and any(path == bound or path.startswith(bound + ".") for bound in _BINDING)
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between two bindings."""
    return [
        f"{path} was {before.get(path)!r} and is now {now.get(path)!r}"
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
    ]


@dataclass(frozen=True)
class RunPaths:
    """Places of a run, or of a sweep, below the storage root, each as the parts of a path.

    Attributes:
        name: `run.name`.
        generation: Counts restarts from the beginning.
        attempts: Times a driver has started or resumed it.
        artifacts: URI of its export when it was trained, "" before; the root may have moved since.
        under: Folder of all runs, or of all sweeps.
    """

    name: str
    generation: int
    attempts: int = 0
    artifacts: str = ""
    under: str = FOLDER

    @property
    def folder(self) -> tuple[str, ...]:
        """Everything of this generation."""
        return (self.under, self.name, f"{self.generation:03d}")

    @property
    def attempt(self) -> tuple[str, ...]:
        """Checkpoints of the present attempt."""
        return (*self.folder, f"attempt-{self.attempts:03d}")

    @property
    def export(self) -> tuple[str, ...]:
        """The exported model with its figures and its report."""
        return (*self.folder, self.artifacts.partition("?")[0].rpartition("/")[2])


@dataclass
class Run:
    """The record of one run.

    Attributes:
        name: `run.name`.
        generation: Counts restarts from the beginning.
        key: Identifies the run on the tracking server.
        status: running, finished, failed, or stopped by a search.
        attempts: Times a driver has started or resumed it.
        run_id: MLflow run, once known.
        binding: Configuration a resumed run must share, by dotted path.
        result: The result line of a finished run.
        started_at: Seconds since the epoch.
    """

    name: str
    generation: int
    key: str
    status: str = "running"
    attempts: int = 0
    run_id: str | None = None
    binding: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    started_at: float = 0.0

    @property
    def paths(self) -> RunPaths:
        """Where it is kept."""
        return RunPaths(self.name, self.generation, self.attempts, str(self.result.get("artifacts", "")))

    @property
    def version(self) -> int | None:
        """The version it registered, None while it is not finished or the server does not know it."""
        version: int | None = self.result.get("version")
        return version

    def save(self, storage: Storage) -> None:
        """Write the record, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=1)
        storage.write_bytes(text.encode(), *self.paths.folder, RECORD)


def _records(storage: Storage, name: str) -> Iterator[Run]:
    """The generations of a run, newest first."""
    for generation in sorted(storage.names(FOLDER, name), reverse=True):
        if not storage.exists(FOLDER, name, generation, RECORD):
            continue
        try:
            run = Run(**json.loads(storage.read_text(FOLDER, name, generation, RECORD)))
            numbered(run.result)
            yield run
        except (ValueError, TypeError) as error:
            where = storage.uri(FOLDER, name, generation, RECORD)
            raise StorageError(
                f"{where} is damaged ({error}).", "Restore it, or pass --run.restart true."
            ) from None


def numbered(result: dict[str, Any]) -> None:
    """Make the version of a result line a number: records of earlier releases hold a string."""
    if result.get("version") is not None:
        result["version"] = int(result["version"])


def newest(storage: Storage, name: str) -> Run | None:
    """Return the newest generation of a run, None where there is none.

    Raises:
        StorageError: A record is damaged, or the storage cannot be read.
    """
    return next(_records(storage, name), None)


def finished(storage: Storage, name: str) -> Run | None:
    """Return the newest finished generation of a run, None where no run of that name is finished.

    Raises:
        StorageError: A record is damaged, or the storage cannot be read.
    """
    return next((run for run in _records(storage, name) if run.status == "finished"), None)


def taken(config: Config, storage: Storage) -> Run | None:
    """Return the finished run that a configuration would only repeat, None where there is something to do.

    Raises:
        ConfigError: A run of that name was started with another configuration.
        StorageError: A record is damaged, or leads out of the storage root.
    """
    run = None if config.run.restart else newest(storage, config.run.name)
    if run is not None:
        _refuse_other(config, run)
    return run if run is not None and run.status == "finished" else None


def _refuse(config: Config, run: Run) -> None:
    """Reject what cannot go on, with the difference and the remedy."""
    if run.status == "finished":
        version, metric = run.version, run.result.get("metric", "accuracy")
        reached = run.result.get(f"val_{metric}")
        shown = "" if reached is None else f", val_{metric} {quality.digits(reached)}"
        raise ConfigError(
            f"run {run.name} is finished already (model version {version or 'not registered'}{shown}).",
            "Choose another --run.name, or pass --run.restart true to train it again.",
        )
    _refuse_other(config, run)


def _refuse_other(config: Config, run: Run) -> None:
    """Reject to go on with another configuration than the run began with."""
    if changed := changes(run.binding, binding(config)):
        raise ConfigError(
            f"run {run.name} cannot resume with another configuration: {'; '.join(changed[:4])}.",
            "Choose another --run.name, or pass --run.restart true to begin again.",
        )


@contextmanager
def alone(config: Config, storage: Storage, folder: str = FOLDER) -> Iterator[None]:
    """Be the only driver of a run; on a mount without locks others may be at it, too.

    Args:
        config: Names the run.
        storage: Holds its record.
        folder: Of the records, another one where `run.name` names a sweep.

    Raises:
        ConfigError: Another process drives the run.
        StorageError: Its folder cannot be made.
    """
    with ExitStack() as until:
        try:
            until.enter_context(storage.lock(folder, config.run.name, wait=False))
        except BlockingIOError:
            raise ConfigError(
                f"run {config.run.name} is being trained by another process.",
                "Wait until it has ended, or choose another --run.name.",
            ) from None
        yield


def examine(config: Config, storage: Storage) -> Run | None:
    """Return the run that a configuration would go on with, None where it would begin one; changes nothing.

    Raises:
        ConfigError: A run of that name is finished, or was started with another configuration.
        StorageError: The record is damaged, or leads out of the storage root.
    """
    run = None if config.run.restart else newest(storage, config.run.name)
    if run is not None:
        _refuse(config, run)
    return run


def begin(config: Config, storage: Storage) -> tuple[Run, bool]:
    """Open the run a configuration names.

    Returns:
        The run, saved with one more attempt, and whether it resumes an earlier attempt.

    Raises:
        ConfigError: A run of that name is finished, or was started with another configuration.
        StorageError: The record is damaged or cannot be written, or leads out of the storage root.
    """
    name = config.run.name
    run = examine(config, storage)
    resumed = run is not None
    if run is None:
        generation = (
            max((int(known) for known in storage.names(FOLDER, name) if known.isdigit()), default=0) + 1
        )
        run = Run(name, generation, uuid.uuid4().hex, binding=binding(config), started_at=time.time())
    run.status = "running"
    run.attempts += 1
    run.save(storage)
    return run, resumed

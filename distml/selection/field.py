"""Who may compete for champion (driver)."""

from __future__ import annotations

from dataclasses import dataclass

from distml import tracking
from distml.config import Config
from distml.errors import ConfigError, TrackingError
from distml.selection import record as sweeps
from distml.selection import records
from distml.storage import Storage
from distml.tracking import registry, runs, spool
from distml.tracking.registry import ModelVersion


@dataclass(frozen=True)
class Entrant:
    """A registered version that competes.

    Args:
        label: What a person calls it: a candidate, a run, or a version.
        version: In the registry.
        barred: Why it may not win; "" where it may.
    """

    label: str
    version: ModelVersion
    barred: str = ""


def gather(config: Config, storage: Storage, run: str | None, version: int | None) -> list[Entrant]:
    """Find the versions that compete.

    Args:
        config: Names the registry and, by `run.name`, the sweep or run that is meant by default.
        storage: Where runs and sweeps are recorded.
        run: Name of a sweep or a run, or an MLflow run id; all versions of the registered model where it
            is "*".
        version: This version alone, even when it was rolled back from.

    Raises:
        ConfigError: Both are given, there is no such run, or it is not finished.
        TrackingError: A version is not registered, or the registry does not answer.
    """
    if run is not None and version is not None:
        raise ConfigError("--run and --version both name candidates.", "Give one of them.")
    if version is not None:
        return [Entrant(f"version {version}", require(config, version))]
    if run == "*":
        spool.deliver(config, config.tracking.wait_s)
        entrants = [Entrant(f"version {version.version}", version) for version in registry.versions(config)]
        if not entrants:
            raise TrackingError(
                f"{config.tracking.registered_model} has no versions.",
                "Train a model first, or correct storage.root or tracking.uri.",
            )
    else:
        entrants = _of_name(config, storage, run or config.run.name)
    return [
        Entrant(entrant.label, entrant.version, entrant.version.tags.get(records.WITHDRAWN, ""))
        for entrant in entrants
    ]


def _of_name(config: Config, storage: Storage, name: str) -> list[Entrant]:
    """The candidates of a sweep, the one run of a name, or the version of an MLflow run id."""
    sweep = sweeps.find(storage, name)
    if sweep is not None:
        found = [_of_run(config, storage, label, run) for label, run in sweep.runs.items()]
        if entrants := [one for one in found if one is not None]:
            return entrants
    if only := _of_run(config, storage, name, name):
        return [only]
    if by_id := registry.by_run(config, name):
        return [Entrant(f"run {name[:8]}", by_id)]
    known = sorted({*storage.names(sweeps.FOLDER), *storage.names(runs.FOLDER)})
    state = "is not finished" if name in known else f"does not exist in {storage.root}"
    raise ConfigError(
        f"{'sweep' if sweep else 'run'} {name} {state}.",
        "Train it to its end, name another with --run, or give --run '*' for every registered version.",
    )


def _of_run(config: Config, storage: Storage, label: str, name: str) -> Entrant | None:
    """The version that a finished run registered; None where the run is not finished."""
    record = runs.finished(storage, name)
    if record is None:
        return None
    registered = tracking.register(config, storage, record).version
    if registered is None:
        raise TrackingError(
            f"run {name} is finished, but neither {tracking.uri(config)} nor the spool knows it.",
            "Correct tracking.uri, or train it again with --run.restart true.",
        )
    version = require(config, registered)
    if record.run_id and version.run_id != record.run_id:
        raise TrackingError(
            f"version {version.version} of {version.name} was registered by run {version.run_id}, "
            f"not by {name} ({record.run_id}).",
            "Correct tracking.uri or tracking.registered_model.",
        )
    return Entrant(label, version)


def require(config: Config, version: int) -> ModelVersion:
    """Return a version by its number.

    Raises:
        TrackingError: There is none, or the registry does not answer.
    """
    found = registry.by_number(config, version)
    if found is None:
        name = config.tracking.registered_model
        raise TrackingError(f"{name} has no version {version}.", "See `mlflow ui` for those it has.")
    return found

"""Which model a person means by a run's name, a version or nothing at all (driver)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from distml import tracking
from distml.config import Config
from distml.errors import ConfigError, TrackingError
from distml.storage import Storage
from distml.tracking import champions, runs


@dataclass(frozen=True)
class Chosen:
    """A model to ask.

    Args:
        model: Its name in the registry.
        version: Its version, None where it is not registered.
        folder: Its export on this machine.
        sha256: What the registry says about the export.
        why: Said to the person when it is not what they may expect.
    """

    model: str
    version: int | None
    folder: Path
    sha256: str | None = None
    why: str = ""


def choose(config: Config, run: str | None, version: int | None, into: Path) -> Chosen:
    """Find the model that is meant and bring its files to this machine.

    Args:
        config: Says where runs and the registry are.
        run: A run's name, or an MLflow run id.
        version: Of the registered model; without it and `run`, the champion, else the newest.
        into: Folder for files that are elsewhere.

    Raises:
        ConfigError: Both are given, or there is no such run.
        TrackingError: There is no such version, or the registry does not answer.
    """
    if run is not None and version is not None:
        raise ConfigError("--run and --version both name a model.", "Give one of them.")
    if run is not None:
        return _of_run(config, run, into)
    if version is not None:
        return _registered(config, champions.by_number(config, version), f"version {version} of", into)
    champion = champions.by_alias(config)
    if champion is not None:
        return _registered(config, champion, "", into)
    newest = champions.newest(config)
    why = f"no version is the {champions.CHAMPION} yet; the newest one answers"
    return _registered(config, newest, "a version of", into, why)


def _registered(
    config: Config, found: champions.Version | None, what: str, into: Path, why: str = ""
) -> Chosen:
    if found is None:
        name = config.tracking.registered_model
        raise TrackingError(
            f"{tracking.uri(config)} does not have {what} {name}.",
            "Train a model first, give --run with a run's name, or correct storage.root or tracking.uri.",
        )
    folder = champions.fetch(config, found, into)
    return Chosen(found.name, found.version, folder, found.sha256, why)


def _of_run(config: Config, name: str, into: Path) -> Chosen:
    """The export of a run of this storage, without asking the registry; else an MLflow run id."""
    storage = Storage(config.storage.root)
    known = storage.names(runs.FOLDER)
    if name in known:
        record = runs.finished(storage, name)
        if record is None:
            raise ConfigError(f"run {name} is not finished.", "Start it again to finish it.")
        version = record.result.get("version")
        model = str(record.result.get("model") or config.tracking.registered_model)
        if storage.local:
            into = Path(storage.uri(*record.export))
        else:
            storage.download(into, *record.export)
        return Chosen(model, int(version) if version else None, into, record.result.get("sha256"))
    found = champions.by_run(config, name)
    if found is None:
        close = difflib.get_close_matches(name, known, 1)
        guess = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known) or 'none'}."
        raise ConfigError(f"there is no run {name} in {storage.root} and none of that id.", guess)
    return _registered(config, found, "", into)

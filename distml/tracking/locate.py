"""Resolves a model by run, version or alias, verified, in trusted places; former champions (driver).

A writer of a registry may name any URI as the source of a version. What is loaded from there
is still checked against its SHA-256, but contacting an unknown server, or reading any file of this machine,
is harm enough. So a place is accepted only when it is one that this product writes to.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from distml.artifacts import layout
from distml.artifacts.layout import DIGESTS
from distml.config import Config
from distml.errors import ConfigError, ModelError, TrackingError
from distml.storage import Storage
from distml.tracking import registry, runs
from distml.tracking.registry import ModelVersion
from distml.tracking.server import ask, cause, client, patiently, uri


@dataclass(frozen=True)
class Chosen:
    """A model to ask.

    Attributes:
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
    """Choose a model and bring its files to this machine.

    Args:
        config: Says where runs and the registry are.
        run: A run's name, or an MLflow run id.
        version: Of the registered model; without it and `run`, the champion, else the newest.
        into: Folder for files that are elsewhere.

    Raises:
        ConfigError: Both are given, or there is no such run.
        TrackingError: There is no such version, or the registry does not respond.
        ModelError: It was registered without a SHA-256.
    """
    if run is not None and version is not None:
        raise ConfigError("--run and --version both name a model.", "Give one of them.")
    config = registry.briefly(config)
    if run is not None:
        return _of_run(config, run, into)
    if version is not None:
        return _registered(config, registry.by_number(config, version), f"version {version} of", into)
    champion = registry.by_alias(config)
    if champion is not None:
        return _registered(config, champion, "", into)
    why = f"no version is the {registry.CHAMPION} yet; the newest one answers"
    return _registered(config, registry.newest(config), "a version of", into, why)


def _registered(config: Config, version: ModelVersion | None, what: str, into: Path, why: str = "") -> Chosen:
    if version is None:
        name = config.tracking.registered_model
        raise TrackingError(
            f"{uri(config)} does not have {what} {name}.",
            "Train a model first, give --run with a run's name, or correct storage.root or tracking.uri.",
        )
    require_signed(version)
    return Chosen(version.name, version.version, fetch(config, version, into), version.sha256, why)


def _of_run(config: Config, name: str, into: Path) -> Chosen:
    """The export of a run of this storage, without asking the registry; else an MLflow run id."""
    storage = Storage(config.storage.root)
    known = storage.names(runs.FOLDER)
    if name in known:
        record = runs.finished(storage, name)
        if record is None:
            raise ConfigError(f"run {name} is not finished.", "Start it again to finish it.")
        model = str(record.result.get("model") or config.tracking.registered_model)
        if storage.local:
            into = Path(storage.uri(*record.paths.export))
        else:
            storage.download(into, *record.paths.export)
        return Chosen(model, record.version, into, record.result.get("sha256"))
    version = registry.by_run(config, name)
    if version is None:
        close = difflib.get_close_matches(name, known, 1)
        others = f"Known are {', '.join(known)}." if known else "There is no run yet."
        guess = f"Did you mean {close[0]}?" if close else others
        raise ConfigError(f"there is no run {name} in {storage.root} and none of that id.", guess)
    return _registered(config, version, "", into)


def require_signed(version: ModelVersion) -> str:
    """Return what a version's files must hash to; without it nothing that is fetched can be trusted.

    Raises:
        ModelError: It was registered without.
    """
    if version.sha256 is None:
        raise ModelError(
            f"{version.name} version {version.version} was registered without a SHA-256.",
            "Register models by `distml train`, which records it.",
        )
    return version.sha256


def verified(config: Config, version: ModelVersion, into: Path) -> layout.Export:
    """Fetch a version and verify its files: the only way to what `promote` measures and `serve` loads.

    Args:
        config: Names the registry and the places that models may come from.
        version: As the registry describes it.
        into: Folder for files that are elsewhere.

    Raises:
        TrackingError: The files are gone, cannot be fetched, or lie where no model of ours lies.
        ModelError: They are not what was registered, or nothing says what was.
    """
    sha256 = require_signed(version)
    return layout.verify(fetch(config, version, into), sha256)


def fetch(config: Config, version: ModelVersion, into: Path) -> Path:
    """Return the folder of a version's files, copied into a folder only when they are not on this machine.

    What was fetched is not trusted yet: `Predictor.load` verifies it against `version.sha256`.

    Raises:
        TrackingError: The files are gone, cannot be fetched, or lie where no model of ours lies.
    """
    location = registry.location(config, version)
    location = _moved(config, location, version.sha256) or location
    require_own(config, location, f"{version.name} version {version.version}")
    client(config)
    from mlflow.artifacts import download_artifacts

    here = location.startswith(("/", "file:"))

    def download() -> Any:
        return download_artifacts(
            artifact_uri=location, dst_path=None if here else str(into), tracking_uri=uri(config)
        )

    try:
        try:
            return Path(download())
        except Exception:
            if here:
                raise
            patiently(config, lambda: ask(config))  # it may have gone away meanwhile
            return Path(download())
    except Exception as error:  # every store of artifacts raises kinds of its own
        raise TrackingError(
            f"the files of {version.name} version {version.version} cannot be fetched from "
            f"{location}: {cause(error)}.",
            "Restore them there, or choose another --version.",
        ) from error


def _moved(config: Config, location: str, sha256: str | None) -> str | None:
    """Return where a version's files are when the storage root was renamed, copied or mounted elsewhere.

    The registry has absolute places. Below the root, the files have the same path as before, and the list of
    digests there has to be the registered one, so other files of the same name are rejected.

    Args:
        config: Names the storage root.
        location: As the registry has it.
        sha256: Of the export's list of digests, None where nothing is known: then nothing is looked for.

    Returns:
        None where the files are at the place that the registry gives, or nowhere.
    """
    storage = Storage(config.storage.root)
    if sha256 is None or _proxied(location, uri(config)) or not _climbless(location):
        return None
    if _below(location, storage.root) and (not storage.local or os.path.exists(_path(location))):
        return None
    parts = [part for part in _path(location).rpartition("://")[2].split("/") if part]
    for start in range(1, len(parts)):
        below = parts[start:]
        if storage.exists(*below, DIGESTS):
            digest = hashlib.sha256(storage.read_bytes(*below, DIGESTS)).hexdigest()
            if digest == sha256:
                return storage.uri(*below)
    return None


def require_own(config: Config, location: str, what: str) -> None:
    """Reject files that lie elsewhere than below the storage root, in the tracking server, or where allowed.

    Args:
        config: Names the storage root, the server and `tracking.artifact_roots`.
        location: URI or path that the registry gave.
        what: Said in the error.

    Raises:
        TrackingError: Another place, or a way out of an accepted one.
    """
    roots = [Storage(config.storage.root).root, *config.tracking.artifact_roots]
    if _proxied(location, uri(config)) or any(_below(location, root) for root in roots):
        return
    raise TrackingError(
        f"{what} has its files at {location[:200]!r}, which is neither below {roots[0]} "
        "nor among the artifacts of the tracking server.",
        "If you put them there, add the place to tracking.artifact_roots; else delete the version.",
    )


def _proxied(location: str, server: str) -> bool:
    """Whether the tracking server hands the files out itself; a host in such a URI is asked, so it counts."""
    parts = urlsplit(location)
    own = parts.netloc in ("", urlsplit(server).netloc)
    return parts.scheme == "mlflow-artifacts" and own and _climbless(parts.path) and not parts.query


def _below(location: str, root: str) -> bool:
    there, base = _path(location), _path(root)
    if "\0" in there:
        return False
    if "://" in there or "://" in base:
        inside = there == base or there.startswith(base.rstrip("/") + "/")
        return inside and _climbless(there)
    there, base = os.path.realpath(there), os.path.realpath(base)
    return os.path.commonpath([there, base]) == base


def _path(place: str) -> str:
    """A path of this machine as an absolute path, any other place as its URI without options."""
    parts = urlsplit(place)
    if parts.scheme in ("", "file") and parts.netloc in ("", "localhost"):
        return os.path.abspath(os.path.expanduser(unquote(parts.path) if parts.scheme else place))
    return place.partition("?")[0] if "://" in place else f"unknown://{place}"


def _climbless(path: str) -> bool:
    """Whether no part of a path climbs, however often it is percent-encoded."""
    while (plain := unquote(path)) != path:
        path = plain
    return not {".", ".."} & set(path.replace("\\", "/").split("/"))


_CHAMPIONS = "champions"
_REMEMBERED = 50
"""Champions that are remembered of a model."""


@dataclass(frozen=True)
class Champion:
    """A version that an endpoint has served as champion.

    Attributes:
        version: Its number.
        sha256: Of its files; a registry that was set up anew counts from one again.
        at: When, in seconds since 1970.
    """

    version: int
    sha256: str | None
    at: float


def _history(config: Config) -> tuple[str, ...]:
    registry_of = hashlib.sha256((config.tracking.uri or "").encode()).hexdigest()[:12]
    return (_CHAMPIONS, config.tracking.registered_model, f"{registry_of}.json")


def served_champions(config: Config) -> list[Champion]:
    """Return the versions that endpoints have served as champion, oldest first.

    A damaged file counts as none.

    Raises:
        StorageError: The storage does not respond.
    """
    storage = Storage(config.storage.root)
    if not storage.exists(*_history(config)):
        return []
    try:
        return [Champion(**entry) for entry in json.loads(storage.read_bytes(*_history(config)))]
    except (ValueError, TypeError):
        return []


def note_champion(config: Config, version: ModelVersion) -> None:
    """Record that an endpoint serves a version as champion: moving an alias manually leaves no record.

    Raises:
        StorageError: The storage fails.
    """
    storage = Storage(config.storage.root)
    with storage.lock(*_history(config)[:2]):
        known = served_champions(config)
        if known and (known[-1].version, known[-1].sha256) == (version.version, version.sha256):
            return
        known.append(Champion(version.version, version.sha256, time.time()))
        lines = [asdict(champion) for champion in known[-_REMEMBERED:]]
        storage.write_bytes(json.dumps(lines, indent=1).encode(), *_history(config))

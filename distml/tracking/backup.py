"""Backups of registry, runs and champion, and restoring them into an empty root (driver, CronJob).

A backup is content under its SHA-256, which backups share, and a manifest that is written last:

    manifests/20261128T170000000000Z.json
    objects/ab/abcd...

Records of runs are read before the database and files of models after it: whatever the database names had
been written by then, and a run in progress is in the backup as it was before. Training data and
checkpoints are left out: data are prepared again from their source, and an unfinished run begins again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distml import __version__
from distml.config import Config
from distml.errors import ConfigError, StorageError, TrackingError
from distml.storage import Storage
from distml.tracking import database, outbox, runs
from distml.tracking.database import Contents

logger = logging.getLogger(__name__)

MANIFESTS, OBJECTS, ARTIFACTS = "manifests", "objects", "mlflow-artifacts"
_RECORDS = (runs.FOLDER, runs.SWEEPS, outbox.FOLDER)
_SCHEMA = 1
_PROXIED = "mlflow-artifacts:"


@dataclass(frozen=True)
class File:
    """A file of a backup.

    Attributes:
        sha256: Of its content, which names the object.
        bytes: Its size.
        changed: When it was changed, seconds since 1970.
    """

    sha256: str
    bytes: int
    changed: float


@dataclass(frozen=True)
class Manifest:
    """A backup.

    Attributes:
        name: Sorts by time.
        root: Storage root that was backed up.
        database: Object that holds the dump.
        contents: Of the database.
        files: By path below the root; artifacts of a tracking server below `mlflow-artifacts`.
        distml: Version that wrote it.
        schema: Of this description.
    """

    name: str
    root: str
    database: str
    contents: Contents
    files: dict[str, File]
    distml: str = __version__
    schema: int = _SCHEMA

    def save(self, target: Storage) -> None:
        """Write it."""
        target.write_bytes(json.dumps(asdict(self), indent=1).encode(), MANIFESTS, f"{self.name}.json")

    @classmethod
    def read(cls, target: Storage, name: str) -> Manifest:
        """Read it.

        Raises:
            StorageError: There is none of that name, or it is damaged.
        """
        try:
            raw = json.loads(target.read_text(MANIFESTS, f"{name}.json"))
            if raw["schema"] != _SCHEMA:
                raise ValueError(f"schema {raw['schema']}, expected {_SCHEMA}")
            champions = {
                model: (version, digest) for model, (version, digest) in raw["contents"]["champions"].items()
            }
            contents = Contents(**raw["contents"] | {"champions": champions})
            files = {path: File(**file) for path, file in raw["files"].items()}
            return cls(**raw | {"contents": contents, "files": files})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where = target.uri(MANIFESTS, f"{name}.json")
            raise StorageError(
                f"{where} is damaged ({error!r}).", "Choose an earlier backup with --at."
            ) from None


def names(target: Storage) -> list[str]:
    """Return the names of the backups at a place, oldest first."""
    return [name.removesuffix(".json") for name in target.names(MANIFESTS) if name.endswith(".json")]


def backup(config: Config, to: str, artifacts: str | None = None, keep: int | None = None) -> dict[str, Any]:
    """Back up registry, runs and champion.

    Args:
        config: Names the storage root and the tracking server.
        to: Folder or URI that holds backups; what earlier ones hold already is not copied again.
        artifacts: Where the tracking server keeps artifacts; `mlflow-artifacts` below the root by default.
        keep: Number of newest backups to keep; None deletes none.

    Returns:
        `backup` (its name), `files`, `bytes`, `new_bytes` (copied this time), `rows`, `champions`, `manifest`
        and `elsewhere` (places of files that are not in the backup).

    Raises:
        ConfigError: The configuration does not say where the database is, or the backup would be in the root.
        TrackingError: The database cannot be read.
        StorageError: A file cannot be read or written; there is no new manifest.
    """
    storage, target = Storage(config.storage.root), Storage(to)
    if f"{target.root}/".startswith(f"{storage.root.rstrip('/')}/"):
        raise ConfigError(f"{to} lies below the storage root {storage.root}.", "Back up to another place.")
    uri = database.location(config)
    target.probe()
    with target.lock(OBJECTS):
        known = names(target)
        copier = _Copier(target, Manifest.read(target, known[-1]).files if known else {})
        for folder in _RECORDS:
            copier.copy(storage, folder, skipped="attempt-")
        with tempfile.TemporaryDirectory(prefix="distml-backup-") as folder:
            dumped = Path(folder) / "database.jsonl.gz"
            contents = database.dump(uri, dumped)
            rows = copier.put(Storage(folder), dumped.name)
        copier.copy(Storage(artifacts) if artifacts else storage, "" if artifacts else ARTIFACTS, ARTIFACTS)
        elsewhere = _copy_places(storage, copier, contents.places)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
        manifest = Manifest(stamp, storage.root, rows.sha256, contents, copier.files)
        manifest.save(target)
        if keep is not None:
            _prune(target, keep)
    return {
        "backup": stamp,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "new_bytes": copier.new_bytes,
        "rows": sum(contents.rows.values()),
        "champions": {model: version for model, (version, _) in contents.champions.items()},
        "elsewhere": elsewhere,
        "manifest": target.uri(MANIFESTS, f"{stamp}.json"),
    }


class _Copier:
    """Copies files to objects and remembers them. Final.

    Args:
        target: Holds the objects.
        before: Files of the backup before; those that have not changed since are not read again.
    """

    def __init__(self, target: Storage, before: dict[str, File]) -> None:
        self._target, self._before = target, before
        self._objects = {path.rpartition("/")[2] for path in target.files(OBJECTS)}
        self.files: dict[str, File] = {}
        self.new_bytes = 0

    def copy(self, source: Storage, folder: str, prefix: str = "", skipped: str | None = None) -> None:
        """Copy a folder of a source, but what is in folders that begin with `skipped`.

        Args:
            source: Holds it.
            folder: Below the source, "" for all of it.
            prefix: Name of the folder in the backup; that of the source by default.
            skipped: Beginning of names.
        """
        for path, (size, changed) in source.files(*filter(None, [folder])).items():
            if skipped and any(part.startswith(skipped) for part in path.split("/")[:-1]):
                continue
            name = f"{prefix}/{path.removeprefix(folder).lstrip('/')}" if prefix else path
            known = self._before.get(name)
            if known and (known.bytes, known.changed) == (size, changed) and known.sha256 in self._objects:
                self.files[name] = known
            elif name not in self.files:
                self.files[name] = self.put(source, path, changed)

    def put(self, source: Storage, path: str, changed: float = 0.0) -> File:
        """Make an object of one file."""
        digest, size = hashlib.sha256(), 0
        for chunk in source.read_chunks(path):
            digest.update(chunk)
            size += len(chunk)
        sha256 = digest.hexdigest()
        if sha256 not in self._objects:
            self._target.write_chunks(_checked(source.read_chunks(path), sha256, path), *_object(sha256))
            self._objects.add(sha256)
            self.new_bytes += size
        return File(sha256, size, changed)


def _object(sha256: str) -> tuple[str, ...]:
    return OBJECTS, sha256[:2], sha256


def _checked(chunks: Iterator[bytes], sha256: str, what: str) -> Iterator[bytes]:
    """Pass content on, and raise at its end where it is not what it should be: nothing is published then."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != sha256:
        actual = digest.hexdigest()
        raise StorageError(f"{what} has the SHA-256 {actual}, expected {sha256}.", "Retry.")


def _copy_places(storage: Storage, copier: _Copier, places: list[str]) -> list[str]:
    """Copy what rows name below the root outside of the usual folders; returns what lies elsewhere."""
    elsewhere = []
    for place in places:
        path = _below(storage.root, place)
        if path and not path.startswith((f"{ARTIFACTS}/", *(f"{folder}/" for folder in _RECORDS))):
            copier.copy(storage, path)
        if path is None and not place.startswith((_PROXIED, "models:/", "runs:/")):
            elsewhere.append(place)
    if elsewhere:
        logger.warning("%d places are not backed up, as %s", len(elsewhere), elsewhere[0])
    return elsewhere


def _forms(root: str) -> list[str]:
    """How a URI below a root may begin."""
    if "://" in root:
        return [root.partition("?")[0].rstrip("/")]
    return [Path(root).as_uri(), f"file://{root}", f"file:{root}", root]


def _below(root: str, place: str) -> str | None:
    """The path of a place below a root, "" for the root itself, None where it lies elsewhere."""
    for form in _forms(root):
        if place == form or place.startswith(f"{form}/"):
            path = place[len(form) :].strip("/")
            return None if ".." in path.split("/") else path  # rows are written by everybody
    return None


def _prune(target: Storage, keep: int) -> None:
    """Delete all but the newest backups, then every object that none of those names."""
    known = names(target)
    for name in known[: max(0, len(known) - max(1, keep))]:
        target.delete(MANIFESTS, f"{name}.json")
    kept = [Manifest.read(target, name) for name in names(target)]
    named = {manifest.database for manifest in kept}
    named |= {file.sha256 for manifest in kept for file in manifest.files.values()}
    for path in target.files(OBJECTS):
        if path.rpartition("/")[2] not in named:
            target.delete(*path.split("/"))


def restore(
    config: Config, source: str, at: str | None = None, artifacts: str | None = None
) -> dict[str, Any]:
    """Restore a backup into an empty storage root and an empty database.

    Files come first, each verified, and the rows last, all or none: the same call resumes after an
    interruption, and a registry never names files that are not there.

    Args:
        config: Names the new storage root and the new tracking server.
        source: Folder or URI that holds backups.
        at: Name of a backup; the newest by default.
        artifacts: As for `backup`.

    Returns:
        `backup`, `files`, `bytes`, `rows`, `champions` and `seconds`.

    Raises:
        ConfigError: There is no such backup.
        TrackingError: The database is not empty, or the rows are not those that were backed up.
        StorageError: An object is missing or damaged, or a file of the root has other content.
    """
    began = time.monotonic()
    storage, target = Storage(config.storage.root), Storage(source)
    known = names(target)
    if not known or (at and at not in known):
        raise ConfigError(
            f"{source} holds no backup{f' {at}' if at else ''}.",
            f"It holds {', '.join(known[-3:]) or 'none'}.",
        )
    manifest = Manifest.read(target, at or known[-1])
    uri = database.location(config)
    database.require_empty(uri)
    _require_objects(target, manifest)
    for path, file in manifest.files.items():
        _restore_file(target, storage, artifacts, path, file)
    with tempfile.TemporaryDirectory(prefix="distml-restore-") as folder:
        chunks = _checked(target.read_chunks(*_object(manifest.database)), manifest.database, "the dump")
        Storage(folder).write_chunks(chunks, "database.jsonl.gz")
        contents = database.load(uri, Path(folder) / "database.jsonl.gz", mover(manifest.root, config))
    if contents.champions != manifest.contents.champions:
        raise TrackingError(
            f"restored champions are {contents.champions}, not {manifest.contents.champions}."
        )
    return {
        "backup": manifest.name,
        "files": len(manifest.files),
        "bytes": sum(file.bytes for file in manifest.files.values()),
        "rows": sum(contents.rows.values()),
        "champions": {model: version for model, (version, _) in contents.champions.items()},
        "seconds": round(time.monotonic() - began, 1),
    }


def _require_objects(target: Storage, manifest: Manifest) -> None:
    """Reject a backup of which something is gone, before anything is written."""
    there = {path.rpartition("/")[2] for path in target.files(OBJECTS)}
    wanted = {manifest.database, *(file.sha256 for file in manifest.files.values())}
    if missing := sorted(wanted - there):
        raise StorageError(
            f"{len(missing)} of {len(wanted)} objects of {manifest.name} are missing, as {missing[0]}.",
            "Choose an earlier backup with --at.",
        )


def _restore_file(target: Storage, storage: Storage, artifacts: str | None, path: str, file: File) -> None:
    parts = path.split("/")
    if artifacts and parts[0] == ARTIFACTS:
        storage, parts = Storage(artifacts), parts[1:]
    if storage.exists(*parts):
        digest = hashlib.sha256()
        for chunk in storage.read_chunks(*parts):
            digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            raise StorageError(
                f"{storage.uri(*parts)} exists with other content.", "Restore into an empty root."
            )
        return
    storage.write_chunks(_checked(target.read_chunks(*_object(file.sha256)), file.sha256, path), *parts)


def mover(root: str, config: Config) -> Callable[[str], str]:
    """Return the mapping from a path in the backed up root to the restored path.

    Args:
        root: Storage root that was backed up.
        config: Names the new root. Without a tracking server, artifacts that one handed out are files there.
    """
    new = Storage(config.storage.root)
    base = new.root.partition("?")[0] if not new.local else Path(new.root).as_uri()
    embedded = not config.tracking.uri or config.tracking.uri.startswith("sqlite:")

    def moved(uri: str) -> str:
        if embedded and uri.startswith(_PROXIED):
            path = uri.removeprefix(_PROXIED)
            path = path[2:].partition("/")[2] if path.startswith("//") else path.strip("/")
            return f"{base}/{ARTIFACTS}/{path}"
        path_or_none = _below(root, uri)
        if path_or_none is None:
            return uri
        plain = new.local and uri.startswith("/")
        return f"{new.root if plain else base}/{path_or_none}".rstrip("/")

    return moved

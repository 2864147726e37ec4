"""Prepares data once as Parquet shards with a manifest (any process).

Shards are written to a folder of their writer's own; `manifest.json`, written last and atomically, points at
them. Data without a manifest do not exist; of two writers without a common lock the first one's manifest
counts and the other's files are removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from contextlib import suppress
from typing import Any

import PIL

from distml.config import Config, DataConfig, TaskConfig
from distml.data import jobs, schema
from distml.data.fetch import is_archive, is_remote, version
from distml.data.listing import Folder, placed
from distml.data.manifest import Manifest
from distml.data.opening import open_source
from distml.data.source import Source
from distml.data.writer import NOTES, write
from distml.errors import ConfigError, DataError, StorageError
from distml.storage import Storage

_LOG = logging.getLogger(__name__)
_MANIFEST, _OLDER = "manifest.json", "manifest-{}.json"
_FITTING = (
    *("image_size", "fit", "channels", "background", "max_pixels", "image_column", "label_column"),
    *("label_pattern", "subset"),
    *("margin", "encoding"),
    *("on_error", "max_error_fraction"),
)
"""Keys, besides the oldest, on which the prepared rows depend."""


def folder(config: Config) -> str:
    """Return where the configured data lie below the storage root; another recipe is another folder."""
    data = config.data
    by_name = data.path is None or ":" in data.format or is_remote(data.path)
    path = data.path if by_name or data.path is None else placed(data.path).root
    recipe: list[Any] = [data.format, path, data.val_fraction, data.split_seed]
    recipe += [data.shards, schema.VERSION]
    plain = (
        DataConfig()
    )  # what says nothing new keeps the folder of data prepared before there was such a key
    recipe += [[key, getattr(data, key)] for key in _FITTING if getattr(data, key) != getattr(plain, key)]
    recipe += [["task", config.task.kind]] if config.task != TaskConfig() else []
    return f"data/{data.name}-{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]}"


def find(config: Config, storage: Storage) -> Manifest | None:
    """Return the manifest of the configured data, None when they are not prepared; changes nothing.

    Data whose source has changed since are not prepared. Where the source cannot be read any more, what
    was prepared from it counts.

    Raises:
        DataError: The manifest is damaged.
        StorageError: The storage cannot be read.
    """
    manifest = _published(config, storage)
    return None if manifest is None or changed(config, manifest) else manifest


def changed(config: Config, manifest: Manifest) -> str | None:
    """Say how the source differs from what was prepared, None where it does not or it is not known."""
    if config.data.path is None or manifest.fingerprint is None:
        return None
    if is_remote(config.data.path):
        now_there = version(config.data.path)
        same = now_there in (None, manifest.fingerprint)
        return None if same else f"{config.data.path} changed since it was prepared"
    try:
        folder = Folder(config.data.path, without=(config.storage.root,))
    except (DataError, StorageError):
        return None
    if folder.fingerprint() == manifest.fingerprint:
        return None
    if is_archive(config.data.path):
        return f"{folder.root} changed since it was prepared"
    now, then = len(folder.sizes), (manifest.entries or 0) - sum(manifest.skipped.values())
    return f"{folder.root} changed since it was prepared ({then} files then, {now} now)"


def _published(config: Config, storage: Storage) -> Manifest | None:
    where = folder(config)
    if not storage.exists(where, _MANIFEST):
        return None
    return Manifest.from_json(storage.read_text(where, _MANIFEST), storage.uri(where, _MANIFEST))


def of_digest(storage: Storage, digest: str) -> Manifest | None:
    """Return the manifest of data that were prepared at some time, None where the storage has none of them.

    Raises:
        StorageError: The storage cannot be read.
    """
    for place in storage.names("data"):
        for name in storage.names("data", place):
            if name == _MANIFEST or name == _OLDER.format(digest[:8]):
                with suppress(DataError):
                    where = ("data", place, name)
                    manifest = Manifest.from_json(storage.read_text(*where), storage.uri(*where))
                    if manifest.digest == digest:
                        return manifest
    return None


def look(config: Config, storage: Storage) -> Source | None:
    """Open the source of data that are not prepared: what is wrong with them is said before anything starts.

    Raises:
        DataError: The data are missing, damaged, or not what their format says.
        StorageError: The storage cannot be read.
    """
    return open_source(config, storage) if find(config, storage) is None else None


def prepare(config: Config, storage: Storage, source: Source | None = None) -> Manifest:
    """Return the manifest of the configured data and ingest them first where there is none.

    Any number of processes may call this at once. Where they can lock, one ingests and the others wait, and
    what killed writers left is removed; in an object store such files stay, unread, for an expiry rule.

    Args:
        config: `data` says which.
        storage: Takes the shards.
        source: What `look` opened, None to open it now.

    Raises:
        DataError: The data are missing, damaged, or not what their format says; nothing was published.
        StorageError: The storage cannot be written or is full; nothing was published.
    """
    manifest = find(config, storage)
    if manifest is not None:
        _LOG.info("%s: version %s of the data, prepared before", manifest.name, manifest.digest[:8])
        return manifest
    where = folder(config)
    with storage.lock(where) as held:
        manifest = find(config, storage)
        if manifest is not None:
            return manifest
        before = _published(config, storage)
        if before is not None:
            _LOG.warning("%s; a new version is prepared", changed(config, before))
        source = source or open_source(config, storage)
        mine = _own(source)
        if before is None and held and storage.local:
            _clear(storage, where, mine)
        return _ingest(config, storage, source, (where, f"{where}/{mine}"), before)


def _own(source: Source) -> str:
    """Name a writer's folder: after what is written where that can be gone on with, else after nothing."""
    if source.fingerprint is None or any(rows.only is None for rows in source.splits.values()):
        return uuid.uuid4().hex[:8]
    recipe = [source.fingerprint, schema.VERSION, PIL.__version__, jobs.SHARD_BYTES, repr(source.policy)]
    recipe.append(jobs.RECORDS)
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:8]


def _clear(storage: Storage, where: str, mine: str) -> None:
    """Remove leftovers of killed writers, but those that this one resumes."""
    for name in storage.names(where, unfinished=True):
        if name == mine:
            done = len(storage.names(where, mine, NOTES))
            _LOG.info("resuming %s, where %d shards are written", storage.uri(where, name), done)
        else:
            _LOG.info("removing %s, left by a writer that was killed", storage.uri(where, name))
            storage.delete(where, name)


def _ingest(
    config: Config, storage: Storage, source: Source, folders: tuple[str, str], before: Manifest | None
) -> Manifest:
    """Write and publish; the shards of a version before stay for the runs that were trained on them."""
    where, mine = folders
    try:
        manifest = write(config, storage, source, where, mine)
        other = find(config, storage)
        if other is not None:
            if not _holds(other, mine):
                storage.delete(mine)
            return other
        if before is not None:
            storage.write_bytes(before.to_json().encode(), where, _OLDER.format(before.digest[:8]))
        storage.write_bytes(manifest.to_json().encode(), where, _MANIFEST)
    except BaseException as error:
        with suppress(StorageError, DataError):
            if _published(config, storage) == before and not _goes_on(error, storage, mine):
                storage.delete(mine)
        raise
    storage.delete(mine, NOTES)
    _LOG.info(
        "published %s: version %s, %s", storage.uri(where, _MANIFEST), manifest.digest[:8], manifest.rows
    )
    return manifest


def _holds(manifest: Manifest, folder: str) -> bool:
    """Whether a manifest points into a folder: two writers of the same rows may share it."""
    return any(shard.path.startswith(f"{folder}/") for some in manifest.shards.values() for shard in some)


def _goes_on(error: BaseException, storage: Storage, mine: str) -> bool:
    """Whether the same command can go on with what is written; data that are wrong must change first."""
    return not isinstance(error, DataError | ConfigError) and bool(storage.names(mine, NOTES))

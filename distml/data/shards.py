"""Prepares data once as Parquet shards with a manifest, and reads shards into arrays (any process).

Shards are written to a folder of their writer's own; `manifest.json`, written last and atomically, points at
them. Data without a manifest do not exist; of two writers without a common lock the first one's manifest
counts and the other's files are removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import Config, DataConfig, TaskConfig
from distml.data import jobs, schema
from distml.data.fetch import is_archive, is_remote, version
from distml.data.listing import Folder, placed
from distml.data.manifest import Manifest, Shard
from distml.data.opening import open_source
from distml.data.schema import Images
from distml.data.source import Source
from distml.data.writer import NAMES, NOTES, write
from distml.errors import ConfigError, DataError, StorageError
from distml.storage import Storage
from distml.tasks import Targets

__all__ = [
    "Manifest",
    "Shard",
    "class_counts",
    "find",
    "folder",
    "pick",
    "prepare",
    "read",
    "sample",
    "table",
    "tables",
]

_LOG = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_FITTING = (
    *("image_size", "fit", "channels", "background", "max_pixels", "image_column", "label_column"),
    *("label_pattern", "subset"),
    *("margin", "encoding"),
    *("on_error", "max_error_fraction"),
)
"""Keys, besides the oldest, on which the prepared rows depend."""
_AGAIN = "Delete the data set's folder and run ingest again."


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
        if before is None and held:
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
            kept = f"manifest-{before.digest[:8]}.json"
            storage.write_bytes(before.to_json().encode(), where, kept)
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


def table(storage: Storage, manifest: Manifest, split: str) -> Any:
    """Return a whole split as a `pyarrow.Table`, each shard checked against its SHA-256.

    Columns: `image` fixed-shape tensor of uint8 [H, W, C], `label` int32 or float32 [K], `row` int64, the
    position in the split (0 to N-1, ascending).

    Raises:
        DataError: A shard is missing or differs from what was published.
    """
    return pa.concat_tables(list(tables(storage, manifest, split)))


def tables(storage: Storage, manifest: Manifest, split: str) -> Iterator[Any]:
    """Yield a split as one `pyarrow.Table` per shard, for what need not hold all of it.

    Raises:
        DataError: A shard is missing or differs from what was published.
    """
    shape = manifest.shape_of(split)
    return (_verified(storage, shard, shape) for shard in manifest.shards[split])


def read(
    storage: Storage, manifest: Manifest, split: str, rank: int = 0, world_size: int = 1
) -> tuple[Images, Targets]:
    """Return the rows rank, rank + world_size, ... of a split as arrays, each shard checked.

    Args:
        storage: Where the shards are.
        manifest: Of the data.
        split: `train`, `validation` or `test`.
        rank: First row.
        world_size: Step.

    Returns:
        uint8 [N, H, W, C] and targets [N] or [N, K]; the ranks' rows are disjoint and together all.

    Raises:
        DataError: A shard is missing or differs from what was published.
    """
    count = len(range(rank, manifest.rows[split], world_size))
    images, labels = np.empty((count, *manifest.shape_of(split)), np.uint8), manifest.task.empty(count)
    first = filled = 0
    for table in tables(storage, manifest, split):
        mine = slice((rank - first) % world_size, None, world_size)
        some = schema.to_targets(table[schema.LABEL])[mine]
        images[filled : filled + len(some)] = schema.to_images(table[schema.IMAGE])[mine]
        labels[filled : filled + len(some)] = some
        filled += len(some)
        first += len(table)
    return images, labels


def names(storage: Storage, manifest: Manifest, split: str) -> list[str]:
    """Return the files of a held-out split's rows, none where they are of no files or an older ingest."""
    with suppress(StorageError, ValueError, LookupError, TypeError):
        above = manifest.shards[split][0].path.rpartition("/")[0]
        told = json.loads(storage.read_text(above, NAMES))[split]
        return [str(name) for name in told] if len(told) == manifest.rows[split] else []
    return []


def pick(storage: Storage, manifest: Manifest, split: str, rows: Sequence[int]) -> tuple[Images, Targets]:
    """Return some rows of a split in the order given; only shards that hold one of them are read.

    Raises:
        DataError: A shard is missing or differs from what was published.
    """
    wanted = np.asarray(rows, np.int64)
    shape = manifest.shape_of(split)
    images, labels = np.empty((len(wanted), *shape), np.uint8), manifest.task.empty(len(wanted))
    first = 0
    for shard in manifest.shards[split]:
        at = np.flatnonzero((wanted >= first) & (wanted < first + shard.rows))
        if len(at):
            some = _verified(storage, shard, shape).take(pa.array(wanted[at] - first))
            images[at] = schema.to_images(some[schema.IMAGE])
            labels[at] = schema.to_targets(some[schema.LABEL])
        first += shard.rows
    return images, labels


_SAMPLED_SHARDS = 8


def sample(storage: Storage, manifest: Manifest, split: str, count: int) -> Images:
    """Return images spread over a split, at most `count` of them, from few of its shards.

    Raises:
        DataError: A shard is missing or differs from what was published.
    """
    every = manifest.shards[split]
    some = every[:: -(-len(every) // _SAMPLED_SHARDS)]
    each = -(-count // len(some))
    parts = []
    for shard in some:
        table = _verified(storage, shard, manifest.shape_of(split))
        parts.append(schema.to_images(table.take(_spread(len(table), each))[schema.IMAGE]))
    images = np.concatenate(parts)
    return images[_spread(len(images), count)]


def _spread(rows: int, count: int) -> npt.NDArray[np.int64]:
    """Numbers of at most `count` rows, evenly spaced."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))


def class_counts(storage: Storage, manifest: Manifest, split: str) -> npt.NDArray[np.int64]:
    """Return the rows of each class in a split, int64 [classes]; reads the labels alone.

    Raises:
        StorageError: A shard cannot be read.
    """
    filesystem, base = storage.arrow()
    counts = np.zeros(manifest.num_classes, np.int64)
    for shard in manifest.shards[split]:
        try:
            with pq.ParquetFile(f"{base.rstrip('/')}/{shard.path}", filesystem=filesystem) as file:
                labels = file.read(columns=[schema.LABEL], use_threads=False)[schema.LABEL]
        except OSError as error:
            raise StorageError(f"cannot read {storage.uri(shard.path)}: {error}.") from None
        counts += manifest.task.counts(schema.to_targets(labels))
    return counts


def _verified(storage: Storage, shard: Shard, shape: tuple[int, int, int]) -> Any:
    try:
        data = storage.read_bytes(shard.path)
    except StorageError as error:
        raise DataError(error.message, _AGAIN) from None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DataError(
            f"{storage.uri(shard.path)} is not the file that was published (SHA-256 differs).",
            _AGAIN,
        )
    # `pq.read_table` would import pandas first, a second or two in every process that reads.
    with pq.ParquetFile(pa.BufferReader(data)) as file:
        return schema.decoded(file.read(use_threads=False), shape)

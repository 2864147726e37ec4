"""Reads the Parquet shards of prepared data into tables and arrays, each checked (any process)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.data import schema
from distml.data.manifest import NAMES, Manifest, Shard
from distml.data.schema import Images
from distml.errors import DataError, StorageError
from distml.storage import Storage
from distml.tasks import Targets

__all__ = ["Manifest", "Shard", "class_counts", "names", "pick", "read", "sample", "table", "tables"]

_AGAIN = "Delete the data set's folder and run ingest again."


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

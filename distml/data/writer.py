"""Rows become Parquet files of a form that is fast to read (driver)."""

from __future__ import annotations

import hashlib
import logging

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import Config
from distml.data import schema
from distml.data.manifest import Manifest, Shard
from distml.data.schema import Images, Labels
from distml.data.source import Rows, Source
from distml.data.split import Part, plan
from distml.storage import Storage

_LOG = logging.getLogger(__name__)

_GROUP_ROWS = 4096
_GROUP_BYTES = 4 << 20  # Arrow takes sixteen times as much while it encodes or decodes a group
# Parquet knows no bytes: each pixel is an INT32, so the encoding decides. Measured on 60,000 images of
# 28 x 28 in 8 files, one thread of 2 busy cores: dictionary + zstd 0.39 s and 27 MB, plain 0.46 s and 189 MB,
# plain + lz4 0.53 s and 53 MB, delta + zstd 0.44 s and 38 MB. Byte-stream-split + zstd (0.35 s, 27 MB) is no
# faster within the noise, and fewer readers know it.
_WRITE = {
    "compression": "zstd",
    "compression_level": 1,
    "use_dictionary": [f"{schema.IMAGE}.list.element"],
    "write_statistics": False,
}


def write(config: Config, storage: Storage, source: Source, where: str, mine: str) -> Manifest:
    """Divide a source and write its shards; the manifest is returned, not written.

    Args:
        config: `data` says how.
        storage: Takes the files.
        source: What is written.
        where: Folder of the data set.
        mine: Folder of this writer.

    Raises:
        DataError: An image that cannot be used, or too few rows.
        StorageError: The storage cannot be written or is full.
    """
    labels = {split: rows.labels for split, rows in source.splits.items()}
    parts = plan(labels, config.data.val_fraction, config.data.split_seed)
    shards = {
        split: tuple(_split(config, storage, source.splits[part.origin], part, f"{mine}/{split}"))
        for split, part in parts.items()
    }
    return Manifest(
        name=config.data.name,
        shape=source.shape,
        classes=source.classes,
        rows={split: len(part.rows) for split, part in parts.items()},
        shards=shards,
        sources=source.origins,
        seed=config.data.split_seed,
        val_fraction=config.data.val_fraction,
        schema_version=schema.VERSION,
        folder=where,
        policy=source.policy,
    )


def _split(config: Config, storage: Storage, rows: Rows, part: Part, prefix: str) -> list[Shard]:
    """Write one split; each pass over the source gathers as many whole shards as the budget holds."""
    count = max(1, min(config.data.shards, len(part.rows)))
    bounds = [len(part.rows) * k // count for k in range(count + 1)]
    shard_bytes = rows.gather(part.rows[:1]).nbytes * (bounds[-1] // count + 1)
    at_once = max(1, config.data.memory_budget_bytes // max(1, shard_bytes))
    shards = []
    for begin in range(0, count, at_once):
        first, last = bounds[begin], bounds[min(begin + at_once, count)]
        images = rows.gather(part.rows[first:last])
        for k in range(begin, min(begin + at_once, count)):
            span = slice(bounds[k], bounds[k + 1])
            mine = images[span.start - first : span.stop - first]
            path = f"{prefix}-{k:05d}.parquet"
            shards.append(_shard(storage, path, mine, rows.labels[part.rows[span]], span.start))
        _LOG.info("wrote %s: %d of %d rows", prefix, last, len(part.rows))
    return shards


def _shard(storage: Storage, path: str, images: Images, labels: Labels, first: int) -> Shard:
    table = schema.to_table(images, labels, np.arange(first, first + len(labels), dtype=np.int64))
    size = min(_GROUP_ROWS, max(1, _GROUP_BYTES // max(1, images[:1].nbytes)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=size, **_WRITE)
    data = sink.getvalue()
    storage.write_bytes(data, path)
    return Shard(path, len(labels), len(data), hashlib.sha256(data).hexdigest())

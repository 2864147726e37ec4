"""Rows become Parquet files that are fast to read, and are looked at while they are written (driver)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import Config
from distml.data import duplicates, schema
from distml.data.manifest import Manifest, Shard
from distml.data.schema import Images, Labels
from distml.data.source import ENOUGH_FAULTS, Fault, Indices, Rows, Source, require_usable, with_margin
from distml.data.split import Part, plan
from distml.errors import DataError
from distml.storage import Storage

_FEW_LEVELS = 32
"""Pixels that use fewer values from zero on were probably never scaled to 0 to 255."""


class SecondLook:
    """Sees every row once, while it is written. Final.

    Args:
        inner: (H, W) in the middle of the pictures by which near duplicates are found; None looks for none,
            as among arrays, whose few pixels are alike too easily.
    """

    def __init__(self, inner: tuple[int, int] | None = None) -> None:
        self._inner, self._across_splits = inner, duplicates.Across()
        self._rows = 0
        self._top = 0
        self._constant: list[str] = []
        self._seen: dict[bytes, tuple[str, int]] = {}
        self._twice = self._across = self._torn = 0
        self._example = ""

    def see(self, split: str, images: Images, labels: Labels, names: Sequence[str]) -> None:
        """Look at some rows.

        Args:
            split: They belong to.
            images: uint8 [N, H, W, C].
            labels: int32 [N].
            names: What they are called, [N].
        """
        if not len(images):
            return
        flat = images.reshape(len(images), -1)
        self._rows += len(flat)
        self._top = max(self._top, int(flat.max()))
        for at in np.flatnonzero(flat.min(1) == flat.max(1)).tolist():
            self._constant.append(names[at])
        if self._inner is not None:
            top, left = ((images.shape[axis] - self._inner[axis - 1]) // 2 for axis in (1, 2))
            middle = images[:, top : top + self._inner[0], left : left + self._inner[1]]
            self._across_splits.see(split, middle, names)
        for row, label, name in zip(flat, labels.tolist(), names, strict=True):
            key = hashlib.blake2b(row.tobytes(), digest_size=12).digest()
            split_before, label_before = self._seen.setdefault(key, (split, -1))
            if label_before == -1:
                self._seen[key] = (split, label)
                continue
            self._twice += 1
            self._across += split_before != split
            self._torn += label_before != label
            self._example = self._example or name

    def warnings(self) -> tuple[str, ...]:
        """Say what was noticed, a sentence each."""
        said = list(self._across_splits.warnings())
        if self._rows and self._top < _FEW_LEVELS:
            said.append(f"all pixel values lie in 0 to {self._top}; 0 to 255 is expected.")
        if self._constant:
            many = f"{len(self._constant)} of {self._rows} images are of one colour"
            said.append(f"{many} and show nothing, like {self._constant[0]}.")
        if self._twice:
            across = (
                f", {self._across} of them in another split, where they cannot judge" if self._across else ""
            )
            torn = f", {self._torn} with another label" if self._torn else ""
            many = "1 image is" if self._twice == 1 else f"{self._twice} images are"
            said.append(f"{many} the same as an earlier one, like {self._example}{across}{torn}.")
        return tuple(said)


def label_warnings(counts: dict[str, list[int]], classes: Sequence[str]) -> tuple[str, ...]:
    """Say what is odd about how the classes are divided.

    Args:
        counts: Rows of each class, by split.
        classes: Their names.
    """
    said = []
    for split, rows in counts.items():
        empty = [name for name, count in zip(classes, rows, strict=True) if not count]
        if empty:
            said.append(
                f"{split} has no row of {', '.join(empty[:5])}{' and others' if len(empty) > 5 else ''}."
            )
    return tuple(said)


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
        DataError: Images that cannot be used, or too few rows.
        StorageError: The storage cannot be written or is full.
    """
    labels = {split: rows.labels for split, rows in source.splits.items()}
    cut = not {"validation", "test"} <= labels.keys()
    together = duplicates.to_keep_together(source.splits["train"]) if cut and source.policy else None
    parts = plan(labels, config.data.val_fraction, config.data.split_seed, together)
    writer = _Writer(config, storage, source)
    shards = {split: tuple(writer.split(split, part, f"{mine}/{split}")) for split, part in parts.items()}
    left_out = (*source.faults, *writer.faults)
    require_usable(left_out, writer.looked_at, config.data)
    warnings = (*writer.look.warnings(), *label_warnings(writer.counts, source.classes))
    _require_all_classes(writer.counts["train"], labels["train"], source.classes)
    for warning in warnings:
        _LOG.warning("%s", warning)
    return Manifest(
        name=config.data.name,
        shape=source.shape,
        classes=source.classes,
        rows={split: sum(shard.rows for shard in shards[split]) for split in parts},
        shards=shards,
        sources=source.origins,
        seed=config.data.split_seed,
        val_fraction=config.data.val_fraction,
        schema_version=schema.VERSION,
        folder=where,
        policy=source.policy,
        train_size=None if writer.wide is None else writer.wide.shape[:2],
        fingerprint=source.fingerprint,
        entries=None if source.ledger is None else source.ledger.entries,
        skipped={} if source.ledger is None else source.ledger.counts(),
        left_out=tuple((fault.name, fault.reason) for fault in left_out),
        warnings=warnings,
    )


def _require_all_classes(written: list[int], given: Labels, classes: tuple[str, ...]) -> None:
    """Refuse data of which a class has lost every training row."""
    lost = [name for label, name in enumerate(classes) if not written[label] and (given == label).any()]
    if lost:
        raise DataError(
            f"no picture of {', '.join(lost)} can be used for training.", "Mend or remove the class."
        )


class _Writer:
    """Writes splits and keeps count of what cannot be used. Final."""

    def __init__(self, config: Config, storage: Storage, source: Source) -> None:
        self._config, self._storage, self._source = config, storage, source
        self.look = SecondLook(None if source.policy is None else source.shape[:2])
        self.faults: list[Fault] = []
        self.looked_at = len(source.faults)
        self.wide = with_margin(source, config.data.margin)
        self.counts: dict[str, list[int]] = {}

    def split(self, split: str, part: Part, prefix: str) -> list[Shard]:
        """Write one split; each pass over the source gathers as many whole shards as the budget holds."""
        rows, shape = self._source.splits[part.origin], self._source.shape
        if split == "train" and self.wide is not None and rows.fitted is not None:
            rows, shape = rows.fitted(self.wide), self.wide.shape
        counts = self.counts[split] = [0] * len(self._source.classes)
        count = max(1, min(self._config.data.shards, len(part.rows)))
        bounds = [len(part.rows) * k // count for k in range(count + 1)]
        shard_bytes = int(np.prod(shape)) * (bounds[-1] // count + 1)
        at_once = max(1, self._config.data.memory_budget_bytes // max(1, shard_bytes))
        shards = []
        for begin in range(0, count, at_once):
            ends = bounds[begin : min(begin + at_once, count) + 1]
            images, kept = self._gather(rows, part.rows[ends[0] : ends[-1]])
            for k, (first, last) in enumerate(pairwise(ends), begin):
                mine = slice(first - ends[0], last - ends[0])
                numbers = np.arange(first, last, dtype=np.int64)[kept[mine]]
                some = images[mine] if kept[mine].all() else images[mine][kept[mine]]
                labels = rows.labels[part.rows[numbers]]
                self.look.see(split, some, labels, [rows.name(int(row)) for row in part.rows[numbers]])
                for label, found in zip(*np.unique(labels, return_counts=True), strict=True):
                    counts[label] += int(found)
                shards.append(_shard(self._storage, f"{prefix}-{k:05d}.parquet", some, labels, numbers))
            _LOG.info("wrote %s: %d of %d rows", prefix, ends[-1], len(part.rows))
        return shards

    def _gather(self, rows: Rows, wanted: Indices) -> tuple[Images, npt.NDArray[np.bool_]]:
        """Return the rows and which of them can be used."""
        gathered = rows.gather(wanted)
        self.looked_at += len(wanted)
        self.faults += [fault for _, fault in sorted(gathered.faults.items())]
        if len(self.faults) >= ENOUGH_FAULTS and self._config.data.on_error == "fail":
            require_usable(self.faults, self.looked_at, self._config.data)
        kept = np.ones(len(wanted), bool)
        kept[list(gathered.faults)] = False
        return gathered.images, kept


def _shard(storage: Storage, path: str, images: Images, labels: Labels, numbers: Indices) -> Shard:
    table = schema.to_table(images, labels, numbers)
    size = min(_GROUP_ROWS, max(1, _GROUP_BYTES // max(1, images[:1].nbytes)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=size, **_WRITE)
    data = sink.getvalue()
    storage.write_bytes(data, path)
    return Shard(path, len(labels), len(data), hashlib.sha256(data).hexdigest())

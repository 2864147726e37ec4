"""Divides a source into shards, has `data.jobs` write them, collects warnings about rows (driver)."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from distml import tasks
from distml.config import Config
from distml.data import duplicates, jobs, schema
from distml.data.jobs import Job, Pool, Record
from distml.data.manifest import NAMES, Manifest, Shard
from distml.data.schema import Images
from distml.data.source import (
    ENOUGH_FAULTS,
    Fault,
    Gathered,
    Indices,
    Rows,
    Source,
    require_all_classes,
    require_usable,
    with_margin,
)
from distml.data.split import Part, plan
from distml.errors import ConfigError
from distml.storage import Storage
from distml.tasks import Targets

_FEW_LEVELS = 32
"""Pixels that use fewer values from zero on were probably never scaled to 0 to 255."""


class SecondLook:
    """Called with every row once, when it is written. Final."""

    def __init__(self) -> None:
        self._across_splits = duplicates.Across()
        self._rows = 0
        self._top = 0
        self._constant: list[str] = []
        self._seen: dict[bytes, tuple[str, Any]] = {}
        self._twice = self._across = self._torn = 0
        self._example = ""

    def see(self, split: str, record: Record, labels: Targets, names: Sequence[str]) -> None:
        """Look at the rows of a shard.

        Args:
            split: They belong to.
            record: What was seen when they were written.
            labels: Targets of the task.
            names: What they are called, [N].
        """
        self._rows += len(names)
        self._top = max(self._top, record.top)
        self._constant += [names[at] for at in record.constant]
        if record.signatures:
            self._across_splits.see(split, duplicates.Signatures.from_bytes(record.signatures), names)
        for digest, label, name in zip(record.digests, labels.tolist(), names, strict=True):
            key = bytes.fromhex(digest)
            if key not in self._seen:
                self._seen[key] = (split, label)
                continue
            split_before, label_before = self._seen[key]
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
                f", {self._across} of them in another split, where they bias its metrics"
                if self._across
                else ""
            )
            torn = f", {self._torn} with another label" if self._torn else ""
            many = "1 image is" if self._twice == 1 else f"{self._twice} images are"
            said.append(f"{many} the same as an earlier one, like {self._example}{across}{torn}.")
        return tuple(said)


_APART = re.compile(r"[\s_-]+")
_COPY = re.compile(r"( copy)?( ?\(\d+\))?$")
"""What file managers add to the name of a copy."""
_NUMBER = re.compile(r"0*(\d+)(\.0*)?")
_ABSENT = frozenset(("na", "n/a", "#n/a", "<na>", "null", "none", "nil", "nan", "?", "-"))
"""How spreadsheets, pandas, R and SQL write what is missing, in lower case."""
_LIST = re.compile(r"\[.*\]|\{.*\}|\(.*,.*\)", re.DOTALL)


def _plain(name: str) -> str:
    """Return what two spellings of one class have in common."""
    visible = "".join(sign for sign in name if unicodedata.category(sign) != "Cf")
    plain = _COPY.sub("", " ".join(_APART.split(visible.casefold().strip())))
    return _NUMBER.sub(r"\1", plain) if _NUMBER.fullmatch(plain) else plain


def label_warnings(counts: dict[str, list[int]], classes: Sequence[str]) -> tuple[str, ...]:
    """Say what is odd about how the classes are divided.

    Args:
        counts: Rows of each class, by split.
        classes: Their names.
    """
    said = []
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(_plain(name), []).append(name)
    for names in (names for names in alike.values() if len(names) > 1):
        shown = " and ".join(map(repr, names))
        said.append(
            f"the classes {shown} differ in case, separators, leading zeros or a copy's number only; "
            "rename them if they are one class."
        )
    for name in classes:
        if name.strip().casefold() in _ABSENT or (name == "-1" and "0" in classes):
            said.append(
                f"the class {name!r} reads like a missing label; remove its rows if that is what it means."
            )
        elif _LIST.fullmatch(name.strip()) or "|" in name:
            said.append(
                f"the class {name!r} reads like a list of labels; set task.kind: multilabel if it is one."
            )
    for split, rows in counts.items():
        empty = [name for name, count in zip(classes, rows, strict=True) if not count]
        if empty:
            said.append(
                f"{split} has no row of {', '.join(empty[:5])}{' and others' if len(empty) > 5 else ''}."
            )
    return tuple(said)


_LOG = logging.getLogger(__name__)


NOTES = "notes"
"""Folder, below the writer's own, of what finished jobs say."""


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
    for note in source.notes:
        _LOG.warning("%s", note)
    with _pool(config, storage, source) as pool:
        run = None if pool is None else pool.run
        parts = divide(config, source, run)
        task = source.task.fitted(source.splits["train"].labels[parts["train"].rows])
        writer = _Writer(config, storage, source, parts)
        shards = writer.write(mine, pool)
        writer.tell_names(mine)
    left_out = (*source.faults, *writer.faults)
    require_usable(left_out, writer.looked_at, config.data)
    doubts = task.doubts(source.splits["train"].labels[parts["train"].rows])
    warnings = (*writer.look.warnings(), *label_warnings(writer.counts, task.names), *doubts)
    given = task.counts(source.splits["train"].labels)
    require_all_classes([task.names[at] for at in np.flatnonzero(given) if not writer.counts["train"][at]])
    for warning in warnings:
        _LOG.warning("%s", warning)
    return Manifest(
        name=config.data.name,
        shape=source.shape,
        classes=task.names,
        target=task.spec() if task.spec() != tasks.restore(task.names, None).spec() else None,
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
        warnings=(*source.notes, *warnings),
        encoding=None if writer.encoding == "tensor" else writer.encoding,
    )


def _pool(config: Config, storage: Storage, source: Source) -> AbstractContextManager[Pool | None]:
    """What does the work: None where rows can only be read one after the other."""
    splits = source.splits.values()
    if any(rows.only is None for rows in splits):
        return nullcontext(None)
    first = source.splits["train"]
    return jobs.pool(
        *(config, storage, source.origins[0].uri, sum(len(rows.labels) for rows in splits)),
        lambda count: first.gather(np.arange(min(count, len(first.labels)), dtype=np.int64)),
    )


def divide(config: Config, source: Source, run: duplicates.Run | None = None) -> dict[str, Part]:
    """Divide a source as its shards are divided; near duplicates among pictures stay together.

    Args:
        config: `data` says how.
        source: What is divided.
        run: Runs the jobs that look for near duplicates; None runs them in this process.
    """
    strata = {split: source.task.strata(rows.labels) for split, rows in source.splits.items()}
    cut = not {"validation", "test"} <= strata.keys()
    together = duplicates.to_keep_together(source.splits["train"], run) if cut and source.pictures else None
    return plan(strata, config.data.val_fraction, config.data.split_seed, together)


@dataclass(frozen=True)
class _Piece:
    """The rows of one shard: from `first` to `last` of a split."""

    split: str
    first: int
    last: int
    path: str
    note: str


class _Writer:
    """Writes splits and keeps count of what cannot be used. Final."""

    def __init__(self, config: Config, storage: Storage, source: Source, parts: Mapping[str, Part]) -> None:
        self._config, self._storage, self._source, self._parts = config, storage, source, parts
        self.look = SecondLook()
        self.faults: list[Fault] = []
        self.looked_at = len(source.faults)
        self.wide = with_margin(source, config.data.margin)
        self.names: dict[str, list[str]] = {split: [] for split in parts if split != "train"}
        self.counts = {split: [0] * len(source.task.names) for split in parts}
        self.encoding = encoding(config, source, len(parts["train"].rows) * self._row_bytes("train"))

    def write(self, mine: str, pool: Pool | None) -> dict[str, tuple[Shard, ...]]:
        """Write all splits below a folder."""
        pieces = {split: self._pieces(split, mine) for split in self._parts}
        written: dict[str, Record] = {}
        progress = jobs.Progress(sum(len(part.rows) for part in self._parts.values()))
        ordered = [piece for some in pieces.values() for piece in some]
        made = self._passes(pieces) if pool is None else pool.run(jobs.run, map(self._job, ordered))
        with closing(made):
            for record in made:
                written[record.shard.path] = record
                self._bear(record)
                progress.add(record)
        self.faults = [fault for piece in ordered for fault in written[piece.path].faults.values()]
        for piece in ordered:
            self._see(piece, written[piece.path])
        return {s: tuple(written[piece.path].shard for piece in some) for s, some in pieces.items()}

    def tell_names(self, mine: str) -> None:
        """Keep the files of the held-out rows, so that a report can name and show its mistakes."""
        if any(self.names.values()):
            self._storage.write_bytes(json.dumps(self.names).encode(), mine, NAMES)

    def _rows(self, split: str) -> Rows:
        rows = self._source.splits[self._parts[split].origin]
        if split == "train" and self.wide is not None and rows.fitted is not None:
            return rows.fitted(self.wide)
        return rows

    def _row_bytes(self, split: str) -> int:
        shape = self.wide.shape if split == "train" and self.wide is not None else self._source.shape
        return max(1, int(np.prod(shape)))

    def _pieces(self, split: str, mine: str) -> list[_Piece]:
        """Divide a split into as many shards as are asked for, and more where they would be too large."""
        total = len(self._parts[split].rows)
        most = max(1, jobs.SHARD_BYTES // self._row_bytes(split))
        count = max(1, min(self._config.data.shards, total), -(-total // most))
        bounds = [total * k // count for k in range(count + 1)]
        return [
            _Piece(split, *ends, f"{mine}/{split}-{k:05d}.parquet", f"{mine}/{NOTES}/{split}-{k:05d}.json")
            for k, ends in enumerate(pairwise(bounds))
        ]

    def _job(self, piece: _Piece) -> Job:
        """Make the job of a shard of files, which carries nothing but what it reads."""
        rows, wanted = self._rows(piece.split), self._parts[piece.split].rows[piece.first : piece.last]
        assert rows.only is not None
        numbers = np.arange(piece.first, piece.last, dtype=np.int64)
        return Job(
            *(self._storage, piece.path, piece.note, rows.only(wanted), rows.labels[wanted], numbers),
            *(self.encoding, self._source.pictures),
        )

    def _passes(self, pieces: Mapping[str, Sequence[_Piece]]) -> Generator[Record]:
        for split, some in pieces.items():
            yield from self._passes_of(split, some)

    def _passes_of(self, split: str, pieces: Sequence[_Piece]) -> Generator[Record]:
        """Write a split in passes over the source that gather as many whole shards as the budget holds."""
        rows, wanted = self._rows(split), self._parts[split].rows
        shard_bytes = self._row_bytes(split) * max(piece.last - piece.first for piece in pieces)
        at_once = max(1, self._config.data.memory_budget_bytes // max(1, shard_bytes))
        for begin in range(0, len(pieces), at_once):
            some = pieces[begin : begin + at_once]
            base = some[0].first
            gathered = rows.gather(wanted[base : some[-1].last])
            plain = self._plain(split, wanted[base : some[-1].last])
            for piece in some:
                first, last = piece.first - base, piece.last - base
                faults = {at - first: fault for at, fault in gathered.faults.items() if first <= at < last}
                mine = Gathered(gathered.images[first:last], faults)
                numbers = np.arange(piece.first, piece.last, dtype=np.int64)
                labels = rows.labels[wanted[piece.first : piece.last]]
                yield jobs.write(
                    *(self._storage, piece.path, mine, labels, numbers, self.encoding, self._source.pictures),
                    plain=None if plain is None else plain[first:last],
                )

    def _plain(self, split: str, wanted: Indices) -> Images | None:
        """Rows without the margin that those to be written have, where arrays are scaled.

        Copies of images are detected as near duplicates, without decoding an image twice.
        """
        if split != "train" or self.wide is None or self._source.pictures:
            return None
        return self._source.splits[self._parts[split].origin].gather(wanted).images

    def _bear(self, record: Record) -> None:
        """Count what cannot be used, and end where it is enough to see that the data must be mended."""
        self.looked_at += len(record.digests) + len(record.faults)
        self.faults += record.faults.values()
        if len(self.faults) >= ENOUGH_FAULTS and self._config.data.on_error == "fail":
            faults = sorted(self.faults, key=lambda fault: fault.name)
            require_usable(faults, self.looked_at, self._config.data)

    def _see(self, piece: _Piece, record: Record) -> None:
        split = piece.split
        rows, wanted = self._rows(split), self._parts[split].rows[piece.first : piece.last]
        kept = np.delete(wanted, list(record.faults)) if record.faults else wanted
        labels, names = rows.labels[kept], [rows.name(int(row)) for row in kept]
        self.look.see(split, record, labels, names)
        if rows.only is not None and split in self.names:
            self.names[split] += names
        for label, count in enumerate(self._source.task.counts(labels).tolist()):
            self.counts[split][label] += count


_PACKED_BYTES = 1 << 14
"""Pixels of an image from which packing pays; smaller ones stay tensors, which all readers of Arrow know."""


def encoding(config: Config, source: Source, train_bytes: int) -> str:
    """Decide how rows are kept: as tensors, the pixels packed (raw), or jpeg.

    Args:
        config: `data.encoding`; auto keeps pixels while a worker's share of them fits the memory budget.
        source: Arrays are never compressed unasked: they may be no pictures.
        train_bytes: Pixels of the training rows.

    Raises:
        ConfigError: Images that JPEG does not know.
    """
    asked = config.data.encoding
    if asked == "jpeg" and source.shape[2] not in (1, 3):
        raise ConfigError(
            f"data.encoding is jpeg, but the images have {source.shape[2]} channels.", "Take raw."
        )
    files = all(rows.only is not None for rows in source.splits.values())
    fits = train_bytes <= config.data.memory_budget_bytes * config.train.min_workers
    if asked == "jpeg" or (asked == "auto" and files and not fits):
        return "jpeg"
    large = asked == "raw" or int(np.prod(source.shape)) >= _PACKED_BYTES
    return "raw" if files and large else "tensor"

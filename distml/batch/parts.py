"""The parts of a batch prediction: read together, written as one file, never done twice (driver)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from distml.data.image import SUFFIXES
from distml.data.listing import Folder
from distml.data.schema import IMAGE
from distml.errors import DataError

ROWS = 4096
"""Rows of a part, as near as the row groups of a file allow; so many are lost when a process is killed."""
_PICTURES = 1024


@dataclass(frozen=True)
class Part:
    """Rows that are read and written together.

    Args:
        at: Position among all parts.
        names: One Parquet file, or pictures.
        groups: Row groups of the file, first and last + 1; None for pictures.
        first: Number of the first row in its file.
        key: Stands for input and model; the same twice means the same answers.
    """

    at: int
    names: tuple[str, ...]
    groups: tuple[int, int] | None
    first: int
    key: str

    @property
    def file(self) -> str:
        """Name of the file the answers are written to."""
        return f"part-{self.at:05d}-{self.key}.parquet"

    def to_json(self) -> str:
        """Return the part as text that crosses processes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Read `to_json`."""
        raw = json.loads(text)
        groups = raw["groups"] and tuple(raw["groups"])
        return cls(raw["at"], tuple(raw["names"]), groups, raw["first"], raw["key"])


def plan(folder: Folder, sha256: str) -> list[Part]:
    """Divide a folder or file into parts.

    Args:
        folder: Parquet files with a column `image`, or pictures, at any depth.
        sha256: Of the model.

    Raises:
        DataError: Neither, or a Parquet file that cannot be opened.
    """
    tables = [name for name in folder.sizes if name.endswith(".parquet")]
    pictures = [name for name in folder.sizes if PurePosixPath(name).suffix.lower() in SUFFIXES]
    spans: list[tuple[tuple[str, ...], tuple[int, int] | None, int]]
    if tables:
        divided = [(table, span, first) for table in tables for span, first in _groups(folder, table)]
        spans = [((name,), span, first) for name, span, first in divided]
    elif pictures:
        chunks = [pictures[at : at + _PICTURES] for at in range(0, len(pictures), _PICTURES)]
        spans = [(tuple(chunk), None, 0) for chunk in chunks]
    else:
        raise DataError(f"{folder.root} holds neither Parquet files nor pictures.", "Correct --data.")
    return [
        Part(at, names, groups, first, _key(folder, names, groups, sha256))
        for at, (names, groups, first) in enumerate(spans)
    ]


def _groups(folder: Folder, name: str) -> Iterator[tuple[tuple[int, int], int]]:
    """Runs of row groups of about `ROWS` rows, each with the number of its first row."""
    try:
        with folder.open(name) as stream, pq.ParquetFile(stream) as file:
            if IMAGE not in file.schema_arrow.names:
                has = ", ".join(file.schema_arrow.names)
                raise DataError(f"{name} has no column {IMAGE}, but {has}.")
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}.") from None
    begin = first = rows = 0
    for group, size in enumerate(sizes):
        rows += size
        if rows >= ROWS or (group == len(sizes) - 1 and rows):
            yield (begin, group + 1), first
            begin, first, rows = group + 1, first + rows, 0


def _key(folder: Folder, names: tuple[str, ...], groups: tuple[int, int] | None, sha256: str) -> str:
    text = json.dumps([[(name, folder.sizes[name]) for name in names], groups, sha256])
    return hashlib.sha256(text.encode()).hexdigest()[:16]

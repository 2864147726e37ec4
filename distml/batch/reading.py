"""Rows of a part as images that the model takes, and why others are none (batch process)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.batch.parts import Part
from distml.data import columns
from distml.data import image as decoding
from distml.data.folder import Folder
from distml.data.image import Policy
from distml.data.schema import IMAGE, Images
from distml.errors import DataError

_BATCH = 256
SOURCE, SOURCE_ROW = "source", "source_row"


@dataclass(frozen=True)
class Rows:
    """Some rows of a part.

    Args:
        identity: Their other columns, each [N].
        images: uint8 [M, H, W, C] of those that can be read.
        readable: bool [N], which those are.
        errors: Why the others cannot, None for those that can; [N].
    """

    identity: dict[str, Any]
    images: Images
    readable: npt.NDArray[np.bool_]
    errors: list[str | None]


Found = list[Images | str]
"""For each row its image, uint8 [H, W, C], or why there is none."""


def read(folder: Folder, part: Part, policy: Policy) -> Iterator[Rows]:
    """Read a part in batches.

    Args:
        folder: Where it is.
        part: What is read.
        policy: How the model had its pictures fitted.

    Raises:
        DataError: The file of the part cannot be read any more.
    """
    if part.groups is None:
        for at in range(0, len(part.names), _BATCH):
            names = part.names[at : at + _BATCH]
            yield _rows(
                {SOURCE: pa.array(names, pa.string())},
                [_file(folder, one, policy) for one in names],
                policy.shape,
            )
        return
    name, at = part.names[0], part.first
    try:
        with folder.open(name) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            for batch in file.iter_batches(_BATCH, row_groups=list(range(*part.groups)), use_threads=False):
                yield _rows(_identity(batch, name, at), _column(batch.column(IMAGE), policy), policy.shape)
                at += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}.") from None


def _rows(identity: dict[str, Any], found: Found, shape: tuple[int, int, int]) -> Rows:
    images = [one for one in found if not isinstance(one, str)]
    errors = [one if isinstance(one, str) else None for one in found]
    readable = np.array([error is None for error in errors], bool)
    return Rows(identity, np.stack(images) if images else np.empty((0, *shape), np.uint8), readable, errors)


def _identity(batch: Any, name: str, first: int) -> dict[str, Any]:
    """Where rows come from, and every column of theirs but the image."""
    count = len(batch)
    places = {
        SOURCE: pa.array([name] * count, pa.string()),
        SOURCE_ROW: pa.array(range(first, first + count), pa.int64()),
    }
    return places | {one: batch.column(one) for one in batch.schema.names if one != IMAGE}


def _file(folder: Folder, name: str, policy: Policy) -> Images | str:
    try:
        return decoding.read(folder.read(name), policy, name)
    except DataError as error:
        return str(error)


def _column(column: Any, policy: Policy) -> Found:
    shape = policy.shape
    encoded = columns.encoded(column)
    if encoded is not None:
        return [_picture(one.as_py(), policy) for one in encoded]
    found: Found = ["there is no image."] * len(column)
    present = np.flatnonzero(np.asarray(column.is_valid().to_numpy(zero_copy_only=False)))
    try:
        arrays = columns.arrays(column.drop_null(), "the column") if len(present) else np.empty((0, *shape))
        if arrays.shape[1:] != shape:
            raise DataError(f"the image is {list(arrays.shape[1:])}, the model takes {list(shape)}.")
    except DataError as error:  # a bad row must not take its neighbours with it
        return (
            [str(error)]
            if len(column) == 1
            else [_column(column.slice(at, 1), policy)[0] for at in range(len(column))]
        )
    for at, image in zip(present, arrays, strict=True):
        found[at] = image
    return found


def _picture(data: bytes | None, policy: Policy) -> Images | str:
    if data is None:
        return "there is no image."
    try:
        return decoding.read(data, policy)
    except DataError as error:
        return str(error)

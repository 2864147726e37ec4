"""Parquet columns of a row, their conversion to arrays, and the scaling of pixel values (any process).

The one definition of pixel scaling. Training, evaluation and serving call `normalise` or embed the same
two constants as a Keras `Rescaling(SCALE, OFFSET)` layer; a parity test holds them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from distml.data import image
from distml.errors import DataError

SCALE = 1 / 255
"""Factor on a pixel value."""
OFFSET = 0.0
"""Added to the scaled pixel value."""
VERSION = 1
"""Version of the columns; another one prepares the data anew."""

IMAGE, LABEL, ROW = "image", "label", "row"
LABELS = (
    *(LABEL, "labels", "class", "target", "category", "y"),
    *("breed", "diagnosis", "dx", "choice", "tags", "cls", "digit", "character"),
)
"""How columns of labels are called in users' data, in lower case with a line between words."""
_NEXT_LABELS = (
    *("class_name", "classname", "label_name", "category_name", "class_label"),
    *("class_id", "classid", "label_id", "category_id"),
)
"""The same, where no column has one of those names."""
Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Number = TypeVar("Number", bound=np.number[Any])


def is_label(column: str) -> bool:
    """Whether a column is called as columns of labels are: `Class ID` is `class_id`."""
    return plain(column) in (*LABELS, *_NEXT_LABELS)


def of_labels(columns: Sequence[str]) -> list[str]:
    """Return the columns that are called as columns of labels are, the usual names first."""
    usual = [column for column in columns if plain(column) in LABELS]
    return usual or [column for column in columns if is_label(column)]


def plain(column: str) -> str:
    """Return a column's name in lower case with a line between words: `File Name` is `file_name`."""
    return column.lower().replace(" ", "_").replace("-", "_")


def normalise(images: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Scale pixel values 0 to 255 to [0, 1].

    Args:
        images: uint8, or floats in the same units, of any shape.

    Returns:
        float32 of the same shape.
    """
    return np.asarray(images, np.float32) * np.float32(SCALE) + np.float32(OFFSET)


def centred(images: Images, size: tuple[int, int]) -> Images:
    """Return a view of the middle, uint8 [N, h, w, C], of larger images, uint8 [N, H, W, C]."""
    top, left = (have - want for have, want in zip(images.shape[1:3], size, strict=True))
    return images[:, top // 2 : top // 2 + size[0], left // 2 : left // 2 + size[1]]


def tensor_type(shape: tuple[int, ...]) -> Any:
    """Return the Arrow type of the image column: a fixed-shape tensor of uint8 [H, W, C]."""
    return pa.fixed_shape_tensor(pa.uint8(), shape)


def to_table(images: Images, labels: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Any:
    """Wrap arrays as a `pyarrow.Table` without copying them.

    Args:
        images: uint8 [N, H, W, C], contiguous.
        labels: int32 [N], or float32 [N, K].
        rows: int64 [N], each row's position in its split.
    """
    return _to_table(_tensors(images), labels, rows)


def _tensors(images: Images) -> Any:
    shape = images.shape[1:]
    # `FixedShapeTensorArray.from_numpy_ndarray` reads a permutation into axes of length one.
    flat = pa.FixedSizeListArray.from_arrays(to_array(images, pa.uint8()), int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(tensor_type(shape), flat)


def _to_table(images: Any, labels: Any, rows: Any) -> Any:
    if isinstance(labels, np.ndarray):
        labels = _of_targets(labels)
        rows = to_array(rows.astype(np.int64, copy=False), pa.int64())
    columns = [images, labels, rows]
    return pa.Table.from_arrays(columns, names=[IMAGE, LABEL, ROW])


def to_packed(images: Images, labels: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Any:
    """Wrap arrays as a `pyarrow.Table` whose image column is one value of H * W * C bytes a row."""
    kind = pa.binary(math.prod(images.shape[1:]))
    packed = pa.Array.from_buffers(kind, len(images), [None, pa.py_buffer(np.ascontiguousarray(images))])
    return _to_table(packed, labels, rows)


def to_encoded(images: Sequence[bytes], labels: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Any:
    """Wrap compressed images as a `pyarrow.Table` whose image column is binary."""
    ends = np.cumsum([0, *map(len, images)], dtype=np.int64).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(images))]
    return _to_table(pa.Array.from_buffers(pa.binary(), len(images), buffers), labels, rows)


def decoded(table: Any, shape: tuple[int, int, int]) -> Any:
    """Return a table of rows with pixels, whether they are kept as such or compressed.

    Args:
        table: Columns as `to_table`, `to_packed` or `to_encoded` made them.
        shape: (H, W, C) of the images.

    Raises:
        DataError: A compressed image is damaged.
    """
    kind = table.schema.field(IMAGE).type
    if pa.types.is_fixed_size_binary(kind):
        parts = [_unpacked(chunk, shape) for chunk in table[IMAGE].chunks]
        images = parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, *shape), np.uint8), *parts])
        return _to_table(_tensors(images), table[LABEL], table[ROW])
    if not pa.types.is_binary(kind):
        return table
    images = np.empty((len(table), *shape), np.uint8)
    policy = image.Policy.of_arrays(shape)
    for at, content in enumerate(table[IMAGE]):
        images[at] = image.read(content.as_py(), policy, f"row {table[ROW][at]}")
    return _to_table(_tensors(images), table[LABEL], table[ROW])


def _unpacked(column: Any, shape: tuple[int, int, int]) -> Images:
    """View packed images as uint8 [N, H, W, C] without a copy."""
    size = math.prod(shape)
    if column.type.byte_width != size:
        raise DataError(f"the images have {column.type.byte_width} bytes, not those of {shape}.")
    pixels = np.frombuffer(column.buffers()[1], np.uint8, len(column) * size, column.offset * size)
    return pixels.reshape(len(column), *shape)


def _of_targets(labels: npt.NDArray[Any]) -> Any:
    if labels.ndim == 1:
        return to_array(labels.astype(np.int32, copy=False), pa.int32())
    flat = to_array(labels.astype(np.float32, copy=False), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, labels.shape[1])


def to_targets(column: Any) -> npt.NDArray[Any]:
    """Return a column of labels as int32 [N] or float32 [N, K]."""
    if not pa.types.is_fixed_size_list(column.type):
        return to_numbers(column, np.int32)
    values = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return to_numbers(values.flatten(), np.float32).reshape(len(column), column.type.list_size)


def to_array(values: npt.NDArray[Any], kind: Any) -> Any:
    """Wrap numbers as an Arrow array of the same width; `pa.array` would import pandas, for seconds."""
    return pa.Array.from_buffers(kind, values.size, [None, pa.py_buffer(np.ascontiguousarray(values))])


def to_images(column: Any) -> Images:
    """Return an image column as uint8 [N, H, W, C], without a copy where it is one chunk."""
    if isinstance(column, pa.ChunkedArray):
        parts = [to_images(chunk) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([_no_image(column.type.shape), *parts])
    return to_numbers(column.storage.flatten(), np.uint8).reshape(len(column), *column.type.shape)


def to_numbers(column: Any, kind: type[Number]) -> npt.NDArray[Number]:
    """Return a number column without nulls as an array [N], without a copy where it is one chunk.

    Arrow's own `to_numpy` imports pandas first.
    """
    if isinstance(column, pa.ChunkedArray):
        parts = [to_numbers(chunk, kind) for chunk in column.chunks]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, kind), *parts])
    size = np.dtype(kind).itemsize
    if column.type.bit_width != 8 * size or column.null_count:
        raise DataError(f"a column is {column.type} with {column.null_count} nulls, not {kind.__name__}.")
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * size)


def _no_image(shape: list[int]) -> Images:
    return np.empty((0, *shape), np.uint8)

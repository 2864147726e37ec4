"""Parquet as users have it: tensors, nested lists or encoded pictures beside a label (driver).

Read in passes that never hold more than the rows asked for and one small batch, whatever the size of the
files and of their row groups. Measured with a budget of 20 MB and one row group per file: 127 MB above the
interpreter for 49 MB of pixels, 125 MB for 197 MB.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distml.config import DataConfig
from distml.data import image
from distml.data.formats import image_folder
from distml.data.image import Policy
from distml.data.listing import Folder, divide
from distml.data.schema import IMAGE, LABEL, Images, to_array, to_numbers
from distml.data.source import Indices, Rows, Source, encode, to_nhwc
from distml.errors import DataError

_LOOKED_AT = 256  # rows of a row group whose headers decide the shape
_BATCH_BYTES = 1 << 19  # of pixels; Arrow takes twenty times as much while it decodes them


def open_parquet(folder: Folder, data: DataConfig) -> Source:
    """Read the labels and one image; the other images are read when they are gathered.

    Raises:
        DataError: No Parquet, no columns `image` and `label`, or values in them that cannot be used.
    """
    names = [name for name in folder.sizes if name.endswith(".parquet")]
    if not names:
        raise DataError(f"{folder.root} holds no .parquet files.", "Check data.path and data.format.")
    divided = divide(names, by_file=True)
    labels = {s: np.concatenate([_labels(folder, name) for name in found]) for s, found in divided.items()}
    if not len(labels["train"]):
        raise DataError(f"{folder.root} holds no rows.")
    classes, numbers = encode(labels, _class_names(folder, names[0]))
    shape, policy = _shape(folder, divided, data)
    how = _How(shape, policy, data.max_pixels)
    splits = {
        split: Rows(numbers[split], functools.partial(_gather, folder, found, how))
        for split, found in divided.items()
    }
    return Source(shape, classes, splits, (folder.origin(),), policy)


@dataclass(frozen=True)
class _How:
    """What rows become: images of this shape, encoded pictures by the policy."""

    shape: tuple[int, int, int]
    policy: Policy | None
    max_pixels: int


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[Any]:
    try:
        # Neither pre-buffered nor memory-mapped: both would hold whole row groups.
        with pq.ParquetFile(folder.open(name), pre_buffer=False, buffer_size=1 << 20) as file:
            missing = {IMAGE, LABEL} - set(file.schema_arrow.names)
            if missing:
                has = ", ".join(file.schema_arrow.names)
                raise DataError(f"{name} has no column {' and '.join(sorted(missing))}, but {has}.")
            yield file
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}.") from None


def _labels(folder: Folder, name: str) -> npt.NDArray[Any]:
    with _opened(folder, name) as file:
        column = file.read([LABEL], use_threads=False).column(0).combine_chunks()
    if column.null_count:
        raise DataError(f"{name} has {column.null_count} rows without a label.", "Remove them.")
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), dtype=str)
    return _numbers(column, f"the label column of {name}")


def _class_names(folder: Folder, name: str) -> list[str] | None:
    """Return the names that Hugging Face's writer stores beside integer labels, if it wrote the file."""
    with _opened(folder, name) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(stored)["info"]["features"][LABEL]["names"] if stored else None
    except (ValueError, KeyError, TypeError):
        return None
    return [str(one) for one in names] if isinstance(names, list) else None


def _shape(
    folder: Folder, divided: Mapping[str, Sequence[str]], data: DataConfig
) -> tuple[tuple[int, int, int], Policy | None]:
    """Return the shape of the images and, where the rows are encoded pictures, how they get it."""
    headers: list[image_folder.Header] = []
    for name in (name for names in divided.values() for name in names):
        with _opened(folder, name) as file:
            for group in range(file.num_row_groups):
                # Looking at every row would read the whole set twice; more sizes later on are fitted.
                rows = file.iter_batches(_LOOKED_AT, row_groups=[group], columns=[IMAGE], use_threads=False)
                column = next(iter(rows), None)
                if column is None:
                    continue
                some = encoded(column.column(0))
                if some is None:
                    height, width, depth = arrays(column.column(0).slice(0, 1), name).shape[1:]
                    return (height, width, depth), None
                for at, one in enumerate(some):
                    where = f"row {at} of row group {group} ({name})"
                    headers.append(image_folder.header(one.as_py() or b"", where, data.max_pixels))
    if not headers:
        raise DataError("the files hold no rows.")
    policy = image_folder.policy(headers, data)
    return policy.shape, policy


def _gather(folder: Folder, names: list[str], how: _How, indices: Indices) -> Images:
    """Scan the files once and put each wanted row where it is wanted."""
    images = np.empty((len(indices), *how.shape), np.uint8)
    order = np.argsort(indices)
    wanted = indices[order]
    first = 0
    for name in names:
        with _opened(folder, name) as file:
            groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            for group, rows in enumerate(groups):
                if np.searchsorted(wanted, first) < np.searchsorted(wanted, first + rows):
                    _scan(file, name, group, first, wanted, order, images, how)
                first += rows
    return images


def _scan(
    file: Any, name: str, group: int, first: int, wanted: Indices, order: Indices, images: Images, how: _How
) -> None:
    size = max(1, _BATCH_BYTES // images[:1].nbytes)
    for batch in file.iter_batches(size, row_groups=[group], columns=[IMAGE], use_threads=False):
        low, high = np.searchsorted(wanted, [first, first + len(batch)])
        if low < high:
            rows = batch.column(0).take(to_array(wanted[low:high] - first, pa.int64()))
            images[order[low:high]] = _images(rows, name, wanted[low:high], how)
        first += len(batch)


def _images(column: Any, name: str, numbers: Indices, how: _How) -> Images:
    some = encoded(column)
    if some is None:
        found = arrays(column, name)
        if found.shape[1:] != how.shape:
            raise DataError(f"{name} has images of {found.shape[1:]}, the first image is {how.shape}.")
        return found
    if how.policy is None:
        raise DataError(f"{name} has encoded pictures, the first file has arrays.")
    numbered = zip(some, numbers, strict=True)
    return np.stack(
        [image.read(b.as_py() or b"", how.policy, f"row {n} ({name})", how.max_pixels) for b, n in numbered]
    )


def encoded(column: Any) -> Any | None:
    """Return the encoded pictures of a binary or struct{bytes} column, None for one of arrays."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    return column if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type) else None


def arrays(column: Any, name: str) -> Images:
    """Return a column of tensors or nested lists as uint8 [N, H, W, C].

    Raises:
        DataError: Nulls, several sizes, or values that are no pixels; named after `name`.
    """
    if column.null_count:
        raise DataError(f"{name} has rows without an image.", "Remove them.")
    lengths = [len(column)]
    if isinstance(column.type, pa.FixedShapeTensorType):
        if column.type.permutation not in (None, sorted(column.type.permutation or [])):
            return to_nhwc(column.to_numpy_ndarray(), name)
        lengths += column.type.shape
        column = column.storage.flatten()
    while hasattr(column, "value_lengths"):  # lists of any kind
        sizes = pc.min_max(column.value_lengths()).as_py()
        if sizes["min"] != sizes["max"]:
            raise DataError(f"{name} has images of several sizes.", "Bring all to one size.")
        lengths.append(sizes["min"])
        column = column.flatten()
    return to_nhwc(_numbers(column, f"the image column of {name}").reshape(lengths), name)


def _numbers(column: Any, where: str) -> npt.NDArray[Any]:
    kind = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(
        str(column.type), str(column.type)
    )
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise DataError(f"{where} holds {column.type} with {column.null_count} nulls, not numbers.")
    return to_numbers(column, np.dtype(kind).type)

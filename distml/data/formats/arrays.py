"""Reads arrays: IDX, NumPy `.npz`, CSV of pixels, and the result of a user's function (driver)."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import logging
import math
import os
import re
import struct
import sys
import tempfile
import traceback
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image
from pyarrow import csv

from distml.config import DataConfig, functions
from distml.data import image
from distml.data.listing import Folder
from distml.data.schema import Images
from distml.data.source import Origin, Source, label_array, of_arrays, read_label, to_nhwc
from distml.data.split import (
    FOLD_COLUMNS,
    SPLIT_COLUMNS,
    as_split,
    rows_by_split,
    settled,
    split_column,
    split_word,
    splits_of_files,
)
from distml.errors import DataError, DistmlError
from distml.tasks import Task
from distml.tasks.classification import Classification

_LOG = logging.getLogger(__name__)


def of_splits(
    parts: Mapping[str, tuple[Any, Any]],
    names: Any,
    origins: tuple[Origin, ...],
    where: str,
    task: type[Task] = Classification,
) -> Source:
    """Check and number the arrays of all splits.

    Args:
        parts: Images and labels by split.
        names: Class names by label, None to take the labels themselves.
        origins: Where the bytes came from.
        where: Said in errors.
        task: What their labels are.

    Raises:
        DataError: No train, or arrays that do not fit together.
    """
    if "train" not in parts:
        raise DataError(f"{where} has no train.")
    parts = {split: (x, _of_one_hot(y, task)) for split, (x, y) in parts.items()}
    images = {split: to_nhwc(x, f"{where} {split}") for split, (x, _) in parts.items()}
    shapes = {x.shape[1:] for x in images.values()}
    if len(shapes) > 1:
        raise DataError(f"{where}: the splits have different shapes {sorted(shapes)}.")
    for split, (x, y) in parts.items():
        if len(x) != len(y) or not len(x):
            raise DataError(f"{where}: {split} has {len(x)} images and {len(y)} labels.")
    encoded, labels = task.encode({split: y for split, (_, y) in parts.items()}, names)
    height, width, depth = shapes.pop()
    rows = {split: of_arrays(images[split], labels[split]) for split in parts}
    return Source((height, width, depth), encoded, rows, origins)


def open_function(
    form: str, path: str | None, task: type[Task] = Classification, data: DataConfig | None = None
) -> Source:
    """Call the user's function, with `data.path` where that is set.

    Args:
        form: `module:function`.
        path: Given to it, None calls it without.
        task: What its labels are.
        data: How pictures become images, where it gives pictures.

    Raises:
        DataError: It cannot be imported, it fails, or what it returns is no data set.
    """
    module, _, name = form.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        function = functions.imported(form, module, name, _USE, DataError)
    except DataError as error:
        raise DataError(error.message, "Run where the module can be imported, or set PYTHONPATH.") from error
    with _ray_as_before(), _named(form):
        given = _splits_given(function() if path is None else function(path), form)
        names = _names(given)
        parts = {
            split: _pair(some, form, split, data or DataConfig())
            for split, some in given.items()
            if split != "classes"
        }
    digest = hashlib.sha256()
    for images, labels in parts.values():
        for first in range(0, len(images), _DIGESTED):  # rows that were spooled are not read all at once
            digest.update(images[first : first + _DIGESTED].tobytes())
        digest.update(labels.tobytes())
    return of_splits(parts, names, (Origin(name, form, digest.hexdigest()),), form, task)


_USE = functions.Use("data.format", "data.format")


@contextlib.contextmanager
def _named(form: str) -> Iterator[None]:
    """Name the function, and the line, that an error of the user's code comes from."""
    try:
        yield
    except DistmlError:
        raise
    except Exception as error:  # the function may raise anything, and it is the user who reads this
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{PurePosixPath(place.filename).name}, line {place.lineno}"
        raise DataError(f"data.format = {form} fails: {functions.cause(error)} ({where}).") from error


def _splits_given(given: Any, form: str) -> dict[str, Any]:
    """What a function returned, by split: rows of the training split alone, or Keras's pairs of both."""
    if isinstance(given, tuple) and len(given) == 2:
        keras = all(isinstance(some, tuple | list) and len(some) == 2 for some in given)
        given = dict(zip(("train", "test"), given, strict=True)) if keras else {"train": given}
    if not isinstance(given, Mapping) and _rows_of(given) is not None:
        given = {"train": given}
    keys = [key for key in given if key != "classes"] if isinstance(given, Mapping) else []
    words = {key: split_word(str(key)) for key in keys}
    named: dict[str, list[Any]] = {}
    for key, word in words.items():
        named.setdefault(word[0] if word else "", []).append(key)
    if "train" not in named:
        shown = (
            f"a dictionary of {', '.join(map(str, given))}" if isinstance(given, Mapping) else _kind(given)
        )
        raise DataError(f"{form} returned {shown}, not a dict with 'train' or rows.")
    unknown = [key for key, word in words.items() if word is None or word[1]]
    if unknown:
        raise DataError(
            f"{form} returned unknown entries {sorted(map(str, unknown))}.",
            "Return train, and perhaps validation, test and classes.",
        )
    if twice := next((keys for keys in named.values() if len(keys) > 1), None):
        raise DataError(
            f"{form} returned {' and '.join(map(str, twice))}, which are one split.",
            "Return one of them, or put their rows together.",
        )
    splits = settled({split: given[key] for split, (key,) in named.items()})
    return splits | ({"classes": given["classes"]} if "classes" in given else {})


def _names(given: Mapping[str, Any]) -> Any:
    """Names of the classes: as they are given, or as the libraries of data sets keep them."""
    train = given["train"]
    features = getattr(train, "features", None)
    label = features.get("label") if isinstance(features, Mapping) else None
    known = (
        getattr(label, "names", None),
        getattr(train, "classes", None),
        getattr(train, "class_names", None),
    )
    lists = (some for some in known if isinstance(some, list | tuple) and some)
    return given["classes"] if "classes" in given else next(lists, None)


def _rows_of(given: Any) -> Iterator[Any] | None:
    """What gives the rows of a data set one by one; None for arrays and for anything else.

    Iterators, lists, `ray.data.Dataset`, `tf.data.Dataset`, PyTorch's datasets and loaders, tables of pandas.
    """
    if isinstance(given, str | bytes | Mapping | np.ndarray | tuple):
        return None
    for method in ("iter_rows", "as_numpy_iterator"):
        if hasattr(given, method):
            rows: Iterator[Any] = iter(getattr(given, method)())
            return rows
    if hasattr(given, "itertuples"):
        columns = list(given.columns)
        return (dict(zip(columns, row, strict=True)) for row in given.itertuples(index=False, name=None))
    if isinstance(given, Iterator) or (isinstance(given, list) and len(given) != 2):
        return iter(given)
    if not isinstance(given, list) and hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        return (given[at] for at in range(len(given)))
    return iter(given) if isinstance(given, Iterable) and not isinstance(given, list) else None


def _kind(given: Any) -> str:
    return type(given).__name__


@contextlib.contextmanager
def _ray_as_before() -> Iterator[None]:
    """End the Ray that a user's function has started by using Ray Data: a run starts its own."""
    from distml.runtime import cluster

    before = cluster.connected()
    try:
        yield
    finally:
        if cluster.connected() and not before:
            sys.modules["ray"].shutdown()


def _pair(given: Any, form: str, split: str, data: DataConfig) -> tuple[Any, Any]:
    rows = _rows_of(given)
    if rows is not None:
        return _spooled(rows, f"{form} {split}", data)
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise DataError(f"{form} returned no (images, labels) for {split}.")
    return np.asarray(given[0]), np.asarray(given[1])


def _spooled(rows: Iterator[Any], where: str, data: DataConfig) -> tuple[Any, Any]:
    """Write the images of rows to a temporary file, for there may be more than memory holds.

    Args:
        rows: Pairs of image and label, dictionaries with both, or batches of either.
        where: Said in errors.
        data: How pictures become images, and which entries of a dictionary are taken.

    Returns:
        uint8 [N, H, W, C], mapped from a file that goes with the process, and the labels [N].

    Raises:
        DataError: No rows, a row of another form, or images of several shapes.
    """
    labels: list[Any] = []
    shape: tuple[int, ...] | None = None
    with tempfile.TemporaryFile(prefix="distml-rows-") as file:
        for at, (given, label) in enumerate(_single(rows, where, data)):
            pixels = _image(given, f"row {at} of {where}", data, shape)
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise DataError(
                    f"row {at} of {where} is {pixels.shape}, the first row is {shape}.",
                    "Bring all to one size; pictures of PIL are fitted where data.image_size is a number.",
                )
            file.write(pixels.tobytes())
            labels.append(label.item() if isinstance(label, np.generic) else label)
        if shape is None:
            raise DataError(f"{where} gave no rows.")
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=(len(labels), *shape)), np.asarray(labels)


def _single(rows: Iterator[Any], where: str, data: DataConfig) -> Iterator[tuple[Any, Any]]:
    """Image and label of each row, those of batches one by one."""
    for at, row in enumerate(rows):
        given, label = _row(row, f"row {at} of {where}", data)
        shape = list(getattr(given, "shape", ()))
        if len(shape) == 4 and np.ndim(label) and len(label) == shape[0]:
            yield from zip(np.asarray(given), np.asarray(label), strict=True)
        else:
            yield given, label


def _image(given: Any, where: str, data: DataConfig, shape: tuple[int, ...] | None) -> Images:
    """An image of a row, uint8 [H, W, C]: an array as it is, a picture as one of a file.

    Args:
        given: An array, a picture of PIL or the bytes of an encoded one.
        where: Named in errors.
        data: The size and the channels that pictures get; auto takes a picture's own size.
        shape: Of the rows before.
    """
    if isinstance(given, str):
        raise DataError(f"{where} is a text, {given[:80]!r}, and no image.", "Open it by PIL.Image.open.")
    if isinstance(given, bytes):
        given = image.open_picture(given, where, data.max_pixels)
    if not isinstance(given, Image.Image):
        array: Images = to_nhwc(np.asarray(given)[None], where)[0]
        return array
    width, height = image.upright_size(given)
    if data.image_size != "auto":
        height, width = data.image_size if isinstance(data.image_size, tuple) else (data.image_size,) * 2
    depth = data.channels if data.channels != "auto" else shape[2] if shape else image.channels(given)
    if data.channels == "auto" and depth < image.channels(given):
        raise DataError(f"{where} is in colour, the first row is gray.", "Set data.channels: 3.")
    policy = image.Policy((height, width, depth), data.fit, data.background)
    pixels: Images = image.fit(given, policy, where)
    return pixels


def _row(row: Any, where: str, data: DataConfig) -> tuple[Any, Any]:
    if isinstance(row, Mapping):
        images = [row[key] for key in row if _is_called(key, data.image_column, _IMAGE_ENTRIES)]
        labels = [row[key] for key in row if _is_called(key, data.label_column, _LABEL_COLUMNS)]
        if len(images) == len(labels) == 1:
            return images[0], labels[0]
    elif isinstance(row, tuple | list) and len(row) == 2:
        return row[0], row[1]
    shown = f"a dictionary of {', '.join(map(str, row))}" if isinstance(row, Mapping) else _kind(row)
    remedy = "Set data.image_column and data.label_column." if isinstance(row, Mapping) else ""
    raise DataError(f"{where} is {shown}, not (image, label) or a dictionary of image and label.", remedy)


def _is_called(key: Any, asked: str | list[str] | None, known: Sequence[str]) -> bool:
    return str(key) == asked if isinstance(asked, str) else str(key).lower() in known


_IMAGES = ("x", "images", "image", "data", "pixels")
_IMAGE_ENTRIES = (*_IMAGES, "img", "picture", "photo")
_LABELS = ("y", "labels", "label", "targets", "target")
_LABEL_COLUMNS = ("label", "labels", "class", "target", "y")

NUMPY = (".npz", ".npy")
"""Endings of NumPy's files."""
_DIGESTED = 1024
"""Rows that are digested at once."""

Parts = dict[str, tuple[Any, Any]]


def open_npz(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Read `x_train`, `y_train`, `x_test` and `y_test` (or `images`, `labels`) of archives or `.npy` files.

    Raises:
        DataError: Not an archive of arrays, pickled objects, or names that say nothing.
    """
    parts: dict[str, dict[str, Any]] = {}
    named: dict[tuple[str, str], str] = {}
    for name in _files(folder, *NUMPY):
        arrays = _npz(folder, name)
        for key, values in arrays.items():
            words = _words(key)
            kind = "images" if set(words) & set(_IMAGES) else "labels" if set(words) & set(_LABELS) else None
            if kind is None:
                shown = ", ".join(arrays)
                raise DataError(
                    f"{name} holds {shown}; {key!r} is not a known name.",
                    "Call them x_train, y_train and so on; anything else, as a file of each class, is read "
                    "by a function of your own: data.format: module:function.",
                )
            split = next((word[0] for word in map(split_word, (key, *_places(name))) if word), "train")
            some, at = parts.setdefault(split, {}), key if name.endswith(".npz") else name
            if kind in some:
                raise DataError(
                    f"{folder.shown} has several arrays of {split} {kind}: {named[split, kind]} and {at}.",
                    "Keep one of them.",
                )
            some[kind], named[split, kind] = values, at
    parts = settled(parts)
    for split, pair in parts.items():
        if set(pair) != {"images", "labels"}:
            raise DataError(f"{folder.shown} has no {split} {'labels' if 'images' in pair else 'images'}.")
    return _source(folder, {split: (pair["images"], pair["labels"]) for split, pair in parts.items()}, task)


def _places(name: str) -> tuple[str, ...]:
    """What of a file's path may name a split: its own name without the ending, and its first folder."""
    path = PurePosixPath(name)
    return (path.stem, path.parts[0]) if len(path.parts) > 1 else (path.stem,)


def _npz(folder: Folder, name: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an archive by name; that of an `.npy` file by the file's."""
    try:
        loaded = np.load(io.BytesIO(folder.read(name)), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {PurePosixPath(name).stem: loaded}
        with loaded as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{name} cannot be read as NumPy arrays: {error}.", "Save plain arrays.") from None


def _words(key: str) -> list[str]:
    return key.lower().replace("-", "_").split("_")


def open_csv_pixels(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Read tables with a label and one column a pixel; the images are square, gray or in three colours.

    Raises:
        DataError: No column of labels, other values than numbers, or a number of pixels that is no square.
    """
    parts: dict[str, list[tuple[Any, Any]]] = {}
    labels: tuple[str, ...] = ()
    notes: dict[str, None] = {}
    for name, split_of_all in splits_of_files(_files(folder, ".csv")).items():
        table = _csv(folder, name)
        column, told = split_column(table.column_names, functools.partial(_values, table))
        notes.update(dict.fromkeys(told))
        labels = _label_columns(table, name, data, column)
        others = [key for key in table.column_names if key.lower() in (*SPLIT_COLUMNS, *FOLD_COLUMNS)]
        rest = _pixel_columns(table, name, (*labels, *others))
        values = _unpacked(table, name) if _packed(table) else _pixels(table, rest, name)
        images, of_rows = _square(values, name), _labels_of(table.select(labels), name, task)
        for split, rows in _splits_of(table, name, column, split_of_all).items():
            some = parts.setdefault(split, [])
            some.append((images[rows], of_rows[rows]))
            if images.shape[1:] != some[0][0].shape[1:]:
                raise DataError(
                    f"{name} has images of {images.shape[1:]}, another file {some[0][0].shape[1:]}."
                )
    joined = {split: _joined(some) for split, some in settled(parts).items()}
    return replace(_source(folder, joined, task, task.named(labels)), notes=tuple(notes))


def _values(table: pa.Table, column: str) -> list[Any]:
    values: list[Any] = table.column(column).to_pylist()
    return values


def _joined(some: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The images and the labels of several files of one split, one after another."""
    return np.concatenate([images for images, _ in some]), np.concatenate([labels for _, labels in some])


def _pixel_columns(table: pa.Table, name: str, others: Sequence[str | None]) -> list[str]:
    """The columns that are numbered as pixels, else all that are neither labels nor splits."""
    rest = [key for key in table.column_names if key not in others]
    numbered = [key for key in rest if _NUMBERED.fullmatch(key)]
    if _packed(table) or len(numbered) < _LEAST_PIXELS or len(numbered) == len(rest):
        return rest
    unused = [key for key in rest if key not in numbered]
    _LOG.warning("%s: the columns %s are no pixels and not used", name, ", ".join(unused[:5]))
    return numbered


def _label_columns(table: pa.Table, name: str, data: DataConfig, column: str | None) -> tuple[str, ...]:
    """The columns of labels: as asked for, by their names, or the only one beside pixels and splits."""
    has = table.column_names
    asked = [data.label_column] if isinstance(data.label_column, str) else data.label_column
    named = [key for key in has if key.lower() in _LABEL_COLUMNS]
    if _packed(table) and not named:
        named = [key for key in has if key not in (_PACKED, column)]
    labels = tuple(asked or (named if len(named) == 1 else ()))
    if not labels or set(labels) - set(has):
        shown = ", ".join(has[:5]) + ("…" if len(has) > 5 else "")
        raise DataError(f"{name} has no column of labels, but {shown}.", "Set data.label_column.")
    return labels


def _splits_of(table: pa.Table, name: str, column: str | None, of_all: str | None) -> Mapping[str, Any]:
    """The rows of each split, by a column or by the name of the file."""
    if column is None:
        return {of_all or "train": slice(None)}
    values = [as_split(value, column) for value in table.column(column).to_pylist()]
    return rows_by_split(values, f"the column {column} of {name}")


_PACKED = "pixels"
"""Name of one column that holds all pixels of a row, with spaces between them, as FER2013 has it."""


def _packed(table: pa.Table) -> bool:
    return _PACKED in table.column_names and pa.types.is_string(table.column(_PACKED).type)


def _unpacked(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    """Values of the one column, [N, pixels].

    Raises:
        DataError: Something that is no number, or rows of several lengths.
    """
    try:
        return np.array([text.split() for text in table.column(_PACKED).to_pylist()], np.int64)
    except (ValueError, AttributeError):
        raise DataError(
            f"{name} has rows of {_PACKED} of other lengths or with other words than whole numbers."
        ) from None


def _csv(folder: Folder, name: str) -> pa.Table:
    content = folder.read(name)
    mark, words = _first_line(content)
    if all(word.isdigit() for word in words):
        raise DataError(
            f"{name} begins with numbers and not with the names of its columns.",
            "Begin it with a line such as label,pixel1,pixel2 and so on.",
        )
    try:
        return csv.read_csv(pa.BufferReader(content), parse_options=csv.ParseOptions(delimiter=mark))
    except pa.ArrowException as error:
        raise DataError(f"{name} cannot be read as CSV: {error}.") from None


def _first_line(content: bytes) -> tuple[str, list[str]]:
    """What stands between the fields of a table, and those of its first line in lower case."""
    line = content[: 1 << 16].partition(b"\n")[0].decode("utf-8-sig", "replace").lower()
    mark = max(",;\t", key=line.count)
    return mark, [word.strip('"\r ') for word in line.split(mark)]


def _pixels(table: pa.Table, columns: Sequence[str], name: str) -> npt.NDArray[Any]:
    """Values of these columns, [N, pixels], whole numbers or floats."""
    pixels = [table.column(key) for key in columns]
    kinds = {str(column.type): column.type for column in pixels}
    wrong = [k for k, kind in kinds.items() if not (pa.types.is_integer(kind) or pa.types.is_floating(kind))]
    if wrong:
        raise DataError(f"{name} has pixels of {wrong[0]}, not numbers.", "Remove other columns.")
    if missing := [key for key, column in zip(columns, pixels, strict=True) if column.null_count]:
        raise DataError(f"{name} has no value in some rows of {missing[0]}.", "Fill or remove those rows.")
    kind = np.float64 if any(map(pa.types.is_floating, kinds.values())) else np.int64
    return np.stack([np.asarray(column.to_numpy(), kind) for column in pixels], 1)


def _labels_of(table: pa.Table, name: str, task: type[Task]) -> npt.NDArray[Any]:
    """What the columns of labels say of each row."""
    if task.scalar and table.num_columns == 1:
        return np.array(table.column(0).to_pylist())
    rows = enumerate(table.to_pylist())
    return label_array([read_label(task, row, f"row {at} of {name}") for at, row in rows])


def is_csv_pixels(folder: Folder, name: str) -> bool:
    """Whether the first line of a CSV table names a label and at least sixteen other columns."""
    _, words = _first_line(folder.read(name, 1 << 16))
    if _PACKED in words:
        return True
    # Columns of labels may have names of their own, see `data.label_column`.
    numbered = sum(bool(_NUMBERED.fullmatch(word)) for word in words) >= _LEAST_PIXELS
    return len(words) > _LEAST_PIXELS and (numbered or any(word in _LABEL_COLUMNS for word in words))


_NUMBERED = re.compile(r"(?:pixel|px|p)?[ _]?\d+", re.IGNORECASE)
"""Names of columns of pixels: `pixel17`, `17`."""
_LEAST_PIXELS = 16


def _square(values: Any, name: str) -> Any:
    for depth in (1, 3):
        side = math.isqrt(values.shape[1] // depth)
        if side * side * depth == values.shape[1]:
            return values.reshape(len(values), side, side, depth)
    raise DataError(f"{name} has {values.shape[1]} pixels a row, which is not square.", "Use Parquet or npz.")


def _files(folder: Folder, *endings: str) -> list[str]:
    matching, what = [name for name in folder.sizes if name.lower().endswith(endings)], " or ".join(endings)
    for name in set(folder.sizes) - set(matching):
        folder.ledger.skip(name, f"no {what} file")
    if not matching:
        raise DataError(f"{folder.shown} holds no {what} files.", "Check data.path and data.format.")
    return matching


@dataclass(frozen=True)
class Table:
    """Images of one file that are to be predicted, whatever labels they have.

    Attributes:
        images: uint8 [N, H, W, C].
        columns: What else the file says of each row; lists of N.
    """

    images: Images
    columns: Mapping[str, list[Any]]


def is_arrays(folder: Folder, name: str) -> bool:
    """Whether `read_images` can read a file, by its name and, of a CSV table, its first line."""
    lower = name.lower()
    match = _NAME.fullmatch(lower.rpartition("/")[2])
    if match is not None:
        return match["kind"] == "images"
    if lower.endswith(".npy"):
        return not set(_words(PurePosixPath(lower).stem)) & set(_LABELS)
    return lower.endswith(".npz") or (lower.endswith(".csv") and is_csv_pixels(folder, name))


def read_images(folder: Folder, name: str) -> Table:
    """Read the images of an IDX file, an `.npz` (all its arrays called so, one after another) or a CSV table.

    Raises:
        DataError: The file is damaged, or holds no images or several shapes.
    """
    lower = name.lower()
    if lower.endswith(NUMPY):
        arrays = _npz(folder, name)
        alone = lower.endswith(".npy")  # the whole file, whatever it is called
        called = [key for key in arrays if alone or set(_words(key)) & set(_IMAGES)]
        if not called:
            raise DataError(f"{name} holds {', '.join(arrays)}; none is called images.", "Call it images.")
        parts = [to_nhwc(arrays[key], f"{name} {key}") for key in called]
        shapes = sorted({part.shape[1:] for part in parts})
        if len(shapes) > 1:
            raise DataError(f"{name} holds images of several shapes: {shapes}.", "Give each a file.")
        keys = [key for key, part in zip(called, parts, strict=True) for _ in range(len(part))]
        return Table(np.concatenate(parts), {"array": keys} if len(called) > 1 else {})
    if lower.endswith(".csv"):
        table = _csv(folder, name)
        if _packed(table):
            rest = [key for key in table.column_names if key != _PACKED]
            images = to_nhwc(_square(_unpacked(table, name), name), name)
            return Table(images, {key: table.column(key).to_pylist() for key in rest})
        numbered = [key for key in table.column_names if _NUMBERED.fullmatch(key)]
        labels = [key for key in table.column_names if key.lower() in _LABEL_COLUMNS]
        pixels = numbered or [key for key in table.column_names if key not in labels]
        others = [key for key in table.column_names if key not in pixels]
        images = to_nhwc(_square(_pixels(table, pixels, name), name), name)
        return Table(images, {key: table.column(key).to_pylist() for key in others})
    return Table(to_nhwc(parse(name, _idx(folder, name), (3, 4)), name), {})


def _idx(folder: Folder, name: str) -> bytes:
    """The content of an IDX file, decompressed."""
    packed = folder.read(name)
    return gunzip(name, packed) if packed[:2] == b"\x1f\x8b" else packed


def _of_one_hot(labels: Any, task: type[Task]) -> Any:
    """Labels [N, 1], as Keras's CIFAR files have them, and classes as a 1 among K columns become [N]."""
    if labels.ndim != 2 or not task.scalar:
        return labels
    if labels.shape[1] == 1:
        return labels[:, 0]
    one_hot = (
        labels.dtype.kind in "biuf" and ((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all()
    )
    return labels.argmax(1) if one_hot else labels


def _source(folder: Folder, parts: Parts, task: type[Task], names: Sequence[str] | None = None) -> Source:
    digest = hashlib.sha256()
    for images, labels in parts.values():
        digest.update(np.ascontiguousarray(images).tobytes())
        digest.update(repr(labels.tolist()).encode() if labels.dtype.kind == "O" else labels.tobytes())
    origin = Origin(PurePosixPath(folder.root).name, folder.root, digest.hexdigest())
    source = of_splits(parts, names, (origin,), folder.shown, task)
    return replace(source, ledger=folder.ledger, fingerprint=folder.fingerprint())


_UNSIGNED_BYTES = 0x0800  # third byte: element type; fourth: number of dimensions


_NAME = re.compile(r"(?P<set>.*?)(?P<kind>images|labels)[-.]?idx\d(?:[-.]u?byte)?(?P<gz>\.gz)?", re.I)


def is_idx(name: str) -> bool:
    """Whether a file is called as those of the MNIST family are, like `train-images-idx3-ubyte.gz`."""
    return _NAME.fullmatch(name.rpartition("/")[2]) is not None


def open_idx(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Read pairs of images and labels, as `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`.

    Raises:
        DataError: Half a pair, several sets in one folder, or a damaged file.
    """
    files: dict[tuple[str, str], dict[str, str]] = {}
    for name in folder.sizes:
        match = _NAME.fullmatch(PurePosixPath(name).name)
        if match is None:
            folder.ledger.skip(name, "no IDX file")
            continue
        word = split_word(match["set"]) or split_word(PurePosixPath(name).parts[0]) or ("train", match["set"])
        kinds = files.setdefault((word[1].strip("-_. "), word[0]), {})
        if kinds.setdefault(match["kind"].lower(), name) != name:
            raise DataError(f"{kinds[match['kind'].lower()]} and {name} are the same half of one split.")
    sets = sorted({which for which, _ in files})
    if len(sets) > 1:
        shown = ", ".join(which.replace(" ", "-") or "one without a name" for which in sets)
        raise DataError(f"{folder.shown} holds several data sets: {shown}.", "Give each a folder of its own.")
    parts, origins = {}, []
    for (_, split), pair in files.items():
        if set(pair) != {"images", "labels"}:
            raise DataError(f"{folder.shown} has no {split} {'labels' if 'images' in pair else 'images'}.")
        arrays = {}
        for kind, name in pair.items():
            content = _idx(folder, name)
            arrays[kind] = parse(name, content, (3, 4) if kind == "images" else (1,))
            origins.append(Origin(name, f"{folder.root}/{name}", hashlib.sha256(content).hexdigest()))
        parts[split] = arrays["images"], arrays["labels"]
    origins.sort(key=lambda origin: origin.name)
    return replace(
        of_splits(parts, None, tuple(origins), folder.shown, task),
        ledger=folder.ledger,
        fingerprint=folder.fingerprint(),
    )


def gunzip(name: str, data: bytes, limit: int | None = None) -> bytes:
    """Decompress a whole gzip file and check its CRC and length.

    Args:
        name: Named in the error.
        data: The compressed file.
        limit: Most bytes accepted; more is rejected without being decompressed.

    Raises:
        DataError: Truncated, damaged, no gzip, or larger than `limit`.
    """
    try:
        if not data:  # which gzip takes for a file of no members
            raise EOFError("it is empty")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(-1 if limit is None else limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error} ({len(data):,} bytes).", "Fetch it again.") from None
    if limit is not None and len(content) > limit:
        raise DataError(f"{name} is damaged: it holds more than the expected {limit:,} bytes.")
    return content


def parse(name: str, content: bytes, dims: tuple[int, ...]) -> Images:
    """Read IDX content.

    Args:
        name: Named in the error.
        content: The file, decompressed.
        dims: Accepted numbers of dimensions.

    Returns:
        uint8 array of the shape that the header says; a view on `content`.

    Raises:
        DataError: Another magic number, or a header whose sizes differ from the bytes that follow.
    """
    expected = " or ".join(f"0x{_UNSIGNED_BYTES + n:08x}" for n in dims)
    magic = int.from_bytes(content[:4], "big")
    rank = magic - _UNSIGNED_BYTES
    if len(content) < 4 or rank not in dims:
        raise DataError(f"{name}: the IDX magic number is 0x{magic:08x}, expected {expected}.")
    if len(content) < 4 + 4 * rank:
        raise DataError(f"{name}: the IDX header is cut off after {len(content)} bytes.")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    present = len(content) - 4 - 4 * rank
    if math.prod(shape) != present:
        sizes = " x ".join(f"{size}" for size in shape)
        raise DataError(
            f"{name}: the header says {sizes} = {math.prod(shape):,} bytes, but {present:,} follow."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)

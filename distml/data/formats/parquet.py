"""Reads users' Parquet files: tensors, nested lists or encoded pictures with labels (driver).

Read in passes that never hold more than the rows asked for and one small batch, whatever the size of the
files and of their row groups. Measured with a budget of 20 MB and one row group per file: 127 MB above the
interpreter for 49 MB of pixels, 125 MB for 197 MB.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from distml.config import DataConfig
from distml.data import image, source
from distml.data.image import Policy
from distml.data.listing import ARROW, PARQUET, Folder, card, suffix
from distml.data.schema import IMAGE, LABELS, Images, is_label, of_labels, to_array, to_numbers
from distml.data.source import Fault, Gathered, Indices, Rows, Source, label_array, to_nhwc
from distml.data.split import (
    FOLD_COLUMNS,
    SPLIT_COLUMNS,
    absent_parts,
    as_split,
    divide,
    divide_rows,
    split_column,
)
from distml.errors import DataError
from distml.tasks import Targets, Task
from distml.tasks.classification import Classification
from distml.tasks.task import is_absent

_LOG = logging.getLogger(__name__)

_LOOKED_AT = 256  # rows of a row group whose headers decide the shape
_GROUP_BYTES = 64 << 20
"""Of a group of rows, up to which each shard reads the groups that it has rows of: on every CPU, a few groups
twice. Larger ones are scanned once, one shard after the other. Hugging Face writes groups of 100 images."""
_BATCH_BYTES = 1 << 19  # of pixels; Arrow takes twenty times as much while it decodes them


_IMAGE_NAMES = (
    IMAGE,
    "img",
    "picture",
    "photo",
    "pixel_values",
    "pixels",
    "jpg",
    "png",
    "bytes",
    "image_bytes",
    "image_base64",
    "base64",
)


def open_parquet(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Read the labels and look at some images; all others are read when they are gathered.

    Raises:
        DataError: No Parquet, no column of images or labels, or values in them that cannot be used.
    """
    names = _files(folder)
    divided = divide(names, folder.splits)
    columns = _columns(folder, names, data, task)
    read = {name: _labels(folder, name, columns, task) for some in divided.values() for name in some}
    labels = {s: np.concatenate([read[name].values for name in some]) for s, some in divided.items()}
    chosen, notes = _by_column(folder, divided["train"], columns) if labels.keys() == {"train"} else ({}, ())
    kept, faults = _kept(divided, read, chosen, data)
    if kept:
        labels = {split: labels["train" if chosen else split][rows] for split, rows in kept.items()}
    _leave_out_withheld(folder, labels, divided)
    if not len(labels["train"]):
        raise DataError(f"{folder.shown} holds no rows.")
    own = None if columns.one_hot else _class_names(folder, names[0], columns.labels[0])
    known = task.named(columns.labels) or own
    if known and not task.scalar and not task.named(columns.labels):
        labels = {split: _of_numbers(some, known) for split, some in labels.items()}
    encoded, numbers = task.encode(labels, known)
    shape, policy = _shape(folder, divided, columns, data)
    small = max(some.group_bytes for some in read.values()) <= _GROUP_BYTES
    # Rows may name files beside them.
    whole = not any(suffix(name) in image.SUFFIXES for name in folder.sizes)
    single = policy is not None and small and whole
    how = _How(columns, shape, policy, data.max_pixels, single)
    files = {split: _placed(divided["train" if chosen else split], read) for split in labels}
    splits = {split: _rows(folder, files[split], numbers[split], how) for split in labels}
    if kept:
        splits = {split: _selected(rows, kept[split]) for split, rows in splits.items()}
    return Source(
        *(shape, encoded, splits, (folder.origin(),), policy),
        ledger=folder.ledger,
        faults=tuple(faults),
        fingerprint=folder.fingerprint(),
        notes=(*notes, *_other_pictures(folder, names[0], columns), *absent_parts(names)),
    )


def _other_pictures(folder: Folder, name: str, columns: Columns) -> tuple[str, ...]:
    """Say which columns hold pictures, too, and are not used."""
    with _opened(folder, name) as file:
        fields = [field for field in file.schema_arrow if field.name not in (columns.image, *columns.labels)]
    others = [
        f.name for f in fields if _is_binary(f.type) or (pa.types.is_struct(f.type) and _holds_images(f.type))
    ]
    return (f"the pictures of {columns.image} are used, not those of {', '.join(others)}.",) if others else ()


def _kept(
    divided: Mapping[str, Sequence[str]],
    read: Mapping[str, _Read],
    chosen: Mapping[str, Indices],
    data: DataConfig,
) -> tuple[Mapping[str, Indices], list[Fault]]:
    """Rows of each split that have a label, of those that a column chose; {} where all rows are taken.

    Raises:
        DataError: Rows without a label, and they are not to be skipped.
    """
    kept: dict[str, Indices] = {}
    faults: list[Fault] = []
    for split, names in divided.items():
        first, lost = 0, []
        for name in names:
            for at in read[name].missing:
                where = f"row {at + 1} of {name}"
                faults.append(Fault(where, f"{where} has no label.", "Fill it in, or remove the row."))
                lost.append(first + at)
            first += len(read[name].values)
        kept[split] = np.setdiff1d(np.arange(first), lost)
    source.require_usable(faults, sum(map(len, kept.values())) + len(faults), data)
    if not faults:
        return chosen, faults
    chosen = {split: rows[np.isin(rows, kept["train"])] for split, rows in chosen.items()}
    return chosen or kept, faults


def _files(folder: Folder) -> list[str]:
    """The files that hold rows; the others go into the ledger."""
    saved = _saved(folder)
    names = []
    for name in folder.sizes:
        above = name.rpartition("/")[0]
        if suffix(name) not in (*PARQUET, *ARROW):
            folder.ledger.skip(name, "no Parquet")
        elif name in saved.get(above, [name]) and not (
            suffix(name) in ARROW and PurePosixPath(name).name.startswith(("cache-", "tmp"))
        ):
            names.append(name)
        else:
            folder.ledger.skip(name, "a cache of Hugging Face's")
    if not names:
        raise DataError(f"{folder.shown} holds no .parquet files.", "Check data.path and data.format.")
    return names


def _saved(folder: Folder) -> dict[str, list[str]]:
    """The files of each folder that Hugging Face's `save_to_disk` wrote, as its `state.json` lists them.

    Raises:
        DataError: A file or a split of them is not there, or rows are chosen by an index beside them.
    """
    saved: dict[str, list[str]] = {}
    for name in folder.sizes:
        above, _, last = name.rpartition("/")
        if last not in ("state.json", "dataset_dict.json"):
            continue
        start, told = f"{above}/" if above else "", _json(folder, name)
        if last == "dataset_dict.json":
            for split in told.get("splits") or ():
                if not any(there.startswith(f"{start}{split}/") for there in folder.sizes):
                    raise DataError(f"{name} names the split {split}, which is not there.", "Fetch it again.")
            continue
        if told.get("_indices_data_files") or told.get("_indices_files"):
            raise DataError(
                f"{name} chooses rows by an index, as datasets before 2.0 wrote it.",
                "Save the set again by a newer version, or by to_parquet.",
            )
        if files := [str(some.get("filename")) for some in told.get("_data_files") or ()]:
            saved[above] = [f"{start}{file}" for file in files]
            known = folder.sizes.keys() | folder.ledger.reasons.keys()  # of another configuration
            if lost := [file for file in saved[above] if file not in known]:
                raise DataError(f"{name} names {lost[0]}, which is not there.", "Fetch it again.")
    return saved


def _json(folder: Folder, name: str) -> Mapping[str, Any]:
    try:
        told = json.loads(folder.read(name))
    except ValueError:
        raise DataError(f"{name} cannot be read as JSON.", "Fetch it again.") from None
    return told if isinstance(told, dict) else {}


def _by_column(
    folder: Folder, names: Sequence[str], known: Columns
) -> tuple[dict[str, Indices], tuple[str, ...]]:
    """Row numbers of each split, where a column of all files says the split of a row.

    Returns:
        int64 [M] by split, empty without such a column; a sentence about one that is called so and is not.

    Raises:
        DataError: Some values are splits and others are not.
    """
    several: list[set[str]] = []
    for name in names:
        with _opened(folder, name) as file:
            fields = file.schema_arrow
            several.append({field.name for field in fields if _holds_labels(field.type)})
    everywhere = [
        field.name
        for field in fields
        if field.name not in known.labels and all(field.name in some for some in several)
    ]

    @functools.cache  # what decides on a column is what divides by it
    def values_of(column: str) -> list[Any]:
        values: list[Any] = []
        for name in names:
            with _opened(folder, name) as file:
                values += file.read([column], use_threads=False).column(0).to_pylist()
        return values

    column, notes = split_column(everywhere, values_of)
    if column is None:
        return {}, notes
    values = [as_split(value, column) for value in values_of(column)]
    return divide_rows(values, f"the column {column} of {names[0]}"), notes


def _selected(base: Rows, chosen: Indices) -> Rows:
    """Some rows of others, with the labels that those already have.

    Args:
        base: All rows, with the labels of the chosen ones alone.
        chosen: int64 [M], their numbers among all.
    """
    fitted, only = base.fitted, base.only
    return Rows(
        base.labels,
        lambda indices: base.gather(chosen[indices]),
        lambda row: base.name(int(chosen[row])),
        None if fitted is None else lambda policy: _selected(fitted(policy), chosen),
        None if only is None else lambda indices: only(chosen[indices]),
    )


def _leave_out_withheld(
    folder: Folder, labels: dict[str, npt.NDArray[Any]], divided: dict[str, list[str]]
) -> None:
    """Take away splits without labels, as competitions publish them."""
    for split in [split for split, some in labels.items() if split != "train" and _withheld(some)]:
        _LOG.warning("%s is left out: all its labels are -1, as in competition data", split)
        del labels[split]
        for name in divided.pop(split, ()):
            folder.ledger.skip(name, "all labels are -1")


def _withheld(labels: npt.NDArray[Any]) -> bool:
    return labels.dtype.kind == "i" and len(labels) > 0 and bool((labels == -1).all())


@dataclass(frozen=True)
class Columns:
    """Which columns hold the images and the labels."""

    image: str
    labels: tuple[str, ...]
    one_hot: bool = False  # whether a label is the one column that is 1


@dataclass(frozen=True)
class _How:
    """What rows become: images of this shape, encoded pictures by the policy."""

    columns: Columns
    shape: tuple[int, int, int]
    policy: Policy | None
    max_pixels: int
    single: bool = False  # whether a few rows can be read without scanning many


class _Read(NamedTuple):
    """Labels of a file, which rows have none, and the bytes of the images in its largest group of rows."""

    values: npt.NDArray[Any]
    missing: list[int]
    group_bytes: int


class _Placed(NamedTuple):
    """A file, the number that its first row has in the split, and how many it has."""

    name: str
    first: int
    rows: int


def _placed(names: Sequence[str], read: Mapping[str, _Read]) -> list[_Placed]:
    ends = np.cumsum([len(read[name].values) for name in names]).tolist()
    return [
        _Placed(name, end - len(read[name].values), len(read[name].values))
        for name, end in zip(names, ends, strict=True)
    ]


@contextlib.contextmanager
def _opened(folder: Folder, name: str, columns: Columns | None = None) -> Iterator[Any]:
    try:
        # Neither pre-buffered nor memory-mapped: both would hold whole row groups.
        with folder.open(name) as stream, _reader(folder, name, stream) as file:
            has = [*file.schema_arrow.names, *_partition(name)]
            missing = [] if columns is None else sorted({columns.image, *columns.labels} - set(has))
            if missing:
                raise DataError(f"{name} has no column {' and '.join(missing)}, but {', '.join(has)}.")
            yield file
    except (OSError, pa.ArrowException) as error:
        if known := image.in_place_of_it(folder.read(name, 512)):
            raise DataError(f"{name} is not {_kind(name)}: it is {known[0]}.", known[1]) from None
        raise DataError(
            f"{name} cannot be read as {_kind(name)}: {str(error).rstrip('.')}.", "Fetch it again."
        ) from None


def _kind(name: str) -> str:
    return "Arrow" if suffix(name) in ARROW else "Parquet"


def _reader(folder: Folder, name: str, stream: Any) -> Any:
    if suffix(name) in PARQUET:
        return pq.ParquetFile(stream, pre_buffer=False, buffer_size=1 << 20)
    return contextlib.nullcontext(_ArrowFile(stream, folder.entries[name].path if folder.local else None))


class _ArrowFile:
    """An Arrow file, of which a batch is a group of rows, with what is used of `pq.ParquetFile`. Final.

    Args:
        stream: Of its bytes.
        path: Of a file of this machine, which is mapped: its rows need no memory.
    """

    def __init__(self, stream: Any, path: str | None) -> None:
        content = pa.memory_map(path) if path else pa.BufferReader(stream.read())
        whole = content.size()
        indexed = content.read(len(_ARROW)) == _ARROW
        content.seek(max(0, whole - len(_END)))
        if not indexed and content.read(len(_END)) != _END:
            raise pa.ArrowInvalid("it is cut off")
        content.seek(0)
        if indexed:
            reader = pa.ipc.open_file(content)
            self._batches = [reader.get_batch(at) for at in range(reader.num_record_batches)]
        else:
            reader = pa.ipc.open_stream(content)
            self._batches = list(reader)
        self.schema_arrow, self.num_row_groups, self.metadata = reader.schema, len(self._batches), self

    @property
    def num_rows(self) -> int:
        return sum(map(len, self._batches))

    def row_group(self, at: int) -> _Group:
        return _Group(len(self._batches[at]), self._batches[at].nbytes)

    def read(self, columns: Sequence[str], use_threads: bool) -> Any:
        return pa.Table.from_batches(self._batches, self.schema_arrow).select(columns)

    def iter_batches(
        self, size: int, row_groups: Sequence[int], columns: Sequence[str], use_threads: bool
    ) -> Iterator[Any]:
        for group in row_groups:
            batch = self._batches[group].select(columns)
            yield from (batch.slice(first, size) for first in range(0, len(batch), size))


class _Group(NamedTuple):
    """Rows of a batch and their bytes, under the names of Parquet."""

    num_rows: int
    total_byte_size: int


_ARROW, _END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"
"""How Arrow files begin that have an index, and how those end that are a stream of batches."""


def _columns(folder: Folder, names: Sequence[str], data: DataConfig, task: type[Task]) -> Columns:
    """Take the columns that are configured, or called as such columns are, or the only one of their kind.

    Columns of 0 and 1 are taken together where each row has one 1.
    """
    name = names[0]
    with _opened(folder, name) as file:
        fields = list(file.schema_arrow)
    fields += [pa.field(key, pa.string()) for key in _partition(name) if key not in {f.name for f in fields}]
    has = [field.name for field in fields]

    def choose(key: str, asked: str | None, known: Sequence[str], fitting_type: list[str]) -> str:
        if asked is not None:
            if asked not in has:
                raise DataError(
                    f"{name} has no column {asked}, but {', '.join(has)}.", f"Correct data.{key}."
                )
            return asked
        if known[0] in has:
            return known[0]
        named = of_labels(has) if known is LABELS else [name for name in has if name.lower() in known]
        called = named or fitting_type
        if len(called) == 1:
            return called[0]
        what = "several columns" if called else "no column"
        raise DataError(
            f"{name} has {what} that may be the {known[0]}: {', '.join(called or has)}.", f"Set data.{key}."
        )

    pixels = [field.name for field in fields if _holds_images(field.type)]
    if not pixels and data.image_column is None and not {column.lower() for column in has} & {*_IMAGE_NAMES}:
        _require_no_addresses(folder, name, [field.name for field in fields if _is_text(field.type)])
    picture = choose("image_column", data.image_column, _IMAGE_NAMES, pixels)
    unused = (*SPLIT_COLUMNS, *FOLD_COLUMNS)
    others = [field for field in fields if field.name != picture and field.name.lower() not in unused]
    _require_labels(name, others, has, data)
    fitting = [field.name for field in others if not task.scalar or _holds_labels(field.type)]
    rest = fitting if len(others) == 1 else []
    asked = data.label_column if isinstance(data.label_column, list) else [data.label_column]
    if task.scalar and asked == [None] and (classes := _one_hot(folder, names, others)):
        return Columns(picture, tuple(classes), one_hot=True)
    return Columns(picture, tuple(choose("label_column", label, LABELS, rest) for label in asked))


def _require_no_addresses(folder: Folder, name: str, columns: Sequence[str]) -> None:
    """Reject a column of addresses in place of pictures."""
    with _opened(folder, name) as file:
        there = [column for column in columns if column in file.schema_arrow.names]
        first = next(file.iter_batches(1, row_groups=[0], columns=there, use_threads=False), None)
    for column, value in (first.to_pylist()[0] if first is not None and len(first) else {}).items():
        if value and "://" in value[:16]:
            raise DataError(
                f"{name} holds no pictures, but addresses in {column}, like {value[:80]}.",
                "Download the pictures, and write their bytes into a column image.",
            )


def image_column(schema: Any) -> str | None:
    """Return the column of a schema that is called as images are or is the only one of their kind."""
    if IMAGE in schema.names:
        return IMAGE
    fitting = [field.name for field in schema if _holds_images(field.type)]
    only = [column for column in fitting if column.lower() in _IMAGE_NAMES] or fitting
    return only[0] if len(only) == 1 else None


def _partition(name: str) -> dict[str, str]:
    """The columns that a file's folders say, as Hive writes them: `label=cat/0.parquet`."""
    parts = [part.partition("=") for part in PurePosixPath(name).parts[:-1]]
    return {key: unquote(value) for key, sign, value in parts if key and sign}


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return _is_binary(kind) or pa.types.is_nested(kind) or isinstance(kind, pa.BaseExtensionType)


def _holds_labels(kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or _is_text(kind))


def _holds_flags(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind))


def _one_hot(folder: Folder, names: Sequence[str], fields: Sequence[Any]) -> list[str]:
    """The columns that together say the class in all files; none where one is called as labels are."""
    flags = [field.name for field in fields if _holds_flags(field.type)]
    if len(flags) < 2 or any(is_label(field.name) for field in fields):
        return []
    rows: list[dict[str, Any]] = []
    for name in names:
        with _opened(folder, name) as file:
            there = [column for column in flags if column in file.schema_arrow.names]
            rows += file.read(there, use_threads=False).to_pylist()
    return source.one_hot(rows, flags)


def _require_labels(name: str, others: Sequence[Any], has: Sequence[str], data: DataConfig) -> None:
    boxes = [field.name for field in others if _holds_boxes(field.type)]
    if boxes and data.label_column in (None, boxes[0]) and not any(map(is_label, has)):
        raise DataError(
            f"{name} holds no labels, but boxes in {boxes[0]}, which are not read.",
            "distml predicts what a whole picture shows: write the distinct categories of each row into a "
            "column label, and set task.kind to multilabel.",
        )


def _holds_boxes(kind: Any) -> bool:
    """Whether values are annotated parts of a picture, as Hugging Face's sets for detection have them."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_struct(kind)
        and {"bbox", "bboxes", "boxes"} & {kind.field(at).name for at in range(kind.num_fields)}
    )


def _is_binary(kind: Any) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def _is_text(kind: Any) -> bool:
    return any(
        check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    )


def _labels(folder: Folder, name: str, columns: Columns, task: type[Task]) -> _Read:
    with _opened(folder, name, columns) as file:
        inside = file.schema_arrow.names
        rows = file.metadata.num_rows
        groups = [file.metadata.row_group(at) for at in range(file.num_row_groups)]
        table = file.read([column for column in columns.labels if column in inside], use_threads=False)
    for column in columns.labels:
        if column not in inside:
            table = table.append_column(column, pa.array([_partition(name)[column]] * rows, pa.string()))
    table = table.select(list(columns.labels))
    largest = max((group.total_byte_size for group in groups), default=0)
    return _Read(*_values(table, name, columns, task), largest)


def _values(table: Any, name: str, columns: Columns, task: type[Task]) -> tuple[npt.NDArray[Any], list[int]]:
    """The labels of all rows, and which rows have none: another label stands in their place."""
    if columns.one_hot:
        rows = table.to_pylist()
        return np.array([source.hot(row, columns.labels) for row in rows], dtype=str), []
    if task.scalar:
        column = _of_one(table.column(columns.labels[0]).combine_chunks(), name, columns.labels[0])
        texts = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
        given = [] if pa.types.is_nested(texts.type) else texts.to_pylist()
        kept = [not is_absent(label) for label in given]
        missing = [at for at, there in enumerate(kept) if not there]
        values = _one_a_row(texts.filter(pa.array(kept)) if missing else texts, name, columns.labels[0])
    else:
        read: list[Any] = []
        missing = []
        for at, row in enumerate(table.to_pylist()):
            try:
                read.append(source.read_label(task, row, f"row {at + 1} of {name}"))
            except DataError:
                if not any(map(is_absent, row.values())):
                    raise
                missing.append(at)
        values = label_array(read)
    if not missing:
        return values, missing
    if not len(values):
        raise DataError(f"{name} has no row with a label.", "Fill them in, or remove the file.")
    whole = values[:1].repeat(len(table))
    whole[np.setdiff1d(np.arange(len(table)), missing)] = values
    return whole, missing


def _hot_places(column: Any) -> Any:
    """Places of the 1 in lists of 0 and 1 of one length, with one 1 each; empty for other lists."""
    lists = column.to_pylist()
    if not lists or any(not row or len(row) != len(lists[0]) for row in lists) or len(lists[0]) < 2:
        return pa.array([], pa.int64())
    whole = all(value in (0, 1) for row in lists for value in row) and all(sum(row) == 1 for row in lists)
    return pa.array([row.index(1) for row in lists] if whole else [], pa.int64())


def _of_one(column: Any, name: str, label: str) -> Any:
    """The labels of lists of one label; lists without any hold none."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return column
    if len(places := _hot_places(column)):
        return places
    for at, given in enumerate(pc.fill_null(column.value_lengths(), 0).to_pylist()):
        if given > 1:
            raise DataError(
                f"row {at + 1} of {name} has several labels, {str(column[at].as_py())[:80]}, in {label}.",
                "Set task.kind to multilabel or regression, or write one label a row.",
            )
    return pa.array([given[0] if given else None for given in column.to_pylist()], column.type.value_type)


def _one_a_row(column: Any, name: str, label: str) -> npt.NDArray[Any]:
    if _is_text(column.type):
        return np.array(column.to_pylist(), dtype=str)
    if pa.types.is_boolean(column.type):
        return np.array(["true" if flag else "false" for flag in column.to_pylist()])
    if pa.types.is_struct(column.type):
        raise DataError(
            f"the column {label} of {name} holds objects, like {str(column[0].as_py())[:80]}.",
            "Write a name, a text, in the place of each.",
        )
    if pa.types.is_nested(column.type):
        raise DataError(
            f"the column {label} of {name} holds lists.",
            "Set task.kind to multilabel or regression, or write one label a row.",
        )
    return _numbers(column, f"the label column of {name}")


def _class_names(folder: Folder, name: str, label: str) -> list[str] | None:
    """Return the names that Hugging Face's library stores for integer labels: in the file, or beside it."""
    with _opened(folder, name) as file:
        stored = (file.schema_arrow.metadata or {}).get(b"huggingface")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        if names := _names_of(json.loads(stored or b"{}")["info"]["features"][label]):
            return names
    above = [f"{parent}/" if str(parent) != "." else "" for parent in PurePosixPath(name).parents]
    for file in (f"{start}dataset_info.json" for start in above):
        if file in folder.sizes:
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                if names := _names_of(_json(folder, file)["features"][label]):
                    return names
    told = card(folder).get("dataset_info")
    infos = [info for info in (told if isinstance(told, list) else [told]) if isinstance(info, Mapping)]
    for info in infos if len(infos) < 2 else [i for i in infos if i.get("config_name") == folder.subset]:
        with contextlib.suppress(KeyError, TypeError, AttributeError, StopIteration):
            feature = next(some for some in info["features"] if some.get("name") == label)
            if names := _names_of(feature.get("dtype") or feature.get("list") or feature.get("sequence")):
                return names
    return None


def _of_numbers(labels: npt.NDArray[Any], names: Sequence[str]) -> npt.NDArray[Any]:
    """Lists of labels by their names, where they are numbers of these."""
    numbers = {str(at): name for at, name in enumerate(names)}
    return label_array([tuple(numbers.get(label, label) for label in row) for row in labels])


def _names_of(feature: Any) -> list[str] | None:
    """Names of classes in the description of a feature, one label or a list of them, in any of its forms."""
    while isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    if not isinstance(feature, Mapping):
        return None
    for key in ("feature", "class_label", "dtype"):
        if isinstance(feature.get(key), Mapping | list):
            return _names_of(feature[key])
    names = feature.get("names")
    if isinstance(names, Mapping):  # {"0": "cat", "1": "dog"}
        names = [names[key] for key in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) else None


def _shape(
    folder: Folder, divided: Mapping[str, Sequence[str]], columns: Columns, data: DataConfig
) -> tuple[tuple[int, int, int], Policy | None]:
    """Return the shape of the images and, where the rows are encoded pictures, how they get it."""
    headers: list[image.Header] = []
    bad: list[Fault] = []
    looked_at = 0
    for name in (name for names in divided.values() for name in names):
        with _opened(folder, name, columns) as file:
            for group in range(file.num_row_groups):
                # Looking at every row would read the whole set twice; more sizes later on are fitted.
                rows = file.iter_batches(
                    _LOOKED_AT, row_groups=[group], columns=[columns.image], use_threads=False
                )
                column = next((batch.column(0) for batch in rows), None)
                if column is None:
                    continue
                some = _pictures(folder, name, column)
                if some is None:
                    height, width, depth = arrays(plain(column.slice(0, 1), file, columns), name).shape[1:]
                    return (height, width, depth), None
                for at, picture in enumerate(some):
                    looked_at += 1
                    where = f"row {at} of row group {group} ({name})"
                    try:
                        headers.append(image.header(picture(where), where, data.max_pixels))
                    except DataError as error:
                        bad.append(Fault(where, error.message, error.remedy))
    if not looked_at:
        raise DataError("the files hold no rows.")
    source.require_usable(bad, looked_at, data)
    policy = image.policy(headers, data)
    return policy.shape, policy


def _rows(folder: Folder, files: list[_Placed], labels: Targets, how: _How) -> Rows:
    def refit(other: Policy) -> Rows:
        return _rows(folder, files, labels, replace(how, shape=other.shape, policy=other))

    def only(indices: Indices) -> Callable[[], Gathered]:
        some = [
            file for file in files if ((indices >= file.first) & (indices < file.first + file.rows)).any()
        ]
        return functools.partial(_gather, folder.only([file.name for file in some]), some, how, indices)

    def name(row: int) -> str:
        file = next(file for file in files if row < file.first + file.rows)
        return f"row {row} ({file.name})"

    gather = functools.partial(_gather, folder, files, how)
    fitted = None if how.policy is None else refit
    return Rows(labels, gather, name, fitted, only if how.single else None)


def _gather(folder: Folder, files: list[_Placed], how: _How, indices: Indices) -> Gathered:
    """Scan the files once and put each wanted row where it is wanted."""
    images = np.zeros((len(indices), *how.shape), np.uint8)
    bad: dict[int, Fault] = {}
    order = np.argsort(indices)
    wanted = indices[order]
    for file in files:
        low, high = np.searchsorted(wanted, [file.first, file.first + file.rows])
        if low == high:
            continue
        first = file.first
        with _opened(folder, file.name, how.columns) as opened:
            groups = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            for group, rows in enumerate(groups):
                if np.searchsorted(wanted, first) < np.searchsorted(wanted, first + rows):
                    for places, numbers, column in _scan(opened, group, first, wanted, order, how):
                        some = _pictures(folder, file.name, column)
                        if some is None:
                            images[places] = _arrays(column, file.name, how)
                        else:
                            _fill(images, bad, places, numbers, some, file.name, how)
                first += rows
    return Gathered(images, bad)


def _scan(
    file: Any, group: int, first: int, wanted: Indices, order: Indices, how: _How
) -> Iterator[tuple[Indices, Indices, Any]]:
    """Yield rows that are wanted: their places in the result, their numbers, and their column."""
    size = max(1, _BATCH_BYTES // int(np.prod(how.shape)))
    for batch in file.iter_batches(size, row_groups=[group], columns=[how.columns.image], use_threads=False):
        low, high = np.searchsorted(wanted, [first, first + len(batch)])
        if low < high:
            column = plain(batch.column(0), file, how.columns)
            rows = to_array(wanted[low:high] - first, pa.int64())
            yield order[low:high], wanted[low:high], column.take(rows)
        first += len(batch)


def _fill(
    images: Images,
    bad: dict[int, Fault],
    places: Indices,
    numbers: Indices,
    some: Sequence[_Picture],
    name: str,
    how: _How,
) -> None:
    if how.policy is None:
        raise DataError(f"{name} has encoded pictures, the first file has arrays.")
    for place, number, picture in zip(places.tolist(), numbers.tolist(), some, strict=True):
        where = f"row {number} ({name})"
        try:
            images[place] = image.read(picture(where), how.policy, where, how.max_pixels)
        except DataError as error:
            bad[place] = Fault(where, error.message, error.remedy)


def _arrays(column: Any, name: str, how: _How) -> Images:
    given = arrays(column, name)
    if given.shape[1:] != how.shape:
        raise DataError(f"{name} has images of {given.shape[1:]}, the first image is {how.shape}.")
    return given


_Picture = Callable[[str], bytes]
"""Gives the bytes of an encoded picture; its argument names the row in errors."""


def _pictures(folder: Folder, name: str, column: Any) -> list[_Picture] | None:
    """The encoded pictures of a column, None for one of arrays.

    A row without bytes, as Hugging Face's writer leaves it for files that it does not embed, names a file:
    from the table's folder or the root on, or the only one of that name.
    """
    some = encoded(column)
    if some is None:
        return None
    paths: list[str | None] = [None] * len(some)
    if some.null_count and pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        paths = column.field("path").to_pylist()
    return [
        functools.partial(_named, folder, name, path) if path and not cell.is_valid else _inside(cell)
        for cell, path in zip(some, paths, strict=True)
    ]


def _inside(cell: Any) -> _Picture:
    return lambda _: cell.as_py() or b""


def _named(folder: Folder, table: str, path: str, where: str) -> bytes:
    path = path.replace("\\", "/")
    beside = (PurePosixPath(table).parent / path).as_posix()
    there = next((name for name in (beside, path) if name in folder.sizes), None)
    if there is None:
        last = path.rpartition("/")[2]
        alike = [name for name in folder.sizes if name.rpartition("/")[2] == last]
        there = alike[0] if len(alike) == 1 else None
    if there is None:
        raise DataError(
            f"{where} holds no picture but names {path}, which is not there.",
            "Put the file there, or write the set by Hugging Face's to_parquet, which embeds pictures.",
        )
    folder.ledger.reasons.pop(there, None)
    return folder.read(there)


def plain(column: Any, file: Any, columns: Columns) -> Any:
    """Give tensors that Ray Data wrote, flat lists to other readers, the type of a fixed-shape tensor."""
    field = file.schema_arrow.field(columns.image)
    kind, shape = column.type, None
    if isinstance(kind, pa.BaseExtensionType):
        if kind.extension_name not in _RAY_TENSORS:
            return column
        shape, column = kind.shape, column.storage
    elif field.metadata and field.metadata.get(b"ARROW:extension:name", b"").decode() in _RAY_TENSORS:
        try:
            shape = json.loads(field.metadata[b"ARROW:extension:metadata"])
        except (ValueError, KeyError):
            raise DataError(
                f"the shape of Ray's tensors in column {columns.image} cannot be read.",
                "Write them with ray.data as fixed-shape tensors again.",
            ) from None
    if shape is None:
        return column
    values = column.flatten()
    flat = pa.FixedSizeListArray.from_arrays(values, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(values.type, list(shape)), flat)


_RAY_TENSORS = ("ray.data.arrow_tensor", "ray.data.arrow_tensor_v2")


def encoded(column: Any) -> Any | None:
    """Return the encoded pictures of a column of bytes, struct{bytes} or base64, None for one of arrays.

    Raises:
        DataError: Texts that are not base64.
    """
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    if pa.types.is_binary_view(column.type) or pa.types.is_null(column.type):
        column = column.cast(pa.large_binary())
    if _is_text(column.type):
        column = pa.array([_of_base64(text) for text in column.to_pylist()], pa.large_binary())
    return column if _is_binary(column.type) else None


def _of_base64(text: str | None) -> bytes | None:
    """The bytes of a picture that is written as base64, also as a `data:` URI."""
    if text is None:
        return None
    if "://" in text[:16] or suffix(text[-16:]) in image.SUFFIXES:
        what = "an address" if "://" in text[:16] else "a file that is not there"
        raise DataError(
            f"the column of images names {what}, {text[:80]}.",
            "Write the bytes of the pictures, or put the files beside the table.",
        )
    try:
        return base64.b64decode(text.rpartition("base64,")[2], validate=True)
    except ValueError:
        raise DataError(
            f"the column of images holds texts that are not base64, like {text[:40]!r}.",
            "Write the bytes of the pictures.",
        ) from None


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
    if hasattr(column, "value_lengths") and (
        _is_binary(column.type.value_type) or pa.types.is_struct(column.type.value_type)
    ):
        raise DataError(f"{name} has lists of pictures.", "Write one picture a row.")
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

"""The parts of a batch prediction: rows read together, written as one file (driver, batch process)."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml import log
from distml.artifacts import layout
from distml.artifacts.predictor import Embedder, Predictor
from distml.data import image as decoding
from distml.data import plausible
from distml.data.formats import arrays, image_folder, webdataset
from distml.data.formats import parquet as columns
from distml.data.image import Policy
from distml.data.listing import PARQUET, Folder, suffix
from distml.data.schema import IMAGE, Images
from distml.errors import DataError
from distml.storage import Storage

ROWS = 4096
"""Rows of a part, as near as the row groups of a file allow; so many are lost when a process is killed."""
_PICTURES = 1024


Kind = Literal["pictures", "parquet", "tar", "arrays"]


@dataclass(frozen=True)
class Part:
    """Rows that are read and written together.

    Attributes:
        at: Position among all parts.
        names: Pictures, or one file of another kind.
        groups: Row groups of a Parquet file, pictures of a tar file or rows of another one, first and
            last + 1; None for pictures.
        first: Number of the first row in its file.
        key: Stands for input and model; the same twice means the same predictions.
        kind: What the names are.
    """

    at: int
    names: tuple[str, ...]
    groups: tuple[int, int] | None
    first: int
    key: str
    kind: Kind = "pictures"

    @property
    def file(self) -> str:
        """Name of the file the predictions are written to."""
        return f"part-{self.at:05d}-{self.key}.parquet"

    def to_json(self) -> str:
        """Return the part as text that crosses processes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Part:
        """Read `to_json`."""
        raw = json.loads(text)
        groups = raw["groups"] and tuple(raw["groups"])
        return cls(raw["at"], tuple(raw["names"]), groups, raw["first"], raw["key"], raw["kind"])


def plan(folder: Folder, model: str) -> list[Part]:
    """Divide a folder or file into parts; what is left out is in the ledger of the folder.

    Args:
        folder: At any depth Parquet files with a column of images, or pictures, or tar files of pictures, or
            IDX, `.npz` and CSV files of pixels; the first of these kinds that is there.
        model: Stands for the model and for what is written of it.

    Raises:
        DataError: None of them, or a file that cannot be opened.
    """
    tables = _files(folder, *PARQUET)
    spans: Iterable[_Span]
    if tables:
        spans = (_Span((name,), span, first) for name in tables for span, first in _groups(folder, name))
        kind: Kind = "parquet"
    elif pictures := image_folder.present(folder):
        chunks = [pictures[at : at + _PICTURES] for at in range(0, len(pictures), _PICTURES)]
        spans, kind = (_Span(tuple(chunk), None, 0) for chunk in chunks), "pictures"
    elif tars := _files(folder, ".tar"):
        counts = ((name, len(webdataset.pictures_in(folder, name))) for name in tars)
        spans, kind = (span for name, count in counts for span in _cut(name, count, _PICTURES)), "tar"
    elif files := [name for name in folder.sizes if arrays.is_arrays(folder, name)]:
        counts = ((name, len(arrays.read_images(folder, name).images)) for name in files)
        spans, kind = (span for name, count in counts for span in _cut(name, count, ROWS)), "arrays"
    else:
        raise DataError(
            f"{folder.root} holds neither Parquet files nor pictures, nor tar, IDX, npz, npy or CSV files.",
            "Correct --data; unpack other archives.",
        )
    divided = list(spans)
    if not divided:
        raise DataError(f"{folder.root} holds no rows.", "Correct --data.")
    _leave_out(folder, {name for span in divided for name in span.names}, kind)
    return [
        Part(at, span.names, span.groups, span.first, _key(folder, span, model), kind)
        for at, span in enumerate(divided)
    ]


class _Span(NamedTuple):
    names: tuple[str, ...]
    groups: tuple[int, int] | None
    first: int


def _files(folder: Folder, *endings: str) -> list[str]:
    return [name for name in folder.sizes if suffix(name) in endings]


def _cut(name: str, count: int, most: int) -> Iterator[_Span]:
    for first in range(0, count, most):
        yield _Span((name,), (first, min(count, first + most)), first)


def _leave_out(folder: Folder, used: set[str], kind: Kind) -> None:
    reason = {"pictures": "no picture", "parquet": "no Parquet file", "tar": "no tar file"}.get(kind)
    for name in folder.sizes:
        folder.ledger.reasons.pop(name, None)
        if name not in used:
            folder.ledger.skip(name, reason or "no file of images")


def _groups(folder: Folder, name: str) -> Iterator[tuple[tuple[int, int], int]]:
    """Runs of row groups of about `ROWS` rows, each with the number of its first row."""
    try:
        with folder.open(name) as stream, pq.ParquetFile(stream) as file:
            _image_column(file, name)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}.") from None
    begin = first = rows = 0
    for group, size in enumerate(sizes):
        rows += size
        if rows >= ROWS or (group == len(sizes) - 1 and rows):
            yield (begin, group + 1), first
            begin, first, rows = group + 1, first + rows, 0


def _image_column(file: Any, name: str) -> str:
    column = columns.image_column(file.schema_arrow)
    if column is None:
        has = ", ".join(file.schema_arrow.names)
        raise DataError(f"{name} has no column {IMAGE}, but {has}.", f"Call the column of images {IMAGE}.")
    return column


def _key(folder: Folder, span: _Span, model: str) -> str:
    text = json.dumps([[(name, folder.sizes[name]) for name in span.names], span.groups, model])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_BATCH = 256
SOURCE, SOURCE_ROW, EMBEDDING = "source", "source_row", "embedding"


@dataclass(frozen=True)
class Rows:
    """Some rows of a part.

    Attributes:
        identity: Their other columns, each [N].
        images: uint8 [M, H, W, C] of those that can be read.
        readable: bool [N], which those are.
        errors: Why the others cannot, None for those that can; [N].
        unused_bits: Of 16-bit files, how many bits each leaves unused; [M].
    """

    identity: dict[str, Any]
    images: Images
    readable: npt.NDArray[np.bool_]
    errors: list[str | None]
    unused_bits: list[int]


ImagesOrErrors = list[tuple[Images, int] | str]
"""For each row its image, uint8 [H, W, C], and the bits its file leaves unused, or why there is none."""


def read(folder: Folder, part: Part, policy: Policy, refit: bool = False) -> Iterator[Rows]:
    """Read a part in batches.

    Args:
        folder: Where it is.
        part: What is read.
        policy: How the model had its pictures fitted.
        refit: Whether arrays of another size are fitted like pictures, as they were for training.

    Raises:
        DataError: The file of the part cannot be read any more.
    """
    name = part.names[0]
    if part.kind == "parquet":
        yield from _of_parquet(folder, part, policy, refit)
    elif part.kind == "arrays":
        table = _arrays(folder, name)
        assert part.groups is not None
        for at in range(*part.groups, _BATCH):
            rows = slice(at, min(at + _BATCH, part.groups[1]))
            places = _places(name, at, rows.stop - at)
            others = {key: pa.array(values[rows]) for key, values in table.columns.items()}
            yield _rows(places | others, _fitted(table.images[rows], policy, refit), policy.shape)
    elif part.kind == "tar":
        members = webdataset.pictures_in(folder, name)[slice(*(part.groups or ()))]
        with folder.open(name) as stream:
            for at in range(0, len(members), _BATCH):
                some = members[at : at + _BATCH]
                files = [f"{name}/{member}" for member, _, _ in some]
                given = [_member(stream, *place, policy) for place in some]
                yield _rows({SOURCE: pa.array(files, pa.string())}, given, policy.shape)
    else:
        for at in range(0, len(part.names), _BATCH):
            names = part.names[at : at + _BATCH]
            given = [_file(folder, name, policy) for name in names]
            yield _rows({SOURCE: pa.array(names, pa.string())}, given, policy.shape)


@functools.lru_cache(1)
def _arrays(folder: Folder, name: str) -> arrays.Table:
    """The rows of a file, kept for its next part: it can only be read as a whole."""
    return arrays.read_images(folder, name)


def _of_parquet(folder: Folder, part: Part, policy: Policy, refit: bool) -> Iterator[Rows]:
    name, at = part.names[0], part.first
    try:
        with folder.open(name) as stream, pq.ParquetFile(stream, pre_buffer=False) as file:
            column = _image_column(file, name)
            groups = list(range(*(part.groups or ())))
            for batch in file.iter_batches(_BATCH, row_groups=groups, use_threads=False):
                identity = _identity(batch, name, at, column)
                yield _rows(identity, _column(batch.column(column), policy, refit), policy.shape)
                at += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name} cannot be read as Parquet: {error}.") from None


def _member(stream: Any, name: str, first: int, size: int, policy: Policy) -> tuple[Images, int] | str:
    stream.seek(first)
    return _picture(bytes(stream.read(size)), policy)


def _fitted(images: Images, policy: Policy, refit: bool) -> ImagesOrErrors:
    """Arrays of the model's shape, others fitted where the model had its own arrays fitted, too."""
    if images.shape[1:] == policy.shape:
        return [(image, 0) for image in images]
    if refit and images.shape[3] in (1, 3):
        return [(image, 0) for image in decoding.refit(images, policy)]
    return [f"the image is {list(images.shape[1:])}, the model takes {list(policy.shape)}."] * len(images)


def _rows(identity: dict[str, Any], images_or_errors: ImagesOrErrors, shape: tuple[int, int, int]) -> Rows:
    read_rows = [item for item in images_or_errors if not isinstance(item, str)]
    images = np.stack([image for image, _ in read_rows]) if read_rows else np.empty((0, *shape), np.uint8)
    errors = [item if isinstance(item, str) else None for item in images_or_errors]
    readable = np.array([error is None for error in errors], bool)
    return Rows(identity, images, readable, errors, [bits for _, bits in read_rows])


def _identity(batch: Any, name: str, first: int, image: str) -> dict[str, Any]:
    """Where rows come from, and every column of theirs but the image."""
    return _places(name, first, len(batch)) | {
        name: batch.column(name) for name in batch.schema.names if name != image
    }


def _places(name: str, first: int, count: int) -> dict[str, Any]:
    rows = pa.array(range(first, first + count), pa.int64())
    return {SOURCE: pa.array([name] * count, pa.string()), SOURCE_ROW: rows}


def _file(folder: Folder, name: str, policy: Policy) -> tuple[Images, int] | str:
    try:
        return _read(folder.read(name), policy, name)
    except DataError as error:
        return str(error)


def _column(column: Any, policy: Policy, refit: bool) -> ImagesOrErrors:
    encoded = columns.encoded(column)
    if encoded is not None:
        return [_picture(value.as_py(), policy) for value in encoded]
    results: ImagesOrErrors = ["there is no image."] * len(column)
    present = np.flatnonzero(np.asarray(column.is_valid().to_numpy(zero_copy_only=False)))
    if not len(present):
        return results
    try:
        given = _fitted(columns.arrays(column.drop_null(), "the column"), policy, refit)
    except DataError as error:  # a bad row must not take its neighbours with it
        return (
            [str(error)]
            if len(column) == 1
            else [_column(column.slice(at, 1), policy, refit)[0] for at in range(len(column))]
        )
    for at, image in zip(present, given, strict=True):
        results[at] = image
    return results


def _picture(data: bytes | None, policy: Policy) -> tuple[Images, int] | str:
    if data is None:
        return "there is no image."
    try:
        return _read(data, policy)
    except DataError as error:
        return str(error)


def _read(data: bytes, policy: Policy, name: str = "the image") -> tuple[Images, int]:
    opened = decoding.open_picture(data, name)
    return decoding.fit(opened, policy, name), decoding.unused_bits(opened)


COUNTS = b"distml"
"""Key of a written part's own metadata: a JSON object with `rows` and `failed`."""


@dataclass(frozen=True)
class BatchSpec:
    """What crosses to the processes.

    Attributes:
        data: Folder or file that is read.
        output: Folder that is written.
        model: Folder of the model's files below `output`, where every process finds them.
        sha256: Of the model.
        version: Of the model, None where it is not registered.
        embeddings: Whether features are written, too.
    """

    data: str
    output: str
    model: str
    sha256: str
    version: int | None
    embeddings: bool = False


class Classifier:
    """Holds the model and classifies parts; Ray Data makes one per process. Final."""

    def __init__(self, task: BatchSpec) -> None:
        log.configure("batch")
        self._version = task.version
        self._folder, self._output = Folder(task.data), Storage(task.output)
        with tempfile.TemporaryDirectory(prefix="distml-batch-") as name:
            self._output.download(name, task.model)
            export = layout.verify(Path(name), task.sha256)
            self._embedder = Embedder.of(export) if task.embeddings else None
            self._predictor = self._embedder.predictor if self._embedder else Predictor.of(export)
            self._refit = export.policy is not None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify the parts of a batch; returns their rows and how many of them could not be read."""
        counts = [self._classify(Part.from_json(str(text))) for text in batch["part"]]
        return {
            "rows": np.array([rows for rows, _ in counts]),
            "failed": np.array([bad for _, bad in counts]),
        }

    def _classify(self, part: Part) -> tuple[int, int]:
        pictures = self._predictor.pictures
        tables = [self._table(rows) for rows in read(self._folder, part, pictures, self._refit)]
        table = pa.concat_tables(tables, promote_options="permissive")
        counts = len(table), len(table) - table["error"].null_count
        metadata = {COUNTS: json.dumps({"rows": counts[0], "failed": counts[1]})}
        sink = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(metadata), sink, compression="zstd")
        self._output.write_bytes(sink.getvalue(), part.file)  # whole or not at all
        return counts

    def _predicted(self, images: Images) -> dict[str, tuple[list[Any], Any]]:
        """The columns of the task and, where that is wanted, `embedding`."""
        task = self._predictor.task
        if self._embedder is None:
            return task.columns(self._predictor.predict(images))
        outputs, features = self._embedder.predict(images)
        return task.columns(outputs) | {EMBEDDING: (list(features), pa.list_(pa.float32()))}

    def _table(self, rows: Rows) -> Any:
        """Predictions beside the rows' identity; a column of theirs called like ours becomes `input_…`."""
        places = np.flatnonzero(rows.readable)
        count = len(rows.readable)

        def spread(values: list[Any], kind: Any) -> Any:
            column: list[Any] = [None] * count
            for place, value in zip(places, values, strict=True):
                column[place] = value
            return pa.array(column, kind)

        predicted = self._predicted(rows.images)
        predictions = {name: spread(*column) for name, column in predicted.items()} | {
            "model_version": pa.array([self._version] * count, pa.int32()),
            "warnings": spread(_codes(rows, self._predictor.usual), pa.list_(pa.string())),
            "error": pa.array(rows.errors, pa.string()),
        }
        named = {
            f"input_{name}" if name in predictions else name: column for name, column in rows.identity.items()
        }
        return pa.table(named | predictions)


def _codes(rows: Rows, usual: plausible.Usual | None) -> list[list[str] | None]:
    """What is odd about each image or its file, None where nothing is."""
    every = zip(plausible.codes(rows.images, usual), rows.unused_bits, strict=True)
    return [codes + ["unused_bits"] * (bits > 0) or None for codes, bits in every]

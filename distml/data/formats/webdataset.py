"""Reads WebDataset tar files: `KEY.jpg` beside `KEY.cls` or `KEY.json` (driver).

Labels of several columns, or of one with a name of its own, are members of the JSON (`data.label_column`).

The tar files are read where they lie: an index of places is made once, then pictures are read at random.
"""

from __future__ import annotations

import contextlib
import functools
import json
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distml.config import DataConfig
from distml.data import image, source
from distml.data.fetch import TARS, require_end
from distml.data.image import SUFFIXES, Policy
from distml.data.listing import Folder, suffix
from distml.data.schema import Labels
from distml.data.source import Fault, Gathered, Indices, Rows, Source, label_array, read_label
from distml.data.split import absent_parts, divide, settled, split_of_folders
from distml.errors import DataError
from distml.tasks import Task
from distml.tasks.classification import Classification

_LABELS = ("cls", "cls.txt", "label", "txt", "json")
"""Endings of what says the label, the first that is there."""
_KEYS = ("label", "labels", "cls", "class", "target", "targets")
_SMALL_BYTES = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
"""What files of gzip, bzip2, xz and zstd begin with."""


@dataclass(frozen=True)
class _Place:
    """Where a picture stands: the tar file, the member's name, its first byte and its size."""

    tar: str
    name: str
    first: int
    size: int


def is_webdataset(folder: Folder) -> bool:
    """Whether the files are tar files, the first of which holds a label beside a picture."""
    tars = _tars(folder)
    if not tars:
        return False
    try:
        with folder.open(tars[0]) as stream, tarfile.open(fileobj=stream, mode="r:*") as packed:
            endings = {
                member.name.rpartition(".")[2].lower() for member, _ in zip(packed, range(50), strict=False)
            }
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError):
        return False
    return bool(endings & {"cls", "json", "label"}) and any(f".{ending}" in SUFFIXES for ending in endings)


def _tars(folder: Folder) -> list[str]:
    return [name for name in folder.sizes if name.lower().endswith(TARS)]


def pictures_in(folder: Folder, tar: str) -> list[tuple[str, int, int]]:
    """Return name, first byte and size of every picture of a tar file, whatever its label is.

    Raises:
        DataError: It is no tar file, or a compressed one.
    """
    with _opened(folder, tar) as packed:
        return [
            (member.name, member.offset_data, member.size)
            for member in packed
            if member.isreg()
            and suffix(member.name) in SUFFIXES
            and not member.name.rpartition("/")[2].startswith(".")
        ]


@contextlib.contextmanager
def _opened(folder: Folder, tar: str) -> Iterator[tarfile.TarFile]:
    try:
        with folder.open(tar) as stream:
            if stream.read(6).startswith(_COMPRESSED):
                told = f"{tar} is compressed, so that single pictures of it cannot be read."
                raise DataError(told, "Decompress it: pictures hardly shrink.")
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:") as packed:
                packed.getmembers()
                require_end(packed)
                yield packed
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{tar} cannot be read as a tar file: {error}.", "Fetch it again.") from None


def open_webdataset(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Index the tar files and look at every picture's header.

    Raises:
        DataError: No tar files, a picture without a label, or too many that cannot be used.
    """
    tars = _tars(folder)
    if not tars:
        raise DataError(f"{folder.shown} holds no .tar files.", "Check data.path and data.format.")
    columns = [data.label_column] if isinstance(data.label_column, str) else data.label_column or []
    index = _index(folder, tars, data, task, columns)
    source.require_usable(index.bad, len(index.headers) + len(index.bad), data)
    places, labels = _by_folders(index.places, index.labels)
    if not labels.get("train"):
        raise DataError(f"{folder.shown} holds no training pictures.", "Check data.path.")
    if task.scalar:
        source.require_all_classes(sorted(index.damaged - set(labels["train"])))
    encoded, numbers = task.encode(
        {split: label_array(some) for split, some in labels.items()}, task.named(columns or ["label"])
    )
    fitted = image.policy(index.headers, data)
    splits = {
        split: _rows(folder, places[split], numbers[split], fitted, data.max_pixels) for split in places
    }
    return Source(
        *(fitted.shape, encoded, splits, (folder.origin(),), fitted),
        ledger=folder.ledger,
        faults=tuple(index.bad),
        fingerprint=folder.fingerprint(),
        notes=(*index.notes, *absent_parts(tars)),
    )


@dataclass
class _Index:
    """What the tar files hold: places and labels by split, headers, and what cannot be used.

    Attributes:
        damaged: Labels of pictures that cannot be used.
        several: Pictures that have others beside them in their sample, which are not used.
    """

    places: dict[str, list[_Place]] = field(default_factory=dict)
    labels: dict[str, list[Any]] = field(default_factory=dict)
    headers: list[image.Header] = field(default_factory=list)
    bad: list[Fault] = field(default_factory=list)
    damaged: set[Any] = field(default_factory=set)
    several: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for a person where pictures are not used."""
        first = next(iter(self.several), None)
        said = f"{len(self.several)} samples hold several pictures; the first is used, like {first}."
        return (said,) if first else ()


def _index(
    folder: Folder, tars: Sequence[str], data: DataConfig, task: type[Task], columns: Sequence[str]
) -> _Index:
    index = _Index()
    for split, names in divide(tars).items():
        for name in names:
            for place, values, header in _indexed(folder, name, data.max_pixels, columns, index.several):
                label = read_label(task, values, place.name)
                if isinstance(header, Fault):
                    index.bad.append(header)
                    index.damaged.add(label)
                    continue
                index.headers.append(header)
                index.places.setdefault(split, []).append(place)
                index.labels.setdefault(split, []).append(label)
    return index


def _by_folders(
    places: dict[str, list[_Place]], labels: dict[str, list[Any]]
) -> tuple[dict[str, list[_Place]], dict[str, list[Any]]]:
    """Divide what no tar file divides by the folders in them, where all of those name splits."""
    words = [split_of_folders(place.name) for place in places.get("train", ())]
    if places.keys() != {"train"} or "train" not in words or len(set(words)) < 2 or None in words:
        return places, labels
    rows = settled({word: [at for at, other in enumerate(words) if other == word] for word in words if word})
    return (
        {split: [places["train"][at] for at in some] for split, some in rows.items()},
        {split: [labels["train"][at] for at in some] for split, some in rows.items()},
    )


def _samples(members: Iterable[tarfile.TarInfo]) -> Iterator[dict[str, tarfile.TarInfo]]:
    """Members that belong together, by what follows their key.

    The key ends at the first dot of a name, as WebDataset has it; at the last one where several pictures with
    labels of their own would have the same (`img.0.png`, `img.0.cls`, `img.1.png`, `img.1.cls`).
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in members:
        above, _, last = member.name.rpartition("/")
        key, _, ending = last.partition(".")
        if member.isreg() and not last.startswith("."):
            samples.setdefault(f"{above}/{key}", {})[ending.lower()] = member
    for sample in samples.values():
        numbers = {ending.rpartition(".")[0] for ending in sample if _is_image(ending)}
        others = [ending for ending in sample if not _is_image(ending)]
        own = all(any(ending.startswith(f"{number}.") for ending in others) for number in numbers)
        if len(numbers) < 2 or not own:
            yield sample
            continue
        for number in sorted(numbers):
            start = f"{number}." if number else ""
            yield {e.removeprefix(start): member for e, member in sample.items() if e.startswith(start)}


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in SUFFIXES


def _indexed(
    folder: Folder, tar: str, max_pixels: int, columns: Sequence[str], several: list[str]
) -> Iterator[tuple[_Place, dict[str, Any], image.Header | Fault]]:
    """Yield place, labels by column and header (or fault) of every picture of a tar file, in its order.

    `several` takes the names of those that have other pictures beside them, which are not used.
    """
    with _opened(folder, tar) as packed:
        for sample in _samples(packed.getmembers()):
            pictures = [member for ending, member in sample.items() if _is_image(ending)]
            if not pictures:
                continue
            picture = pictures[0]
            if len(pictures) > 1:
                several.append(f"{tar}/{picture.name}")
            place = _Place(tar, f"{tar}/{picture.name}", picture.offset_data, picture.size)
            label = _label(packed, sample, place.name, columns)
            content = packed.extractfile(picture)
            data = content.read() if content else b""
            try:
                yield place, label, image.header(data, place.name, max_pixels)
            except DataError as error:
                yield place, label, Fault(place.name, error.message, error.remedy)


def _label(
    packed: tarfile.TarFile, sample: Mapping[str, tarfile.TarInfo], name: str, columns: Sequence[str]
) -> dict[str, Any]:
    has = ""
    for ending in ("json",) if columns else _LABELS:
        inner = (member for e, member in sample.items() if e.endswith(f".{ending}"))  # `label.cls`
        member = sample.get(ending) or next(inner, None)
        content = packed.extractfile(member) if member is not None and member.size <= _SMALL_BYTES else None
        if content is None:
            continue
        text = content.read().decode("utf-8", "replace").strip()
        if ending != "json":
            return {"label": text}
        with contextlib.suppress(ValueError, TypeError, StopIteration, KeyError):
            values = json.loads(text)
            has = f", but a .json with {', '.join(map(str, values))}"
            return {key: values[key] for key in columns or [next(key for key in _KEYS if key in values)]}
    if columns:
        raise DataError(
            f"{name} has no .json beside it with {' and '.join(columns)}.", "Correct data.label_column."
        )
    remedy = f"add a member that ends in {', '.join(_LABELS[:3])}."
    raise DataError(
        f"{name} has no label beside it{has}.",
        f"Set data.label_column, or {remedy}" if has else remedy.capitalize(),
    )


def _rows(folder: Folder, places: list[_Place], labels: Labels, fitted: Policy, max_pixels: int) -> Rows:
    def gather(indices: Indices) -> Gathered:
        return _read(folder, [places[index] for index in indices], fitted, max_pixels)

    def only(indices: Indices) -> Callable[[], Gathered]:
        some = [places[index] for index in indices]
        return functools.partial(_read, folder.only({place.tar for place in some}), some, fitted, max_pixels)

    def refit(other: Policy) -> Rows:
        return _rows(folder, places, labels, other, max_pixels)

    return Rows(labels, gather, lambda index: places[index].name, refit, only)


def _read(folder: Folder, places: Sequence[_Place], fitted: Policy, max_pixels: int) -> Gathered:
    images = np.zeros((len(places), *fitted.shape), np.uint8)
    bad = {}
    with ExitStack() as until:
        streams: dict[str, Any] = {}
        for at, place in enumerate(places):
            if place.tar not in streams:
                streams[place.tar] = until.enter_context(folder.open(place.tar))
            streams[place.tar].seek(place.first)
            try:
                content = bytes(streams[place.tar].read(place.size))
                images[at] = image.read(content, fitted, place.name, max_pixels)
            except DataError as error:
                bad[at] = Fault(place.name, error.message, error.remedy)
    return Gathered(images, bad)

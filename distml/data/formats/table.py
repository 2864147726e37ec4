"""Reads pictures whose labels stand in a table, such as `metadata.csv` (driver).

The convention is Hugging Face's: `metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`, one beside
all pictures or one in the folder of each split. `labels.csv` and other names of its columns are read,
too, and JSON: a list of objects, an object that gives each file its label, and what tools for labels export.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import DataConfig
from distml.data import fetch, source
from distml.data.formats import image_folder
from distml.data.image import SUFFIXES, in_place_of_it, is_picture
from distml.data.listing import PARQUET, Folder, calls_classes, suffix, without_suffix
from distml.data.schema import LABEL, LABELS, is_label, of_labels, plain
from distml.data.source import Fault, Source
from distml.data.split import (
    FOLD_COLUMNS,
    as_split,
    by_lists,
    numbered,
    settled,
    split_column,
    split_of_file,
    split_of_folders,
    split_word,
    splits_of_files,
    tell_alike,
)
from distml.errors import DataError
from distml.tasks import Task
from distml.tasks.classification import Classification
from distml.tasks.task import LEADING_ZEROS, is_absent

_STEMS = ("metadata", "labels", "annotations", "train_labels", "trainlabels")
_LINES = (".jsonl", ".ndjson", ".manifest")
"""Endings of files each line of which is an object of JSON."""
_ENDINGS = (".csv", ".tsv", ".json", *_LINES, *PARQUET, ".lst")
_CVAT = "annotations.xml"
_LISTS = (".lst", ".txt")
"""Endings of files each line of which is the name of a picture and its label, without a header."""
_FILES = ("file_name", "filename", "file", "image", "image_id", "image_name", "path", "filepath", "img", "id")
_LOOKED = 20
"""Rows that are looked at to see which column names files."""
_SIGNS = (1, -1, "1", "-1")
_FLAGS = (*source.ONE_HOT, "true", "false", "True", "False", "TRUE", "FALSE")

Row = Mapping[str, Any]


def tables(folder: Folder) -> list[str]:
    """Return the tables beside pictures that may say their labels.

    Where no table is called as such tables are and the folders are no classes, they are those whose first row
    names a file: `train.csv` of a contest.
    """
    endings = {name: suffix(_bare(name)) for name in folder.sizes}
    if not any(ending in SUFFIXES for ending in endings.values()) and not any(
        not ending and is_picture(folder.read(name, 32)) for name, ending in endings.items()
    ):
        return []
    named = [
        name
        for name, ending in endings.items()
        if ending in _ENDINGS
        or name.rpartition("/")[2] == _CVAT
        or (ending == ".txt" and _may_list(PurePosixPath(name).stem))
    ]
    if not named:
        return []
    places = _Places(folder)
    called = [
        name
        for name in named
        if _stem(name) in _STEMS and (endings[name] != ".txt" or _names_a_file(places, name))
    ]
    if image_folder.in_classes(folder):  # a `metadata.json` beside class folders may say anything
        return [
            name
            for name in called
            if endings[name] not in (".json", ".xml", *_LISTS) and _is_of_files(places, name)
        ]
    others = [name for name in named if _OTHER_LISTS.search(_stem(name))]  # read where there is nothing else
    rest = [name for name in named if name not in others]
    naming = called or _naming(places, rest) or _naming(places, others)
    # Numbers of classes may be names of files.
    plain = [name for name in naming if endings[name] != ".json" or not calls_classes(name)]
    return plain if not called and plain else naming


def _bare(name: str) -> str:
    """A table's name without the ending of what packs it: `labels.csv` of `labels.csv.gz`."""
    bare = without_suffix(name)
    return bare if suffix(name) in fetch.SINGLE and suffix(bare) in _ENDINGS else name


def _stem(name: str) -> str:
    return PurePosixPath(_bare(name)).stem.lower()


def _may_list(stem: str) -> bool:
    stem = stem.lower()
    if "split" in stem or _OTHER_LISTS.search(stem):
        return False
    called = stem in _STEMS or stem.startswith("list_") or stem.endswith("labels")
    return called or split_word(stem) is not None


_OTHER_LISTS = re.compile(r"partition|bbox|landmark")
"""In names of tables of splits or of places in pictures, not of classes: CelebA's `list_eval_partition`."""


def _is_of_files(places: _Places, name: str) -> bool:
    """Whether a table beside class folders is one of their pictures, and not of the classes, say."""
    try:
        rows = _rows(places, name)
    except DataError:
        return True  # which reading it says again
    if not rows or any(plain(column) in _FILES[:2] for column in rows[0]):
        return True
    texts = [
        {at: text for at, text in enumerate(map(str, row.values())) if not text.isdigit()} for row in rows
    ]
    return _names_files(places.file, name, texts[:_LOOKED])  # a class's number may be a file's, too


def _naming(places: _Places, names: Sequence[str]) -> list[str]:
    return [name for name in names if "submission" not in _stem(name) and _names_a_file(places, name)]


def _names_a_file(places: _Places, name: str) -> bool:
    try:
        first = _rows(places, name)[:1]
    except DataError:  # which reading it says again, where it names files
        lines = places.folder.read(name, 1 << 16).decode("utf-8", "replace").splitlines()[:_LOOKED]
        counted = suffix(name) in _LISTS and lines[0].strip().isdigit()
        if suffix(name) not in (".csv", ".tsv") and not counted:
            return False
        lines, mark = (lines[2:], r"\s+") if counted else (lines[1:2], r"[,;\t]")
        first = [dict(zip(map(str, range(99)), re.split(mark, line), strict=False)) for line in lines]
        return _names_files(places.file, name, first)
    return _names_files(places.file, name, first) or _names_files(places.alike, name, first)


def _names_files(
    find: Callable[[PurePosixPath, str], str | None], name: str, rows: Sequence[Mapping[Any, Any]]
) -> bool:
    return any(
        find(PurePosixPath(_bare(name)), str(value)) for row in rows for value in row.values() if value
    )


class _Places:
    """Where pictures lie, by their names without folders, with and without the ending. Final."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._named: dict[str, list[str]] = {}
        for name in (*folder.sizes, *folder.dangling):
            last = name.rpartition("/")[2]
            ending = suffix(last)
            stem = last[: len(last) - len(ending)]
            if not ending or ending in SUFFIXES:
                for key in {last, stem, last.strip(), stem.strip()}:
                    self._named.setdefault(key, []).append(name)

    @functools.cached_property
    def _folded(self) -> Mapping[str, Sequence[str]]:
        """The same by names in lower case: Windows takes both for one."""
        folded: dict[str, dict[str, None]] = {}
        for key, names in self._named.items():
            folded.setdefault(key.casefold(), {}).update(dict.fromkeys(names))
        return {key: list(names) for key, names in folded.items()}

    def file(self, table: PurePosixPath, given: str) -> str | None:
        """Find a named file: below the table's folder or the root, or the only one of that name.

        The ending may be missing, and the path may be one of another machine. Of several of that name the one
        is meant whose folders agree with the path's, else the one in a folder of the table's split:
        `train.csv` and `train_images`.
        """
        given = _path(given)
        forms = dict.fromkeys((given, unquote(given), _UPLOADED.sub("", given)))
        return next(filter(None, (self._file(table, form) for form in forms)), None)

    def _file(self, table: PurePosixPath, given: str) -> str | None:
        above, folder = str(table.parent), self.folder
        start = [given, f"images/{given}", f"train/{given}", f"{table.stem}/{given}"]
        tried = [*(start if above == "." else [f"{above}/{path}" for path in start]), *start]
        endings = ("", ".jpg", ".jpeg", ".png")
        candidates = (f"{place}{ending}" for place in tried for ending in endings)
        there = next((path for path in candidates if path in folder.sizes or path in folder.dangling), None)
        if there:
            return there
        last = given.rpartition("/")[2]
        return self._only(self._named.get(last) or self._folded.get(last.casefold(), ()), given, table)

    def _only(self, names: Iterable[str], given: str, table: PurePosixPath) -> str | None:
        """The one that is meant of several files."""
        alike = _nearest(list(names), given)
        if len(alike) > 1:
            word = split_word(table.stem)
            split = split_of_file(table.name) or (word[0] if word else None)
            alike = [name for name in alike if split and split_of_file(name) == split]
        return alike[0] if len(alike) == 1 else None

    @functools.cached_property
    def _spelled(self) -> Mapping[str, Sequence[str]]:
        spelled: dict[str, dict[str, None]] = {}
        for name in (*self.folder.sizes, *self.folder.dangling):
            last = name.rpartition("/")[2]
            if suffix(last) in ("", *SUFFIXES):
                spelled.setdefault(_spelling(last), {})[name] = None
        return {key: list(names) for key, names in spelled.items()}

    def alike(self, table: PurePosixPath, given: str) -> str | None:
        """Find the only file that a name means but for its ending and leading zeros: `7.jpg` for `07.png`."""
        given = _path(given)
        return self._only(self._spelled.get(_spelling(given.rpartition("/")[2]), ()), given, table)

    def holds(self, table: str, given: str) -> bool:
        """Whether a word of a table means a file, in any spelling."""
        place = PurePosixPath(table)
        return bool(given) and bool(self.file(place, given) or self.alike(place, given))


def _path(given: str) -> str:
    return (urlsplit(given).path if "://" in given else given).replace("\\", "/")


def _spelling(last: str) -> str:
    """A name without its ending and without the leading zeros that spreadsheets drop, `7.0` as 7."""
    last = last.strip()
    stem = without_suffix(last) if suffix(last) in SUFFIXES else last
    stem = _WHOLE.sub(r"\1", stem)
    return LEADING_ZEROS.sub("", stem).casefold()


_WHOLE = re.compile(r"(\d+)[.]0+$")

_UPLOADED = re.compile(r"(?:^|(?<=/))[0-9a-f]{8}-(?=[^/]+$)")
"""What Label Studio puts before the names of files that are given to it."""


def _nearest(names: Sequence[str], given: str) -> Sequence[str]:
    """Those of several files of one name that share the most folders with a path, from the last one on."""
    if len(names) < 2:
        return names
    wanted = given.lower().split("/")[-2::-1]
    shared = [
        next((at for at, pair in enumerate(zip(wanted, of, strict=False)) if pair[0] != pair[1]), len(of))
        for of in (name.lower().split("/")[-2::-1] for name in names)
    ]
    return [name for name, most in zip(names, shared, strict=True) if most == max(shared)]


def open_table(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """Read the file, the label and, where there is such a column, the split of every row.

    Raises:
        DataError: No table, columns that are not clear, a file that is not there, or an empty field.
    """
    names = tables(folder)
    if not names:
        raise DataError(f"{folder.shown} holds no table of its pictures.", "Call it metadata.csv.")
    splits, unused = splits_of_files(names), {}
    reader = _Reader(folder, data, task, _Places(folder), splits)
    for name in sorted(names, key=lambda name: (splits[name] == "test", splits[name] is None)):
        if reason := reader.read(name):
            unused[name] = reason
    if not reader.columns:
        asked = data.label_column or data.image_column
        raise DataError(f"none of {', '.join(names)} has the columns that are asked for, as {asked}.")
    chosen = {picture for some in reader.labelled.values() for picture in some}
    for picture in image_folder.pictures(folder):
        if picture not in chosen and picture not in reader.unlabelled:
            folder.ledger.skip(picture, "in no table")
    for name in names:
        folder.ledger.reasons.pop(name, None)
    for name, reason in unused.items():
        folder.ledger.skip(name, reason)
    source.require_usable(reader.bad, len(chosen) + len(reader.bad), data)
    labelled, notes = _divided(folder, settled(reader.labelled), names)
    used = [picture for some in labelled.values() for picture in some]
    headers, bad = image_folder.survey(folder, used, data.max_pixels)
    bad = [*reader.bad, *bad]
    source.require_usable(bad, len(used) + len(reader.bad), data)
    opened = image_folder.of_files(folder, labelled, headers, data, bad, task, task.named(reader.columns))
    return dataclasses.replace(opened, notes=(*_chosen(reader.columns, data), *reader.told(), *notes))


def _chosen(columns: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """Say which columns were taken for the labels where their names do not say so."""
    if data.label_column is not None or any(is_label(column) for column in columns):
        return ()
    shown = ", ".join(columns[:9]) + (", …" if len(columns) > 9 else "")
    return (f"the labels are taken from {shown}; set data.label_column if that is wrong.",)


def _divided(
    folder: Folder, labelled: dict[str, dict[str, Any]], tables: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """Divide rows that no table divides by the pictures' folders, or by lists of each split's pictures."""
    if labelled.keys() != {"train"}:
        return labelled, ()
    of_folder: dict[str, dict[str, Any]] = {}
    for name, label in labelled["train"].items():
        of_folder.setdefault(split_of_folders(name) or "", {})[name] = label
    if "train" in of_folder and len(of_folder) > 1 and "" not in of_folder:
        return settled(of_folder), ()
    divided, notes = by_lists(folder, {name: name for name in labelled["train"]}, tables)
    return {split: {name: labelled["train"][name] for name in some} for split, some in divided.items()}, notes


@dataclass
class _Reader:
    """Reads tables one after another.

    Attributes:
        splits: That each table names.
        labelled: By split, each picture's label.
        bad: Rows that name a picture which is not there.
        columns: Those that hold the labels.
        unlabelled: Pictures whose label is empty.
        spelled: Files by another spelling of theirs in a table.
        notes: What was noticed, a sentence each.
        header: Names of the columns of a table of training rows.
    """

    folder: Folder
    data: DataConfig
    task: type[Task]
    places: _Places
    splits: Mapping[str, str | None]
    labelled: dict[str, dict[str, Any]] = field(default_factory=dict)
    bad: list[Fault] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    unlabelled: set[str] = field(default_factory=set)
    spelled: dict[str, str] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    header: set[str] = field(default_factory=set)

    def read(self, name: str) -> str:
        """Read a table; return why it is not used, "" where it is."""
        rows = _rows(self.places, name)
        has = list(rows[0]) if rows else []
        if self.columns and self.splits[name] == "test" and not set(self.columns) & set(has):
            if LABEL not in self.columns or not _one_hot(rows, "", self.data):
                return "a test table without labels"
        if asked := self._asked(name, has):
            return asked
        if self.splits[name] is None and self.header and set(has) != self.header:
            self.notes[f"{name} has other columns than the table of a split beside it, and is not used."] = (
                None
            )
            return "a table of other columns"
        self.header = set(has) if self.splits[name] == "train" else self.header
        _require_header(self.places, name, has)
        file_column = _file_column(self.places, name, rows, self.data)
        rows = _without_index(rows, file_column)
        has = list(rows[0])
        if (classes := _one_hot(rows, file_column, self.data)) and self.task.scalar:
            rows = [{**row, LABEL: source.hot(row, classes)} for row in rows]
            has = [*has, LABEL]
        split = self._split_column(name, rows)
        folds = (key for key in has if key.lower() in FOLD_COLUMNS and key != self.data.label_column)
        others = {file_column, split, *folds}
        self.columns = _label_columns(name, has, self.data, self.task, rows, others)
        rows = self._signed(self._without_places(name, rows))
        for number, row in enumerate(rows, 1):
            self._take(row, f"row {number} of {name}", name, file_column, split)
        return ""

    def _take(self, row: Row, where: str, name: str, file_column: str, split_column: str | None) -> None:
        """Note the label of a row, or why there is none."""
        given = row.get(file_column)
        if given is None or given == "":
            remedy = "Fill it in, or remove the row."
            self.bad.append(Fault(where, f"{where} has no {file_column}.", remedy))
            return
        if (picture := self._picture(PurePosixPath(_bare(name)), str(given))) is None:
            told = f"{where} names {given}, which is not there."
            self.bad.append(Fault(str(given), told, "Correct the table, or fetch the pictures."))
            return
        split = (
            _split(as_split(row[split_column], split_column), where)
            if split_column
            else self.splits[name] or "train"
        )
        values = {key: row.get(key) for key in self.columns}
        try:
            label = source.read_label(self.task, values, where)
        except DataError as error:
            if not any(map(is_absent, values.values())):
                raise
            self.unlabelled.add(picture)
            self.bad.append(Fault(picture, error.message, error.remedy))
            return
        some = self.labelled.setdefault(split, {})
        if some.setdefault(picture, label) != label:
            if not self.task.flags:
                raise DataError(
                    f"{where} gives {given} the label {label}, an earlier row {some[picture]}.",
                    "Keep one row for each picture, in one table of each split, or set task.kind to "
                    "multilabel if it has several labels.",
                )
            some[picture] = tuple(dict.fromkeys((*some[picture], *label)))
            self.notes["pictures in several rows have the labels of all of them."] = None

    def _asked(self, name: str, has: Sequence[str]) -> str:
        """Why a table of no split is not used that lacks the columns that are asked for."""
        labels = self.data.label_column
        columns = {*(labels if isinstance(labels, list) else [labels]), self.data.image_column} - {None}
        others = len(self.splits) > 1 and self.splits[name] is None
        return "a table without the columns of labels" if others and not columns <= set(has) else ""

    def _without_places(self, name: str, rows: list[Row]) -> list[Row]:
        """Rows with the labels of boxes alone; that the boxes are not used is told."""
        told = f"the places in {name} are not used: what is predicted is of the whole picture."
        if rows and _PLACES in rows[0]:
            self.notes[told] = None
        column, values = self.columns[0], [str(row.get(self.columns[0])) for row in rows]
        if len(self.columns) > 1 or not all(map(_PLACED.fullmatch, values)):
            return rows
        self.notes[told] = None
        labels = [list(dict.fromkeys(value.split()[::5])) for value in values]
        return [{**row, column: label} for row, label in zip(rows, labels, strict=True)]

    def _signed(self, rows: list[Row]) -> list[Row]:
        """Rows with 0 for -1, where columns of labels hold 1 and -1 alone."""
        if not self.task.flags or not all(row.get(key) in _SIGNS for row in rows for key in self.columns):
            return rows
        self.notes["columns of 1 and -1 are taken for labels, -1 for no."] = None
        return [{**row, **{key: max(0, int(row[key])) for key in self.columns}} for row in rows]

    def _picture(self, table: PurePosixPath, given: str) -> str | None:
        picture = self.places.file(table, given)
        if picture is None and (picture := self.places.alike(table, given)):
            self.spelled[given] = picture
        return picture

    def _split_column(self, name: str, rows: Sequence[Row]) -> str | None:
        """The column of splits, if there is one; names of one split are told."""
        asked = (
            self.data.label_column if isinstance(self.data.label_column, list) else [self.data.label_column]
        )
        has = [key for key in rows[0] if key not in asked]
        column, notes = split_column(has, lambda key: (row[key] for row in rows))
        self.notes |= dict.fromkeys(notes)
        if column:
            tell_alike((as_split(row[column], column) for row in rows), f"the column {column} of {name}")
        return column

    def told(self) -> tuple[str, ...]:
        """A sentence for each thing that was understood and not said in so many words."""
        if not self.spelled:
            return tuple(self.notes)
        given, picture = next(iter(self.spelled.items()))
        said = f"{len(self.spelled)} names in the table are spelled otherwise than their files, like {given} "
        return (*self.notes, f"{said}for {picture}; correct the table if that is wrong.")


_PLACES = "places"
"""Column of what is known of a picture's parts, which is not used."""
_PLACED = re.compile(r"(?:[^\W\d]\S*(?: +-?\d+(?:[.]\d+)?){4} *)+")
"""Labels with four numbers behind each: `cat 10 20 30 40 dog 1 2 3 4`."""


def _require_header(places: _Places, name: str, has: Sequence[str]) -> None:
    if not has:
        raise DataError(f"{name} has no rows.", "Fill it in, or move it out.")
    if first := next((text for text in has if places.file(PurePosixPath(name), text)), None):
        raise DataError(
            f"{name} begins with {first} and not with the names of its columns.",
            "Begin it with a line such as file_name,label.",
        )


def _file_column(places: _Places, name: str, rows: Sequence[Row], data: DataConfig) -> str:
    """The column of file names: by its name, or the only one whose first values are names of files."""
    has = list(rows[0])
    known = [column for column in has if plain(column) in _FILES]
    if data.image_column is None and not any(plain(column) == _FILES[0] for column in known):
        table, first = PurePosixPath(_bare(name)), rows[:_LOOKED]
        naming: list[str] = []
        for find in (places.file, places.alike):
            naming = naming or [
                column
                for column in known or has
                if any(row[column] and find(table, str(row[column])) for row in first)
            ]
        if len(naming) > 1:  # a number may be the name of a file, too
            naming = [column for column in naming if suffix(str(first[0][column])) in SUFFIXES]
        if len(naming) == 1:
            return naming[0]
    return _column(name, has, _FILES, data.image_column, "image_column")


def _label_columns(
    name: str,
    has: Sequence[str],
    data: DataConfig,
    task: type[Task],
    rows: Sequence[Row],
    others: set[str | None],
) -> list[str]:
    """The columns of labels: as asked for, by their names, or what the table has besides names and splits.

    Args:
        name: Of the table.
        has: Its columns.
        data: Which are asked for.
        task: What the labels are.
        rows: Of the table.
        others: Columns that hold something else.

    Raises:
        DataError: Those asked for are not there, or it is not clear which they are.
    """
    if isinstance(data.label_column, list):
        for column in data.label_column:
            if column not in has:
                raise DataError(
                    f"{name} has no column {column}, but {', '.join(has)}.", "Correct data.label_column."
                )
        return data.label_column
    left = [column for column in has if column not in others]
    if data.label_column is None and not any(is_label(column) for column in left):
        if len(left) == 1:
            return left
        flags = [
            column
            for column in left
            if any(all(row.get(column) in words for row in rows) for words in (_FLAGS, _SIGNS))
        ]
        if len(flags) > 1 and task.flags:
            return flags
        if len(flags) > 1 and task.scalar:
            raise DataError(
                f"{name} has no labels, but {', '.join(flags)} hold 0 and 1, in some rows not one 1.",
                "Set task.kind to multilabel, or name one column in data.label_column.",
            )
    return [_named_alike(rows, left) or _column(name, left, LABELS, data.label_column, "label_column")]


def _named_alike(rows: Sequence[Row], columns: Sequence[str]) -> str | None:
    """The column with names of the classes that another one numbers, both called as labels are."""
    called = [column for column in columns if is_label(column)]
    both = {tuple(str(row.get(column)) for column in called) for row in rows}
    distinct = {len({values[at] for values in both}) for at in range(len(called))}
    if len(called) < 2 or distinct != {len(both)}:
        return None
    worded = [
        column for at, column in enumerate(called) if not any(_WHOLE.match(f"{pair[at]}.0") for pair in both)
    ]
    return (worded or called)[0]


def _without_index(rows: Sequence[Row], file_column: str) -> list[Row]:
    """Rows without the numbers of lines that pandas writes, in a column without a name or `Unnamed: 0`."""
    index = [
        column
        for column in rows[0]
        if column != file_column
        and _INDEX.fullmatch(column)
        and all(str(row.get(column) or "").isdigit() for row in rows)
    ]
    return [{key: row[key] for key in row if key not in index} for row in rows] if index else list(rows)


_INDEX = re.compile(r"|Unnamed: [0-9]+(?:[.][0-9]+)*|__index_level_[0-9]+__")


def _column(name: str, has: Sequence[str], known: Sequence[str], asked: str | None, key: str) -> str:
    if asked:
        called = [column for column in has if column == asked]
    else:
        called = of_labels(has) if known is LABELS else [name for name in has if plain(name) in known]
    called.sort(key=lambda column: known.index(plain(column)) if plain(column) in known else 0)
    if not called or (len(called) > 1 and plain(called[0]) != known[0]):
        what = "has several columns" if called else "has no column"
        shown = ", ".join(called or has) or "nothing"
        raise DataError(f"{name} {what} that may be the {known[0]}: {shown}.", f"Set data.{key}.")
    return called[0]


def _one_hot(rows: Sequence[Row], file_column: str, data: DataConfig) -> list[str]:
    """Return the columns that together say the class, or none where one is called as labels are."""
    if data.label_column is not None or not rows:
        return []
    names = [name for name in rows[0] if name != file_column]
    return [] if any(map(is_label, names)) else source.one_hot(rows, names)


def _split(value: Any, where: str) -> str:
    word = split_word(str(value))
    if word is None:
        what = f"the split {value}" if str(value).strip() not in ("", "None") else "no split"
        raise DataError(f"{where} has {what}.", "Use train, validation and test.")
    return word[0]


def _rows(places: _Places, name: str) -> list[Row]:
    folder, there = places.folder, functools.partial(places.holds, _bare(name))
    data = folder.read(name) if _bare(name) == name else fetch.only_file(folder.read(name), name)
    name = _bare(name)
    known = in_place_of_it(data[:512]) if data and suffix(name) not in (".json", *_LINES, ".xml") else None
    if known:
        remedy = "Save it as CSV, if it is a spreadsheet." if data.startswith(b"PK") else known[1]
        raise DataError(f"{name} is no table: it is {known[0]}.", remedy)
    try:
        if suffix(name) in PARQUET:
            with pq.ParquetFile(pa.BufferReader(data)) as file:
                rows: list[Row] = file.read(use_threads=False).to_pylist()
                return rows
        # A name of a column or a bracket stands first, by whose zeros UTF-16 without a mark is told.
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
        if suffix(name) in (".json", *_LINES):
            return _of_json(_parsed(text), suffix(name) in _LINES, there)
        if suffix(name) == ".xml":
            return _of_cvat(text)
        if suffix(name) in _LISTS:
            if (counted := _of_counted(text)) is not None:
                return counted
            return _of_lst(text, functools.partial(numbered, folder, name))
        return _of_csv(text, name)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        odd = data[error.start : error.end]
        raise DataError(
            f"{name} is not UTF-8: line {line} has the byte {odd!r}.", "Save it as UTF-8."
        ) from None
    except (ValueError, csv.Error, pa.ArrowException) as error:
        remedy = "Begin it with the names of its columns, and quote fields that hold its separator."
        remedy = remedy if suffix(name) in (".csv", ".tsv") else "Correct it, or export it again."
        raise DataError(f"{name} cannot be read as a table: {str(error).rstrip('.')}.", remedy) from None


_SEPARATOR = re.compile(r"sep=(.)[\r\n]+", re.IGNORECASE)


def _of_csv(text: str, name: str) -> list[Row]:
    if first := _SEPARATOR.match(text):  # which Excel writes and reads
        text = text[first.end() :]
    delimiter = first[1] if first else _delimiter(name, text)
    reader = csv.DictReader(io.StringIO(text, newline=None), delimiter=delimiter)
    header = [column.strip() for column in reader.fieldnames or ()]
    if twice := [column for column in header if column and header.count(column) > 1]:
        raise ValueError(f"it has the column {twice[0]} twice")
    return [row for row in map(_stripped, reader) if any(row.values())]  # spreadsheets write commas alone


def _records(rows: Any) -> list[Row]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("it is not a list of objects with a name and a label")
    if rows and (exported := _of_tool(rows)) is not None:
        return exported
    inner = {key for row in rows for key, value in row.items() if _inner(value)}
    told = {key for row in rows for key in row if is_label(key)} - inner
    if len(inner) != 1 or told:
        return rows
    key = inner.pop()
    return [{**{k: row[k] for k in row if k != key}, LABEL: _inner(row.get(key))} for row in rows]


def _of_tool(rows: Sequence[Row]) -> list[Row] | None:
    """Rows of a list of objects as Label Studio, SageMaker or Vertex AI writes them; None of any other.

    What has no label yet gives no row.
    """
    first = rows[0]
    try:
        if isinstance(first.get("data"), dict) and isinstance(first.get("annotations"), list):
            return [row for given in rows for row in _of_label_studio(given)]
        if "source-ref" in first:
            return [row for given in rows for row in _of_sagemaker(given)]
        if "imageGcsUri" in first:
            return [_of_vertex(row) for row in rows]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error} is missing or another thing than its tool writes") from None
    return None


def _of_label_studio(given: Row) -> list[Row]:
    """A task with the labels of its annotations, those of regions where no choice is made for the whole.

    The format is documented at labelstud.io/guide/task_format.
    """
    results = [
        result
        for annotation in given["annotations"]
        if not annotation.get("was_cancelled")
        for result in annotation["result"]
    ]
    chosen = [result for result in results if result["type"] == "choices"] or results
    labels = [label for result in chosen for label in result["value"].get(result["type"]) or ()]
    places = [str(value) for key, value in given["data"].items() if key in _FILES or _is_picture(value)]
    if len(places) != 1:
        raise ValueError(f"a task names {len(places)} pictures: {', '.join(places) or given['data']}")
    query = parse_qs(urlsplit(places[0]).query).get("d")  # /data/local-files/?d=folder/1.jpg
    row = {_FILES[0]: query[0] if query else places[0], LABEL: list(dict.fromkeys(labels))}
    return [row] if results else []


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and suffix(value.partition("?d=")[2] or urlsplit(value).path) in SUFFIXES


def _of_sagemaker(given: Row) -> list[Row]:
    """A line of an augmented manifest: the classes that the metadata of each labelling job name."""
    jobs: dict[str, Any] = {}
    for key, told in given.items():
        if key.endswith("-metadata") and "class-name" in told:
            jobs[key.removesuffix("-metadata")] = told["class-name"]
        elif key.endswith("-metadata") and "class-map" in told:
            jobs[key.removesuffix("-metadata")] = list(told["class-map"].values())
    if len(jobs) == 1:
        jobs = {LABEL: next(iter(jobs.values()))}
    return [{_FILES[0]: given["source-ref"], **jobs}] if jobs else []


def _of_vertex(given: Row) -> Row:
    """A line of an import file for Vertex AI, with the split that it may name."""
    several = given.get("classificationAnnotations")
    labels = [some["displayName"] for some in several or [given["classificationAnnotation"]]]
    use = (given.get("dataItemResourceLabels") or {}).get("aiplatform.googleapis.com/ml_use")
    row = {_FILES[0]: given["imageGcsUri"], LABEL: labels if several else labels[0]}
    return row | ({"ml_use": use} if use else {})


def _of_cvat(text: str) -> list[Row]:
    """Tags of each image, labels of its regions where none has a tag, as CVAT's format for images has them.

    The format is documented at docs.cvat.ai/docs/other/xml_format.
    """
    try:
        root = ElementTree.fromstring(text.encode())  # noqa: S314 - expat limits what entities expand to
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise ValueError("it is not CVAT's format for images")
    kinds = "tag" if root.find("image/tag") is not None else "*"
    divided = all(split_word(image.get("subset", "")) for image in images)
    rows: list[Row] = []
    for image in images:
        labels = list(dict.fromkeys(part.get("label") for part in image.findall(kinds)))
        row = {_FILES[0]: image.get("name"), LABEL: labels}
        rows.append(row | ({"subset": image.get("subset")} if divided else {}))
    return rows


def _of_lst(text: str, numbered: Callable[[Collection[str]], Mapping[str, str]]) -> list[Row]:
    """Name and label of each line, or number, label and path, as MXNet's `im2rec` writes them.

    Args:
        text: Of the file.
        numbered: Gives the names of pictures that are numbered by a list beside it.
    """
    pairs: list[tuple[str, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        place, *fields = _fields(line.strip())
        if len(fields) == 2 and place.isdigit() and _is_picture(fields[1]):
            place, fields = fields[1], fields[:1]
        if not fields or (len(fields) > 1 and ("\t" in line or all(map(_is_number, fields)))):
            raise ValueError(f"line {number} has {len(fields) + 1} fields, not a picture and a label")
        whole = re.fullmatch(r"(\d+)[.]0*", fields[0]) if len(fields) == 1 else None
        pairs.append((place, whole[1] if whole else " ".join(fields)))
    names = numbered([place for place, _ in pairs])
    return [{_FILES[0]: names.get(place, place), LABEL: label} for place, label in pairs]


def _of_counted(text: str) -> list[Row] | None:
    """Rows below their number and the names of their columns, as CelebA and DeepFashion have them; else None.

    The first column, which names the picture, may have no name itself.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 3 or not lines[0].isdigit() or len(_fields(lines[2])) < 2:
        return None
    rows, header = list(map(_fields, lines[2:])), lines[1].split()
    header = [_FILES[0], *header] if len(rows[0]) == len(header) + 1 else header
    if int(lines[0]) != len(rows):
        raise ValueError(f"its first line announces {lines[0]} rows, and {len(rows)} are there")
    for number, row in enumerate(rows, 3):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} fields for {len(header)} columns")
    return [dict(zip(header, row, strict=True)) for row in rows]


def _fields(line: str) -> list[str]:
    """The fields of a line, between tabs, commas or spaces; spaces in the name of a picture are its own."""
    if "\t" in line:
        return [field.strip() for field in line.split("\t")]
    match = _PICTURE.match(line)
    start, rest = ([match[1]], line[match.end() :]) if match else ([], line)
    return [*start, *filter(None, re.split(r" *, *| +", rest.strip(" ,")))]


_PICTURE = re.compile(rf"([^,]+?(?:{'|'.join(map(re.escape, SUFFIXES))}))(?=[ ,])", re.IGNORECASE)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(?:[.]\d*)?", text) is not None


def _of_numbers(labels: Mapping[str, Any], classes: Sequence[str]) -> list[Row]:
    """The class of each file by its number, as FiftyOne writes them."""
    try:
        return [
            {_FILES[0]: name, LABEL: classes[label] if isinstance(label, int) else label}
            for name, label in labels.items()
        ]
    except IndexError:
        raise ValueError(f"a label is not below {len(classes)}, the number of its classes") from None


def _inner(value: Any) -> list[Any]:
    """The labels of a list of annotated parts of a picture, each once, as Create ML has them; else none."""
    if isinstance(value, dict) and "bbox" in value:  # of Hugging Face's sets for detection: lists by name
        several = next(
            (value[key] for key in ("category", "categories", "label", "labels") if key in value), ()
        )
        return list(dict.fromkeys(map(str, several)))
    parts = value if isinstance(value, list) else [value]
    labels = [
        next((part[key] for key in ("label", "class", "category") if key in part), None)
        for part in parts
        if isinstance(part, dict)
    ]
    return list(dict.fromkeys(label for label in labels if isinstance(label, str | int)))


def _parsed(text: str) -> Any:
    """What JSON says, or a list of what its lines say, whatever the file is called."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if not error.msg.startswith("Extra data") or len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _of_json(told: Any, lines: bool, there: Callable[[str], bool]) -> list[Row]:
    """Rows of a list of objects, of an object that gives each file its label, or of COCO's format.

    Args:
        told: What was read.
        lines: Whether each line is a row.
        there: Whether a text names a picture.

    Raises:
        ValueError: Something else.
    """
    if not isinstance(told, dict) or lines:
        pairs = _of_pairs(told)
        return _records([told] if isinstance(told, dict) else told) if pairs is None else pairs
    if told and all(split_word(key) for key in told):  # {"train": …, "test": …}
        return [{"split": key, **row} for key, some in told.items() for row in _of_json(some, lines, there)]
    if {"images", "annotations", "categories"} <= told.keys():
        return _of_coco(told)
    if {"imagePath", "shapes"} <= told.keys():
        return [_of_labelme(told)]
    rows = _of_pandas(told)
    if rows is not None or (rows := _of_pairs(told.get("labels"))) is not None:
        return rows
    via = told.get("_via_img_metadata", told)
    if (
        isinstance(via, dict)
        and via
        and all(isinstance(v, dict) and "file_attributes" in v for v in via.values())
    ):
        return _of_via(via)
    if (rows := _of_names(told, there)) is not None:
        return rows
    if isinstance(told.get("items"), list) and isinstance(told.get("categories"), dict):
        return _of_datumaro(told)
    if isinstance(told.get("classes"), list) and isinstance(told.get("labels"), dict):
        return _of_numbers(told["labels"], told["classes"])
    inside = [some for some in told.values() if isinstance(some, list) and some and isinstance(some[0], dict)]
    if len(inside) == 1:  # {"version": 1, "data": [...]}
        return _records(inside[0])
    nested = [some for some in told.values() if isinstance(some, dict)]
    if len(nested) == 1 and not any(isinstance(some, list) for some in told.values()):
        return _of_json(nested[0], lines, there)  # {"version": 1, "annotations": {"1.jpg": "cat"}}
    if all(isinstance(label, str | int | float | list) for label in told.values()):
        return [{_FILES[0]: name, LABEL: label} for name, label in told.items()]
    return _records(told)


def _of_pairs(told: Any) -> list[Row] | None:
    """Rows of a list of pairs of a file and its label, as StyleGAN's `dataset.json` has them; else None.

    A number between them is that of the class: `["1.jpg", 3, "cat"]`.
    """
    if not isinstance(told, list) or not told:
        return None
    if all(isinstance(some, list) and list(map(type, some)) == [str, int, str] for some in told):
        told = [[name, label] for name, _, label in told]
    if not all(isinstance(some, list) and len(some) == 2 and isinstance(some[0], str) for some in told):
        return None
    return [{_FILES[0]: name, LABEL: label} for name, label in told]


def _of_names(told: Mapping[str, Any], there: Callable[[str], bool]) -> list[Row] | None:
    """Rows of an object of classes and the files of each, or of files and what is said of each; else None.

    Files of classes may lack their endings where no class is called like a file.
    """
    pictures = [_is_picture(key) for key in told]
    if told and all(pictures) and all(isinstance(some, dict) for some in told.values()):
        return [{_FILES[0]: name, **some} for name, some in told.items()]
    lists = list(told.values())
    if any(pictures) or not all(isinstance(some, list) for some in lists) or not any(lists):
        return None
    names = [name for some in lists for name in some]
    if not all(map(_is_picture, names)):
        first = [some[0] for some in lists if some]
        if not all(isinstance(name, str | int) and there(str(name)) for name in first):
            return None
        if all(map(there, told)):
            return None
    of_file: dict[str, list[str]] = {}
    for label, some in told.items():
        for name in some:
            of_file.setdefault(str(name), []).append(label)
    return [{_FILES[0]: name, LABEL: labels} for name, labels in of_file.items()]


def _of_labelme(told: Mapping[str, Any]) -> Row:
    """One picture: its flags that are set, or the labels of its shapes where none is."""
    flags = [name for name, is_set in (told.get("flags") or {}).items() if is_set]
    labels = flags or [str(shape["label"]) for shape in told["shapes"] if isinstance(shape, dict)]
    return {_FILES[0]: told["imagePath"], LABEL: list(dict.fromkeys(labels))}


def _of_pandas(told: Mapping[str, Any]) -> list[Row] | None:
    """Rows of an object of columns, as pandas writes it with three of its `orient`; None of any other."""
    columns, data = told.get("columns"), told.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(columns, row, strict=True)) for row in data]
    if not any(plain(str(key)) in _FILES for key in told):
        return None
    values = list(told.values())
    if all(isinstance(some, dict) and some.keys() == values[0].keys() for some in values):
        return [{key: some[at] for key, some in told.items()} for at in values[0]]
    if all(isinstance(some, list) and len(some) == len(values[0]) for some in values):
        return [dict(zip(told, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _of_via(images: Mapping[str, Any]) -> list[Row]:
    """Whole images of a project of the VGG Image Annotator: each attribute of a file is a column."""
    try:
        return [{_FILES[0]: image["filename"], **image["file_attributes"]} for image in images.values()]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{error} is missing in an image of its project") from None


def _of_datumaro(told: Mapping[str, Any]) -> list[Row]:
    """The labels of each item, those of regions where none is given for the whole image."""
    try:
        names = [label["name"] for label in told["categories"]["label"]["labels"]]
        rows: list[Row] = []
        for item in told["items"]:
            whole = [part for part in item["annotations"] if part["type"] == "label"] or item["annotations"]
            labels = dict.fromkeys(names[part["label_id"]] for part in whole)
            place = item.get("image", {}).get("path") or item["id"]
            rows.append({_FILES[0]: place, LABEL: list(labels)})
        return rows
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"it has the members of a Datumaro file, but {error} is missing in one") from None


def _of_coco(told: Mapping[str, Any]) -> list[Row]:
    """The categories of each image, a list.

    Boxes and outlines are not used: what is predicted is said of the whole picture.
    """
    try:
        names = {kind["id"]: str(kind["name"]) for kind in told["categories"]}
        of_image: dict[Any, dict[str, None]] = {image["id"]: {} for image in told["images"]}
        for given in told["annotations"]:
            of_image[given["image_id"]].setdefault(names[given["category_id"]])
        files = {image["id"]: image["file_name"] for image in told["images"]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"it has the members of a COCO file, but {error} is missing in one") from None
    placed = any(given.get("bbox") or given.get("segmentation") for given in told["annotations"])
    places = {_PLACES: None} if placed else {}
    return [{_FILES[0]: files[at], LABEL: list(some), **places} for at, some in of_image.items()]


def _stripped(row: Mapping[str | None, Any]) -> Row:
    """A row without the spaces around its fields; raises ValueError where it has more than the header."""
    if None in row:
        raise ValueError(f"a row has more fields than the header, from {row[None][0]!r} on")
    return {str(key).strip(): value.strip() if value else value for key, value in row.items()}


def _delimiter(name: str, text: str) -> str:
    if name.lower().endswith(".tsv"):
        return "\t"
    header, *more = text.splitlines()[:_LOOKED] or [""]
    if not set(",;\t") & set(header):
        for mark in "| ":
            if mark in header and all(
                line.count(mark) == header.count(mark) for line in more if line.strip()
            ):
                return mark
    try:
        return csv.Sniffer().sniff(text[:4096], ",;\t").delimiter
    except csv.Error:  # a table of one column
        return ","

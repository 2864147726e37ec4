"""Train, validation and test splits: by folder names, by lists, or stratified by label and seed (driver)."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from distml.data.listing import Folder, suffix, without_suffix
from distml.data.schema import Labels
from distml.data.source import Indices
from distml.errors import DataError

_LOG = logging.getLogger(__name__)

_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "testset", "testdata", "tst", "t10k", "holdout"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "validate", "valset", "dev", "development"), "validation"),
    **dict.fromkeys(("eval", "evaluation", "evaluate"), "eval"),
    "publictest": "validation",
    "privatetest": "test",
}
"""Words that name a split in public sets; `eval` is the test split unless there is another one."""
_SMELLS = ("pred", "prediction", "predictions", "unlabeled", "unlabelled", "submission")
"""Words that name a part of a set that is no split and no class."""
_COPIES = ("thumbnail", "thumbnails", "tmp", "cache", "venv")
"""Folders of small copies of pictures and of programs, which are no classes; words of them may be: thumb."""
_PICTURES = {"images", "image", "imgs", "img", "img_dir", "images_dir", "jpegimages", "pictures", "photos"}
BESIDES = {
    "annotations",
    "annotation",
    "masks",
    "mask",
    "labels",
    "trimaps",
    "segmentations",
    "segmentationclass",
    "ann_dir",
    "mask_dir",
    "ground_truth",
    "groundtruth",
    "gt",
}
"""Folders of pictures, and what lies beside them where pixels or boxes are labelled."""
Files = TypeVar("Files", list[str], list[Any], dict[str, str], dict[str, Any], list[int], Indices)
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")
_FLAGS = {
    **{key: {_YES: "validation", _NO: "train"} for key in ("is_valid", "is_val", "is_validation")},
    "is_test": {_YES: "test", _NO: "train"},
    **{key: {_YES: "train", _NO: "test"} for key in ("is_train", "is_training", "is_training_image")},
}
"""Names of columns of yes and no that divide rows in two, as fastai's `is_valid` does."""
SPLIT_COLUMNS = (
    *("split", "subset", "partition", "data set", "data_set", "dataset", "set", "usage", "ml_use"),
    *_FLAGS,
)
"""Names, in lower case, of columns that say the split of a row."""
_CODES = {"0": "train", "1": "validation", "2": "test"}
"""What numbers of splits mean where all three are there, as in CelebA and in the sets of WILDS."""
FOLD_COLUMNS = ("fold", "folds", "kfold", "k_fold", "fold_id", "cv", "cv_fold")
"""Names, in lower case, of columns that number the parts of a cross-validation: neither labels nor pixels."""
_TABLES = (".csv", ".tsv")
_LISTS = (".txt", ".lst", ".list", *_TABLES, ".json")
"""Endings of files that may list the pictures of a split."""
_REMEDY = (
    "Call the splits train, validation and test, and move out what belongs to none; a class that is called "
    "like a split needs another name."
)


WHOLE = (
    "distml predicts what a whole picture shows: give a folder for each class, or a metadata.csv with "
    "file_name and label beside the pictures; set task.kind to multilabel and write cat|dog for several."
)
"""What to do with labels of parts of a picture."""


def split_word(name: str) -> tuple[str, str] | None:
    """Return the split that a name means and the rest of the name, or None: `seg_train` is (train, seg)."""
    words = _words(name)
    named = [word for word in words if word in _SPLIT_WORDS]
    if len(named) != 1:
        return None
    return _SPLIT_WORDS[named[0]], " ".join(word for word in words if word and word not in _SPLIT_WORDS)


def _words(name: str) -> list[str]:
    """The words of a name in lower case, without numbers behind them: train of `Train 2`, `TrainImages`."""
    parts = re.split(r"[-_ .]+", name)
    words = [
        word.lower()
        for part in parts
        for word in ([part] if part.lower() in _SPLIT_WORDS else re.split(r"(?<=[a-z])(?=[A-Z])", part))
    ]
    return [word if word in _SPLIT_WORDS else word.rstrip("0123456789") for word in words]


def _marked(name: str) -> bool:
    """Whether a word for a split stands between marks: in `my_test`, not in `TestTube`."""
    return bool(
        {part.rstrip("0123456789") for part in re.split(r"[-_ .]+", name.lower())} & set(_SPLIT_WORDS)
    )


def split_of_file(name: str) -> str | None:
    """Return the split that a file's first folder names, or the first word of its own name."""
    path = PurePosixPath(name)
    for part in path.parts[:1] if len(path.parts) > 1 else ():
        if match := split_word(part):
            return match[0]
    word = re.match(r"[a-z]+\d*[a-z]*", path.name.lower())
    if word is None or path.name[word.end() : word.end() + 1] not in ("-", "_", "."):
        return None
    return _SPLIT_WORDS.get(word[0])


def splits_of_files(names: Iterable[str]) -> dict[str, str | None]:
    """Return the split that each of several files names.

    Beside `split_of_file`, any other word of a file's own name counts where the files then are of several
    splits, as `mnist_train.csv` and `mnist_test.csv` are; `my_test.csv` alone is called so for other reasons.
    """
    first = {name: split_of_file(name) for name in names}
    words = {name: split_word(PurePosixPath(name).stem) for name, split in first.items() if split is None}
    either = first | {name: word[0] for name, word in words.items() if word}
    splits = either if "train" in either.values() and len(set(either.values()) - {None}) > 1 else first
    tell_alike(_spelled(splits), "files")
    return splits


def split_of_folders(name: str) -> str | None:
    """Return the split that the first folder called like one names: `images/val2017/1.jpg` is validation."""
    words = (split_word(part) for part in PurePosixPath(name).parts[:-1])
    return next((word[0] for word in words if word), None)


def as_split(value: Any, column: str) -> str:
    """Return what a field of a column of splits says; yes, no and numbers as the split that they mean."""
    text = str(value)
    if (meanings := _FLAGS.get(column.lower())) is None:
        return _CODES.get(text, text)
    return next((split for words, split in meanings.items() if text.lower() in words), text)


def split_column(
    columns: Iterable[str], values_of: Callable[[str], Iterable[Any]]
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the column that says the split of each row: called so, with a value that is a split.

    Args:
        columns: Names of all.
        values_of: Gives the values of one.

    Returns:
        Its name, None where there is none (`is_valid` that is yes in all rows says nothing), and a sentence
        for each column that is called like one and is not used, or whose numbers are taken for splits.
    """
    chosen, notes = None, []
    for column in columns:
        if column.lower() in FOLD_COLUMNS:
            notes.append(
                f"the column {column} is not used: rows are held out once, not one fold after another; "
                "write train, validation and test in a column split for a division of your own."
            )
        if chosen is not None or column.lower() not in SPLIT_COLUMNS:
            continue
        given = {str(value) for value in values_of(column)}
        coded = column.lower() not in _FLAGS and bool(given & _CODES.keys())
        values = {as_split(value, column) for value in given}
        if any(map(split_word, values)) and (not coded or given == _CODES.keys()):
            chosen = column if column.lower() not in _FLAGS or {"train"} < values else None
            notes += [_CODED.format(f"the column {column}")] if coded else []
        elif values:
            shown = ", ".join(sorted(given)[:3])
            notes.append(f"the column {column} says no splits, but {shown}, and is not used.")
    return chosen, tuple(notes)


_CODED = "0, 1 and 2 in {} are taken for train, validation and test; write the words if that is wrong."


def divide_rows(values: Sequence[Any], column: str) -> dict[str, Indices]:
    """Divide rows by a column of splits.

    Args:
        values: Of each row.
        column: Said in errors.

    Returns:
        int64 [M] of row numbers by split.

    Raises:
        DataError: A value that is no split, or no train.
    """
    return settled(rows_by_split(values, column))


def rows_by_split(values: Sequence[Any], column: str) -> dict[str, Indices]:
    """Do what `divide_rows` does for a part of the rows: `eval` stays, and train need not be among them."""
    texts = [str(value) for value in values]
    words = {text: split_word(text) for text in set(texts)}
    if other := sorted(text for text, word in words.items() if word is None):
        raise DataError(f"{column} has the split {other[0]}.", "Use train, validation and test.")
    tell_alike(texts, column)
    of_rows = np.array([word[0] for word in map(words.get, texts) if word])
    return {split: np.flatnonzero(of_rows == split) for split in np.unique(of_rows).tolist()}


def tell_alike(names: Iterable[str], where: str) -> None:
    """Warn where several names mean one split, as `val` and `validation` do: their rows are put together.

    Args:
        names: Those that mean no split are not looked at.
        where: They are of.
    """
    alike: dict[str, set[str]] = {}
    for name in set(names):
        if word := split_word(name):
            alike.setdefault(word[0], set()).add(name.lower().rstrip("0123456789"))
    for split, some in sorted(alike.items()):
        if len(some) > 1:
            _LOG.warning("%s: %s are put together as %s", where, ", ".join(sorted(some)), split)


def divide(names: Sequence[str], told: Mapping[str, str] | None = None) -> dict[str, list[str]]:
    """Sort tables and other files that hold rows by split; all are `train` where no two splits are named.

    Args:
        names: Of the files.
        told: What a description beside the files calls the split of each, where there is one.

    Raises:
        DataError: Some name a split and others none, or there is no train.
    """
    divided: dict[str | None, list[str]] = {}
    words = {name: split_word((told or {}).get(name, "")) for name in names}
    given = {name: word[0] for name, word in words.items() if word}
    if len(given) == len(names):
        tell_alike(map(str, (told or {}).values()), "the splits")
    for name, split in (given if len(given) == len(names) else splits_of_files(names)).items():
        divided.setdefault(split, []).append(name)
    splits = {split: some for split, some in divided.items() if split is not None}
    if not splits or (len(splits) == 1 and None in divided):
        return {"train": [name for some in divided.values() for name in some]}
    if None in divided:
        raise DataError(
            f"{divided[None][0]} lies beside {', '.join(sorted(splits))} and in none of them.", _REMEDY
        )
    return settled(splits)


def _spelled(splits: Mapping[str, str | None]) -> dict[str, str]:
    """The split that each word of some files' names means: `val` of `val-00000.parquet`."""
    words = {word: split for name, split in splits.items() for word in re.split(r"[-_ ./]+", name.lower())}
    return {word: split for word, split in words.items() if split and _SPLIT_WORDS.get(word) == split}


def absent_parts(names: Sequence[str]) -> tuple[str, ...]:
    """Say which files of a numbered set, as `train-00000-of-00002.parquet`, are not there."""
    parts: dict[tuple[str, str, str], set[int]] = {}
    for match in filter(None, map(_PART.fullmatch, names)):
        parts.setdefault((match[1], match[3], match[4]), set()).add(int(match[2]))
    said = []
    for (start, count, end), there in parts.items():
        lost = [at for at in range(int(count)) if at not in there]
        if lost:
            first = f"{start}{lost[0]:0{len(count)}}-of-{count}{end}"
            said.append(f"{len(lost)} of {int(count)} files of a set are not there, like {first}.")
    return tuple(said)


_PART = re.compile(r"(.*?)(\d+)-of-(\d{1,6})(\..+)")


def divide_folders(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Divide the files of a folder of class folders.

    A folder that alone holds everything else is passed through. Folders are splits where their names have a
    word for one and agree in the rest, as `seg_train` and `seg_test`; one called `train` among others that
    holds files alone is a class. Splits may also stand within each class folder.

    Args:
        names: Files, with `/` between folders.

    Returns:
        By split, each file's path from the class folder on, by its name.

    Raises:
        DataError: Some folders are splits and others are not, or there is no train.
    """
    paths = _through({name: name for name in names})
    tops = Counter(path.partition("/")[0] for path in paths.values() if "/" in path)
    named = {top: match for top in tops if (match := split_word(top))}
    if len({rest for _, rest in named.values()}) > 1:
        named = {top: match for top, match in named.items() if top.lower() in _SPLIT_WORDS}
    others = sorted(set(tops) - set(named))
    deep = {path.partition("/")[0] for path in paths.values() if path.count("/") > 1} & set(named)
    alone = next(iter(named)) if others and len(named) == 1 and not deep else ""
    if not named or (alone and (named[alone][0] == "train" or not _marked(alone))):
        lower = {top.lower() for top in tops}
        beside = [top for top in others if top.lower() in BESIDES] if lower & _PICTURES else []
        suspicious = [top for top in others if set(_words(top)) & set(_SMELLS) or top.lower() in _COPIES]
        for top in (*suspicious, *beside):
            images = next((name for name in tops if name.lower() in _PICTURES), "")
            remedy = _REMEDY if top in suspicious else f"Set data.path to its folder {images}, or: {WHOLE}"
            raise DataError(f"{top} looks like a part of the data, not a class.", remedy)
        return _within_classes(paths) or {"train": paths}
    loose = [path for path in paths.values() if "/" not in path]
    if others or loose:
        odd = next((path for path in paths.values() if path.partition("/")[0] in others), (loose or [""])[0])
        raise DataError(f"{odd} lies beside {', '.join(sorted(named))} and in none of them.", _REMEDY)
    tell_alike(named, "folders")
    splits: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        top, _, rest = path.partition("/")
        splits.setdefault(named[top][0], {})[name] = rest
    return {split: _through(files, split) for split, files in settled(splits).items()}


def unlabelled(divided: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Return the files of a test split without class folders, beside a train that has them: a contest's."""
    test = divided.get("test", {})
    classes = {path.partition("/")[0] for path in divided["train"].values() if "/" in path}
    if not classes or any(path.partition("/")[0] in classes for path in test.values()):
        return []
    depths = {path.count("/") for path in test.values()}
    alone = depths == {0} or (depths == {1} and len({path.partition("/")[0] for path in test.values()}) == 1)
    return list(test) if alone else []


def _within_classes(paths: Mapping[str, str]) -> dict[str, dict[str, str]] | None:
    """Divide class folders each of which holds folders of splits and nothing else, as `cat/train/1.jpg`."""
    parts = {name: path.split("/") for name, path in paths.items()}
    words = {some[1]: split_word(some[1]) for some in parts.values() if len(some) > 2}
    named = {word: fields[0] for word, fields in words.items() if fields and not fields[1]}
    if len(set(named.values())) < 2 or any(len(some) < 3 or some[1] not in named for some in parts.values()):
        return None
    splits: dict[str, dict[str, str]] = {}
    for name, (top, word, *rest) in parts.items():
        splits.setdefault(named[word], {})[name] = "/".join((top, *rest))
    return settled(splits)


def _through(paths: dict[str, str], split: str | None = None) -> dict[str, str]:
    """Drop a first folder that all files share and that still has folders; of splits only the one meant."""
    while True:
        tops = {path.partition("/")[0] for path in paths.values()}
        word = split_word(next(iter(tops))) if len(tops) == 1 else None
        least = 0 if split and word == (split, "") else 1  # `train/train/cat.0.jpg` has no class folder
        if len(tops) != 1 or not all(path.count("/") > least for path in paths.values()):
            return paths
        if word and word[0] != split:
            return paths
        paths = {name: path.partition("/")[2] for name, path in paths.items()}


def settled(splits: dict[str, Files]) -> dict[str, Files]:
    """Let `eval` be the test split, or the validation split where there is another test split.

    Raises:
        DataError: There is no train, or `eval` beside both others.
    """
    if {"eval", "validation", "test"} <= splits.keys():
        raise DataError("there are validation, test and eval: three splits beside train.", _REMEDY)
    if "eval" in splits:
        splits["validation" if "test" in splits else "test"] = splits.pop("eval")
    if "train" not in splits:
        raise DataError(f"there is {', '.join(sorted(splits))}, but no train.", _REMEDY)
    return splits


def by_lists(
    folder: Folder, paths: Mapping[str, str], others: Sequence[str] = ()
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]]:
    """Divide pictures by text files that list those of each split, as Food-101's `meta/test.txt` does.

    Args:
        folder: Holds them.
        paths: What each picture is called from the class folder on, by its name.
        others: Files that are read as something else.

    Returns:
        The same by split, and a sentence for each file that looks like a list of a split and is not used.
    """
    files = [name for name in folder.sizes if suffix(name) in _LISTS and _names_splits(name)]
    files = [name for name in files if name not in others and "submission" not in name.lower()]
    places = _places(paths) if files else {}
    named = {file: _named_by(folder, file, places) for file in files if _split_of_list(file)}
    lists = {file: some for file, some in named.items() if some}
    if any(_split_of_list(file) == "train" and "val" not in file.lower() for file in lists):
        lists = {file: some for file, some in lists.items() if "trainval" not in file.lower()}
    whole = {"train": dict(paths)}
    coded = next(filter(None, (_coded(folder, file, places) for file in files)), None)
    try:
        if coded:
            return _listed(folder, paths, *coded[:2]), coded[2]
        if {_split_of_list(file) for file in lists} - {"train"}:
            of_name = _of_lists(lists)
        elif told := next(filter(None, (_flagged(folder, file, places) for file in files)), None):
            lists, of_name = told
        else:
            shown = ", ".join(sorted(files)[:5])
            said = f"{shown}: called like a list of a split, and not used: no held-out pictures are listed."
            return whole, (said,) if files else ()
        return _listed(folder, paths, lists, of_name), ()
    except DataError as error:
        return whole, (f"{error.message}; the lists are not used, and held-out rows are cut from all.",)


def _listed(
    folder: Folder, paths: Mapping[str, str], lists: Collection[str], of_name: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Divide pictures by the split that lists give each; what no list names is skipped."""
    divided = _divide(of_name, paths)
    _LOG.info("the splits are taken from %s", ", ".join(sorted(lists)))
    for file in lists:
        folder.ledger.reasons.pop(file, None)
    for name in paths.keys() - {name for some in divided.values() for name in some}:
        folder.ledger.skip(name, "in no list of a split")
    return divided


def _coded(
    folder: Folder, file: str, places: Mapping[str, str | None]
) -> tuple[list[str], dict[str, str], tuple[str, ...]] | None:
    """The split of each picture from lines that end with it, as those of `list_eval_partition.txt` do.

    Returns:
        The file, the split of each picture, and a sentence where numbers say it; None for any other file.
    """
    if suffix(file) not in _LISTS[:-1] or not set(_words(PurePosixPath(file).stem)) & set(_DIVIDING):
        return None
    text = folder.read(file).decode("utf-8-sig", "replace").replace("\\", "/")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    codes = [re.split(r"[\s,;]+", line)[-1].lower() for line in lines]
    known = set(codes[2:])  # their number and the names of the columns may stand first
    numbers = known == _CODES.keys()
    splits = _CODES if numbers else {code: word[0] for code in known if (word := split_word(code))}
    if len(splits) < max(2, len(known)):
        return None
    rows = zip(lines, codes, strict=True)
    of_name = {
        name: splits[code] for line, code in rows if code in splits and (name := _picture(places, line))
    }
    return ([file], of_name, (_CODED.format(file),) if numbers else ()) if of_name else None


def _told_by_word(text: str, ending: str, places: Mapping[str, str | None]) -> dict[str, str]:
    """The split of each picture from a table with a column of splits, or from JSON of splits and pictures."""
    if ending == ".json":
        told = _parsed(text)
        words = {key: split_word(key) for key in told} if isinstance(told, dict) else {}
        named = {key: word[0] for key, word in words.items() if word} if all(words.values()) else {}
        several = {key: _texts(told[key]) for key in named}
        return {name: named[key] for key, some in several.items() for w in some if (name := places.get(w))}
    rows = [re.split(r"[\t,;]", line.strip()) for line in text.replace("\\", "/").splitlines()[1:] if line]
    width = min(map(len, rows), default=0)
    splits = [at for at in range(width) if all(split_word(row[at]) for row in rows)]
    return {
        name: word[0]
        for row in rows
        for at in splits[:1]
        if (name := _picture(places, ",".join(row))) and (word := split_word(row[at]))
    }


def _places(paths: Iterable[str]) -> dict[str, str | None]:
    """Each picture by what a list may call it, with or without folders and ending; None where several are."""
    places: dict[str, str | None] = {}
    for name in paths:
        for known in _tails(name):
            for key in {known, without_suffix(known)}:
                places[key] = name if places.get(key, name) == name else None
    return places


def _named_by(folder: Folder, file: str, places: Mapping[str, str | None]) -> list[str]:
    """The pictures that the lines of a file name; none if few of them do."""
    text = folder.read(file).decode("utf-8-sig", "replace").replace("\\", "/")
    if suffix(file) == ".json":
        return list(dict.fromkeys(name for word in _texts(_parsed(text)) if (name := places.get(word))))
    told = [line.strip() for line in text.split("\n") if line.strip()]
    which = [_picture(places, line) for line in told]
    if suffix(file) in _TABLES and which and which[0] is None:  # the names of its columns
        told, which = told[1:], which[1:]
    named = [name for name in which if name]
    if len(named) * 2 < len(told):
        return []
    if len(named) < len(told):
        odd = told[which.index(None)]
        _LOG.warning("%d lines of %s name no picture, like %s", len(told) - len(named), file, odd[:80])
    return named


def _parsed(text: str) -> Any:
    """What a text says in JSON, None where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def _texts(told: Any) -> list[str]:
    """All texts in what was read from JSON, names of members among them."""
    left, words = [told], list[str]()
    while left:
        some = left.pop()
        if isinstance(some, dict):
            words += some
            left += some.values()
        elif isinstance(some, list):
            left += some
        elif isinstance(some, str):
            words.append(some)
    return words


def pairs(text: str) -> dict[str, str] | None:
    """What stands behind the first word of each line of a text; None where lines have no two words."""
    lines = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    told = {line[0]: line[1].strip() for line in lines if len(line) == 2}
    return told if told and len(told) == len(lines) else None


def numbered(folder: Folder, file: str, keys: Collection[str]) -> Mapping[str, str]:
    """Return the names that a list beside a text file gives to the numbers in it, as `images.txt` does.

    Args:
        folder: Holds both.
        file: Whose lines begin with numbers.
        keys: Those.

    Returns:
        By number, what no number is; {} where no list has the same numbers, or several have.
    """
    if not keys or not all(key.isdigit() for key in keys):
        return {}
    above = file.rpartition("/")[0]
    fitting: list[Mapping[str, str]] = []
    for other in folder.sizes:
        if other == file or other.rpartition("/")[0] != above or suffix(other) not in _LISTS[:3]:
            continue
        if len(fitting) < 2 and folder.sizes[other] > 4 * len(keys):
            told = pairs(folder.read(other).decode("utf-8-sig", "replace")) or {}
            if told.keys() == set(keys) and len(set(told.values())) == len(told):
                fitting += [told] if not any(_AMOUNTS.fullmatch(name) for name in told.values()) else []
    return fitting[0] if len(fitting) == 1 else {}


_AMOUNTS = re.compile(r"[-+\d.eE\s]+")


def _flagged(
    folder: Folder, file: str, places: Mapping[str, str | None]
) -> tuple[dict[str, list[str]], dict[str, str]] | None:
    """The split of each picture from one file for two, as `train_test_split.txt`: `1 0` is test, `1 1` train.

    Its lines begin with the pictures, or with the numbers that a list beside it gives to them.
    """
    words = {_SPLIT_WORDS[word] for word in _words(PurePosixPath(file).stem) if word in _SPLIT_WORDS}
    if suffix(file) not in _LISTS[:3]:
        of_name = _told_by_word(folder.read(file).decode("utf-8-sig", "replace"), suffix(file), places)
        return ({file: list(of_name)}, of_name) if of_name else None
    told = pairs(folder.read(file).decode("utf-8-sig", "replace"))
    if "train" not in words or len(words) != 2 or not told:
        return None
    other = (words - {"train"}).pop()
    flags = {**dict.fromkeys(_YES, "train"), **dict.fromkeys(_NO, other)}
    if not all(flag.lower() in flags for flag in told.values()):
        flags = {flag.lower(): word[0] for flag in told.values() if (word := split_word(flag))}
    names = numbered(folder, file, told.keys())
    of_name = {
        name: flags[flag.lower()]
        for key, flag in told.items()
        if flag.lower() in flags and (name := _picture(places, names.get(key, key)))
    }
    return ({file: list(of_name)}, of_name) if len(of_name) * 2 >= len(told) else None


def _tails(path: str) -> list[str]:
    """A path and what is left of it without its first folders."""
    parts = path.split("/")
    return ["/".join(parts[at:]) for at in range(len(parts))]


def _picture(places: Mapping[str, str | None], line: str) -> str | None:
    """The picture that a line of a list names, alone or before other words."""
    fields = [field.strip(" \"'") for field in re.split(r"[\t,;]", line)]
    fields.sort(key=lambda field: not suffix(field))  # a number may be the name of a file, too
    for given in (line, *fields, line.split()[0]):
        for tail in _tails(given.removeprefix("./")):
            if tail in places:
                return places[tail]
    return None


def _split_of_list(name: str) -> str | None:
    """Return the split whose rows a text file lists by its name: `meta/test.txt`, `train_val_list.txt`."""
    stem = PurePosixPath(name).stem.replace("trainval", "train_val")
    named = {_SPLIT_WORDS[word] for word in _words(stem) if word in _SPLIT_WORDS}
    if named == {"train", "validation"}:
        return "train"
    return named.pop() if len(named) == 1 else None


_DIVIDING = ("split", "splits", "partition", "partitions")


def _names_splits(name: str) -> bool:
    """Whether a file is called like what says splits, as `train_test_split.txt` is."""
    return bool(set(_words(PurePosixPath(name).stem)) & {*_SPLIT_WORDS, *_DIVIDING})


def _of_lists(lists: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The split of each picture by the lists of those that belong to each; as `_divide` takes it.

    Args:
        lists: By file that holds the list, names of pictures.

    Raises:
        DataError: Two different lists of one split, or a picture in the lists of two.
    """
    of_list: dict[str, str] = {}
    for file, names in lists.items():
        other = of_list.setdefault(str(_split_of_list(file)), file)
        if other != file and set(lists[other]) != set(names):
            raise DataError(f"{other} and {file} list the same split (move out all but one of each)")
    of_name: dict[str, str] = {}
    for split, file in of_list.items():
        for name in lists[file]:
            if of_name.setdefault(name, split) != split:
                raise DataError(f"{of_list[of_name[name]]} and {file} both list {name}")
    return of_name


def _divide(of_name: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Divide files by the split of each; where none is of train, it is all others.

    Args:
        of_name: Split by name.
        paths: What each file is called from the class folder on, by its name.
    """
    splits: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        split = of_name.get(name) or ("" if "train" in of_name.values() else "train")
        if split:
            splits.setdefault(split, {})[name] = path
    return settled(splits)


SPLITS = ("train", "validation", "test")
TEST_FRACTION = 1 / 6
"""Share cut off as test where the data come without one."""


@dataclass(frozen=True)
class Part:
    """The rows of one split to be written.

    Args:
        origin: Split of the source they are taken from.
        rows: int64 [N], their numbers there, in the order in which they are written.
    """

    origin: str
    rows: Indices


def plan(
    strata: Mapping[str, Labels], val_fraction: float, seed: int, groups: Indices | None = None
) -> dict[str, Part]:
    """Divide the rows.

    A test split that is missing is cut from train first, then a missing validation split from what is left;
    both are stratified and keep the order of the source. Train is shuffled, so that a reader of any
    stretch of it sees all classes. The same numbers, fraction and seed give the same plan.

    Args:
        strata: int32 [N] by split of the source, with `train` among them: the class of each row, or what else
            is to have the same share in every split.
        val_fraction: Share of the training rows cut off as validation.
        seed: Of both cuts and the shuffle.
        groups: int64 [N], rows of train with the same number stay on one side of each cut; None has none.

    Raises:
        DataError: Too few training rows to cut from.
    """
    try:
        return _plan(strata, val_fraction, seed, groups)
    except DataError:
        if groups is None:
            raise
        _LOG.warning("near duplicates remain in both splits: too little is left without them")
        return _plan(strata, val_fraction, seed, None)


def _plan(
    strata: Mapping[str, Labels], val_fraction: float, seed: int, groups: Indices | None
) -> dict[str, Part]:
    rest = np.arange(len(strata["train"]), dtype=np.int64)
    parts = {}
    for stream, (split, fraction) in enumerate((("test", TEST_FRACTION), ("validation", val_fraction))):
        if split in strata:
            parts[split] = Part(split, np.arange(len(strata[split]), dtype=np.int64))
            continue
        random, together = np.random.default_rng([seed, stream]), None if groups is None else groups[rest]
        held = held_out(strata["train"][rest], fraction, random, together)
        parts[split] = Part("train", rest[held])
        rest = np.delete(rest, held)
    shuffled = np.random.default_rng([seed, 2]).permutation(rest)
    return {"train": Part("train", shuffled), "validation": parts["validation"], "test": parts["test"]}


def held_out(
    labels: Labels, fraction: float, random: np.random.Generator, groups: Indices | None = None
) -> Indices:
    """Choose the same share of every class, as near as whole rows allow; each class keeps a row.

    Args:
        labels: int32 [N].
        fraction: Share to choose.
        random: Chooses which.
        groups: int64 [N], rows with the same number are chosen together or not at all. None, and groups so
            large that less than a quarter of the share can be chosen, are divided by rows.

    Returns:
        Sorted int64 row numbers, at least one.

    Raises:
        DataError: No class has two rows.
    """
    classes, counts = np.unique(labels, return_counts=True)
    takes = np.minimum(np.rint(counts * fraction).astype(int), counts - 1)
    if not takes.any() and counts.size:
        takes[counts.argmax()] = min(1, counts.max() - 1)
    if not takes.any():
        raise DataError(
            f"{len(labels)} training rows are too few to hold any out: no two have the same label.",
            "Bring several rows of each class; set task.kind to regression if the labels are amounts.",
        )
    orders = [random.permutation(np.flatnonzero(labels == label)) for label in classes]
    chosen = np.concatenate([order[:take] for order, take in zip(orders, takes, strict=True)])
    if groups is not None:
        whole = _whole_groups(np.searchsorted(classes, labels), orders, takes, groups)
        chosen = _unless_too_few(whole, chosen)
    return np.sort(chosen).astype(np.int64)


_LEAST_OF_SHARE = 0.25
"""Of the rows wanted, that whole groups must give: a metric of one row in place of fifteen says nothing."""
_TOLD_OF_SHARE = 0.75
"""Of the rows wanted, below which it is told how many are held out: with three quarters of them the standard
error of a metric is a sixth larger (sqrt(4/3)), which nobody notices."""


def _unless_too_few(whole: Indices, rows: Indices) -> Indices:
    """The rows of whole groups, or those that were drawn alone where groups give too few of them."""
    if len(whole) < _LEAST_OF_SHARE * len(rows):
        _LOG.warning(
            "near duplicates remain in both splits: their groups are larger than the share "
            "(without them %d rows instead of %d would be held out)",
            len(whole),
            len(rows),
        )
        return rows
    if len(whole) < _TOLD_OF_SHARE * len(rows):
        _LOG.warning(
            "%d rows instead of %d are held out: near duplicates are kept together", len(whole), len(rows)
        )
    return whole


def _whole_groups(
    labels: Indices,
    orders: Sequence[Indices],
    takes: Indices,
    groups: Indices,
) -> Indices:
    """Go through each class in its drawn order and take whole groups while they fit its share.

    Args:
        labels: int64 [N], places among the classes.
        orders: Rows of each class as they were drawn.
        takes: Rows wanted of each class.
        groups: int64 [N].
    """
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups.tolist()):
        members.setdefault(group, []).append(row)
    held, seen = np.zeros(len(takes), int), set()
    chosen: list[int] = []
    for place, order in enumerate(orders):
        for group in groups[order].tolist():
            if held[place] >= takes[place]:
                break
            if group in seen:
                continue
            seen.add(group)
            after = held + np.bincount(labels[members[group]], minlength=len(takes))
            if (after <= takes).all():
                held = after
                chosen += members[group]
    return np.array(chosen, np.int64)

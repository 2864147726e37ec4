"""Reads a folder of pictures with a folder per class, optionally below train/, validation/, test/ (driver).

Every header is read before anything is decoded: sizes and colours decide the shape of the images where
the configuration leaves it open, and what is not a picture is named at once.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from distml.config import DataConfig
from distml.data import image, source
from distml.data.image import (
    RAW_SUFFIXES,
    SUFFIXES,
    UNREAD_SUFFIXES,
    VIDEO_SUFFIXES,
    Header,
    Policy,
    header,
    policy,
)
from distml.data.listing import PARQUET, Folder, suffix, without_suffix
from distml.data.schema import is_label
from distml.data.source import Fault, Gathered, Indices, Rows, Source, label_array
from distml.data.split import BESIDES, WHOLE, by_lists, divide_folders, unlabelled
from distml.errors import DataError
from distml.tasks import Targets, Task
from distml.tasks.classification import TWO_CLASSES, Classification, spelling

_LOG = logging.getLogger(__name__)

_HEAD_BYTES = 1 << 16
_READERS, _REQUESTS = 8, 32
"""Headers that are read at once, of files of this machine and of a store, which takes a request for each."""
_TOGETHER = 64
"""Files of which a thread reads the headers before it takes others, at most."""
_DECODED = 10_000
"""Pictures that are decoded to complete the list of damaged ones: some tens of seconds."""
_OTHERS = (
    *(
        ".txt",
        ".md",
        ".csv",
        ".tsv",
        ".json",
        ".jsonl",
        ".xml",
        ".yaml",
        ".yml",
        ".html",
        ".htm",
        ".pdf",
        ".log",
    ),
    *(
        ".py",
        ".ipynb",
        ".npy",
        ".npz",
        ".mat",
        ".pkl",
        *PARQUET,
        ".zip",
        ".gz",
        ".tar",
        ".db",
        ".ini",
        ".exe",
    ),
)
"""Endings of files that lie beside pictures and are known to be none; the content of others decides."""
_RAW = "a camera's raw file"
_SPREADSHEET = "a spreadsheet: save it as CSV if it holds labels"
_NO_PICTURE = "no picture"
_REASONS: dict[str, str] = {
    **dict.fromkeys(RAW_SUFFIXES, _RAW),
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods", ".numbers", ".gsheet"), _SPREADSHEET),
    **dict.fromkeys(UNREAD_SUFFIXES, "a picture of a format that is not read: convert it to JPEG or PNG"),
    **dict.fromkeys(VIDEO_SUFFIXES, "a video: save single pictures of it"),
    **dict.fromkeys(
        (".zip", ".tar", ".tgz", ".rar", ".7z"), "an archive beside pictures: unpack it if it holds some"
    ),
}
"""Why a file is left out that people may take for data, by its ending."""
_UNREAD = frozenset((*_OTHERS, *RAW_SUFFIXES))
"""Endings of files whose content is not looked at."""


def open_pictures(folder: Folder, data: DataConfig, task: type[Task] = Classification) -> Source:
    """List the pictures, number their classes and look at every header.

    Raises:
        DataError: No pictures, one outside a class folder, a class without any, or too many unusable files.
    """
    names = [*pictures(folder), *(name for name in folder.dangling if suffix(name) in SUFFIXES)]
    if not names:
        raise DataError(f"{folder.shown} holds no pictures.", "Check data.path and data.format.")
    divided = divide_folders(names)
    _require_no_sheet(folder, data)
    lists: tuple[str, ...] = ()
    if divided.keys() == {"train"}:
        divided, lists = by_lists(folder, divided["train"])
        names = [name for some in divided.values() for name in some]
    listed = _listed(folder, divided) if task.scalar and data.label_pattern is None else {}
    if "test" not in listed and (alone := unlabelled(divided)):
        names = _without(folder, names, alone)
        divided = {split: paths for split, paths in divided.items() if split != "test"}
    plain = {split: paths for split, paths in divided.items() if split not in listed}
    try:
        classes_of = _labelled(plain, data.label_pattern, task) | listed
        if task.scalar and len(single := set(_texts(classes_of["train"]))) == 1:
            raise DataError(f"there is only one class, {single.pop()}.", TWO_CLASSES)
    except DataError as error:
        raise _explained(error, folder, names) from None
    for split in divided.keys() - classes_of.keys():
        names = _without(folder, names, divided[split])
    _require_pictures_of_all_classes(folder, names)
    lost = _lost(folder, divided)
    headers, bad = survey(folder, names, data.max_pixels)
    if bad and data.on_error == "fail":
        bad += _damaged(folder, list(headers)[:_DECODED], data.max_pixels)
    bad += lost
    source.require_usable(bad, len(names) + len(lost), data)
    opened = of_files(folder, classes_of, headers, data, bad, task)
    levels = () if data.label_pattern else _odd_folders(divided["train"])
    return dataclasses.replace(opened, notes=(*_empty(folder, divided), *levels, *_masks(names), *lists))


def _explained(error: DataError, folder: Folder, names: Sequence[str]) -> DataError:
    """The same error with what lies beside the pictures; another where that says more."""
    _require_whole(folder, names)
    _require_pictures_of_all_classes(folder, names)
    return _with_unread(_with_tables(error, folder, names), folder)


def _odd_folders(paths: Mapping[str, str]) -> tuple[str, ...]:
    return (*_levels(paths), *_deeper(paths), *_occasions(paths))


def _require_no_sheet(folder: Folder, data: DataConfig) -> None:
    """Reject a spreadsheet beside pictures whose places say no classes."""
    sheets = folder.ledger.names(_SPREADSHEET)
    if sheets and data.label_pattern is None and not in_classes(folder):
        raise DataError(f"{sheets[0]} is a spreadsheet, which is not read.", "Save it as CSV: metadata.csv.")


def _without(folder: Folder, names: Sequence[str], alone: Collection[str]) -> list[str]:
    """Names without those of test pictures that have no class, which are counted."""
    for name in alone:
        folder.ledger.skip(name, "a test picture without a class")
    gone = set(alone)
    return [name for name in names if name not in gone]


def _lost(folder: Folder, divided: Mapping[str, Mapping[str, str]]) -> list[Fault]:
    """Links beside the class folders that lead nowhere: whole classes may lie there."""
    remedy = "Mount the disk that it leads to, or remove the link."
    return [
        Fault(name, f"{name} is a link to {folder.dangling[name]}, which does not exist.", remedy)
        for name in _beside_classes(folder.dangling, divided)
        if suffix(name) not in (*SUFFIXES, *_OTHERS)
    ]


def _empty(folder: Folder, divided: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Say which folders beside those of classes are empty, and so are no classes."""
    empty = sorted(_beside_classes(folder.empty, divided))
    return tuple(f"{name} is an empty folder: no class is made of it." for name in empty)


def _beside_classes(names: Iterable[str], divided: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Those of some entries that lie where class folders do."""
    of_pictures = (item for some in divided.values() for item in some.items())
    above = {name[: len(name) - len(path)] for name, path in of_pictures if "/" in path}
    return [name for name in names if name[: name.rfind("/") + 1] in above]


_OCCASION = re.compile(
    r"(?:19|20)\d\d[-_.]?[01]\d(?:[-_.]?[0-3]\d)?(?:[-_ T].*)?|\d{3}[A-Z_]{5}"
    r"|(?:.*[-_ ])?(?:batch|card|day|fold|import|part|roll|session|shoot|upload)s?[-_ ]?\d+",
    re.IGNORECASE,
)
"""Names of folders by the day, a camera (`100CANON`) or a part of a collection."""


def _occasions(paths: Mapping[str, str]) -> tuple[str, ...]:
    """Say that all class folders are called like days or parts of a collection, which are no classes."""
    classes = sorted({path.partition("/")[0] for path in paths.values()})
    if not all(_OCCASION.fullmatch(name) for name in classes):
        return ()
    return (
        f"the classes are {', '.join(classes[:5])}: called like dates or parts of a collection. "
        "Sort the pictures into a folder for each class, if those are not the classes.",
    )


def _levels(paths: Mapping[str, str]) -> tuple[str, ...]:
    """Say that the folders below all classes are the same: they may be the classes.

    Args:
        paths: Each training picture's path from the class folder on.
    """
    below: dict[str, set[str]] = {}
    for path in paths.values():
        above, *inner = path.split("/")[:-1] or [""]
        below.setdefault(above, set()).update(inner[:1])
    first = next(iter(below.values()))
    if len(below) < 2 or len(first) < 2 or any(inner != first for inner in below.values()):
        return ()
    shown, groups = ", ".join(sorted(first)[:5]), ", ".join(sorted(below)[:5])
    return (
        f"the classes are {groups}, and below each lie the same folders: {shown}. If those are the classes, "
        "set data.label_pattern: '[^/]+/([^/]+)/'.",
    )


def _deeper(paths: Mapping[str, str]) -> tuple[str, ...]:
    """Say that all pictures lie in folders of several words below the classes: those may be the classes."""
    parts = [path.split("/")[:2] for path in paths.values() if path.count("/") > 1]
    below = {inner for _, inner in parts}
    of_class = {(above, inner) for above, inner in parts}
    worded = all(re.fullmatch(r"[^\W\d]{3,}.*", inner) and not re.search(r"\d", inner) for inner in below)
    if len(parts) < len(paths) or len(of_class) > len(below) or not worded:
        return ()
    above = sorted({above for above, _ in parts})
    if len(below) <= len(above):
        return ()
    return (
        f"the classes are {', '.join(above[:5])}, and all pictures lie in {len(below)} folders below them, "
        f"like {min(below)}. If those are the classes, set data.label_pattern: '[^/]+/([^/]+)/'.",
    )


_MASK = re.compile(r"(.+?)[-_ ]?(?:mask|gt|seg|segmentation|groundtruth)(?:[-_ ]?\d+)?", re.IGNORECASE)


def _masks(names: Sequence[str]) -> tuple[str, ...]:
    """Say that some pictures are called like masks of others."""
    stems = {without_suffix(name) for name in names}
    masks = [name for name in names if (match := _MASK.fullmatch(without_suffix(name))) and match[1] in stems]
    if not masks:
        return ()
    return (
        f"{len(masks)} pictures are called like masks of others, as {masks[0]}, and are used as pictures; "
        "remove them if they are masks.",
    )


def _listed(folder: Folder, divided: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    """Labels of held-out pictures that lie in no class folder, from a text file that lists them.

    Each line has a picture's name and its label among whatever else there is, as in Tiny ImageNet's
    `val/val_annotations.txt` or a table with a header. A file counts that names every picture of a split,
    with classes of the training rows, `7` for `00007` where they are numbers.
    """
    classes = {path.partition("/")[0] for path in divided["train"].values() if "/" in path}
    labels: dict[str, dict[str, str]] = {}
    for split, paths in divided.items():
        if split == "train" or classes & {path.partition("/")[0] for path in paths.values()}:
            continue
        least = 4 * len(paths)  # bytes of a name and a label, so that no files of boxes are read
        for file in sorted(name for name in folder.sizes if suffix(name) in (".txt", ".tsv", ".csv")):
            if "submission" in file.lower():  # a contest's example, of no true labels
                continue
            if folder.sizes[file] >= least and (some := _labels_in(folder, file, list(paths), classes)):
                _LOG.warning("%s: the classes of the pictures are taken from %s", split, file)
                folder.ledger.reasons.pop(file, None)
                labels[split] = some
                break
    return labels


def _labels_in(folder: Folder, file: str, names: Sequence[str], classes: Collection[str]) -> dict[str, str]:
    """The class of each picture from the only column of a text file that holds classes; {} without such."""
    of_spelling = {spelling(name): name for name in classes}
    known = {name: name for name in classes} | (of_spelling if len(of_spelling) == len(classes) else {})
    lines = folder.read(file).decode("utf-8-sig", "replace").replace("\\", "/").splitlines()
    rows = [[field.strip(" \"'") for field in re.split(r"[\t ,;]+", line.strip())] for line in lines]
    of_picture = {field.rpartition("/")[2]: row for row in rows for field in row if suffix(field) in SUFFIXES}
    of_picture = {row[0].rpartition("/")[2]: row for row in rows} | of_picture
    lasts = [name.rpartition("/")[2] for name in names]
    of_names = [of_picture.get(last) or of_picture.get(without_suffix(last)) for last in lasts]
    several = [row for row in of_names if row]
    if not several or len(several) < len(names):
        return {}
    fitting = [
        at
        for at in range(min(map(len, several)))
        if all(row[at] in known or spelling(row[at]) in known for row in several)
    ]
    if len(fitting) > 1:  # boxes may be numbers of classes, too
        fitting = [at for at in fitting if is_label(rows[0][at])] or fitting[:1]
    return {
        name: known.get(row[at]) or known[spelling(row[at])]
        for at in fitting[:1]
        for name, row in zip(names, several, strict=True)
    }


def in_classes(folder: Folder) -> bool:
    """Whether the names of the pictures say their classes: every one lies in a folder, of several."""
    names = [name for name in folder.sizes if suffix(name) in SUFFIXES]
    try:
        divided = divide_folders(names)
    except DataError:
        return False
    alone = set(unlabelled(divided))
    paths = [path for some in divided.values() for name, path in some.items() if name not in alone]
    classes = {path.partition("/")[0] for path in divided["train"].values()}
    parts = all(map(_OCCASION.fullmatch, classes))  # which are no classes where a table says such
    return len(classes) > 1 and not parts and all("/" in path for path in paths)


def pictures(folder: Folder) -> list[str]:
    """Return the names of files that are images by suffix or content; the others go into the ledger."""
    files = []
    for name in folder.sizes:
        ending = suffix(name)
        if ending in SUFFIXES or (ending not in _UNREAD and image.is_picture(folder.read(name, 32))):
            files.append(name)
        else:
            folder.ledger.skip(name, _REASONS.get(ending, _NO_PICTURE))
    for name in folder.dangling:
        if suffix(name) not in SUFFIXES:
            folder.ledger.skip(name, "a broken link")
    return files


def present(folder: Folder) -> list[str]:
    """Return the pictures whose content is there; those whose is not go into the ledger, too."""
    named = pictures(folder)
    for name, target in folder.dangling.items():
        folder.ledger.skip(name, "in iCloud" if target.endswith(".icloud") else "a broken link")
    return named


_NAMED = re.compile(
    r"(?P<first>[^\W\d_](?:[^\W\d]|[ .-])*?)[\s._-]*\(?\d+\)?|\d+[\s._-]+(?P<last>[^\W\d_](?:[^\W\d]|[ .-])*)"
)
"""A class and a number, in either order: `cat.12`, `great_pyrenees_3`, `0012_cat`."""
_NO_CLASSES = {
    *("a", "b", "x", "y", "img", "image", "images", "dsc", "dscn"),
    *("dscf", "p", "pic", "picture", "photo", "pxl", "scan", "screenshot", "frame"),
    *("vid", "mvimg", "file", "sample", "untitled", "data", "input", "train", "test"),
    *("val", "valid"),
}
"""Words before the number that cameras and programs write."""


def _labelled(
    divided: Mapping[str, Mapping[str, str]], pattern: str | None, task: type[Task]
) -> dict[str, dict[str, Any]]:
    """The label of each file by split: by a pattern where there is one, else its class folder or its name.

    Raises:
        DataError: A file has none.
    """
    if pattern is not None:
        matcher = re.compile(pattern)
        return {
            split: {name: _matched(matcher, name, path, task) for name, path in paths.items()}
            for split, paths in divided.items()
        }
    if task.flags:
        raise DataError(
            f"task.kind = {task.kind} needs a table of labels, and there is none: a folder is one label.",
            "Put a metadata.csv with file_name and labels, as cat|dog, beside the pictures.",
        )
    folders = {path.rpartition("/")[0] for paths in divided.values() for path in paths.values()}
    if task.scalar and len(folders) == 1 and (named := _by_names(divided)):
        return named
    return {split: _classes(paths) for split, paths in divided.items()}


def _matched(matcher: re.Pattern[str], name: str, path: str, task: type[Task]) -> Any:
    match = matcher.search(path)
    label = match["label" if "label" in matcher.groupindex else 1] if match else None
    if not label:
        raise DataError(
            f"data.label_pattern = {matcher.pattern!r} says no label for {name}.", "Correct the pattern."
        )
    return source.read_label(task, {"label": unicodedata.normalize("NFC", label)}, name)


def _by_names(divided: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, Any]] | None:
    """Labels from names such as `cat.12.jpg`; None where they may say something else, as a camera's do.

    A split of which no name says a class is left out: a contest's test.
    """
    labels: dict[str, dict[str, Any]] = {}
    for split, paths in divided.items():
        some = {name: _name_class(path) for name, path in paths.items()}
        if all(some.values()):
            labels[split] = some
        elif split == "train" or any(some.values()):
            return None
    counts = Counter(labels["train"].values())
    if len(counts) < 2 or min(counts.values()) < 2:
        return None
    example = next(iter(labels["train"]))
    _LOG.warning(
        "there are no class folders: classes are taken from the names of files, as %s from %s; "
        "set data.label_pattern where that is wrong",
        labels["train"][example],
        example,
    )
    return labels


def _name_class(path: str) -> str:
    last = path.rpartition("/")[2]
    match = _NAMED.fullmatch(without_suffix(last))
    label = (match["first"] or match["last"]).strip(" ._-") if match else ""
    return "" if label.lower() in _NO_CLASSES else unicodedata.normalize("NFC", label)


def _classes(paths: Mapping[str, str]) -> dict[str, str]:
    """The class of each file; where all folders are called like Hive's `label=cat`, what follows the sign."""
    classes = {name: _class_of(name, path) for name, path in paths.items()}
    keys = {label.partition("=")[:2] for label in classes.values()}
    if len(keys) == 1 and "=" in next(iter(keys)):
        return {name: label.partition("=")[2] for name, label in classes.items()}
    return classes


def _class_of(name: str, path: str) -> str:
    first, _, rest = path.partition("/")
    if not rest:
        raise DataError(
            f"{name} lies outside a class folder.",
            "Lay the data out as CLASS/PICTURE, put a metadata.csv with file_name and label beside them, "
            "or say by data.label_pattern where a file's name holds its label.",
        )
    return unicodedata.normalize("NFC", first)  # macOS writes names decomposed


def _require_pictures_of_all_classes(folder: Folder, names: Sequence[str]) -> None:
    """Reject a class folder of which no file is a picture, beside others that hold some."""
    kept = {name.rpartition("/")[0] or "." for name in names}
    above = {parent.rpartition("/")[0] or "." for parent in kept}
    lost: dict[str, list[str]] = {}
    unused = {_NO_PICTURE, *_REASONS.values()}
    for name in (name for name, why in folder.ledger.reasons.items() if why in unused):
        if suffix(name) in _HOLDING:
            continue
        parent = PurePosixPath(name).parent
        if str(parent) not in kept and str(parent.parent) in above and parent.name:
            lost.setdefault(str(parent), []).append(name)
    for where, files in lost.items():
        if any(name.startswith(f"{where}/") for name in names):
            continue
        if where.rpartition("/")[2].lower() in BESIDES:
            raise _of_parts(where, files, _kind_of_parts(folder, files[0]))
        raise DataError(
            f"{where} holds {len(files)} files and no picture, like {files[0]}.",
            "Convert them, or move the folder out.",
        )


_PARTS = (
    (re.compile(rb"\s*\d+(?:\s+-?[\d.]+){4,}\s*(?:\r?\n|$)"), "boxes of YOLO"),
    (re.compile(rb".*<annotation\b.*<object\b", re.DOTALL), "boxes of Pascal VOC"),
)
"""What files of labels of a picture's parts begin with."""


def _kind_of_parts(folder: Folder, file: str) -> str:
    """What the labels of parts in a file are, in words; "" where they are none of the known."""
    head = folder.read(file, 4096)
    return next((f" ({kind})" for pattern, kind in _PARTS if pattern.match(head)), "")


def _of_parts(where: str, files: Sequence[str], kind: str) -> DataError:
    return DataError(
        f"{where} holds {len(files)} files of labels{kind}, like {files[0]}, which are not read.", WHOLE
    )


def _require_whole(folder: Folder, names: Sequence[str]) -> None:
    """Reject pictures of no class where most have a file beside them that says what their parts are."""
    stems = {PurePosixPath(name).stem for name in names}
    files = [
        name
        for name in folder.sizes
        if suffix(name) in (".txt", ".xml") and PurePosixPath(name).stem in stems
    ]
    if 2 * len(files) >= len(stems) and (kind := _kind_of_parts(folder, files[0])):
        raise _of_parts(files[0].rpartition("/")[0] or folder.shown, files, kind)
    beside = {without_suffix(name) for name in names}
    own = [name for name in folder.sizes if suffix(name) in _OWN and without_suffix(name) in beside]
    if 2 * len(own) >= len(beside):
        raise DataError(
            f"{len(own)} pictures have a file of their own beside them, like {own[0]}, which is not read.",
            "Write their labels into one metadata.csv with file_name and label.",
        )


_OWN = (".txt", ".json", ".csv", ".xml")


def _with_tables(error: DataError, folder: Folder, names: Sequence[str]) -> DataError:
    """The same error, with the table beside the pictures that names none of them."""
    beside = [name for name in folder.sizes if suffix(name) in (".csv", ".tsv", ".jsonl")]
    if not beside:
        return error
    told = f"{error.message.rstrip('.')}, and no column of {beside[0]} names a picture."
    remedy = f"Write names such as {names[0]} into a column file_name, or lay the data out as CLASS/PICTURE."
    return DataError(told, remedy)


_HOLDING = (".mat", ".pkl", ".pickle", ".h5", ".hdf5", ".npy", ".npz")
"""Endings of files of other programs that may hold the labels of pictures beside them."""


def _with_unread(error: DataError, folder: Folder) -> DataError:
    """The same error, with a file beside the pictures that may hold their labels and is not read."""
    beside = [name for name in folder.sizes if suffix(name) in _HOLDING]
    if not beside:
        return error
    told = f"{error.message.rstrip('.')}, and {beside[0]}, which may hold the labels, is not read."
    return DataError(told, "Write them into a metadata.csv with file_name and label beside the pictures.")


def survey(folder: Folder, names: Iterable[str], max_pixels: int) -> tuple[dict[str, Header], list[Fault]]:
    """Look at every header: those that can be read by name, and the faults of the others."""

    def look(name: str) -> tuple[str, Header | Fault]:
        if name in folder.dangling:
            told = f"{name} is a link to {folder.dangling[name]}, which does not exist."
            remedy = "Fetch the content (git annex get, dvc pull) or mount the disk."
            if folder.dangling[name].endswith(".icloud"):
                told, remedy = f"{name} is in iCloud and not on this machine.", "Download it in Finder."
            return name, Fault(name, told, remedy)
        try:
            with folder.open(name) as stream:
                head = bytes(stream.read(_HEAD_BYTES))
                if len(head) < _HEAD_BYTES:
                    folder.keep(name, head)
                try:
                    return name, header(head, name, max_pixels)
                except DataError:  # a header may stand behind a long profile
                    return name, header(head + bytes(stream.read()), name, max_pixels)
        except (DataError, OSError) as error:
            return name, fault(name, error)

    given, at_once = list(names), _READERS if folder.local else _REQUESTS
    # Handing a single file to a thread takes as long as looking at it.
    size = max(1, min(_TOGETHER, len(given) // (4 * at_once)))
    parts = [given[at : at + size] for at in range(0, len(given), size)]
    with ThreadPoolExecutor(at_once) as readers:
        looked = [
            result for some in readers.map(lambda part: list(map(look, part)), parts) for result in some
        ]
    headers = {name: result for name, result in looked if isinstance(result, Header)}
    return headers, [result for _, result in looked if isinstance(result, Fault)]


def _damaged(folder: Folder, names: Sequence[str], max_pixels: int) -> list[Fault]:
    """Decode pictures whose headers are well, so that one message names all that must be mended."""
    small = Policy((8, 8, 3))

    def look(name: str) -> Fault | None:
        try:
            image.read(folder.read(name), small, name, max_pixels)
        except (DataError, OSError) as error:
            return fault(name, error)
        return None

    with ThreadPoolExecutor(_READERS) as readers:
        return [result for result in readers.map(look, names) if result]


def fault(name: str, error: Exception) -> Fault:
    """Describe why a picture cannot be used."""
    if isinstance(error, DataError):
        return Fault(name, error.message, error.remedy)
    return Fault(name, f"{name} cannot be read: {getattr(error, 'strerror', None) or error}.")


def of_files(
    folder: Folder,
    labelled: Mapping[str, Mapping[str, Any]],
    headers: Mapping[str, Header],
    data: DataConfig,
    bad: Sequence[Fault] = (),
    task: type[Task] = Classification,
    names: Sequence[str] | None = None,
) -> Source:
    """Make a source of picture files whose labels are known.

    Args:
        folder: Holds them.
        labelled: By split, each file's label.
        headers: Of those files that can be used.
        data: How they are fitted.
        bad: Files that were left out already.
        task: What the labels are.
        names: Of what is predicted, where the labels do not say.

    Raises:
        DataError: No pictures are left, or the labels are no classes.
    """
    given = set(_texts(labelled["train"]))
    usable = {
        split: {n: label for n, label in some.items() if n in headers} for split, some in labelled.items()
    }
    labelled = {split: some for split, some in usable.items() if some}
    source.require_all_classes(sorted(given - set(_texts(usable["train"]))))
    labels = {split: label_array(list(some.values())) for split, some in labelled.items()}
    encoded, numbers = task.encode(labels, names)
    fitted = policy(list(headers.values()), data)
    splits = {
        split: _rows(folder, list(some), numbers[split], fitted, data.max_pixels)
        for split, some in labelled.items()
    }
    _tell(folder, labelled, headers, fitted)
    return Source(
        *(fitted.shape, encoded, splits, (folder.origin(),), fitted),
        ledger=folder.ledger,
        faults=tuple(bad),
        fingerprint=folder.fingerprint(),
    )


def _texts(labelled: Mapping[str, Any]) -> list[str]:
    """The labels that are names, those of lists among them."""
    lists = [label if isinstance(label, tuple) else (label,) for label in labelled.values()]
    return [name for names in lists for name in names if isinstance(name, str)]


def _tell(
    folder: Folder, labelled: Mapping[str, Mapping[str, Any]], headers: Mapping[str, Header], fitted: Policy
) -> None:
    """Print the layout as it was understood, before anything is prepared."""
    sizes = Counter((header.width, header.height) for header in headers.values())
    smallest, largest = min(sizes), max(sizes)
    height, width, depth = fitted.shape
    span = f"{smallest[0]}x{smallest[1]}"
    if len(sizes) > 1:
        span = f"{len(sizes)} sizes, {span} to {largest[0]}x{largest[1]}"
    how = "" if len(sizes) == 1 and (width, height) in sizes else f", fitted by {fitted.fit}"
    _LOG.info(
        "%d pictures of %s: images of %dx%dx%d%s",
        len(headers),
        span,
        height,
        width,
        depth,
        how,
    )
    for split, some in labelled.items():
        shares = Counter(_texts(some))
        shown = ", ".join(f"{name} {count}" for name, count in sorted(shares.items())[:12])
        what = f" of {len(shares)} classes: {shown}" if shares else ""
        _LOG.info("%s: %d pictures%s%s", split, len(some), what, ", …" if len(shares) > 12 else "")
    for reason, count in folder.ledger.counts().items():
        level = logging.INFO if reason == "hidden" else logging.WARNING
        _LOG.log(
            level, "%d entries are left out (%s), like %s", count, reason, folder.ledger.names(reason)[0]
        )


def _rows(folder: Folder, names: list[str], labels: Targets, fitted: Policy, max_pixels: int) -> Rows:
    def gather(indices: Indices) -> Gathered:
        return _read(folder, [names[index] for index in indices], fitted, max_pixels)

    def only(indices: Indices) -> Callable[[], Gathered]:
        some = [names[index] for index in indices]
        return functools.partial(_read, folder.only(some), some, fitted, max_pixels)

    def refit(other: Policy) -> Rows:
        return _rows(folder, names, labels, other, max_pixels)

    return Rows(labels, gather, names.__getitem__, refit, only)


def _read(folder: Folder, names: Sequence[str], fitted: Policy, max_pixels: int) -> Gathered:
    images = np.zeros((len(names), *fitted.shape), np.uint8)
    bad = {}
    for at, (name, content) in enumerate(zip(names, folder.ahead(names), strict=True)):
        try:
            images[at] = image.read(content(), fitted, name, max_pixels)
        except (DataError, OSError) as error:
            bad[at] = fault(name, error)
    return Gathered(images, bad)

"""Detects the format of the data, opens it with the right reader and resizes arrays (driver)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from distml import tasks
from distml.config import Config, DataConfig
from distml.data import fetch, image
from distml.data.formats import arrays, fashion_mnist, image_folder, parquet, table, webdataset
from distml.data.image import SUFFIXES, Policy, refit
from distml.data.listing import ARROW, PARQUET, Folder, card, class_names, suffix
from distml.data.source import Gathered, Indices, Rows, Source, with_margin
from distml.data.split import split_of_file, split_word
from distml.errors import ConfigError, DataError
from distml.storage import Storage
from distml.tasks import Task

_OPENERS: dict[str, Callable[[Folder, DataConfig, type[Task]], Source]] = {
    "idx": arrays.open_idx,
    "image_folder": image_folder.open_pictures,
    "parquet": parquet.open_parquet,
    "table": table.open_table,
    "npz": arrays.open_npz,
    "csv_pixels": arrays.open_csv_pixels,
    "webdataset": webdataset.open_webdataset,
}


def open_source(config: Config, storage: Storage) -> Source:
    """Find the configured data and check what can be checked before anything is written.

    Args:
        config: `data` says which, `task` what their labels are.
        storage: The storage root, whose `cache` folder serves where the user's cache cannot be written.

    Raises:
        DataError: Missing, damaged, of unknown format, or with labels or sizes that do not fit together.
        ConfigError: A format that needs `data.path`.
    """
    data, task = config.data, tasks.of(config.task.kind)
    if ":" in data.format:
        return refitted(arrays.open_function(data.format, data.path, task, data), data)
    if data.path is None and data.format in ("auto", "idx"):
        return refitted(fashion_mnist.open_builtin(config, storage), data)
    if data.path is None:
        raise ConfigError(
            f"data.format = {data.format} needs data.path.", "Give the folder or URI of your data."
        )
    place = located(data, storage)
    form = format_of(place.folder) if data.format == "auto" else data.format
    source = _named(place.folder, refitted(_OPENERS[form](place.folder, data, task), data))
    with_margin(source, data.margin)  # refused before anything is written
    return replace(source, fingerprint=place.fingerprint, notes=(*source.notes, *place.notes))


def _named(folder: Folder, source: Source) -> Source:
    """Call classes that are numbers as a file beside the data calls them."""
    numbers = source.task.names
    if not all(map(str.isdecimal, numbers)):
        return source
    names, told = class_names(folder, numbers)
    task = replace(source.task, names=tuple(names)) if names else source.task
    return replace(source, task=task, notes=(*source.notes, told)) if told else source


@dataclass(frozen=True)
class Located:
    """What `data.path` names.

    Attributes:
        folder: To be read, with the files of the chosen configuration alone.
        fingerprint: Of all that is there; None where a server says nothing that changes with its file.
        notes: A sentence for each thing that was chosen.
    """

    folder: Folder
    fingerprint: str | None
    notes: tuple[str, ...]


def located(data: DataConfig, storage: Storage) -> Located:
    """Find what `data.path` names, fetched and unpacked, and choose the configuration of a data set.

    Raises:
        DataError: There is nothing, or it cannot be fetched or unpacked.
        ConfigError: There are several configurations, or none of the name that is asked for.
    """
    path = str(data.path)
    given, folder, fetched = folder_at(path, data.format, storage)
    # Taken before a configuration is chosen: another one added beside it changes the data, too.
    fingerprint = fetched if fetch.is_remote(path) else given.fingerprint()
    return Located(folder, fingerprint, choose_subset(folder, data.subset))


def folder_at(path: str, form: str, storage: Storage) -> tuple[Folder, Folder, str | None]:
    """Return what a path or URI names, the folder to be read, and what changes with a server's file.

    The folder is another one where an archive is named.

    Raises:
        DataError: There is nothing, or it cannot be fetched or unpacked.
    """
    fetched, named = None, path
    if remote := fetch.is_remote(path):
        path, fetched = fetch.downloaded(path, storage)
    given = Folder(path, without=(storage.root,))
    as_it_lies = form == "webdataset" or not fetch.is_archive(path) or webdataset.is_webdataset(given)
    if as_it_lies:
        return given, given, fetched
    try:
        unpacked = fetch.unpacked(path, storage, webdataset.is_webdataset)
        return given, Folder(unpacked, shown=named), fetched
    except DataError:
        if remote:
            os.unlink(path)  # what was received is damaged: the next run fetches it again
        raise


def format_of(folder: Folder) -> str:
    """Say which format the files of a folder have.

    Raises:
        DataError: None that distml knows.
    """
    suffixes = {suffix(name) for name in [*folder.sizes, *folder.dangling]}
    if webdataset.is_webdataset(folder):
        return "webdataset"
    if table.tables(folder):
        return "table"
    if suffixes & {*PARQUET, *ARROW}:
        return "parquet"
    if any(arrays.is_idx(name) for name in folder.sizes):
        return "idx"
    if suffixes & set(arrays.NUMPY) and not suffixes & set(SUFFIXES):
        return "npz"
    if any(name.lower().endswith(".csv") and arrays.is_csv_pixels(folder, name) for name in folder.sizes):
        return "csv_pixels"
    if suffixes & set(SUFFIXES) or image_folder.pictures(folder):
        return "image_folder"
    if known := _unread(folder):
        raise known
    if suffixes <= {".yaml", ".yml"}:
        raise DataError(f"{folder.shown} is a configuration and no data.", "Give the folder of the pictures.")
    if suffixes <= {".csv", ".tsv", ".jsonl", ".json"}:
        remedy = "Give the folder in which it lies with its pictures."
        heads = [folder.read(name, 4096).decode("utf-8", "replace") for name in list(folder.sizes)[:3]]
        if any("://" in head for head in heads):
            remedy = "Download the pictures whose addresses it holds, and give the folder with both."
        if there := next(filter(os.path.isfile, re.findall(r"/[^,;\t\"\n]+[.]\w+", "\n".join(heads))), None):
            remedy = f"Put it into {os.path.dirname(there)}, where its pictures lie, and give that folder."
        raise DataError(f"{folder.shown} is a table without pictures.", remedy)
    shown = ", ".join(sorted(suffix or "files without an ending" for suffix in suffixes)[:5])
    raise DataError(
        f"{folder.shown} holds no pictures, Parquet, IDX, npz, npy or CSV of pixels, but {shown}.",
        "Give pictures or one of these; anything else by a function: data.format: module:function.",
    )


_FUNCTION = "Read it by a function of your own: data.format: module:function."
_SLICES = "Save its slices as PNG, or read it by a function of your own: data.format: module:function."
_UNREAD: dict[str, tuple[str, str]] = {
    **dict.fromkeys((".nii.gz", ".nii", ".mha", ".nrrd"), ("medical volumes", _SLICES)),
    **dict.fromkeys(image.UNREAD_SUFFIXES, ("pictures of a format that is not read", image.CONVERT)),
    **dict.fromkeys((".dcm", ".dicom"), ("DICOM images", "Convert them to PNG.")),
    **dict.fromkeys(image.VIDEO_SUFFIXES, ("videos", image.FRAMES)),
    **dict.fromkeys(image.RAW_SUFFIXES, ("a camera's raw files", "Convert them to JPEG.")),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("TFRecords", _FUNCTION)),
    ".rec": ("RecordIO", "Unpack it to pictures and a .lst, or read it by a function of your own."),
    **dict.fromkeys((".h5", ".hdf5"), ("HDF5", _FUNCTION)),
    **dict.fromkeys(
        (".mat", ".mdb", ".pkl", ".pickle", ".pt", ".pth", ".beton", ".safetensors"), ("", _FUNCTION)
    ),
    **dict.fromkeys(
        (".part", ".crdownload", ".download", ".partial", ".aria2"),
        ("a download that was not finished", "Fetch it again."),
    ),
    **dict.fromkeys((".001", ".z01"), ("a part of an archive", "Join the parts and unpack them.")),
    **dict.fromkeys((".7z", ".rar", ".zst", ".gz", ".bz2", ".xz"), ("packed", "Unpack it.")),
}
"""What is known of files that no format reads, by their ending, and what to do."""


_PICKLED = [bytes((0x80, protocol)) for protocol in range(2, 6)]
"""What pickled objects begin with."""


def _unread(folder: Folder) -> DataError | None:
    """Name the files that are most of a folder of which nothing is read, where they are known."""
    packed = [name for name in folder.sizes if fetch.is_archive(name)]
    if len(packed) == 1:
        place = f"{folder.root.rstrip('/')}/{packed[0]}"
        return DataError(
            f"{folder.shown} holds no pictures, but the archive {packed[0]}.",
            f"Set data.path to {place}." if folder.shown == folder.root else "Unpack it.",
        )
    if packed:
        return DataError(
            f"{folder.shown} holds no pictures, but {len(packed)} archives, like {packed[0]}.",
            "Unpack them side by side; data.path may be one of them.",
        )
    for ending, (what, remedy) in _UNREAD.items():
        if names := [name for name in folder.sizes if name.lower().endswith(ending)]:
            kind = f" ({what})" if what else ""
            many = "file" if len(names) == 1 else "files"
            told = f"{len(names)} {ending} {many}{kind}, like {names[0]}"
            return DataError(f"{folder.shown} holds no pictures, but {told}.", remedy)
    pickled = [name for name in folder.sizes if not suffix(name) and folder.read(name, 2) in _PICKLED]
    if pickled:  # data_batch_1 of CIFAR
        told = f"pickled objects of Python, like {pickled[0]}"
        return DataError(f"{folder.shown} holds no pictures, but {told}.", _FUNCTION)
    return None


def choose_subset(folder: Folder, wanted: str | None) -> tuple[str, ...]:
    """Leave out the files of all configurations but one, where a data set has several, as Hugging Face's do.

    Args:
        folder: Its `README.md` says which there are, or folders of their own with files of splits do.
        wanted: `data.subset`; None takes the only one, or the one that is the default.

    Returns:
        A sentence for what was chosen unasked, and for files that are described and not there.

    Raises:
        ConfigError: There are several, or none of that name.
    """
    told = card(folder).get("configs")
    given = [some for some in told if isinstance(some, dict)] if isinstance(told, list) else []
    known = {str(some.get("config_name", "default")): _described(folder, some) for some in given}
    known = {name: files for name, files in known.items() if files or name == wanted} or _by_folders(folder)
    if wanted is not None and wanted not in known:
        has = f"has {', '.join(known)}" if known else "has no configurations"
        raise ConfigError(f"data.subset = {wanted}, but {folder.shown} {has}.", "Correct or leave it out.")
    defaults = [str(some.get("config_name", "default")) for some in given if some.get("default") is True]
    chosen = wanted or next((name for name in (*defaults, "default") if name in known), None)
    if len(known) > 1 and chosen is None:
        raise ConfigError(
            f"{folder.shown} holds several configurations of a data set: {', '.join(known)}.",
            "Set data.subset to one of them.",
        )
    if not known:
        return ()
    chosen = chosen or next(iter(known))
    files = known[chosen]
    others = {name for some in known.values() for name in some} - set(files)
    others |= {name for name in folder.sizes if suffix(name) in (*PARQUET, *ARROW)} - set(files)
    folder.leave_out(sorted(others), "of another configuration")
    folder.splits, folder.subset = dict(files), chosen
    lost = [some for some in given if str(some.get("config_name", "default")) == chosen]
    notes = [f"{glob} of README.md names no file that is there." for glob in _absent(folder, lost)]
    if len(known) > 1 and wanted is None:
        more = ", ".join(name for name in known if name != chosen)
        notes.append(f"the configuration {chosen} is read, not {more}; data.subset chooses another one.")
    return tuple(notes)


def _described(folder: Folder, told: Mapping[str, Any]) -> dict[str, str]:
    """The split of each file of a configuration that is there, "" where its description says none."""
    files: dict[str, str] = {}
    for split, globs in _globs(told):
        for glob in globs:
            files |= dict.fromkeys(_matching(folder.sizes, glob), split)
    return files


def _globs(told: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Patterns of file names by split, in any of the forms that the Hub knows."""
    given, above = told.get("data_files"), str(told.get("data_dir") or "").strip("/")
    if given is None:
        return [("", [above or "**"])]
    pairs: list[tuple[Any, Any]] = [("", given)]
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, list) and all(isinstance(some, Mapping) for some in given):
        pairs = [(some.get("split", ""), some.get("path")) for some in given]
    start = f"{above}/" if above else ""
    return [
        (str(split), [start + str(glob) for glob in (globs if isinstance(globs, list) else [globs])])
        for split, globs in pairs
    ]


def _absent(folder: Folder, told: Iterable[Mapping[str, Any]]) -> list[str]:
    globs = (glob for some in told for _, some_globs in _globs(some) for glob in some_globs)
    return [glob for glob in globs if not _matching(folder.sizes, glob)]


def _matching(names: Iterable[str], glob: str) -> list[str]:
    """Names that a pattern fits; `**` goes through folders, and a folder means all that is in it."""
    plain = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"([*]{2}/|[*]{2}|[*]|[?]|\[[^]]+\])", glob.removeprefix("./"))
    text = "".join(
        plain.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in parts if part
    )
    pattern = re.compile(f"{text}(?:/.*)?")
    return [name for name in names if pattern.fullmatch(name)]


def _by_folders(folder: Folder) -> dict[str, dict[str, str]]:
    """Files of rows by the folder that they lie in, where each of several holds splits or was saved alone."""
    names = [name for name in folder.sizes if suffix(name) in (*PARQUET, *ARROW)]
    paths = {name: name for name in names}
    while paths and len({path.partition("/")[0] for path in paths.values()}) == 1:
        if not all("/" in path for path in paths.values()):
            return {}
        paths = {name: path.partition("/")[2] for name, path in paths.items()}
    tops: dict[str, dict[str, str]] = {}
    for name, path in paths.items():
        top, _, rest = path.partition("/")
        tops.setdefault(top if rest else "", {})[name] = rest
    if len(tops) < 2 or any(not top or "=" in top or split_word(top) for top in tops):
        return {}
    for top, files in tops.items():
        above = next(name for name in files).split(f"{top}/")[0] + top
        saved = f"{above}/state.json" in folder.sizes
        if not saved and not any(map(split_of_file, files.values())):
            return {}
    return {top: dict.fromkeys(files, "") for top, files in tops.items()}


def refitted(source: Source, data: DataConfig) -> Source:
    """Bring arrays to the size and the channels that are asked for; pictures have them already.

    Raises:
        ConfigError: A size or channels for images of neither one nor three channels.
    """
    height, width, depth = source.shape
    if data.image_size != "auto":
        height, width = data.image_size if isinstance(data.image_size, tuple) else (data.image_size,) * 2
    depth = depth if data.channels == "auto" else data.channels
    plain = DataConfig()
    asked = (height, width, depth) != source.shape
    asked_for = data.image_size != "auto" and depth in (1, 3)  # pictures to be predicted are fitted alike
    if source.policy is not None or not (
        asked or asked_for or (data.fit, data.background) != (plain.fit, plain.background)
    ):
        return source
    if source.shape[2] not in (1, 3):
        raise ConfigError(
            f"the images have {source.shape[2]} channels and cannot be fitted.",
            "Leave out data.image_size, data.channels, data.fit and data.background.",
        )
    wanted = Policy((height, width, depth), data.fit, data.background)
    splits = {split: _refitted(rows, wanted) if asked else rows for split, rows in source.splits.items()}
    return replace(source, shape=wanted.shape, splits=splits, policy=wanted, scaled=True)


def _refitted(rows: Rows, wanted: Policy) -> Rows:
    def gather(indices: Indices) -> Gathered:
        given = rows.gather(indices)
        return Gathered(refit(given.images, wanted), given.faults)

    return Rows(rows.labels, gather, rows.name, lambda other: _refitted(rows, other))

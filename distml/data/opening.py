"""Detects the format of the data, opens it with the right reader and resizes arrays (driver)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from distml import tasks
from distml.config import Config, DataConfig
from distml.data import fetch
from distml.data.formats import arrays, fashion_mnist, image_folder, parquet, table, webdataset
from distml.data.image import SUFFIXES, Policy, refit
from distml.data.listing import PARQUET, Folder, suffix
from distml.data.source import Gathered, Indices, Rows, Source, with_margin
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
        return refitted(arrays.open_function(data.format, data.path, task), data)
    if data.path is None and data.format in ("auto", "idx"):
        return refitted(fashion_mnist.open_builtin(config, storage), data)
    if data.path is None:
        raise ConfigError(
            f"data.format = {data.format} needs data.path.", "Give the folder or URI of your data."
        )
    remote = fetch.is_remote(data.path)
    given, folder = located(data.path, data.format, storage)
    told = fetch.version(data.path) if remote else given.fingerprint()
    form = format_of(folder) if data.format == "auto" else data.format
    source = refitted(_OPENERS[form](folder, data, task), data)
    with_margin(source, data.margin)  # refused before anything is written
    return replace(source, fingerprint=told) if folder is not given or remote else source


def located(path: str, form: str, storage: Storage) -> tuple[Folder, Folder]:
    """Return what a path or URI names and the folder to be read: another one where it names an archive.

    Raises:
        DataError: There is nothing, or it cannot be fetched or unpacked.
    """
    path = fetch.downloaded(path, storage) if fetch.is_remote(path) else path
    given = Folder(path, without=(storage.root,))
    as_it_lies = form == "webdataset" or not fetch.is_archive(path) or webdataset.is_webdataset(given)
    return given, given if as_it_lies else Folder(fetch.unpacked(path, storage))


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
    if suffixes & set(PARQUET):
        return "parquet"
    if any(arrays.is_idx(name) for name in folder.sizes):
        return "idx"
    if suffixes & set(arrays.NUMPY) and not suffixes & set(SUFFIXES):
        return "npz"
    if any(name.lower().endswith(".csv") and arrays.is_csv_pixels(folder, name) for name in folder.sizes):
        return "csv_pixels"
    if suffixes & set(SUFFIXES) or image_folder.pictures(folder):
        return "image_folder"
    if packed := suffixes & {".7z", ".rar", ".zip", ".gz", ".tar", ".tgz", ".bz2", ".xz", ".zst"}:
        remedy = "Unpack them; data.path may be one zip or tar file."
        raise DataError(
            f"{folder.root} holds no pictures but archives ({', '.join(sorted(packed))}).", remedy
        )
    if suffixes <= {".csv", ".tsv", ".jsonl", ".json"}:
        remedy = "Give the folder in which it lies with its pictures."
        raise DataError(f"{folder.root} is a table without pictures.", remedy)
    shown = ", ".join(sorted(suffix or "files without an ending" for suffix in suffixes)[:5])
    raise DataError(
        f"{folder.root} holds no pictures, Parquet, IDX, npz, npy or CSV of pixels, but {shown}.",
        "Give pictures or one of these; anything else by a function: data.format: module:function.",
    )


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
    if source.policy is not None or not (
        asked or (data.fit, data.background) != (plain.fit, plain.background)
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

"""Lists the files of a data folder, local or remote, and records which are skipped and why (driver).

A local folder is walked by Python, since names may be any bytes and links may lead anywhere; a store is
listed by Arrow.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
import math
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml
from pyarrow import fs

from distml.data.source import Ledger, Origin
from distml.errors import DataError, StorageError
from distml.storage import Storage

_JUNK = (
    *(
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "__macosx",
        "icon\r",
        "temporary items",
        "network trash folder",
    ),
    *("$recycle.bin", "system volume information", "lost+found", "lost.dir", "~syncthing~"),
    *("@eadir", "#recycle", "@recycle", "#snapshot", "@recently-snapshot", "~snapshot"),
    *("__pycache__", "node_modules", "site-packages", "mlruns", "lightning_logs", "wandb"),
)
"""What systems, file managers, NAS devices, archivers and programmers' tools leave behind; so are names that
begin with a dot."""

PARQUET = (".parquet", ".parq", ".pq")
"""Endings of Parquet files."""
ARROW = (".arrow", ".feather")
"""Endings of Arrow files, as Hugging Face's `save_to_disk` writes them."""
_NO_DATA = (".yaml", ".yml")
"""Endings of files that no format reads: a configuration beside its pictures is edited between two runs."""
_KEPT_BYTES = 256 << 20
"""Of small files of a store that were read for their headers."""
_AHEAD, _AHEAD_BYTES = 8, 64 << 20
"""Files of a store that are fetched at once, and bytes above which no further one is begun."""
_AT_LEAST = 1_000
"""Entries that are listed whatever the time."""
_HUB = "Download it by hf download {} --repo-type dataset --local-dir FOLDER, then set data.path to FOLDER."
_KAGGLE = "Download it: kaggle {} download {}; then set data.path to the archive."
_PAGES: tuple[tuple[str, str], ...] = (
    (
        r"(?:hf://datasets/|https?://(?:www[.])?(?:huggingface[.]co|hf[.]co)/datasets/)([^/?@#]+/[^/?@#]+).*",
        _HUB,
    ),
    (r"(?:hf|huggingface)://([^/?@#]+/[^/?@#]+).*", _HUB),
    (
        r"(?:kaggle://(?:datasets/)?|https?://(?:www[.])?kaggle[.]com/(?:datasets/)?)"
        r"(?!competitions/|c/)([^/?#]+/[^/?#]+).*",
        _KAGGLE.format("datasets", "{}"),
    ),
    (
        r"(?:kaggle://|https?://(?:www[.])?kaggle[.]com/)(?:competitions|c)/([^/?#]+).*",
        _KAGGLE.format("competitions", "{}"),
    ),
    (
        r"https?://(?:drive|docs)[.]google[.]com/drive/.*folders/([\w-]+).*",
        "Download it in a browser, or by gdown --folder {}; then set data.path to the folder.",
    ),
    (
        r"https?://(?:drive|docs)[.](?:usercontent[.])?google[.]com/.*(?:/d/|[?&]id=)([\w-]+).*",
        "Download it in a browser, or by gdown {}; then set data.path to the archive.",
    ),
    (r"gdrive://.*", "Download it in a browser; then set data.path to the archive."),
    (
        r"(https?://(?:www[.])?(?:github|gitlab)[.]com/[^/?#]+/[^/?#]+?)(?:[.]git)?(?:[/?#].*)?",
        "Clone it: git clone {}; then set data.path to the folder.",
    ),
    (r"((?:git|ssh)://.*|git@.*|git[+]https://.*)", "Clone or copy it; then set data.path to the folder."),
    (
        r"https?://([^/.]+)[.]s3[.](?:[^/]+[.])?amazonaws[.]com(?:/.*)?|"
        r"https?://(?:[^/]+[.])?console[.]aws[.]amazon[.]com/s3/buckets/([^/?#]+).*",
        "Give the bucket: s3://{}/FOLDER.",
    ),
    (
        r"https?://console[.]cloud[.]google[.]com/storage/browser/([^?#;]+?)/?(?:[?#;].*)?",
        "Give the bucket: gs://{}.",
    ),
    (
        r"https?://(?:[^/]+[.])?(?:1drv[.]ms|onedrive[.]live[.]com|sharepoint[.]com|icloud[.]com|we[.]tl"
        r"|wetransfer[.]com|mega[.]nz|box[.]com|dropbox[.]com)/.*",
        "Download it in a browser; then set data.path to the archive.",
    ),
    (
        r"https?://(?:[^/]+[.])?roboflow[.]com/.*",
        "Export it as a folder of each class and download the zip; then set data.path to that.",
    ),
    (r"(tfds)://.*", "Read it by a function of your own: data.format: module:function."),
    (
        r"(dbfs|wasbs?|az|adl|sftp|scp|smb|ftp|nfs|dvc|webdav|webhdfs)://?.*",
        "Copy the files here, or mount what {} names and give the folder.",
    ),
    (r"s3[an]://(.*)", "Write s3://{}."),
    (r"(s3|gs|gcs|abfss?|hdfs|https?):(?:/|/{3,})([^/].*)", "Write {}://{}."),
)
"""Places that people name and that hold no archive to be fetched, each with what to do; most are pages."""


def elsewhere(place: str) -> str | None:
    """Return what to do about the name of a data set or a page of a known host, None of anything else."""
    for pattern, remedy in _PAGES:
        if match := re.fullmatch(pattern, place, re.IGNORECASE | re.DOTALL):
            return remedy.format(*(group for group in match.groups() if group))
    return None


def placed(path: str) -> Storage:
    """Return where data lie.

    Raises:
        DataError: They are named as a hub, a page or another program does.
        StorageError: A place of an unknown kind.
    """
    try:
        return Storage(path)
    except StorageError:
        if remedy := elsewhere(path):
            raise DataError(f"{path} is no folder and no store that is read.", remedy) from None
        raise


def _remedy(path: str) -> str:
    """What to do about a path at which nothing is, by how it is written and what lies beside it."""
    if remedy := elsewhere(path):
        return remedy
    if match := re.match(r"[$][{]?(\w+)", path):
        return f"Set the environment variable {match[1]}, or write the path out."
    if match := re.match(r"([A-Za-z]):[\\/]+(.*)|\\\\", path):
        here = f"/mnt/{match[1].lower()}/" + match[2].replace("\\", "/") if match[1] else "/mnt/SHARE"
        return f"Write it as this system does, such as {here}."
    if "://" in path:
        return "Check data.path."
    if set(path) & set("*?"):
        return "Give the folder itself: all pictures in it are read."
    if any(os.path.exists(part.strip()) for part in re.split("[,;]", path)):
        return "Give one folder with links to both: links are followed."
    above = os.path.abspath(os.path.expanduser(path))
    while not os.path.isdir(above):
        above, lost = os.path.split(above)
    if near := difflib.get_close_matches(lost, os.listdir(above), 1, 0.75):
        return f"Check data.path: {above} holds {near[0]}."
    if re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", path) and above == os.getcwd():
        return f"Check data.path. If it is a data set of Hugging Face's: {_HUB.format(path)}"
    return f"Check data.path: {above} exists and holds no {lost}."


@dataclass(frozen=True)
class _Entry:
    path: str
    size: int
    modified_ns: int


class Folder:
    """The files below a path or URI; links are followed, since the user laid them.

    Args:
        path: Folder, or one file.
        limit_s: Listing a local folder ends after this; what was listed until then is enough for a look.
        without: Folders that distml writes, such as the storage root: what lies in them is not the user's.
        shown: What messages call it; its path by default. An unpacked archive is called by its own.

    Attributes:
        complete: False where listing ended before its end.
        entries: Place, size and time of every file by name, sorted.
        sizes: Bytes by name; a name that is no UTF-8 is written with escapes.
        dangling: Where links lead that lead nowhere, and placeholders of iCloud, by name.
        empty: Folders without an entry.
        splits: What a description beside the files calls the split of each, by name; {} where there is none.
        subset: The configuration of a data set whose files are left, where it has such.
        ledger: What was left out.

    Raises:
        DataError: Nothing is there, or it cannot be listed.
    """

    def __init__(
        self, path: str, limit_s: float = math.inf, without: Sequence[str] = (), shown: str | None = None
    ) -> None:
        storage = placed(path)
        self.root = storage.root
        self.shown = shown or self.root
        ours = [Storage(place).root for place in without]
        self.ledger = Ledger()
        self.complete = True
        self.dangling: dict[str, str] = {}
        self.empty: list[str] = []
        self.splits: dict[str, str] = {}
        self.subset: str | None = None
        self._kept: dict[str, bytes] = {}
        self._room = _KEPT_BYTES
        try:
            self._system, base = storage.arrow()
            walk = functools.partial(_Walk(self, limit_s, ours).entries, base)
            entries = walk() if storage.local else self._listed(base, ours)
        except FileNotFoundError:
            raise DataError(f"there are no data at {self.root}.", _remedy(path)) from None
        except OSError as error:
            cause = error.strerror or error
            raise DataError(f"cannot list {self.root}: {cause}.", "Check data.path.") from None
        self.entries = dict(sorted(entries.items()))
        self.ledger.entries = len(self.entries) + len(self.dangling) + len(self.ledger.reasons)
        self.sizes = {name: entry.size for name, entry in self.entries.items()}
        if not self.sizes and not self.dangling:
            raise DataError(f"there are no data at {self.root}.", "Check data.path.")

    def _listed(self, base: str, ours: Sequence[str]) -> dict[str, _Entry]:
        infos = [self._system.get_file_info(base)]
        above = os.path.dirname(base)
        if infos[0].type == fs.FileType.Directory:
            above = base
            infos = self._system.get_file_info(fs.FileSelector(base, recursive=True))
        cut = len(above.rstrip("/")) + 1
        entries = {}
        for info in infos:
            name = str(info.path)[cut:]
            if not info.is_file or any(f"{self.root}/{name}".startswith(f"{place}/") for place in ours):
                continue
            if any(_is_junk(part) for part in name.split("/")):
                self.ledger.skip(name, "hidden")
            else:
                entries[name] = _Entry(str(info.path), int(info.size or 0), int(info.mtime_ns or 0))
        return entries

    def open(self, name: str) -> Any:
        """Open one file for reading at random."""
        path = self.entries[name].path
        try:
            if self.local:
                return open(path, "rb")
            return self._system.open_input_file(path)
        except OSError as error:
            cause = error.strerror or error
            raise DataError(f"cannot read {name} in {self.shown}: {cause}.") from None

    def keep(self, name: str, content: bytes) -> None:
        """Keep the whole content of a small file of a store, so that no second request is needed.

        Files of this machine are not kept: reading one again takes 0.02 ms.
        """
        if not self.local and len(content) <= self._room:
            self._room -= len(content)
            self._kept[name] = content

    def read(self, name: str, most: int = -1) -> bytes:
        """Return one file's bytes, or the first `most` of them."""
        if name in self._kept:
            return self._kept[name] if most < 0 else self._kept[name][:most]
        with self.open(name) as stream:
            try:
                return bytes(stream.read() if most < 0 else stream.read(most))
            except OSError as error:
                cause = error.strerror or error
                raise DataError(f"cannot read {name} in {self.shown}: {cause}.") from None

    @property
    def local(self) -> bool:
        """Whether the files are of this machine's file system."""
        return isinstance(self._system, fs.LocalFileSystem)

    def ahead(self, names: Sequence[str]) -> Iterator[Callable[[], bytes]]:
        """Give what returns each file's bytes, or raises what `read` raises.

        Of a store, some files are fetched while one is decoded: a request takes many times as long.
        """
        if self.local:
            yield from (functools.partial(self.read, name) for name in names)
            return
        waiting: deque[tuple[str, Future[bytes]]] = deque()
        left = deque(names)
        with ThreadPoolExecutor(_AHEAD) as readers:
            while left or waiting:
                held = sum(self.entries[name].size for name, _ in waiting)
                while left and len(waiting) < _AHEAD and (not waiting or held < _AHEAD_BYTES):
                    held += self.entries[left[0]].size
                    waiting.append((left[0], readers.submit(self.read, left.popleft())))
                yield waiting.popleft()[1].result

    def only(self, names: Iterable[str]) -> Folder:
        """Return a folder of some of the files, to be read elsewhere."""
        other = copy.copy(self)
        other.entries = {name: self.entries[name] for name in names if name in self.entries}
        other.sizes, other.dangling, other.ledger = {}, {}, Ledger()
        other._kept = {name: self._kept[name] for name in other.entries if name in self._kept}
        return other

    def leave_out(self, names: Iterable[str], reason: str) -> None:
        """Take files away: no format sees them."""
        for name in list(names):
            del self.entries[name], self.sizes[name]
            self.ledger.skip(name, reason)

    def origin(self) -> Origin:
        """Describe the folder by its names and sizes."""
        text = "\n".join(
            f"{name} {size}" for name, size in self.sizes.items() if suffix(name) not in _NO_DATA
        )
        name = PurePosixPath(self.root.partition("?")[0]).name
        return Origin(name, self.root, hashlib.sha256(text.encode()).hexdigest())

    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and times of modification: another one means other data."""
        told = hashlib.sha256()
        for name, entry in self.entries.items():
            if suffix(name) in _NO_DATA:
                continue
            told.update(f"{name}\0{entry.size}\0{entry.modified_ns}\n".encode())
        for name, target in sorted(self.dangling.items()):
            told.update(f"{name}\0->{target}\n".encode())
        return told.hexdigest()


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


class _Walk:
    """Walks through a local folder. Final."""

    def __init__(self, folder: Folder, limit_s: float, ours: Sequence[str]) -> None:
        self._folder = folder
        self._ours = {_identity(os.stat(place)) for place in ours if os.path.isdir(place)}
        self._limited, self._left = limit_s < math.inf, _AT_LEAST
        self._end_s = time.monotonic() + limit_s

    def entries(self, base: str) -> dict[str, _Entry]:
        info = os.stat(base)
        if not stat.S_ISDIR(info.st_mode):
            return {os.path.basename(base): _Entry(base, info.st_size, info.st_mtime_ns)}
        entries: dict[str, _Entry] = {}
        for name, entry in self._below(base, "", frozenset([_identity(info)])):
            if "\\" in entry.path:
                # Programs that know no backslash in archives of Windows make it a part of the name.
                above, slash, _ = name.rpartition("/")
                plain = above + slash + readable(os.path.basename(entry.path).replace("\\", "/"))
                name = name if plain in entries else plain
            entries[name] = entry
        return entries

    def _below(
        self, path: str, prefix: str, above: frozenset[tuple[int, int]]
    ) -> Iterator[tuple[str, _Entry]]:
        with os.scandir(path) as listed:
            entry = None
            for entry in listed if self._limited else sorted(listed, key=lambda item: item.name):
                name = prefix + readable(entry.name)
                self._left -= 1
                if self._left < 0 and time.monotonic() > self._end_s:
                    self._folder.complete = False
                    return
                if match := _CLOUD.fullmatch(entry.name):
                    self._folder.dangling[prefix + readable(match[1])] = readable(entry.name)
                    continue
                if _is_junk(entry.name):
                    self._folder.ledger.skip(name, "hidden")
                    continue
                try:
                    info = entry.stat()
                except OSError as error:  # a broken link, or in a circle of links
                    if not entry.is_symlink():
                        raise
                    self._folder.dangling[name] = readable(os.readlink(entry.path) or str(error))
                    continue
                if stat.S_ISREG(info.st_mode):
                    yield name, _Entry(entry.path, info.st_size, info.st_mtime_ns)
                elif not stat.S_ISDIR(info.st_mode):
                    self._folder.ledger.skip(name, "no file")
                elif _identity(info) in above:
                    self._folder.ledger.skip(name, "a link to a folder that it lies in")
                elif _identity(info) not in self._ours:
                    yield from self._below(entry.path, f"{name}/", above | {_identity(info)})
            if entry is None and prefix:
                self._folder.empty.append(prefix.rstrip("/"))


_CLOUD = re.compile(r"[.](.+)[.]icloud", re.DOTALL)
"""What iCloud calls the placeholder of a file whose content is not on this machine."""


def suffix(name: str) -> str:
    """Return a file's ending in lower case, the dot included; `PurePosixPath` takes ten times as long."""
    return os.path.splitext(name)[1].lower()


def without_suffix(name: str) -> str:
    """Return a file's name, with its folders, without its ending."""
    return os.path.splitext(name)[0]


def card(folder: Folder) -> Mapping[str, Any]:
    """Return what the YAML at the head of a `README.md` says, as on Hugging Face's Hub; else {}."""
    name = next((name for name in ("README.md", "readme.md") if name in folder.sizes), None)
    if name is None:
        return {}
    text = folder.read(name, _CARD_BYTES).decode("utf-8-sig", "replace").replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}
    try:
        told = yaml.safe_load(text[4:].partition("\n---")[0])
    except yaml.YAMLError:
        return {}
    return told if isinstance(told, dict) else {}


_CARD_BYTES = 4 << 20


def class_names(folder: Folder, numbers: Sequence[str]) -> tuple[list[str] | None, str]:
    """Return what a file beside the data, as `classes.txt`, calls classes that are numbers.

    Args:
        folder: Holds the data.
        numbers: Of the classes, with or without leading zeros.

    Returns:
        Their names in the order of the numbers, None where no file or several give them; a sentence about it,
        "" where there is no such file.
    """
    wanted = [str(int(number)) for number in numbers]
    fitting: dict[str, list[str]] = {}
    called = [name for name, size in folder.sizes.items() if size <= _NAMES_BYTES and calls_classes(name)]
    if len(called) <= _MOST_CALLED:  # more are a file for each picture
        for name in called:
            told = folder.read(name).decode("utf-8-sig", "replace")
            if names := _names_of_numbers(told, suffix(name), wanted):
                fitting[name] = names
    if not fitting:
        return None, ""
    (file, names), *others = fitting.items()
    if other := next((name for name, given in others if given != names), None):
        return None, f"{file} and {other} give the classes different names, and neither is used."
    shown = ", ".join(f"{number} is {name}" for number, name in list(zip(numbers, names, strict=True))[:3])
    folder.ledger.reasons.pop(file, None)
    return names, f"the classes are numbers, and called by {file}: {shown}."


def calls_classes(name: str) -> bool:
    """Whether a file is called like one that names classes."""
    if suffix(name) not in _NAMES:  # most are pictures
        return suffix(name) == ".names"
    return bool(set(re.split(r"[-_ .]+", PurePosixPath(name).stem.lower())) & _OF_CLASSES)


_NAMES = (".txt", ".csv", ".tsv", ".json")
_NAMES_BYTES = 1 << 20
_MOST_CALLED = 20
_OF_CLASSES = {
    *("class", "classes", "classnames", "label", "labels", "name", "names"),
    *("category", "categories", "synset", "synsets"),
}
"""Words in the names of files that call classes by their numbers."""


def _names_of_numbers(text: str, ending: str, wanted: Sequence[str]) -> list[str] | None:
    """The names of some numbers in a text of any of the known forms; None where it does not name them all."""
    for names in _numberings(text, ending, wanted):
        chosen = [names.get(number, "") for number in wanted]
        if all(chosen) and len(set(chosen)) == len(chosen) and not any(map(str.isdigit, chosen)):
            return chosen
    return None


def _numberings(text: str, ending: str, wanted: Sequence[str]) -> list[dict[str, str]]:
    """Names by number, as a text may mean them: numbers before or behind names, or lines that are counted.

    Lines count from 0 where there is a class 0, else from 1 where the last of them is a class, else not.
    """
    given: Any = [line.strip() for line in text.splitlines() if line.strip()]
    if ending == ".json":
        try:
            given = json.loads(text)
        except ValueError:
            return []
        given = given.get("names", given) if isinstance(given, dict) else given
    if isinstance(given, dict):
        last = {
            key: value[-1] if isinstance(value, list) and value else value for key, value in given.items()
        }
        return [_by_number(last.items()), _by_number([(value, key) for key, value in last.items()])]
    if not isinstance(given, list) or not all(isinstance(some, str) for some in given):
        return []
    before = [re.fullmatch(r"(\d+)[\s,:;]+(.+)", line) for line in given]
    behind = [re.fullmatch(r"(.+?)[\s,:;]+(\d+)", line) for line in given]
    both = ([m.groups() for m in before if m], [m.groups()[::-1] for m in behind if m])
    numbered = [_by_number(some) for some in both if len(some) >= max(1, len(given) - 1)]  # but a header
    counted = ("0" in wanted or str(len(given)) in wanted) and ending not in (".csv", ".tsv")
    counted = counted and not any(line.endswith((".", ":", "!", "?")) for line in given)  # sentences
    first = 0 if "0" in wanted else 1
    return numbered or [{str(at): name for at, name in enumerate(given, first)} if counted else {}]


def _by_number(pairs: Iterable[Sequence[Any]]) -> dict[str, str]:
    return {str(int(number)): str(name).strip() for number, name in pairs if str(number).isdigit()}


def readable(name: str) -> str:
    """Return a file name as text that can be printed and stored, bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK

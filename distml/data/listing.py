"""A folder of the user's data: what is in it, which format it has and how it is divided (driver)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from pyarrow import fs

from distml.data.image import SUFFIXES
from distml.data.source import Origin
from distml.errors import DataError
from distml.storage import Storage

IDX = re.compile(r"(?:.*-)?([A-Za-z0-9]+)-(images|labels)[-.]idx\d-ubyte(\.gz)?")
_SPLITS = {
    "train": "train",
    "test": "test",
    "t10k": "test",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
}
_LEADING = re.compile(rf"({'|'.join(_SPLITS)})(?=[-_.\d])")


class Folder:
    """The files below a path or URI; links in it are followed, since the user laid them.

    Args:
        path: Folder, or one file; names that begin with a dot are left out.

    Raises:
        DataError: Nothing is there.
    """

    def __init__(self, path: str) -> None:
        storage = Storage(path)
        self.root = storage.root
        self._system, base = storage.arrow()
        try:
            infos = [self._system.get_file_info(base)]
            self._base = os.path.dirname(base)
            if infos[0].type == fs.FileType.Directory:
                self._base = base
                infos = self._system.get_file_info(fs.FileSelector(base, recursive=True))
        except OSError as error:
            raise DataError(f"cannot list {self.root}: {error}.", "Check data.path.") from None
        cut = len(self._base.rstrip("/")) + 1
        found = sorted((str(info.path)[cut:], int(info.size or 0)) for info in infos if info.is_file)
        self.sizes = {name: size for name, size in found if not re.search(r"(^|/)\.", name)}
        if not self.sizes:
            raise DataError(f"there are no data at {self.root}.", "Check data.path.")

    def open(self, name: str) -> Any:
        """Open one file for reading at random."""
        try:
            return self._system.open_input_file(f"{self._base}/{name}")
        except OSError as error:
            raise DataError(f"cannot read {name} in {self.root}: {error}.") from None

    def read(self, name: str) -> bytes:
        """Return one file's bytes."""
        with self.open(name) as stream:
            return bytes(stream.read())

    def format(self) -> str:
        """Say which format the files have.

        Raises:
            DataError: None that distml knows.
        """
        suffixes = {PurePosixPath(name).suffix.lower() for name in self.sizes}
        if ".parquet" in suffixes:
            return "parquet"
        if any(IDX.fullmatch(PurePosixPath(name).name) for name in self.sizes):
            return "idx"
        if suffixes & set(SUFFIXES):
            return "image_folder"
        shown = ", ".join(sorted(suffixes)[:5])
        raise DataError(
            f"{self.root} holds no Parquet, IDX or picture files, but {shown}.", "Set data.format."
        )

    def origin(self) -> Origin:
        """Describe the folder by its names and sizes."""
        text = "\n".join(f"{name} {size}" for name, size in self.sizes.items())
        name = PurePosixPath(self.root.partition("?")[0]).name
        return Origin(name, self.root, hashlib.sha256(text.encode()).hexdigest())


def split_of(name: str, by_file: bool = False) -> str | None:
    """Return the split that a path's first folder names, or (`by_file`) its file name's first word."""
    path = PurePosixPath(name)
    if len(path.parts) > 1 and path.parts[0].lower() in _SPLITS:
        return _SPLITS[path.parts[0].lower()]
    word = _LEADING.match(path.name.lower()) if by_file else None
    return _SPLITS[word[1]] if word else None


def divide(names: Iterable[str], by_file: bool = False) -> dict[str, list[str]]:
    """Sort paths by split; they are all `train` where fewer than two splits are named.

    Raises:
        DataError: Some paths name a split and others none, or there is no train.
    """
    divided: dict[str | None, list[str]] = {}
    for name in names:
        divided.setdefault(split_of(name, by_file), []).append(name)
    splits = {split: found for split, found in divided.items() if split is not None}
    if not splits or (len(splits) == 1 and None in divided):  # one folder called `train` may be a class
        return {"train": [name for found in divided.values() for name in found]}
    if None in divided:
        raise DataError(f"{divided[None][0]} lies beside {', '.join(sorted(splits))} and in none of them.")
    if "train" not in splits:
        raise DataError(f"there is {', '.join(sorted(splits))}, but no train.")
    return splits

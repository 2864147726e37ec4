"""A zip or tar file given as `data.path`, unpacked once where every later run finds it (driver)."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from distml.data.listing import Folder
from distml.errors import DataError
from distml.storage import Storage

_ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_GROWTH, _SPARE_BYTES = 50, 1 << 30
"""An archive may unpack to so many times its size and a gibibyte more; pictures hardly compress."""
_CHUNK_BYTES = 1 << 20


def is_archive(path: str) -> bool:
    """Whether a path or URI is called like an archive."""
    return path.partition("?")[0].lower().endswith(_ENDINGS)


def unpacked(path: str, storage: Storage) -> str:
    """Unpack an archive below the storage root, or in the user's cache where that is no local folder.

    Args:
        path: Of the archive.
        storage: Whose `cache` folder takes the files.

    Returns:
        The folder; the same archive is unpacked once, a changed one anew.

    Raises:
        DataError: Not an archive, damaged, members that lead out of it, or implausibly much content.
    """
    given = Folder(path)
    (name,) = given.sizes
    key = hashlib.sha256(f"{given.root} {given.fingerprint()}".encode()).hexdigest()[:16]
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    above = storage.uri("cache", "unpacked") if storage.local else os.path.join(home, "distml", "unpacked")
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", PurePosixPath(name).name.partition(".")[0])[:40]
    target = Path(above, f"{stem}-{key}")
    if target.exists():
        return str(target)
    Path(above).mkdir(parents=True, exist_ok=True)
    into = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=above))
    try:
        with given.open(name) as stream:
            limit = _GROWTH * given.sizes[name] + _SPARE_BYTES
            for member, content in _members(stream, name):
                limit -= _write(content, into / _safe(member, name), limit, name)
        into.rename(target)
    except OSError as error:
        raise DataError(
            f"{name} cannot be unpacked: {error.strerror or error}.", "Free space there."
        ) from None
    finally:
        shutil.rmtree(into, ignore_errors=True)
    return str(target)


def _members(stream: Any, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    with _said(name):
        if name.lower().endswith(".zip"):
            with zipfile.ZipFile(stream) as packed:
                for info in packed.infolist():
                    if not info.is_dir():
                        with packed.open(info) as content:
                            yield info.filename, content
            return
        with tarfile.open(fileobj=stream, mode="r:*") as archive:
            for member in archive:
                regular = archive.extractfile(member) if member.isreg() else None  # no links, no devices
                if regular is not None:
                    yield member.name, regular


@contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{name} cannot be read as an archive: {error}.", "Fetch it again.") from None


def _safe(member: str, name: str) -> Path:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or re.match(r"[A-Za-z]:", member):
        raise DataError(
            f"{name} holds {member!r}, which leads out of it.", "Unpack it by hand and look at it."
        )
    return Path(*parts)


def _write(content: IO[bytes], path: Path, limit: int, name: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with _said(name), path.open("wb") as into:
        while chunk := content.read(_CHUNK_BYTES):
            written += len(chunk)
            if written > limit:
                raise DataError(
                    f"{name} unpacks to far more than its own size.", "Unpack it by hand and look at it."
                )
            into.write(chunk)
    return written

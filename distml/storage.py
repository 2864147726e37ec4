"""Files below the storage root: local paths, s3:// and gs:// URIs, atomic writes (any process).

The only module that parses URIs. A `Storage` is its root as text, so it crosses process boundaries.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from pyarrow import ArrowException, fs

from distml.errors import StorageError

logger = logging.getLogger(__name__)

TEMPORARY = ".distml-tmp-"
"""How the names of unfinished writes begin; one whose writer was killed is never taken for content."""


def write_atomically(data: bytes, path: str) -> None:
    """Write a file whole or not at all, and durably; its folder is made when absent.

    Raises:
        OSError: The file system refused; nothing is left behind.
    """
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync(folder)


def _sync(folder: str) -> None:
    """Without this the rename itself may be lost with the power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def folder_lock(path: str, wait: bool = True) -> Iterator[bool]:
    """Hold a folder (made when absent) while other processes wait for it.

    The kernel drops the lock when its holder dies, however it dies. Gives False on a mount without locks.

    Args:
        path: The folder.
        wait: Block until it is free; else `BlockingIOError` is raised.

    Raises:
        OSError: The folder cannot be made or opened.
    """
    os.makedirs(path, exist_ok=True)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _held(handle, path, wait)
    finally:
        os.close(handle)


def _held(handle: int, path: str, wait: bool) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        logger.info("waiting for the process that holds %s", path)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        logger.info("no locks at %s (%s); continuing without", path, error.strerror)
        return False
    return True


_CHUNK_BYTES = 1 << 20
_GIVE_UP_S = 60
"""Time in which a request to Google Cloud Storage is repeated."""
_REMOTE = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs")
_PLACES = "Give a path, or an s3:// or gs:// URI."
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free space there, or give another storage.root."),
    errno.EROFS: "Give a storage.root that is not mounted read-only.",
    errno.EACCES: "Give a storage.root that this user may write.",
}


@contextmanager
def _said(doing: str, where: str) -> Iterator[None]:  # every failure becomes one sentence
    try:
        yield
    except (OSError, ArrowException) as error:
        if isinstance(error, BlockingIOError):  # a lock that is not waited for; nothing else blocks
            raise
        number = getattr(error, "errno", None)
        cause = os.strerror(number) if number else str(error).partition("\n")[0][:300]
        raise StorageError(f"cannot {doing} {where}: {cause}.", _REMEDIES.get(number or 0, "")) from None


def _absolute(root: str) -> str:
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", root)
    if not root or "\0" in root:
        raise StorageError(f"{root!r} is not a storage root.", _PLACES)
    if scheme is None:
        return os.path.abspath(os.path.expanduser(root))
    parts = urlsplit(root)
    if parts.password is not None:  # it would end up in logs and in the tracked configuration
        raise StorageError("the root holds a password.", "Leave it to the environment or a profile.")
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return os.path.abspath(unquote(parts.path))
    if parts.scheme not in _REMOTE or not parts.netloc:
        raise StorageError(f"{root} is not a kind of storage that distml supports.", _PLACES)
    # Options such as ?endpoint_override= stay behind whatever is appended later.
    base, mark, query = root.partition("?")
    return base.rstrip("/") + mark + query


@functools.lru_cache(maxsize=64)
def _connect(root: str) -> tuple[Any, str]:
    if "://" not in root:
        return fs.LocalFileSystem(), root
    place, _, options = root.partition("?")
    if place.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in options:
        # Arrow's client tries for 15 minutes: a bucket out of reach looked like a program that hangs.
        root += f"{'&' if options else '?'}retry_limit_seconds={_GIVE_UP_S}"
    with _said("reach", place):
        client: tuple[Any, str] = fs.FileSystem.from_uri(root)
        return client


@dataclass(frozen=True)
class Storage:
    """Files below one root: a local path (made absolute), file://, s3:// or gs:// URI.

    Raises:
        StorageError: A root of an unknown kind. Every method raises it, too: for a part that would leave
            the root, and with place and cause for the error of the file system or the store.
    """

    root: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", _absolute(self.root))

    @property
    def local(self) -> bool:
        """Whether the root is a path of this machine (it may still be a shared mount)."""
        return "://" not in self.root

    def uri(self, *parts: str) -> str:
        """Return the absolute path or URI of something below the root; it need not exist."""
        for part in parts:
            if "\0" in part or "://" in part or {"", ".", ".."} & set(part.split("/")):
                raise StorageError(f"{part!r} does not name something below {self.root}.")
        if not self.local:
            base, mark, query = self.root.partition("?")
            return "/".join([base, *parts]) + mark + query
        path = os.path.join(self.root, *parts)
        inside = os.path.realpath(self.root)
        if os.path.commonpath([inside, os.path.realpath(path)]) != inside:
            raise StorageError(f"{path} points outside of {self.root} through a link.", "Remove the link.")
        return path

    def arrow(self) -> tuple[Any, str]:
        """Return the `pyarrow.fs.FileSystem` and the root's path within it."""
        return _connect(self.root)

    def _at(self, parts: tuple[str, ...]) -> tuple[Any, str]:
        self.uri(*parts)
        filesystem, base = self.arrow()
        return filesystem, "/".join([base.rstrip("/") or "/", *parts])

    def read_bytes(self, *parts: str) -> bytes:
        """Return a file's content."""
        filesystem, path = self._at(parts)
        with _said("read", self.uri(*parts)), filesystem.open_input_file(path) as stream:
            return bytes(stream.read())

    def read_text(self, *parts: str) -> str:
        """Return a file's content as UTF-8 text."""
        try:
            return self.read_bytes(*parts).decode()
        except UnicodeDecodeError:
            raise StorageError(f"{self.uri(*parts)} is not UTF-8 text.") from None

    def write_bytes(self, data: bytes, *parts: str) -> None:
        """Write a file whole or not at all; a reader sees the old content or the new, never a part."""
        filesystem, path = self._at(parts)
        with _said("write", self.uri(*parts)):
            if self.local:
                write_atomically(data, path)
                return
            with filesystem.open_output_stream(path) as stream:  # a store shows an object when it is closed
                stream.write(data)

    def exists(self, *parts: str) -> bool:
        """Whether there is a file or a folder of that name."""
        filesystem, path = self._at(parts)
        with _said("look at", self.uri(*parts)):
            return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)

    def changed(self, *parts: str) -> float:
        """When a file was changed, seconds since 1970 by the clock of the storage; 0 where there is none."""
        filesystem, path = self._at(parts)
        with _said("look at", self.uri(*parts)):
            return (filesystem.get_file_info(path).mtime_ns or 0) / 1e9

    def names(self, *parts: str, unfinished: bool = False) -> list[str]:
        """Return the sorted names in a folder, [] when it is absent; without `unfinished` writes."""
        filesystem, path = self._at(parts)
        with _said("list", self.uri(*parts)):
            listing = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = (str(info.base_name) for info in listing)
        return sorted(name for name in names if unfinished or not name.startswith(TEMPORARY))

    def files(self, *parts: str) -> dict[str, tuple[int, float]]:
        """Return every file at any depth: path below the root, bytes, time of its change in seconds."""
        filesystem, path = self._at(parts)
        base = self.arrow()[1].rstrip("/")
        with _said("list", self.uri(*parts)):
            listing = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True, recursive=True))
        return {
            str(info.path)[len(base) + 1 :]: (int(info.size), (info.mtime_ns or 0) / 1e9)
            for info in sorted(listing, key=lambda info: str(info.path))
            if info.type == fs.FileType.File and TEMPORARY not in info.path
        }

    def read_chunks(self, *parts: str) -> Iterator[bytes]:
        """Give a file's content piece by piece, for files that need not fit into memory."""
        filesystem, path = self._at(parts)
        with _said("read", self.uri(*parts)), filesystem.open_input_stream(path) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield bytes(chunk)

    def write_chunks(self, chunks: Iterable[bytes], *parts: str) -> None:
        """Write pieces as one file, whole or not at all."""
        filesystem, path = self._at(parts)
        folder, _, name = path.rpartition("/")
        written = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}" if self.local else path
        with _said("write", self.uri(*parts)):
            filesystem.create_dir(folder, recursive=True)
            try:
                with filesystem.open_output_stream(written) as stream:
                    for chunk in chunks:
                        stream.write(chunk)
                if self.local:
                    os.replace(written, path)
            except BaseException:
                with suppress(OSError):
                    filesystem.delete_file(written)
                raise

    def delete(self, *parts: str) -> None:
        """Delete a file or a whole tree; quiet when there is none."""
        if not parts:
            raise StorageError(f"the storage root {self.root} itself is never deleted.")
        filesystem, path = self._at(parts)
        with _said("delete", self.uri(*parts)), suppress(FileNotFoundError):
            kind = filesystem.get_file_info(path).type
            if kind == fs.FileType.Directory:
                filesystem.delete_dir(path)
            elif kind != fs.FileType.NotFound:
                filesystem.delete_file(path)

    def upload(self, local_dir: str | os.PathLike[str], *parts: str) -> None:
        """Copy a local tree to below the root; files of the same name are replaced."""
        filesystem, path = self._at(parts)
        with _said("write", self.uri(*parts)):
            filesystem.create_dir(path, recursive=True)
            fs.copy_files(os.fspath(local_dir), path, fs.LocalFileSystem(), filesystem)

    def download(self, local_dir: str | os.PathLike[str], *parts: str) -> None:
        """Copy a tree from below the root into a local folder, which is made when absent."""
        filesystem, path = self._at(parts)
        with _said("read", self.uri(*parts)):
            os.makedirs(local_dir, exist_ok=True)
            fs.copy_files(path, os.fspath(local_dir), filesystem, fs.LocalFileSystem())

    def probe(self) -> None:
        """Prove that the root can be written: write, read back and delete a small unique file."""
        name = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            self.write_bytes(name.encode(), name)
            if self.read_bytes(name) != name.encode():
                raise StorageError(f"{self.root} returns different bytes from those written.")
        finally:
            with suppress(StorageError):
                self.delete(name)

    @contextmanager
    def lock(self, *parts: str, wait: bool = True) -> Iterator[bool]:
        """Hold a folder (made when absent); others wait, or meet BlockingIOError; it ends with its holder.

        An object store has no locks: there it is a `Lease`, which ends some time after its holder does. Gives
        False on a mount without locks: then others may be at it, too.
        """
        with ExitStack() as until:
            if self.local:
                with _said("lock", self.uri(*parts)):
                    held = until.enter_context(folder_lock(self.uri(*parts), wait))
            else:
                held = until.enter_context(Lease(self, *parts).held(wait))
            yield held


class Lease:
    """A lock in an object store: an object that its holder writes anew every few seconds. Final.

    Whoever wants it writes a token of its own where there is none, or where nobody has written for `LAPSE_S`,
    and holds it when it reads that token a moment later: of several that write at once, the last. Stores that
    show each write to all later reads, as S3 and Google Cloud Storage do, are needed. A holder that was
    suspended for longer than `LAPSE_S` finds another's token, and logs it as an error.

    Args:
        storage: Of the store.
        parts: Folder that it is about.
    """

    BEAT_S = 10.0
    """Seconds between two writes of the holder."""
    LAPSE_S = 40.0
    """Seconds without a write after which it is nobody's."""
    _SETTLE_S = 1.0
    """Seconds after which what others wrote at the same time is there; also between two looks."""

    def __init__(self, storage: Storage, *parts: str) -> None:
        self._storage, self._parts = storage, (*parts, f"{TEMPORARY}lock")
        self._folder = storage.uri(*parts)
        self._token, self._released = uuid.uuid4().hex, threading.Event()

    @contextmanager
    def held(self, wait: bool) -> Iterator[bool]:
        """Hold it, after waiting for its holder or, without `wait`, raising BlockingIOError.

        Raises:
            BlockingIOError: Another process writes it, as was seen within `LAPSE_S`.
            StorageError: The store fails.
        """
        self._take(wait)
        beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        beating.start()
        try:
            yield True
        finally:
            self._released.set()
            beating.join()
            self._release()

    def _take(self, wait: bool) -> None:
        content = self._read()
        since, waited = time.monotonic() - (self._age_s() if content else 0.0), False
        while True:
            if not content or time.monotonic() - since > self.LAPSE_S:
                self._write(0)
                self._pause()
                if self._read().startswith(self._token):
                    return
            elif not waited:
                logger.info("waiting for the process that holds %s, or for its end", self._folder)
                waited = True
            before, content = content, self._read()
            if content != before:
                since = time.monotonic()
            if content not in ("", before) and before and not wait:
                raise BlockingIOError(errno.EWOULDBLOCK, "held by another process", self._folder)
            self._pause()

    def _pause(self) -> None:
        self._released.wait(self._SETTLE_S)

    def _beat(self) -> None:
        number = 0
        while not self._released.wait(self.BEAT_S):
            number += 1
            try:
                if not self._read().startswith(self._token):
                    logger.error("another process has taken %s; it is used by both now", self._folder)
                    return
                self._write(number)
            except StorageError as error:  # it is tried again
                logger.warning("%s", error)

    def _read(self) -> str:
        """Token and number of its holder, "" where there is none."""
        try:
            return self._storage.read_text(*self._parts)
        except StorageError:
            if self._storage.exists(*self._parts):
                raise
            return ""

    def _write(self, number: int) -> None:
        self._storage.write_bytes(f"{self._token} {number}".encode(), *self._parts)

    def _release(self) -> None:
        with suppress(StorageError):  # else it lapses
            if self._read().startswith(self._token):
                self._storage.delete(*self._parts)

    def _age_s(self) -> float:
        """Seconds since it was written, by the store's clock: against an object that is written now."""
        now = (*self._parts[:-1], f"{TEMPORARY}now-{self._token}")
        self._storage.write_bytes(b"", *now)
        try:
            times = [self._storage.changed(*each) for each in (self._parts, now)]
        finally:
            self._storage.delete(*now)
        return max(0.0, times[1] - times[0]) if times[0] else 0.0

"""What a local disk needs beyond `pyarrow.fs`: whole-or-nothing writes and a lock that cannot go stale."""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_LOG = logging.getLogger(__name__)

TEMPORARY = ".distml-tmp-"
"""How the names of unfinished writes begin; one whose writer was killed is never taken for content."""


def write(data: bytes, path: str) -> None:
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
def lock(path: str, wait: bool = True) -> Iterator[bool]:
    """Hold a folder (made when absent) while other processes wait for it.

    The kernel drops the lock when its holder dies, however it dies. Gives False on a mount without locks.

    Args:
        path: The folder.
        wait: For whoever holds it now; else `BlockingIOError` is raised.

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
        _LOG.info("waiting for the process that holds %s", path)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        _LOG.info("no locks at %s (%s); going on without", path, error.strerror)
        return False
    return True

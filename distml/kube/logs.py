"""Copies Ray's logs to the storage, so that they outlive their pod (sidecar, which ends after Ray)."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from distml import log
from distml.errors import DistmlError
from distml.runtime import processes
from distml.storage import Storage

logger = logging.getLogger(__name__)

SESSION = Path("/tmp/ray/session_latest/logs")  # noqa: S108 (Ray's own place)
_EVERY_S = 60.0
_CHUNK_BYTES = 1 << 20


def keep(
    root: str, pod: str, ended: threading.Event, source: Path = SESSION, every_s: float = _EVERY_S
) -> None:
    """Copy the logs repeatedly until it is terminated, and then once more.

    Args:
        root: Storage root; each pod has a folder of its name below it, and each of its sessions another.
        pod: Name of the pod.
        ended: Set when the pod ends.
        source: Folder of the logs.
        every_s: Seconds between two copies.
    """
    copies = Copies(Storage(root), pod, source)
    last = missed = False
    while not last:
        last = ended.wait(every_s)
        if not source.is_dir():
            if not missed:
                logger.warning("there is no %s yet: is Ray's folder mounted here?", source)
            missed = True
            continue
        try:
            copies.update()
        except DistmlError as error:  # the next copy has everything this one had
            logger.warning("%s", error)


class Copies:
    """Copies of a folder's files, each made again when the file has changed. Final.

    Args:
        storage: Gets them.
        folder: Of the pod, below the storage root.
        source: The folder; where its link is moved, as by a Ray that starts again, the new place is copied.
    """

    def __init__(self, storage: Storage, folder: str, source: Path) -> None:
        self._storage, self._folder, self._source = storage, folder, source
        self._copied: dict[Path, tuple[int, int]] = {}

    def update(self) -> int:
        """Copy what has changed; returns the number of files.

        Raises:
            StorageError: The storage cannot be written; the next call begins with that file.
        """
        place, count = self._source.resolve(), 0
        for path in sorted(place.rglob("*")):
            try:
                if path.is_symlink() or not path.is_file():
                    continue
                state = path.stat()
                chunks = _content(path)
                if self._copied.get(path) == (state.st_size, state.st_mtime_ns):
                    continue
                first = next(chunks, b"")  # opens it
            except OSError:  # Ray removed or renamed it meanwhile
                continue
            below = (place.parent.name, *path.relative_to(place).parts)
            self._storage.write_chunks(itertools.chain([first], chunks), self._folder, *below)
            self._copied[path] = (state.st_size, state.st_mtime_ns)
            count += 1
        return count


def _content(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def main() -> int:
    """Entry point of the sidecar."""
    log.configure("driver")
    ended = threading.Event()
    set_it = processes.setter(ended)
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, set_it)
    keep(os.environ["LOGS_ROOT"], os.environ["POD_NAME"], ended)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

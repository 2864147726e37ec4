"""Copies Ray's logs to the storage, so that they outlive their pod (sidecar)."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

from distml import log
from distml.errors import DistmlError
from distml.runtime import processes
from distml.storage import Storage

logger = logging.getLogger(__name__)

SESSION = Path("/tmp/ray/session_latest/logs")  # noqa: S108 (Ray's own place)
_EVERY_S = 60.0


def keep(
    root: str, pod: str, ended: threading.Event, source: Path = SESSION, every_s: float = _EVERY_S
) -> None:
    """Copy the logs repeatedly until it is terminated, and then once more.

    Args:
        root: Storage root; each pod has a folder of its name below it.
        pod: Name of the pod.
        ended: Set when the pod ends.
        source: Folder of the logs.
        every_s: Seconds between two copies.
    """
    last = missed = False
    while not last:
        last = ended.wait(every_s)
        if not source.is_dir():
            if not missed:
                logger.warning("there is no %s yet: is Ray's folder mounted here?", source)
            missed = True
            continue
        try:
            Storage(root).upload(source, pod)
        except DistmlError as error:  # the next copy has everything this one had
            logger.warning("%s", error)


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

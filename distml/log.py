"""Logging of one process, configured once: by `cli`, first thing on a worker, in a replica."""

from __future__ import annotations

import logging
import sys

_FORMAT = "%(asctime)s %(levelname).1s {process} %(name)s: %(message)s"


def configure(process: str, rank: int | None = None, level: int = logging.INFO) -> None:
    """Send this process's records to stderr, marked with what the process is.

    Args:
        process: `driver`, `worker` or `replica`.
        rank: World rank of a worker.
        level: Least severe level shown for distml's own loggers; others start at WARNING.
    """
    mark = process if rank is None else f"{process}{rank}"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT.format(process=mark), datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("distml").setLevel(level)

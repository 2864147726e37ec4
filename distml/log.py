"""Logging of one process, configured once: by `cli`, first thing on a worker, in a replica."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

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


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Hold back what libraries write to standard error, below Python's reach, unless the body fails.

    TensorFlow 2.21 writes four lines before its log level counts.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)

"""Configures Python logging and holds back what libraries print (driver, worker, replica)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

_RAYLET = re.compile(r" Last \d+ lines of the Raylet logs:.*", re.S)
_FORMAT = "%(asctime)s %(levelname).1s {process} %(name)s: %(message)s"


class _Stderr(logging.StreamHandler[Any]):
    """Writes to the `sys.stderr` of the moment of each record: other code may replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def configure(process: str, rank: int | None = None, level: int = logging.INFO) -> None:
    """Send this process's records to stderr, marked with what the process is.

    Args:
        process: `driver`, `worker` or `replica`.
        rank: World rank of a worker.
        level: Least severe level shown for distml's own loggers; others start at WARNING.
    """
    mark = process if rank is None else f"{process}{rank}"
    handler = _Stderr()
    handler.setFormatter(logging.Formatter(_FORMAT.format(process=mark), datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("distml").setLevel(level)
    # It logs every attempt that will be repeated; we report the final failure.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    # Pillow warns of EXIF data that a camera cut off, without the file's name; the picture itself is well.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    warnings.filterwarnings("ignore", message="Image size .* exceeds limit", module=r"PIL\.")
    logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what cannot be read is named by our own error


def event(logger: logging.Logger, level: int, name: str, sentence: str, **facts: object) -> None:
    """Log a sentence for people, and behind it the same as a JSON object for programs.

    Args:
        logger: Of the module.
        level: How severe it is.
        name: What happened, in one word.
        sentence: What happened, for a person.
        facts: What it is about; JSON values.
    """
    logger.log(level, "%s %s", sentence, json.dumps({"event": name, **facts}))


class Aside:
    """Standard error for what libraries print, without the raylet's own log. Final.

    Ray 2.60 prints it, some thirty lines of counters, when a node is lost.
    """

    def __init__(self) -> None:
        self._stream = sys.stderr

    def write(self, text: str) -> int:
        """Write, and say that all of it was written."""
        self._stream.write(_RAYLET.sub("\n", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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

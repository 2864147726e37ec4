"""The log of served requests: sampled answers, written beside the serving and never in its way (replica).

`Journal.record` only puts references into a bounded list. One thread makes files of them; when it cannot keep
up, or the storage refuses, rows are dropped and counted, and answering goes on as if nothing were logged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from distml.config import LogConfig
from distml.data.schema import Images
from distml.monitor import rows
from distml.monitor.rows import Answering, Entry
from distml.storage import Storage

__all__ = ["Counts", "Entry", "Journal"]

logger = logging.getLogger(__name__)

_WAITING_FILES = 8  # files' worth of rows that may wait
_WAITING_BYTES = 64 << 20


@dataclass
class Counts:
    """What became of the rows.

    Args:
        written: In files.
        dropped: Not taken, because too many waited.
        lost: Taken, but the storage refused them.
    """

    written: int = 0
    dropped: int = 0
    lost: int = 0


class Journal:
    """Logs answered requests in the background. Final.

    Args:
        config: The section `log`.
        storage: Takes the files, below `requests/`.
    """

    def __init__(self, config: LogConfig, storage: Storage) -> None:
        self._config, self._storage = config, storage
        self._waiting: deque[Entry] = deque()
        self._rows = self._bytes = 0
        self._lock, self._wake, self._closed = threading.Lock(), threading.Event(), False
        self._counts = Counts()
        self._thread: threading.Thread | None = None
        if config.enabled:
            self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
            self._thread.start()

    def record(
        self,
        request: str | None,
        served: Answering,
        images: Images,
        probabilities: npt.NDArray[np.float32],
        latency_s: float,
    ) -> None:
        """Take one answered request, or let it pass; returns at once and never raises.

        Args:
            request: Identity of the request; None gives it one.
            served: The model that answered.
            images: uint8 [N, H, W, C]; kept as they are, so they must not be written to afterwards.
            probabilities: float32 [N, classes]; likewise.
            latency_s: From the request to the answer.
        """
        if self._thread is None or self._closed or random.random() >= self._config.sample:
            return
        try:
            name = request or uuid.uuid4().hex
            self._take(Entry(time.time(), name, served, images, probabilities, latency_s))
        except Exception:  # the answer matters more than its record
            self._counts.dropped += 1
            logger.warning("a request could not be logged", exc_info=True)

    def _take(self, entry: Entry) -> None:
        count, size = len(entry.images), entry.images.nbytes
        with self._lock:
            full = self._rows + count > max(count, _WAITING_FILES * self._config.flush_rows)
            if full or self._bytes + size > _WAITING_BYTES:
                self._counts.dropped += count
            else:
                self._waiting.append(entry)
                self._rows += count
                self._bytes += size
            ready = self._rows >= self._config.flush_rows or self._bytes > _WAITING_BYTES // 2
        if ready:
            self._wake.set()

    def counts(self) -> dict[str, int]:
        """Return rows `written`, `dropped`, `lost` and `waiting`, for the metrics of the endpoint."""
        return asdict(self._counts) | {"waiting": self._rows}

    def close(self, patience_s: float = 10.0) -> None:
        """Write what waits and stop; what is not written in time is lost."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(patience_s)

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # Linux gives each thread a niceness of its own
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self._closed:
            self._wake.wait(self._config.flush_s)
            self._wake.clear()
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            entries, self._waiting = list(self._waiting), deque()
            self._rows = self._bytes = 0
        for group in _grouped(entries):
            count = sum(len(entry.images) for entry in group)
            try:
                rows.write(self._storage, group, self._config.images)
                self._counts.written += count
            except Exception as error:  # a full disk must not end the thread: later rows may find room
                self._counts.lost += count
                logger.warning("%d rows of the request log are lost: %s", count, error)
        if entries:
            self._expire()

    def _expire(self) -> None:
        try:
            rows.expire(self._storage, self._config.retention_days, self._config.retention_bytes)
        except Exception as error:  # as above
            logger.warning("the request log could not be shortened: %s", error)


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that fit one file: the same model and the same shape of images."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        key = (entry.served.name, entry.served.version, entry.images.shape[1:])
        groups.setdefault(key, []).append(entry)
    return list(groups.values())

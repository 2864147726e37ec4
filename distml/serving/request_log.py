"""Logs sampled requests and predictions as Parquet files in the background (replica).

`RequestLog.record` only puts references into a bounded list. A thread writes them to files; where it
cannot keep up, or the storage rejects a file, rows are dropped and counted, and answers do not change.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import LogConfig
from distml.data import plausible, schema, statistics
from distml.data.listing import Folder
from distml.data.schema import Images
from distml.errors import DataError
from distml.storage import Storage
from distml.tasks import Task

FOLDER = "requests"
DESCRIPTION = b"distml"
"""Key of a file's own metadata: a JSON object with model, version, classes, shape and statistics."""
_DAY_S = 86_400.0


class Answering(Protocol):
    """What the log stores of the model that answered; `serving.service.Served` fits."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def version(self) -> int:
        """Number of the version."""
        ...

    @property
    def task(self) -> Task:
        """What it predicts."""
        ...

    @property
    def predicted(self) -> tuple[int, ...] | None:
        """Validation rows by bin of what it predicts, None where its export does not say."""
        ...

    @property
    def usual(self) -> plausible.Usual | None:
        """How training images look, None where its export does not say."""
        ...


@dataclass(frozen=True)
class Entry:
    """One answered request.

    Args:
        time_s: When it was answered, seconds since the epoch.
        request: Its identity.
        served: The model that answered.
        images: uint8 [N, H, W, C].
        outputs: float32 [N, K].
        latency_s: From the request to the answer.
    """

    time_s: float
    request: str
    served: Answering
    images: Images
    outputs: npt.NDArray[np.float32]
    latency_s: float


def _texts(values: Sequence[str]) -> Any:
    """Wrap texts as an Arrow array; `pa.array` would import pandas, for seconds, in the serving process."""
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(encoded), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def _vectors(values: np.ndarray) -> Any:
    """Wrap float32 [N, K] as lists of a fixed length."""
    flat = schema.to_array(values.astype(np.float32, copy=False), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _numbers(values: np.ndarray) -> Any:
    """Wrap int32 or float32 [N]."""
    return schema.to_array(values, pa.int32() if values.dtype.kind == "i" else pa.float32())


def _columns(entries: Sequence[Entry], with_images: bool) -> dict[str, Any]:
    counts = [len(entry.images) for entry in entries]
    images = np.concatenate([entry.images for entry in entries])
    outputs = np.concatenate([entry.outputs for entry in entries])
    decided = entries[0].served.task.logged(outputs)
    times = (np.repeat([entry.time_s for entry in entries], counts) * 1e6).astype(np.int64)
    latencies = np.repeat([entry.latency_s for entry in entries], counts).astype(np.float32)
    identities = [entry.request for entry, count in zip(entries, counts, strict=True) for _ in range(count)]
    positions = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    version = np.full(len(images), entries[0].served.version, np.int32)
    columns = {
        "time": schema.to_array(times, pa.timestamp("us", "UTC")),
        "request": _texts(identities),
        "position": schema.to_array(positions, pa.int32()),
        "version": schema.to_array(version, pa.int32()),
        **{
            name: _vectors(values) if values.ndim == 2 else _numbers(values)
            for name, values in decided.items()
        },
        "latency_s": schema.to_array(latencies, pa.float32()),
        "statistics": _vectors(statistics.measure(images)),
        "warnings": _texts(_warnings(images, entries[0].served.usual)),
    }
    if with_images:
        shape = images.shape[1:]
        flat = pa.FixedSizeListArray.from_arrays(schema.to_array(images, pa.uint8()), int(np.prod(shape)))
        columns["image"] = pa.ExtensionArray.from_storage(schema.tensor_type(shape), flat)
    return columns


def _warnings(images: Images, usual: plausible.Usual | None) -> list[str]:
    """Codes of what is odd about each image, separated by blanks."""
    return [" ".join(codes) for codes in plausible.codes(images, usual)]


def write(storage: Storage, entries: Sequence[Entry], with_images: bool) -> str:
    """Write answered requests of one model and one shape as one file, whole or not at all.

    Columns: `time` (UTC), `request`, `position` within the request, `version`, those of
    `Task.logged` (`label`, `probability` and `probabilities` in classification), `latency_s` float32,
    `statistics` float32 [K], `warnings` (codes of `data.plausible`) and, where that is wanted, `image`
    fixed-shape tensor of uint8 [H, W, C].

    Returns:
        The file's place below the storage root.

    Raises:
        StorageError: The storage refused.
    """
    served, shape = entries[0].served, entries[0].images.shape[1:]
    height, width, depth = shape
    described = {
        "model": served.name,
        "version": served.version,
        "classes": list(served.task.mix_names),
        "predicted": served.predicted,
        "names": list(served.task.names),
        "task": served.task.spec(),
        "decision": next(iter(served.task.logged(entries[0].outputs[:1]))),
        "shape": list(shape),
        "statistics": list(statistics.names((height, width, depth))),
        "statistics_version": statistics.VERSION,
    }
    columns = _columns(entries, with_images)
    table = pa.Table.from_arrays(
        list(columns.values()), names=list(columns), metadata={DESCRIPTION: json.dumps(described)}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    first = min(entry.time_s for entry in entries)
    day = time.strftime("%Y-%m-%d", time.gmtime(first))
    path = f"{FOLDER}/{served.name}/{day}/{int(first * 1000)}-{uuid.uuid4().hex[:8]}.parquet"
    storage.write_bytes(sink.getvalue(), path)
    return path


def listed(storage: Storage, model: str | None = None) -> dict[str, tuple[float, int]]:
    """List the files of the log, oldest first: place, seconds since the epoch of the first row, bytes."""
    parts = (FOLDER, model) if model else (FOLDER,)
    if not storage.exists(*parts):
        return {}
    try:
        sizes = Folder(storage.uri(*parts)).sizes
    except DataError:  # a folder without files
        return {}
    files = []
    for name, size in sizes.items():
        stamp = name.rpartition("/")[2].partition("-")[0]
        if name.endswith(".parquet") and stamp.isdigit():
            files.append((int(stamp) / 1000, "/".join([*parts, name]), size))
    return {path: (stamp, size) for stamp, path, size in sorted(files)}


def expire(storage: Storage, days: float, limit_bytes: int) -> int:
    """Delete files that are too old, then the oldest while together they are too large.

    Returns:
        How many were deleted.

    Raises:
        StorageError: The storage refused.
    """
    known = listed(storage)
    left = sum(size for _, size in known.values())
    deleted = 0
    for path, (stamp, size) in known.items():
        if stamp >= time.time() - days * _DAY_S and left <= limit_bytes:
            break
        storage.delete(path)
        left -= size
        deleted += 1
    if deleted:
        _sweep(storage)
    return deleted


def _sweep(storage: Storage) -> None:
    """Delete the folders of days that are over and empty."""
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - _DAY_S))
    for model in storage.names(FOLDER):
        for day in storage.names(FOLDER, model):
            if day < yesterday and not storage.names(FOLDER, model, day):
                storage.delete(FOLDER, model, day)


__all__ = ["Counts", "Entry", "RequestLog"]

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


class RequestLog:
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
        outputs: npt.NDArray[np.float32],
        latency_s: float,
    ) -> None:
        """Take one answered request, or let it pass; returns at once and never raises.

        Args:
            request: Identity of the request; None gives it one.
            served: The model that answered.
            images: uint8 [N, H, W, C]; kept as they are, so they must not be written to afterwards.
            outputs: float32 [N, K]; likewise.
            latency_s: From the request to the answer.
        """
        if self._thread is None or self._closed or random.random() >= self._config.sample:
            return
        try:
            name = request or uuid.uuid4().hex
            self._take(Entry(time.time(), name, served, images, outputs, latency_s))
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
        """Write the remaining rows and stop; rows not written within the time limit are lost."""
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
                write(self._storage, group, self._config.images)
                self._counts.written += count
            except Exception as error:  # a full disk must not end the thread: later rows may find room
                self._counts.lost += count
                logger.warning("%d rows of the request log are lost: %s", count, error)
        if entries:
            self._expire()

    def _expire(self) -> None:
        try:
            expire(self._storage, self._config.retention_days, self._config.retention_bytes)
        except Exception as error:  # as above
            logger.warning("the request log could not be shortened: %s", error)


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Entries that fit one file: the same model and the same shape of images."""
    groups: dict[Any, list[Entry]] = {}
    for entry in entries:
        key = (entry.served.name, entry.served.version, entry.images.shape[1:])
        groups.setdefault(key, []).append(entry)
    return list(groups.values())

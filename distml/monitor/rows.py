"""Rows of the request log as Parquet files, and how long they are kept (replica, driver).

`requests/<model>/<date>/<milliseconds>-<random>.parquet`; each file holds rows of one version of a model.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.data import schema
from distml.data.folder import Folder
from distml.data.schema import Images
from distml.errors import DataError
from distml.monitor import features
from distml.storage import Storage

FOLDER = "requests"
DESCRIPTION = b"distml"
"""Key of a file's own metadata: a JSON object with model, version, classes, shape and statistics."""
_DAY_S = 86_400.0


class Answering(Protocol):
    """What the log wants to know of the model that answered; `serving.service.Served` knows more."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def version(self) -> int:
        """Number of the version."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names by label."""
        ...


@dataclass(frozen=True)
class Entry:
    """One answered request.

    Args:
        time_s: When it was answered, seconds since the epoch.
        request: Its identity.
        served: The model that answered.
        images: uint8 [N, H, W, C].
        probabilities: float32 [N, classes].
        latency_s: From the request to the answer.
    """

    time_s: float
    request: str
    served: Answering
    images: Images
    probabilities: npt.NDArray[np.float32]
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


def _columns(entries: Sequence[Entry], with_images: bool) -> dict[str, Any]:
    counts = [len(entry.images) for entry in entries]
    images = np.concatenate([entry.images for entry in entries])
    probabilities = np.concatenate([entry.probabilities for entry in entries])
    labels = probabilities.argmax(1).astype(np.int32)
    times = (np.repeat([entry.time_s for entry in entries], counts) * 1e6).astype(np.int64)
    latencies = np.repeat([entry.latency_s for entry in entries], counts).astype(np.float32)
    identities = [entry.request for entry, count in zip(entries, counts, strict=True) for _ in range(count)]
    positions = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    version = np.full(len(images), entries[0].served.version, np.int32)
    found = {
        "time": schema.to_array(times, pa.timestamp("us", "UTC")),
        "request": _texts(identities),
        "position": schema.to_array(positions, pa.int32()),
        "version": schema.to_array(version, pa.int32()),
        "label": schema.to_array(labels, pa.int32()),
        "probability": schema.to_array(probabilities.max(1).astype(np.float32), pa.float32()),
        "probabilities": _vectors(probabilities),
        "latency_s": schema.to_array(latencies, pa.float32()),
        "statistics": _vectors(features.measure(images)),
    }
    if with_images:
        shape = images.shape[1:]
        flat = pa.FixedSizeListArray.from_arrays(schema.to_array(images, pa.uint8()), int(np.prod(shape)))
        found["image"] = pa.ExtensionArray.from_storage(schema.tensor_type(shape), flat)
    return found


def write(storage: Storage, entries: Sequence[Entry], with_images: bool) -> str:
    """Write answered requests of one model and one shape as one file, whole or not at all.

    Columns: `time` (UTC), `request`, `position` within the request, `version`, `label` int32, `probability`
    float32, `probabilities` float32 [classes], `latency_s` float32, `statistics` float32 [K] and, where that
    is wanted, `image` fixed-shape tensor of uint8 [H, W, C].

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
        "classes": list(served.classes),
        "shape": list(shape),
        "statistics": list(features.names((height, width, depth))),
        "statistics_version": features.VERSION,
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
    found = []
    for name, size in sizes.items():
        stamp = name.rpartition("/")[2].partition("-")[0]
        if name.endswith(".parquet") and stamp.isdigit():
            found.append((int(stamp) / 1000, "/".join([*parts, name]), size))
    return {path: (stamp, size) for stamp, path, size in sorted(found)}


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
    """Delete the folders of days that are over and empty; nobody writes into one of those."""
    yesterday = time.strftime("%Y-%m-%d", time.gmtime(time.time() - _DAY_S))
    for model in storage.names(FOLDER):
        for day in storage.names(FOLDER, model):
            if day < yesterday and not storage.names(FOLDER, model, day):
                storage.delete(FOLDER, model, day)

"""How far logged requests are from the training rows, as figures that can be judged (driver)."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from distml.data import schema
from distml.errors import DataError
from distml.monitor import features, rows
from distml.monitor.reference import Reference, count
from distml.storage import Storage

CLASS_MIX = "class mix"
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Logged:
    """What the log says about served requests.

    Args:
        measured: float32 [N, K], the statistics of the pictures.
        labels: int32 [N], the answers.
        versions: Versions of the model that answered.
        since_s: Seconds since the epoch of the first row, None without rows.
        skipped: Files of other shapes, classes or statistics, which cannot be compared.
    """

    measured: features.Features
    labels: schema.Labels
    versions: tuple[int, ...]
    since_s: float | None
    skipped: int


@dataclass(frozen=True)
class Shift:
    """One comparison.

    Args:
        name: Of the statistic, or `class mix`.
        psi: Population stability index.
        chance: The index that as many rows drawn from the training data would have on average.
        trained: Share by bin of the training rows.
        served: Share by bin of the logged rows.
    """

    name: str
    psi: float
    chance: float
    trained: tuple[float, ...]
    served: tuple[float, ...]


def read(storage: Storage, model: str, reference: Reference, days: float | None) -> Logged:
    """Read the logged statistics and answers of a model.

    Args:
        storage: Where the log is.
        model: Its name in the registry.
        reference: What they are to be compared with.
        days: Only the files begun within these days; None takes all.

    Raises:
        DataError: A file of the log is damaged.
        StorageError: The storage cannot be read.
    """
    oldest = time.time() - days * _DAY_S if days else 0.0
    measured = [np.empty((0, len(reference.names)), np.float32)]
    labels = [np.empty(0, np.int32)]
    versions, stamps, skipped = set(), [], 0
    for path, (stamp, _) in rows.listed(storage, model).items():
        if stamp < oldest:
            continue
        described, table = _file(storage, path)
        if not _comparable(described, reference):
            skipped += 1
            continue
        statistics = table["statistics"].combine_chunks()
        flat = schema.to_numbers(statistics.flatten(), np.float32)
        measured.append(flat.reshape(-1, len(reference.names)))
        labels.append(schema.to_numbers(table["label"], np.int32))
        versions.add(int(described["version"]))
        stamps.append(stamp)
    since = min(stamps, default=None)
    return Logged(np.concatenate(measured), np.concatenate(labels), tuple(sorted(versions)), since, skipped)


def _file(storage: Storage, path: str) -> tuple[dict[str, Any], Any]:
    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(path))) as file:
            table = file.read(["label", "statistics"], use_threads=False)
            return json.loads(table.schema.metadata[rows.DESCRIPTION]), table
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        where = storage.uri(path)
        raise DataError(f"{where} is not a file of the request log: {error}.", "Delete it.") from None


def _comparable(described: dict[str, Any], reference: Reference) -> bool:
    return (
        described.get("statistics_version") == reference.version
        and tuple(described.get("statistics", ())) == reference.names
        and tuple(described.get("classes", ())) == reference.classes
    )


def shifts(reference: Reference, logged: Logged) -> list[Shift]:
    """Compare each statistic and the class mix, the largest shift first."""
    served = {
        name: count(column, edges)
        for name, column, edges in zip(reference.names, logged.measured.T, reference.edges, strict=True)
    }
    served[CLASS_MIX] = np.bincount(logged.labels, minlength=len(reference.classes))
    trained = dict(zip(reference.names, reference.counts, strict=True)) | {CLASS_MIX: reference.labels}
    found = [_shift(name, np.asarray(trained[name]), counts) for name, counts in served.items()]
    return sorted(found, key=lambda shift: -shift.psi)


def _shift(name: str, trained: npt.NDArray[np.int64], served: npt.NDArray[np.int64]) -> Shift:
    expected, actual = _shares(trained), served.sum()
    observed = (served + expected) / (actual + 1)  # one row's worth of the expected keeps empty bins finite
    psi = float(np.sum((observed - expected) * np.log(observed / expected)))
    # n times the index is close to a chi-squared variable with one degree of freedom less than bins in use.
    used = int(np.count_nonzero(trained)) - 1
    chance = used * (1 / max(1, actual) + 1 / trained.sum())
    shares = served / max(1, actual)
    return Shift(name, psi, float(chance), tuple(expected.tolist()), tuple(shares.tolist()))


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Shares with a hundredth of a row more in each bin, so that none is zero."""
    return np.asarray((counts + 0.01) / (counts.sum() + 0.01 * len(counts)), np.float64)

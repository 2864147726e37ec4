"""What the training rows look like in statistics: the ground that logged requests are compared with (driver).

Computed once for a data set and kept beside its manifest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distml.data import schema, shards
from distml.monitor import features
from distml.storage import Storage

_FILE = "reference.json"
_BINS = 10


@dataclass(frozen=True)
class Reference:
    """Histograms of the training rows.

    Args:
        digest: Of the data's manifest.
        version: Of the statistics.
        names: Of the statistics.
        edges: Inner edges of the bins, ascending, by statistic; a value equal to an edge lies below it.
        counts: Rows by bin, one more than edges, by statistic.
        classes: Names by label.
        labels: Training rows by label.
    """

    digest: str
    version: int
    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, manifest: shards.Manifest, measured: features.Features, labels: schema.Labels) -> Self:
        """Count measured rows.

        Args:
            manifest: Of the data.
            measured: float32 [N, K].
            labels: int32 [N].
        """
        edges = [_edges(column) for column in measured.T]
        return cls(
            digest=manifest.digest,
            version=features.VERSION,
            names=features.names(manifest.shape),
            edges=tuple(tuple(map(float, one)) for one in edges),
            counts=tuple(
                tuple(count(column, one).tolist()) for column, one in zip(measured.T, edges, strict=True)
            ),
            classes=manifest.classes,
            labels=tuple(np.bincount(labels, minlength=manifest.num_classes).tolist()),
        )


def _edges(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Tenths of the rows, between bins of their own for what lies beyond all of them."""
    inner = np.quantile(column, np.linspace(0, 1, _BINS + 1))[1:-1].astype(np.float32)
    below = np.nextafter(column.min(), np.float32(-1))
    return np.unique(np.concatenate([[below], inner, [column.max()]]).astype(np.float32))


def count(column: npt.NDArray[np.float32], edges: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Count values by bin.

    Args:
        column: float32 [N].
        edges: float [B], ascending.

    Returns:
        int64 [B + 1].
    """
    inner = np.asarray(edges, np.float32)
    return np.bincount(np.searchsorted(inner, column, side="left"), minlength=len(inner) + 1)


def of(storage: Storage, manifest: shards.Manifest) -> Reference:
    """Return the histograms of a data set's training rows, measured once and kept beside its manifest.

    Raises:
        DataError: The prepared data are damaged.
        StorageError: The storage cannot be read or written.
    """
    if storage.exists(manifest.folder, _FILE):
        kept = _parsed(storage.read_text(manifest.folder, _FILE))
        if kept and (kept.digest, kept.version) == (manifest.digest, features.VERSION):
            return kept
    found = Reference.of(manifest, *_measured(storage, manifest))
    storage.write_bytes(json.dumps(asdict(found)).encode(), manifest.folder, _FILE)
    return found


def _measured(storage: Storage, manifest: shards.Manifest) -> tuple[features.Features, schema.Labels]:
    """Measure the training rows shard by shard: a data set may be larger than memory, its statistics not."""
    measured, labels = [], []
    for table in shards.tables(storage, manifest, "train"):
        measured.append(features.measure(schema.to_images(table[schema.IMAGE])))
        labels.append(schema.to_numbers(table[schema.LABEL], np.int32))
    return np.concatenate(measured), np.concatenate(labels)


def _parsed(text: str) -> Reference | None:
    """Read what was kept, None where it is not of this form: then it is measured again."""
    try:
        raw: dict[str, Any] = json.loads(text)
        raw |= {key: tuple(raw[key]) for key in ("names", "classes", "labels")}
        raw |= {key: tuple(map(tuple, raw[key])) for key in ("edges", "counts")}
        return Reference(**raw)
    except (ValueError, KeyError, TypeError):
        return None

"""Image statistics, such as mean and contrast, and their bins, that drift detection compares (any process).

They are kept with every logged request, so that drift can be told without keeping a single picture.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distml.data import schema, shards
from distml.data.schema import Images
from distml.storage import Storage
from distml.tasks import Targets

VERSION = 1
"""Of the definitions below; statistics of another version are not compared."""
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_FOREGROUND = 0.1  # of full intensity: above the noise of a black ground
_FULL = 255  # of a channel
_CHUNK_VALUES = 1 << 22  # pixel values of one step

Features = npt.NDArray[np.float32]


def names(shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Name the statistics of pictures of a shape (H, W, C), in the order of `measure`."""
    colours = ("red", "green", "blue") if shape[2] == 3 else ()
    regions = [f"intensity {row} {column}" for row in _ROWS[: shape[0]] for column in _COLUMNS[: shape[1]]]
    return ("mean intensity", "contrast", "foreground share", "sharpness", *colours, *regions)


def measure(images: Images) -> Features:
    """Measure pictures.

    Args:
        images: uint8 [N, H, W, C].

    Returns:
        float32 [N, K], one column per name; every value lies in [0, 1].
    """
    size = max(1, _CHUNK_VALUES // max(1, int(np.prod(images.shape[1:]))))
    chunks = [_measure(images[at : at + size]) for at in range(0, len(images), size)]
    height, width, depth = images.shape[1:]
    return np.concatenate([np.empty((0, len(names((height, width, depth)))), np.float32), *chunks])


def _measure(images: Images) -> Features:
    """Sum whole numbers and divide at the end: exact, and a third of the time that float32 pixels take."""
    count, height, width, depth = images.shape
    area, full = height * width, _FULL * depth
    light = _light(images)
    flat = light.reshape(count, -1)
    mean = _sums(flat) / area
    wide = flat.astype(np.float64)
    columns = [
        mean / full,
        np.sqrt(np.maximum(np.einsum("ij,ij->i", wide, wide) / area - mean * mean, 0)) / full,
        (flat > _FOREGROUND * full).mean(1),
        _sharpness(light) / full,
    ]
    if depth == 3:
        columns += [_sums(images[..., channel]) / (area * _FULL) for channel in range(3)]
    tops, lefts = _parts(height, len(_ROWS)), _parts(width, len(_COLUMNS))
    bands = np.add.reduceat(light, tops[:-1], axis=1, dtype=np.int64)
    regions = np.add.reduceat(bands, lefts[:-1], axis=2) / (np.outer(np.diff(tops), np.diff(lefts)) * full)
    return np.stack([*columns, *regions.reshape(count, -1).T], axis=1).astype(np.float32)


def _light(images: Images) -> npt.NDArray[np.signedinteger]:
    """Sum the channels of each pixel: integers [N, H, W], of 16 bits where these are enough."""
    depth = images.shape[3]
    kind = np.int16 if _FULL * depth <= np.iinfo(np.int16).max else np.int32
    light: npt.NDArray[np.signedinteger] = images[..., 0].astype(kind)
    for channel in range(1, depth):
        np.add(light, images[..., channel], out=light)
    return light


def _sums(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    sums: npt.NDArray[np.int64] = values.reshape(len(values), -1).sum(1, dtype=np.int64)
    return sums


def _sharpness(light: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean difference between neighbours, down and across; 0 for one pixel."""
    means = [
        _sums(np.abs(difference)) / (difference.shape[1] * difference.shape[2])
        for difference in (light[:, 1:] - light[:, :-1], light[:, :, 1:] - light[:, :, :-1])
        if difference.size
    ]
    return np.mean(means, axis=0) if means else np.zeros(len(light))


def _parts(length: int, most: int) -> npt.NDArray[np.int64]:
    """Bounds of equal parts of a side, the first the longest, as `np.array_split` cuts; [parts + 1]."""
    lengths = [len(part) for part in np.array_split(np.empty(length), min(most, length))]
    return np.cumsum([0, *lengths])


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
        classes: Names of the bins of targets.
        labels: Training rows by bin, see `Task.mix`.
    """

    digest: str
    version: int
    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    counts: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...]
    labels: tuple[int, ...]

    @classmethod
    def of(cls, manifest: shards.Manifest, measured: Features, labels: Targets) -> Self:
        """Count measured rows.

        Args:
            manifest: Of the data.
            measured: float32 [N, K].
            labels: Targets of the task.
        """
        bins = [edges(column) for column in measured.T]
        return cls(
            digest=manifest.digest,
            version=VERSION,
            names=names(manifest.shape),
            edges=tuple(tuple(map(float, bounds)) for bounds in bins),
            counts=tuple(
                tuple(count(column, bounds).tolist()) for column, bounds in zip(measured.T, bins, strict=True)
            ),
            classes=manifest.task.mix_names,
            labels=tuple(manifest.task.mix(labels).tolist()),
        )


def edges(column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
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
        known = (manifest.digest, VERSION, manifest.task.mix_names)
        if kept and (kept.digest, kept.version, kept.classes) == known:
            return kept
    reference = Reference.of(manifest, *_measured(storage, manifest))
    storage.write_bytes(json.dumps(asdict(reference)).encode(), manifest.folder, _FILE)
    return reference


def _measured(storage: Storage, manifest: shards.Manifest) -> tuple[Features, Targets]:
    """Measure the training rows shard by shard: a data set may be larger than memory, its statistics not."""
    measured, labels = [], []
    for table in shards.tables(storage, manifest, "train"):
        images = schema.centred(schema.to_images(table[schema.IMAGE]), manifest.shape[:2])
        measured.append(measure(images))
        labels.append(schema.to_targets(table[schema.LABEL]))
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

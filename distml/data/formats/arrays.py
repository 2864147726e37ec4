"""Arrays in memory become a source (driver)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distml.data.source import Origin, Source, encode, of_arrays, to_nhwc
from distml.errors import DataError


def of_splits(
    parts: Mapping[str, tuple[Any, Any]], names: Any, origins: tuple[Origin, ...], where: str
) -> Source:
    """Check and number the arrays of all splits.

    Args:
        parts: Images and labels by split.
        names: Class names by label, None to take the labels themselves.
        origins: Where the bytes came from.
        where: Said in errors.

    Raises:
        DataError: No train, or arrays that do not fit together.
    """
    if "train" not in parts:
        raise DataError(f"{where} has no train.")
    images = {split: to_nhwc(x, f"{where} {split}") for split, (x, _) in parts.items()}
    shapes = {x.shape[1:] for x in images.values()}
    if len(shapes) > 1:
        raise DataError(f"{where}: the splits have different shapes {sorted(shapes)}.")
    for split, (x, y) in parts.items():
        if len(x) != len(y) or not len(x):
            raise DataError(f"{where}: {split} has {len(x)} images and {len(y)} labels.")
    classes, labels = encode({split: y for split, (_, y) in parts.items()}, names)
    height, width, depth = shapes.pop()
    rows = {split: of_arrays(images[split], labels[split]) for split in parts}
    return Source((height, width, depth), classes, rows, origins)

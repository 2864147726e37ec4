"""What of a picture is compared between training and serving: a few plain statistics (any process).

They are kept with every logged request, so that drift can be told without keeping a single picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distml.data.schema import Images, normalise

VERSION = 1
"""Of the definitions below; statistics of another version are not compared."""
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
_FOREGROUND = 0.1  # of full intensity: above the noise of a black ground
_CHUNK_VALUES = 1 << 22  # pixel values held as float32 at once

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
    values = normalise(images)
    light = values.mean(3)
    edges = [np.abs(np.diff(light, axis=axis)).mean((1, 2)) for axis in (1, 2) if light.shape[axis] > 1]
    columns = [
        light.mean((1, 2)),
        light.std((1, 2)),
        (light > _FOREGROUND).mean((1, 2)),
        np.mean(edges, axis=0) if edges else np.zeros(len(light)),
    ]
    if values.shape[3] == 3:
        columns += [values[..., channel].mean((1, 2)) for channel in range(3)]
    for band in np.array_split(light, min(len(_ROWS), light.shape[1]), axis=1):
        columns += [
            region.mean((1, 2)) for region in np.array_split(band, min(len(_COLUMNS), band.shape[2]), axis=2)
        ]
    return np.stack(columns, axis=1).astype(np.float32)

"""A folder of pictures, one folder per class, optionally below train/, validation/ and test/ (driver).

The first picture decides the shape. All must have its size: scaling or cropping is the user's choice to make,
once, not ours to make silently. Gray pictures in a coloured set are widened; coloured ones in a gray set are
refused.
"""

from __future__ import annotations

import logging
from pathlib import PurePosixPath

import numpy as np

from distml.data.folder import PICTURES, Folder, divide, split_of
from distml.data.rows import Indices, Rows, Source, encode
from distml.data.schema import Images, Labels, channels, decode, to_shape
from distml.errors import DataError

_LOG = logging.getLogger(__name__)


def open_pictures(folder: Folder) -> Source:
    """List the pictures and number their classes; only the first one is decoded.

    Raises:
        DataError: No pictures, or one outside a class folder.
    """
    names = [name for name in folder.sizes if PurePosixPath(name).suffix.lower() in PICTURES]
    if not names:
        raise DataError(f"{folder.root} holds no pictures.", f"Known are {', '.join(PICTURES)}.")
    if len(names) < len(folder.sizes):
        left = sorted(set(folder.sizes) - set(names))
        _LOG.warning("%d files are left out, like %s", len(left), left[0])
    divided = divide(names)
    depth = int(all(split_of(name) for name in names))  # of the class folders
    labels = {s: np.array([_class_of(name, depth) for name in found]) for s, found in divided.items()}
    classes, numbers = encode(labels)
    shape = _shape(folder, divided["train"][0])
    splits = {split: _rows(folder, found, numbers[split], shape) for split, found in divided.items()}
    return Source(shape, classes, splits, (folder.origin(),))


def _class_of(name: str, depth: int) -> str:
    parts = PurePosixPath(name).parts[depth:]
    if len(parts) < 2:
        raise DataError(f"{name} lies outside a class folder.", "Lay the data out as CLASS/PICTURE.")
    return parts[0]


def _shape(folder: Folder, name: str) -> tuple[int, int, int]:
    image = decode(folder.read(name), name)
    return image.height, image.width, channels(image)


def fitted(data: bytes, name: str, shape: tuple[int, int, int]) -> Images:
    """Decode one picture of a set as uint8 [H, W, C].

    Raises:
        DataError: Not a picture, of another size, or coloured in a gray set.
    """
    image = decode(data, name)
    if (image.height, image.width) != shape[:2]:
        size, expected = f"{image.width}x{image.height}", f"{shape[1]}x{shape[0]}"
        raise DataError(f"{name} is {size}, the first picture is {expected}.", "Bring all to one size.")
    if channels(image) > shape[2]:
        raise DataError(f"{name} is in colour, the first picture is gray.", "Convert one or the other.")
    return to_shape(image, shape)


def _rows(folder: Folder, names: list[str], labels: Labels, shape: tuple[int, int, int]) -> Rows:
    def gather(indices: Indices) -> Images:
        images = np.empty((len(indices), *shape), np.uint8)
        for at, index in enumerate(indices):
            images[at] = fitted(folder.read(names[index]), names[index], shape)
        return images

    return Rows(labels, gather)

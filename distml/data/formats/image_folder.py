"""A folder of pictures, one folder per class, optionally below train/, validation/ and test/ (driver).

Every header is looked at before anything is decoded: sizes and colours decide the shape of the images where
the configuration leaves it open, and what is no picture is named at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from distml.config import DataConfig
from distml.data import image
from distml.data.image import SUFFIXES, Policy
from distml.data.listing import Folder, divide, split_of
from distml.data.schema import Images, Labels
from distml.data.source import Indices, Rows, Source, encode
from distml.errors import ConfigError, DataError

_LOG = logging.getLogger(__name__)

OWN_SIDE = 256
"""Pictures that all have one size keep it up to this side."""
SIDE = 224
"""Side of the images where sizes differ or are larger: what most pretrained networks were trained on."""
_HEAD_BYTES = 1 << 16
_READERS = 8


@dataclass(frozen=True)
class Header:
    """What a picture says about itself.

    Args:
        width: As it is looked at.
        height: As it is looked at.
        channels: 1 or 3.
    """

    width: int
    height: int
    channels: int


def header(data: bytes, name: str, max_pixels: int) -> Header:
    """Read a picture's header.

    Raises:
        DataError: No picture, or too large.
    """
    opened = image.open_picture(data, name, max_pixels)
    return Header(*image.upright_size(opened), image.channels(opened))


def policy(headers: Sequence[Header], data: DataConfig) -> Policy:
    """Decide the shape of the images from the configuration and, where it says auto, from the pictures."""
    sizes = {(one.height, one.width) for one in headers}
    if isinstance(data.image_size, tuple):
        height, width = data.image_size
    elif data.image_size != "auto":
        height = width = data.image_size
    elif len(sizes) == 1 and max(max(sizes)) <= OWN_SIDE:
        height, width = sizes.pop()
    else:
        height = width = SIDE
    depth = max(one.channels for one in headers) if data.channels == "auto" else data.channels
    return Policy((height, width, depth), data.fit, data.background)


def refitted(source: Source, data: DataConfig) -> Source:
    """Bring arrays to the size and the channels that are asked for; pictures have them already.

    Raises:
        ConfigError: A size or channels for images of neither one nor three channels.
    """
    height, width, depth = source.shape
    if data.image_size != "auto":
        height, width = data.image_size if isinstance(data.image_size, tuple) else (data.image_size,) * 2
    depth = depth if data.channels == "auto" else data.channels
    plain = DataConfig()
    asked = (height, width, depth) != source.shape
    if source.policy is not None or not (
        asked or (data.fit, data.background) != (plain.fit, plain.background)
    ):
        return source
    if source.shape[2] not in (1, 3):
        raise ConfigError(
            f"the images have {source.shape[2]} channels and cannot be fitted.",
            "Leave out data.image_size, data.channels, data.fit and data.background.",
        )
    wanted = Policy((height, width, depth), data.fit, data.background)
    splits = {split: _refitted(rows, wanted) if asked else rows for split, rows in source.splits.items()}
    return replace(source, shape=wanted.shape, splits=splits, policy=wanted)


def _refitted(rows: Rows, wanted: Policy) -> Rows:
    return Rows(rows.labels, lambda indices: image.refit(rows.gather(indices), wanted))


def open_pictures(folder: Folder, data: DataConfig) -> Source:
    """List the pictures, number their classes and look at every header.

    Raises:
        DataError: No pictures, one outside a class folder, or files that are none.
    """
    names = [name for name in folder.sizes if PurePosixPath(name).suffix.lower() in SUFFIXES]
    if not names:
        raise DataError(f"{folder.root} holds no pictures.", f"Known are {', '.join(SUFFIXES)}.")
    if len(names) < len(folder.sizes):
        left = sorted(set(folder.sizes) - set(names))
        _LOG.warning("%d files are left out, like %s", len(left), left[0])
    divided = divide(names)
    depth = int(all(split_of(name) for name in names))  # of the class folders
    labels = {s: np.array([_class_of(name, depth) for name in found]) for s, found in divided.items()}
    classes, numbers = encode(labels)
    fitted = policy(_survey(folder, names, data.max_pixels), data)
    splits = {
        split: _rows(folder, found, numbers[split], fitted, data.max_pixels)
        for split, found in divided.items()
    }
    return Source(fitted.shape, classes, splits, (folder.origin(),), fitted)


def _class_of(name: str, depth: int) -> str:
    parts = PurePosixPath(name).parts[depth:]
    if len(parts) < 2:
        raise DataError(f"{name} lies outside a class folder.", "Lay the data out as CLASS/PICTURE.")
    return parts[0]


def _survey(folder: Folder, names: Sequence[str], max_pixels: int) -> list[Header]:
    """Look at every header; all files that have none are named together."""

    def look(name: str) -> Header | DataError:
        try:
            with folder.open(name) as stream:
                head = bytes(stream.read(_HEAD_BYTES))
                try:
                    return header(head, name, max_pixels)
                except DataError:  # a header may stand behind a long profile
                    return header(head + bytes(stream.read()), name, max_pixels)
        except DataError as error:
            return error

    with ThreadPoolExecutor(_READERS) as readers:
        looked = list(readers.map(look, names))
    errors = [one for one in looked if isinstance(one, DataError)]
    if errors:
        raise together(errors, len(names))
    return [one for one in looked if isinstance(one, Header)]


def together(errors: Sequence[DataError], looked_at: int) -> DataError:
    """Make one error of several: the first whole, the next ones by their sentence, the rest by number."""
    if len(errors) == 1:
        return errors[0]
    shown = "".join(f"\n- {error.message}" for error in errors[:20])
    more = f"\n- and {len(errors) - 20} more" if len(errors) > 20 else ""
    return DataError(
        f"{len(errors)} of {looked_at} pictures cannot be used:{shown}{more}\n", "Mend or remove them."
    )


def _rows(folder: Folder, names: Sequence[str], labels: Labels, fitted: Policy, max_pixels: int) -> Rows:
    def gather(indices: Indices) -> Images:
        images = np.empty((len(indices), *fitted.shape), np.uint8)
        errors = []
        for into, index in zip(images, indices, strict=True):
            try:
                into[...] = image.read(folder.read(names[index]), fitted, names[index], max_pixels)
            except DataError as error:
                errors.append(error)
        if errors:
            raise together(errors, len(indices))
        return images

    return Rows(labels, gather)

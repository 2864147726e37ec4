"""Which shape the images of a data set get, from the configuration and the pictures themselves (driver)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from distml.config import DataConfig
from distml.data import image
from distml.data.image import Policy
from distml.data.source import Gathered, Indices, Rows, Source
from distml.errors import ConfigError

OWN_SIDE = 256
"""Pictures that all have one size keep it up to this side."""
SIDE = 224
"""Side of the images where sizes differ or are larger: what most pretrained networks were trained on."""


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


def policy(headers: Collection[Header], data: DataConfig) -> Policy:
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
    def gather(indices: Indices) -> Gathered:
        given = rows.gather(indices)
        return Gathered(image.refit(given.images, wanted), given.faults)

    return Rows(rows.labels, gather, rows.name)

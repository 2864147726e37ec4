"""A person's own picture files, of any size and mode, as a model wants them (driver)."""

from __future__ import annotations

from collections.abc import Sequence

from distml.data import schema
from distml.errors import DataError

MAX_FILE_BYTES = 64 << 20
MAX_PIXELS = 80_000_000
"""Below the size at which Pillow suspects a bomb; the endpoint, which strangers use, takes far less."""


def read(path: str, shape: tuple[int, int, int]) -> schema.Images:
    """Read one picture of any size and mode as the model wants it.

    Args:
        path: A PNG, JPEG, BMP, GIF or WEBP file.
        shape: (H, W, C).

    Returns:
        uint8 [H, W, C].

    Raises:
        DataError: Unreadable, not a picture, or far too large.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {cause}.", "Give existing picture files.") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes.", "Scale it down.")
    return schema.to_shape(schema.decode(data, path, MAX_PIXELS), shape)


def read_all(
    files: Sequence[str], shape: tuple[int, int, int]
) -> tuple[dict[str, schema.Images], list[dict[str, str]]]:
    """Read what can be read.

    Returns:
        The images by file, and `file` and `error` of each that could not be read.
    """
    images: dict[str, schema.Images] = {}
    failed = []
    for file in dict.fromkeys(files):
        try:
            images[file] = read(file, shape)
        except DataError as error:
            failed.append({"file": file, "error": str(error)})
    return images, failed

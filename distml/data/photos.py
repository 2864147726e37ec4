"""A person's own picture files, of any size and mode, as a model wants them (driver)."""

from __future__ import annotations

from collections.abc import Sequence

from distml.data import image
from distml.data.image import Images, Policy
from distml.errors import DataError

MAX_FILE_BYTES = 64 << 20


def read(path: str, policy: Policy) -> Images:
    """Read one picture of any size and mode as the model wants it.

    Args:
        path: A picture file.
        policy: How the model had its pictures fitted.

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
    return image.read(data, policy, path)


def read_all(files: Sequence[str], policy: Policy) -> tuple[dict[str, Images], list[dict[str, str]]]:
    """Read what can be read.

    Returns:
        The images by file, and `file` and `error` of each that could not be read.
    """
    images: dict[str, Images] = {}
    failed = []
    for file in dict.fromkeys(files):
        try:
            images[file] = read(file, policy)
        except DataError as error:
            failed.append({"file": file, "error": str(error)})
    return images, failed

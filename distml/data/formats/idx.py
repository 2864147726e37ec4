"""The IDX format of the MNIST family: bytes in, a checked array out (driver)."""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib

import numpy as np

from distml.data.schema import Images
from distml.errors import DataError

_UNSIGNED_BYTES = 0x0800  # third byte: element type; fourth: number of dimensions


def gunzip(name: str, data: bytes, limit: int | None = None) -> bytes:
    """Decompress a whole gzip file and check its CRC and length.

    Args:
        name: Named in the error.
        data: The compressed file.
        limit: Most bytes accepted; more is refused without being decompressed.

    Raises:
        DataError: Truncated, damaged, no gzip, or larger than `limit`.
    """
    try:
        if not data:  # which gzip takes for a file of no members
            raise EOFError("it is empty")
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            content = stream.read(-1 if limit is None else limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} is damaged: {error} ({len(data):,} bytes).", "Fetch it again.") from None
    if limit is not None and len(content) > limit:
        raise DataError(f"{name} is damaged: it holds more than the expected {limit:,} bytes.")
    return content


def parse(name: str, content: bytes, dims: tuple[int, ...]) -> Images:
    """Read IDX content.

    Args:
        name: Named in the error.
        content: The file, decompressed.
        dims: Accepted numbers of dimensions.

    Returns:
        uint8 array of the shape that the header says; a view on `content`.

    Raises:
        DataError: Another magic number, or a header whose sizes differ from the bytes that follow.
    """
    expected = " or ".join(f"0x{_UNSIGNED_BYTES + n:08x}" for n in dims)
    magic = int.from_bytes(content[:4], "big")
    rank = magic - _UNSIGNED_BYTES
    if len(content) < 4 or rank not in dims:
        raise DataError(f"{name}: the IDX magic number is 0x{magic:08x}, expected {expected}.")
    if len(content) < 4 + 4 * rank:
        raise DataError(f"{name}: the IDX header is cut off after {len(content)} bytes.")
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    present = len(content) - 4 - 4 * rank
    if math.prod(shape) != present:
        sizes = " x ".join(f"{size}" for size in shape)
        raise DataError(
            f"{name}: the header says {sizes} = {math.prod(shape):,} bytes, but {present:,} follow."
        )
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)

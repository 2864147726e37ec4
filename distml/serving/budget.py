"""What decoding a picture may cost, told from its bytes before it is decoded (replica).

A small file can hold much work: pixels that compress to nothing, a progressive JPEG of a thousand scans, a
PNG in chunks of no length. Work is counted in pixels times passes over them, and may grow with the bytes that
were sent, so that what strangers send in 200 kB costs a thread half a second at most.
"""

from __future__ import annotations

from PIL import Image

from distml.errors import DataError

_FREE = 25_000_000
"""Pixels times passes that anybody may ask for, however few bytes they take."""
_PER_BYTE = 200
"""Further ones for each byte: a real progressive photograph takes some 30."""
_PASSES = {"JPEG": 1, "MPO": 1, "AVIF": 4}
"""Of other formats 2. Seconds for an empty picture of 50 megapixels on a core of the reference machine: JPEG
0.02, and as much a scan; PNG 0.8, WebP 0.9, GIF 0.6."""
_CHUNKS, _BYTES_PER_CHUNK = 1024, 1024
"""Chunks that any PNG may have; encoders write 8 kB and more into each."""
_START_OF_SCAN = b"\xff\xda"


def require_cheap(data: bytes, picture: Image.Image, name: str) -> None:
    """Reject a picture whose decoding would take far longer than its size lets expect.

    Args:
        data: The encoded picture.
        picture: As opened, not decoded.
        name: Said in errors.

    Raises:
        DataError: It is such a picture.
    """
    if picture.format == "PNG":
        _require_few_chunks(data, name)
    scans = data.count(_START_OF_SCAN) if picture.format in ("JPEG", "MPO") else 1
    work = picture.width * picture.height * max(1, scans) * _PASSES.get(picture.format or "", 2)
    if work > _FREE + _PER_BYTE * len(data):
        what = f"{picture.width}x{picture.height} pixels" + f" in {scans} scans" * (scans > 1)
        raise DataError(
            f"{name} holds {what} in {len(data):,} bytes, which would take too long to decode.",
            "Scale it down, or save it again as a baseline JPEG.",
        )


def _require_few_chunks(data: bytes, name: str) -> None:
    left, at = _CHUNKS + len(data) // _BYTES_PER_CHUNK, 8
    while at + 8 <= len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        left -= 1
        if left < 0:
            raise DataError(f"{name} is a PNG of too many chunks.", "Save it again.")

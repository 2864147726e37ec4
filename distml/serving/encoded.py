"""Encoded pictures of a request as images, with bounded work (replica)."""

from __future__ import annotations

import asyncio
import binascii
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from distml.data import image
from distml.data.image import Images, Policy
from distml.errors import DataError
from distml.serving.exchange import RejectedError
from distml.serving.strict import kind

MAX_IMAGE_PIXELS = 1_000_000
"""A larger picture is refused before it is decoded."""
MAX_TOTAL_PIXELS = 16 * MAX_IMAGE_PIXELS
"""Over all pictures of a request: some hundred kilobytes of blank ones could keep a core busy for seconds."""
_INLINE_BYTES = 16_384
"""Up to this size decoding takes less time than handing it to a thread and back takes on a busy loop."""
_TEXT_BYTES = 65_536
_URL_SAFE = str.maketrans("-_", "+/")


def bound() -> None:
    """Make Pillow refuse large texts and colour profiles inside a PNG; by default it unpacks up to 64 MiB.

    What is refused anyway is not warned of, either: strangers could fill the log with it.
    """
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    PngImagePlugin.MAX_TEXT_CHUNK = _TEXT_BYTES
    PngImagePlugin.MAX_TEXT_MEMORY = _TEXT_BYTES


def unwrap(value: Any, where: str) -> bytes:
    """Decode `{"b64": "…"}`.

    Raises:
        RejectedError: 400, another object or not base64.
    """
    if not isinstance(value, dict) or value.keys() != {"b64"} or not isinstance(value["b64"], str):
        found = (
            f"an object with the keys {sorted(value)[:5]}" if isinstance(value, dict) else f"{kind(value)}"
        )
        raise RejectedError(400, f'{where} is {found}, not {{"b64": "…"}}')
    return plain(value["b64"], f"{where}.b64")


def plain(text: str, where: str) -> bytes:
    """Decode base64 as its writers have it: with line breaks, URL-safe, without padding, as a `data:` URI.

    Raises:
        RejectedError: 400, it is none.
    """
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, binascii.Error):
        return _lenient(text, where)


def _lenient(text: str, where: str) -> bytes:
    """Decode what is not in base64's first form (RFC 4648, 4): Ruby, Java MIME, the shell and browsers."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RejectedError(400, f"{where} is a data: URI without ';base64,'")
    text = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return binascii.a2b_base64((text + "=" * (-len(text) % 4)).encode("ascii"), strict_mode=True)
    except (ValueError, binascii.Error) as error:
        cause = "it holds other characters" if isinstance(error, UnicodeError) else str(error).lower()
        raise RejectedError(400, f"{where} is not base64: {cause}") from None


def example(pixels: Any) -> dict[str, str]:
    """Encode an image, uint8 [H, W, C], as `{"b64": "…"}`."""
    stream = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(stream, "PNG")
    return {"b64": binascii.b2a_base64(stream.getvalue(), newline=False).decode()}


async def images(files: Sequence[bytes], policy: Policy, names: Sequence[str]) -> Images:
    """Decode pictures and fit them to the model.

    Args:
        files: Pictures of any format that `distml.data.image` reads.
        policy: How the model had its pictures fitted.
        names: What each is called, said in rejections.

    Returns:
        uint8 [N, H, W, C].

    Raises:
        RejectedError: 400, the first that is damaged, too large or no picture.
    """
    try:
        if sum(map(len, files)) <= _INLINE_BYTES and len(files) <= 1:
            return _decode(files, policy, names)
        return await asyncio.to_thread(_decode, files, policy, names)
    except DataError as error:
        raise RejectedError(400, str(error)) from None


def _decode(files: Sequence[bytes], policy: Policy, names: Sequence[str]) -> Images:
    decoded = np.empty((len(files), *policy.shape), np.uint8)
    left = MAX_TOTAL_PIXELS
    for index, (data, called) in enumerate(zip(files, names, strict=True)):
        opened = image.open_picture(data, called, MAX_IMAGE_PIXELS)
        left -= opened.width * opened.height
        if left < 0:
            limit = f"{MAX_TOTAL_PIXELS:,} pixels"
            raise DataError(f"the pictures together hold more than {limit}.", "Send fewer at a time.")
        decoded[index] = image.fit(opened, policy, called)
    return decoded

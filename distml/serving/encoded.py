"""Decodes picture files of a request: JPEG, PNG and others, base64, multipart forms, with limits (replica).

Starlette's form parser is not used. Read in 1.10.0, it takes a form that ends before its last boundary for a
complete one and leaves out the last file, limits no file, and writes those of more than 1 MB into a temporary
file by a thread of its pool. Best of 30, in ms, ours and its: one file of 30 KB 0.029 and 0.058, ten 0.23 and
0.30, one of 3 MB 0.8 and 2.5. Its own parser is the one used here (python-multipart).
"""

from __future__ import annotations

import asyncio
import binascii
import io
import logging
import re
import warnings
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, PngImagePlugin
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from distml.config import ServeConfig
from distml.data import image, plausible
from distml.data.image import Images, Policy
from distml.errors import DataError
from distml.serving.exchange import RejectedError, json_type

_FREE = 25_000_000
"""Pixels times passes that a request may need, however few bytes it has."""
_PER_BYTE = 200
"""Further pixels times passes for each byte: a real progressive photograph takes some 30."""
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


Decode = Callable[[Sequence[bytes], Policy, Sequence[str]], Awaitable[Images]]
"""`Decoder.images`."""
_INLINE_BYTES = 16_384
"""Up to this size decoding takes less time than handing it to a thread and back takes on a busy loop."""
_ANY_SIZE = 1 << 62
_INLINE_PIXELS = 250_000
_TEXT_BYTES = 65_536
_ADDRESS = re.compile(r"\s*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_ESCAPED = re.compile("%(2B|2F|3D|0A|0D)", re.IGNORECASE)
_URL_SAFE = str.maketrans("-_", "+/")


def bound() -> None:
    """Make Pillow refuse large texts and colour profiles inside a PNG; by default it unpacks up to 64 MiB.

    What is rejected anyway is not warned of, either: clients could flood the log.
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
        shown = (
            f"an object with the keys {sorted(value)[:5]}"
            if isinstance(value, dict)
            else f"{json_type(value)}"
        )
        raise RejectedError(400, f'{where} is {shown}, not {{"b64": "…"}}')
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
        text = unquote(text)  # it is a URL
    if _ADDRESS.match(text):
        raise RejectedError(400, f"{where} is an address, which is not fetched; send the picture's bytes")
    if text[:2] in ("b'", 'b"'):
        raise RejectedError(400, f"{where} is Python's way to print bytes; send what .decode() gives")
    if _ESCAPED.search(text):
        raise RejectedError(400, f"{where} is percent-encoded, as in a form or URL; send it as JSON")
    given, text = text.strip(), "".join(text.split())
    if "\n" not in given and len(text) % 4 and len(given) % 4 == 0:
        raise RejectedError(400, f"{where} has spaces for '+', as a form or URL decodes it; send it as JSON")
    text = text.translate(_URL_SAFE).rstrip("=")
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


class Decoder:
    """Decodes pictures in threads of its own, within a time limit. Final.

    Args:
        serve: The section of the configuration.
    """

    def __init__(self, serve: ServeConfig) -> None:
        self._max_pixels, self._limit_s = serve.max_pixels, serve.request_timeout_s
        self._threads = ThreadPoolExecutor(max(1, round(serve.cpus_per_replica)), "decoding")

    async def images(self, files: Sequence[bytes], policy: Policy, names: Sequence[str]) -> Images:
        """Decode pictures and fit them to the model.

        Args:
            files: Pictures of any format that `distml.data.image` reads.
            policy: How the model had its pictures fitted.
            names: What each is called, said in rejections.

        Returns:
            uint8 [N, H, W, C].

        Raises:
            RejectedError: 400, the first that is damaged, too large or no picture; 504, others take the
                threads for too long.
        """
        try:
            if len(files) == 1 and len(files[0]) <= _INLINE_BYTES:
                opened = self._open(files[0], names[0], self._max_pixels)
                if opened.width * opened.height <= _INLINE_PIXELS:
                    plausible.NOTED.set(plausible.unused([image.unused_bits(opened)]))
                    return image.fit(opened, policy, names[0])[None]
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(self._limit_s):
                decoded, bits = await loop.run_in_executor(self._threads, self._decode, files, policy, names)
            plausible.NOTED.set(plausible.unused(bits))
            return decoded
        except DataError as error:
            raise RejectedError(400, str(error)) from None
        except TimeoutError:
            sentence = f"the pictures were not decoded within {self._limit_s:g} s; send fewer, or retry"
            raise RejectedError(504, sentence, (b"retry-after", b"1")) from None

    def _decode(
        self, files: Sequence[bytes], policy: Policy, names: Sequence[str]
    ) -> tuple[Images, list[int]]:
        bits = []
        decoded = np.empty((len(files), *policy.shape), np.uint8)
        left = self._max_pixels
        for index, (data, called) in enumerate(zip(files, names, strict=True)):
            opened = self._open(data, called, left)
            left -= opened.width * opened.height
            bits.append(image.unused_bits(opened))
            decoded[index] = image.fit(opened, policy, called)
        return decoded, bits

    def _open(self, data: bytes, called: str, left: int) -> Image.Image:
        """Read a picture's header; reject what costs too much or has more pixels than are `left`."""
        opened = image.open_picture(data, called, _ANY_SIZE)  # the sentence below names the key to raise
        pixels, limit = opened.width * opened.height, f"{self._max_pixels:,}"
        if pixels > self._max_pixels:
            raise DataError(
                f"{called} has {pixels:,} pixels, more than {limit}.",
                "Scale it down, or raise serve.max_pixels.",
            )
        if pixels > left:
            raise DataError(
                f"the pictures together have more than {limit} pixels.",
                "Send fewer at a time, or raise serve.max_pixels.",
            )
        require_cheap(data, opened, called)
        return opened


MAX_PARTS = 1024
_EXTENDED = re.compile(rb"filename\*\s*=\s*[\w-]*'[^';]*'([^;\s]+)", re.I)


@dataclass(slots=True)
class _Part:
    header: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    headers: dict[str, bytes] = field(default_factory=dict)
    content: bytearray = field(default_factory=bytearray)


def form_files(body: bytes, kind: bytes) -> tuple[list[bytes], list[str]]:
    """Return the content and the name of every picture in a form; text fields mean nothing here.

    A part is a picture when it has a file name, or says that it is one by its content type.

    Args:
        body: Of type multipart/form-data.
        kind: Its content type, with the boundary.

    Raises:
        RejectedError: 400, not a form, or without a picture.
    """
    boundary = parse_options_header(kind)[1].get(b"boundary")
    if not boundary:
        raise RejectedError(400, "the content type multipart/form-data names no boundary")
    parts = _parts(body[max(body.find(b"--" + boundary), 0) :], boundary)  # a preamble is no part (RFC 2046)
    described = [(part, _described(part)) for part in parts]
    pictures = [(part, name) for part, (name, picture) in described if picture]
    if not pictures:
        fields = ", ".join(name for _, (name, _) in described[:5])
        raise RejectedError(400, "the form holds no file" + (f"; its fields are {fields}" if fields else ""))
    return [_content(part, name) for part, name in pictures], [name for _, name in pictures]


def _content(part: _Part, name: str) -> bytes:
    """What a part holds; base64 where it says so, as clients do that make e-mails of the same parts."""
    coding = part.headers.get("content-transfer-encoding", b"").strip().lower()
    return plain(part.content.decode("latin-1"), name) if coding == b"base64" else bytes(part.content)


def _parts(body: bytes, boundary: bytes) -> list[_Part]:
    parts: list[_Part] = []
    ended = False

    def begin() -> None:
        if len(parts) == MAX_PARTS:
            raise RejectedError(400, f"the form holds more than {MAX_PARTS} files")
        parts.append(_Part())

    def header() -> None:
        part = parts[-1]
        part.headers[part.header.decode("latin-1").lower()] = bytes(part.value)
        part.header.clear()
        part.value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": lambda data, start, stop: parts[-1].header.extend(data[start:stop]),
                "on_header_value": lambda data, start, stop: parts[-1].value.extend(data[start:stop]),
                "on_header_end": header,
                "on_part_data": lambda data, start, stop: parts[-1].content.extend(data[start:stop]),
                "on_end": end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RejectedError(400, f"the body is not a form: {error}") from None
    if not ended:
        raise RejectedError(400, "the form ends before its last boundary")
    return parts


def _described(part: _Part) -> tuple[str, bool]:
    """What to call a part, and whether it is a picture; a field without a chosen file is none."""
    header = part.headers.get("content-disposition", b"")
    options = parse_options_header(header)[1]
    kind = part.headers.get("content-type", b"").strip().lower()
    named = options.get(b"filename") or _extended(header)
    called = named or options.get(b"name", b"")
    chosen = b"filename" in options or named or kind.startswith((b"image/", b"application/octet-stream"))
    return repr(called.decode("utf-8", "replace")[:80]), bool(chosen and (named or part.content))


def _extended(header: bytes) -> bytes:
    """The file name in RFC 5987's form alone: `filename*=utf-8''gr%C3%B6%C3%9Fe.png`."""
    given = _EXTENDED.search(header)
    return unquote_to_bytes(given[1]) if given else b""

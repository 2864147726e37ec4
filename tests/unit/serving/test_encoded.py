"""Encoded pictures are decoded alike everywhere, and no request makes the endpoint work for long."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from distml.config import ServeConfig
from distml.data import image
from distml.data.image import Policy
from distml.serving import encoded
from distml.serving.exchange import RejectedError
from tests import malformed

SHAPE = (28, 28, 1)
CONFIG = ServeConfig(max_pixels=16_000_000)


def decode(files: list[bytes], shape: tuple[int, int, int] = SHAPE) -> Any:
    """The images of some files."""
    return asyncio.run(
        encoded.Decoder(CONFIG).images(files, Policy(shape), [f"file {index}" for index in range(len(files))])
    )


def test_images_of_requests_are_fitted_as_in_training() -> None:
    files = [
        malformed.picture("PNG", (40, 30)),
        malformed.picture("JPEG", (28, 28)),
        malformed.picture("WEBP", (9, 9)),
    ]
    for shape in (SHAPE, (10, 12, 3)):
        expected = [image.read(data, Policy(shape)) for data in files]
        np.testing.assert_array_equal(decode(files, shape), expected)
        np.testing.assert_array_equal(decode(files[:1], shape), expected[:1])


def test_the_first_bad_file_is_named() -> None:
    with pytest.raises(RejectedError, match="file 1 is not a readable picture"):
        decode([malformed.picture("PNG"), b"x", b"y"])


def test_too_many_large_images_are_rejected_together() -> None:
    large = malformed.picture("PNG", (1000, 1000))
    assert len(decode([large] * 16)) == 16
    with pytest.raises(RejectedError, match="the pictures together have more than 16,000,000 pixels"):
        decode([large] * 17)


def test_a_picture_too_large_names_the_key_to_raise() -> None:
    with pytest.raises(RejectedError, match=r"file 0 has 16,008,000 pixels.*raise serve.max_pixels"):
        decode([encode(Image.new("L", (4002, 4000)), "JPEG")])


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan is sent again and again."""
    data = encode(Image.new("L", (3000, 2000), 90), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


def chunks(count: int) -> bytes:
    """A PNG with empty chunks of text."""
    data = encode(Image.new("L", (28, 28), 90), "PNG")
    empty = struct.pack(">I", 0) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    return data[:33] + empty * count + data[33:]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: scans(500), "3000x2000 pixels in 50. scans"),
        (lambda: chunks(20_000), "is a PNG of too many chunks"),
        (lambda: encode(Image.new("RGB", (4000, 3990)), "AVIF", speed=10), "4000x3990 pixels in"),
    ],
    ids=["scans", "chunks", "AVIF"],
)
def test_a_small_file_with_many_pixels_is_rejected_at_once(make: Callable[[], bytes], said: str) -> None:
    data = make()
    began = time.process_time()
    with pytest.raises(RejectedError, match=said):
        decode([data])
    assert time.process_time() - began < 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda: encode(Image.new("RGB", (4032, 3024), (90, 90, 90)), "JPEG"),
        lambda: encode(Image.new("RGB", (4032, 3024), (90, 90, 90)), "PNG"),
        lambda: encode(Image.effect_noise((3000, 2000), 60), "JPEG", progressive=True, quality=90),
        lambda: chunks(900),
    ],
    ids=["empty photograph", "empty screenshot", "progressive", "chunks"],
)
def test_images_of_cameras_and_screens_are_decoded(make: Callable[[], bytes]) -> None:
    assert decode([make()]).shape == (1, *SHAPE)


def test_images_that_wait_too_long_get_503() -> None:
    slow = encoded.Decoder(ServeConfig(request_timeout_s=0.05))
    data = encode(Image.new("RGB", (4032, 3024), (90, 90, 90)), "PNG")
    with pytest.raises(RejectedError) as caught:
        asyncio.run(slow.images([data], Policy(SHAPE), ["x"]))
    assert caught.value.status == 504


def test_the_example_of_a_request_decodes() -> None:
    for shape in (SHAPE, (5, 4, 3)):
        image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        again = decode([encoded.unwrap(encoded.example(image), "x")], shape)
        np.testing.assert_array_equal(again[0], image)


def test_the_loop_goes_on_while_a_large_picture_is_decoded() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=50)
    data = stream.getvalue()

    async def watch() -> tuple[float, float]:
        started = last = time.perf_counter()
        pause = 0.0
        task = asyncio.create_task(encoded.Decoder(CONFIG).images([data] * 16, Policy(SHAPE), ["x"] * 16))
        while not task.done():
            await asyncio.sleep(0.001)
            pause = max(pause, time.perf_counter() - last)
            last = time.perf_counter()
        return pause, last - started

    pause, whole = asyncio.run(watch())
    assert pause < whole / 2


CONTENT = bytes(range(256)) + b"\xfb\xff"
STANDARD = base64.b64encode(CONTENT).decode()


@pytest.mark.parametrize(
    "text",
    [
        STANDARD,
        base64.encodebytes(CONTENT).decode(),
        STANDARD.replace("=", "") + "\r\n",
        base64.urlsafe_b64encode(CONTENT).decode(),
        base64.urlsafe_b64encode(CONTENT).decode().rstrip("="),
        f"data:image/png;base64,{STANDARD}",
        f"DATA:image/png;charset=utf-8;BASE64,{STANDARD}",
        f"data:image/png;base64,{quote(STANDARD, safe='')}",
    ],
    ids=["plain", "line breaks", "no padding", "URL-safe", "URL-safe bare", "data URI", "loud", "escaped"],
)
def test_base64_is_read_in_all_common_variants(text: str) -> None:
    assert encoded.plain(text, "x") == CONTENT


@pytest.mark.parametrize("text", ["@@@@", "YWJjZ", "YWJjZA==YQ==", "YW=Jj", "\N{BULLET}"])
def test_invalid_base64_is_rejected(text: str) -> None:
    with pytest.raises(RejectedError, match="x is not base64: "):
        encoded.plain(text, "x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (STANDARD.replace("+", " "), "x has spaces for '+'"),
        (repr(STANDARD.encode()), "x is Python's way to print bytes"),
        (quote(STANDARD, safe=""), "x is percent-encoded"),
    ],
)
def test_base64_that_was_changed_on_its_way_is_named(text: str, said: str) -> None:
    with pytest.raises(RejectedError, match=re.escape(said)):
        encoded.plain(text, "x")


def test_a_data_uri_without_base64_is_named_as_the_cause() -> None:
    with pytest.raises(RejectedError, match="x is a data: URI without"):
        encoded.plain("data:image/svg+xml,<svg/>", "x")


KIND = b"multipart/form-data; boundary=XX"
END = b"--XX--\r\n"


def part(disposition: bytes, content: bytes = b"P", kind: bytes = b"image/png") -> bytes:
    head = b"--XX\r\nContent-Disposition: form-data; " + disposition
    return head + (b"\r\nContent-Type: " + kind if kind else b"") + b"\r\n\r\n" + content + b"\r\n"


FILE = part(b'name="files"; filename="a.png"')


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (FILE, ["'a.png'"]),
        (part(b'name="user"', b"7", b"text/plain") + FILE, ["'a.png'"]),
        (FILE + part(b'name="note"', b"hello", b""), ["'a.png'"]),
        (part(b'name="files"'), ["'files'"]),
        (part(b"name=\"files\"; filename*=utf-8''gr%C3%B6%C3%9Fe.png"), ["'größe.png'"]),
        (part(b'name="files"; filename="blob"', kind=b""), ["'blob'"]),
        (part(b'name="upload[0]"; filename="C:\\\\x\\\\a b;.png"'), ["'a b;.png'"]),
        (b"This is multipart.\r\n" + FILE, ["'a.png'"]),
        (FILE + part(b'name="more"; filename=""', b"", b"application/octet-stream"), ["'a.png'"]),
        (FILE * 2, ["'a.png'", "'a.png'"]),
    ],
    ids=[
        "file",
        "text first",
        "text last",
        "no name",
        "name*",
        "blob",
        "odd",
        "preamble",
        "none chosen",
        "two",
    ],
)
def test_the_pictures_of_a_form_are_read_and_the_rest_is_not(body: bytes, names: list[str]) -> None:
    assert encoded.form_files(body + END, KIND) == ([b"P"] * len(names), names)


def test_a_part_in_base64_is_decoded_where_it_is_declared_so() -> None:
    kind = b"image/png\r\nContent-Transfer-Encoding: BASE64"
    body = part(b'name="files"; filename="a.png"', base64.encodebytes(CONTENT), kind) + FILE + END
    assert encoded.form_files(body, KIND) == ([CONTENT, b"P"], ["'a.png'", "'a.png'"])
    with pytest.raises(RejectedError, match=r"'a.png' is not base64"):
        encoded.form_files(part(b'name="files"; filename="a.png"', b"\x89PNG", kind) + END, KIND)


def test_a_form_without_a_picture_names_its_fields() -> None:
    body = part(b'name="user"', b"7", b"text/plain") + part(b'name="age"', b"7", b"") + END
    with pytest.raises(RejectedError, match="holds no file; its fields are 'user', 'age'"):
        encoded.form_files(body, KIND)
    with pytest.raises(RejectedError, match="holds no file"):
        encoded.form_files(part(b'name="files"; filename=""', b"", b"application/octet-stream") + END, KIND)

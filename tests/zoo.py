"""Drawn pictures in every format and mode that people have, as files in memory."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageChops

WIDTH, HEIGHT = 91, 61


def drawn(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """A picture with soft and hard edges in which every corner differs."""
    down, across = np.mgrid[0:height, 0:width]
    planes = [127 + 120 * np.sin(across / 9 + down / 17), 127 + 120 * np.cos(across / 13 - down / 7)]
    planes.append(255 * (across / width + down / height) / 2)
    image = Image.fromarray(np.stack(planes, -1).clip(0, 255).astype(np.uint8))
    image.paste((255, 40, 0), (0, 0, width // 4, height // 5))
    return image


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as a file."""
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF data with an orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def without_adobe(jpeg: bytes) -> bytes:
    """A CMYK JPEG without the marker by which Adobe says that its values are inverted."""
    name = jpeg.index(b"Adobe")
    (length,) = struct.unpack(">H", jpeg[name - 2 : name])
    return jpeg[: name - 4] + jpeg[name - 2 + length :]


def header_only(side: int) -> bytes:
    """A PNG that claims to be huge and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def files() -> dict[str, bytes]:
    """All of them by name; what follows the dash in a name is its ending."""
    image = drawn()
    gray, other = image.convert("L"), drawn().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH).astype("u1")))
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    ink = encoded(image.convert("CMYK"), "JPEG", quality=95)
    made = {
        "plain-jpg": encoded(image, "JPEG"),
        "progressive-jpg": encoded(image, "JPEG", progressive=True),
        "gray-jpg": encoded(gray, "JPEG"),
        "adobe cmyk-jpg": ink,
        "plain cmyk-jpg": without_adobe(
            encoded(ImageChops.invert(image.convert("CMYK")), "JPEG", quality=95)
        ),
        "large-jpg": encoded(drawn(900, 700), "JPEG"),
        "colour-png": encoded(image, "PNG"),
        "1 bit-png": encoded(gray.convert("1", dither=Image.Dither.NONE), "PNG"),
        "2 bit-png": encoded(gray.quantize(4), "PNG", bits=2),
        "4 bit-png": encoded(image.quantize(16), "PNG", bits=4),
        "8 bit palette-png": encoded(image.quantize(200), "PNG"),
        "16 bit-png": encoded(deep, "PNG"),
        "alpha-png": encoded(clear, "PNG"),
        "gray alpha-png": encoded(clear.convert("LA"), "PNG"),
        "keyed palette-png": encoded(image.quantize(16), "PNG", transparency=3),
        "keyed colour-png": encoded(image, "PNG", transparency=(255, 40, 0)),
        "keyed gray-png": encoded(gray, "PNG", transparency=gray.getpixel((0, 0))),
        "animated-png": encoded(image, "PNG", save_all=True, append_images=[other]),
        "turned-png": encoded(image, "PNG", exif=turned(6)),
        "plain-gif": encoded(image.quantize(64), "GIF"),
        "animated-gif": encoded(image.quantize(64), "GIF", save_all=True, append_images=[other.quantize(64)]),
        "plain-webp": encoded(image, "WEBP"),
        "alpha-webp": encoded(clear, "WEBP", lossless=True),
        "turned-webp": encoded(image, "WEBP", lossless=True, exif=turned(8)),
        "colour-bmp": encoded(image, "BMP"),
        "tiny-png": encoded(image.resize((7, 3)), "PNG"),
        "colour-tiff": encoded(image, "TIFF"),
        "turned-tiff": encoded(image, "TIFF", exif=turned(6)),
        "16 bit-tiff": encoded(deep, "TIFF"),
        "alpha-tiff": encoded(clear, "TIFF"),
        "keyed-gif": encoded(image.quantize(16), "GIF", transparency=3),
        "colour-avif": encoded(image, "AVIF"),
        "colour-ppm": encoded(image, "PPM"),
    }
    return made | {f"turned {way}-jpg": encoded(image, "JPEG", exif=turned(way)) for way in range(1, 9)}

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distml.data import schema
from distml.errors import DataError


def png(image: Image.Image, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG", **options)
    return sink.getvalue()


def test_normalise_is_the_two_constants_in_float32() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = schema.normalise(pixels)
    assert scaled.dtype == np.float32
    assert scaled.shape == pixels.shape
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(scaled, schema.normalise(pixels.astype(np.float64)))
    np.testing.assert_allclose(scaled, pixels * schema.SCALE + schema.OFFSET, rtol=1e-6)


@pytest.mark.parametrize("shape", [(28, 28, 1), (3, 5, 3), (1, 1, 1), (2, 1, 7)])
def test_images_survive_the_table_and_the_file(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, *shape), np.uint8)
    table = schema.to_table(images, np.arange(10, dtype=np.int32), np.arange(10))
    assert isinstance(table.schema.field("image").type, pa.FixedShapeTensorType)
    assert (table.schema.field("label").type, table.schema.field("row").type) == (pa.int32(), pa.int64())
    assert np.shares_memory(schema.to_images(table["image"]), images)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=3)
    back = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read()
    assert back.schema == table.schema
    np.testing.assert_array_equal(schema.to_images(back["image"]), images)
    np.testing.assert_array_equal(schema.to_images(table.slice(4, 3)["image"]), images[4:7])
    np.testing.assert_array_equal(schema.to_images(pa.concat_tables([table, table])["image"])[10:], images)
    assert schema.to_images(table.slice(0, 0)["image"]).shape == (0, *shape)


def test_any_mode_becomes_gray_or_colour() -> None:
    colour = Image.new("RGB", (4, 4), (200, 100, 50))
    expected = np.asarray(colour.convert("L"))[0, 0]
    for mode in ("RGB", "RGBA", "P", "CMYK"):
        gray = schema.to_shape(colour.convert(mode), (4, 4, 1))
        assert gray.shape == (4, 4, 1)
        assert gray.dtype == np.uint8
        assert abs(int(gray[0, 0, 0]) - int(expected)) <= 4, mode  # a palette is coarse
    np.testing.assert_array_equal(schema.to_shape(colour, (4, 4, 3))[0, 0], [200, 100, 50])
    bits = Image.new("1", (4, 4), 1)
    assert (schema.to_shape(bits, (4, 4, 3)) == 255).all()


def test_sixteen_bits_become_eight() -> None:
    deep = np.array([[256, 257, 32896, 65535]], np.uint16)
    image = schema.decode(png(Image.fromarray(deep)))
    np.testing.assert_array_equal(schema.to_shape(image, (1, 4, 1))[0, :, 0], [0, 1, 128, 255])


def test_transparent_becomes_black() -> None:
    clear = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    assert (schema.to_shape(clear, (2, 2, 1)) == 0).all()
    assert (schema.to_shape(clear.convert("LA"), (2, 2, 3)) == 0).all()
    palette = Image.new("P", (2, 2), 5)
    palette.putpalette([255] * 768)
    keyed = schema.decode(png(palette, transparency=5))
    assert (schema.to_shape(keyed, (2, 2, 1)) == 0).all()


def test_any_size_is_scaled() -> None:
    halves = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 50, 1).repeat(100, 0))
    small = schema.to_shape(halves, (28, 28, 1))[..., 0]
    assert (small[:, :13] < 8).all()
    assert (small[:, 15:] > 247).all()


def test_the_exif_orientation_is_obeyed() -> None:
    image = Image.new("L", (4, 2))
    image.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn right
    upright = schema.decode(png(image, exif=exif))
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == 255


def test_neither_one_nor_three_channels_is_refused() -> None:
    with pytest.raises(DataError, match="cannot become 4 channels"):
        schema.to_shape(Image.new("L", (2, 2)), (2, 2, 4))


def _header_only(side: int) -> bytes:
    """A PNG that claims to be huge and holds nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [1001, 10_000, 20_000])
def test_a_bomb_is_refused_before_it_is_decoded(side: int) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"it is larger than 1,000,000 pixels"):
        schema.decode(_header_only(side), "it")
    assert time.monotonic() - begun < 0.1


@pytest.mark.parametrize(
    "data", [b"", b"hello", png(Image.new("L", (50, 50), 7))[:-30], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_picture_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cat.png is not a readable picture"):
        schema.decode(data, "cat.png")

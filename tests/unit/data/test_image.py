"""Every picture a person's tools open becomes the image that the person sees."""

from __future__ import annotations

import base64
import io
import struct
import sys
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from distml.data import image
from distml.data.image import Policy
from distml.errors import DataError
from tests import zoo

ZOO = zoo.files()
OWN = Policy((zoo.HEIGHT, zoo.WIDTH, 3), "stretch")


def seen(name: str) -> Image.Image:
    """What a person sees, in RGB over white."""
    if name == "tiny-png":
        return zoo.drawn().resize((7, 3)).resize((zoo.WIDTH, zoo.HEIGHT), Image.Resampling.BICUBIC)
    if name.startswith("turned") and name not in ("turned 1-jpg",):
        opened = image.open_picture(ZOO[name])
        return ImageOps.exif_transpose(opened).convert("RGB").resize((zoo.WIDTH, zoo.HEIGHT))
    return zoo.drawn()


@pytest.mark.parametrize(
    "name", [n for n in ZOO if not any(w in n for w in ("alpha", "keyed", "large", "1 bit"))]
)
def test_a_decoded_image_equals_its_appearance(name: str) -> None:
    actual, expected = image.read(ZOO[name], OWN), np.asarray(seen(name))
    if any(word in name for word in ("gray", "16 bit", "2 bit")):
        expected = np.asarray(seen(name).convert("L").convert("RGB"))
    off = np.abs(actual.astype(int) - expected).mean()
    assert off < (30 if "bit" in name or "gif" in name else 9), name  # few colours, or compressed


def test_gray_is_the_luma_of_the_colours() -> None:
    for name in ("colour-png", "alpha-png", "plain-jpg", "4 bit-png"):
        colour = Image.fromarray(image.read(ZOO[name], OWN))
        gray = image.read(ZOO[name], Policy((zoo.HEIGHT, zoo.WIDTH, 1)))
        np.testing.assert_array_equal(gray[..., 0], np.asarray(colour.convert("L")))


@pytest.mark.parametrize("way", range(1, 9))
def test_the_exif_orientation_is_applied(way: int) -> None:
    raw = Image.open(io.BytesIO(ZOO[f"turned {way}-jpg"]))
    upright = ImageOps.exif_transpose(raw)
    assert image.upright_size(image.open_picture(ZOO[f"turned {way}-jpg"])) == upright.size
    actual = image.read(ZOO[f"turned {way}-jpg"], Policy((upright.height, upright.width, 3)))
    np.testing.assert_array_equal(actual, np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"]
)
def test_damaged_exif_is_ignored(exif: bytes) -> None:
    data = zoo.encoded(zoo.drawn(), "JPEG", exif=exif)
    np.testing.assert_array_equal(image.read(data, OWN), image.read(ZOO["plain-jpg"], OWN))


def test_transparent_images_get_a_contrasting_background() -> None:
    for mode in ("RGBA", "LA"):
        icon = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
        icon.paste((0, 0, 0, 255), (3, 3, 6, 6))
        data = zoo.encoded(icon.convert(mode), "PNG")
        actual = image.read(data, Policy((9, 9, 1)))[..., 0]
        assert (actual[4, 4], actual[0, 0]) == (0, 255)
        assert image.read(data, Policy((9, 9, 3), background=(9, 8, 7)))[0, 0].tolist() == [9, 8, 7]


def test_transparent_colours_show_the_background() -> None:
    for name in ("keyed colour-png", "keyed gray-png"):
        assert image.read(ZOO[name], Policy(OWN.shape, background=(1, 2, 3)))[0, 0].tolist() == [1, 2, 3]
    deep = zoo.encoded(Image.fromarray(np.array([[7, 65535]], np.uint16)), "PNG", transparency=7)
    assert image.read(deep, Policy((1, 2, 1), background=(50, 50, 50)))[0, :, 0].tolist() == [50, 255]


def test_many_bits_are_scaled_by_their_real_depth() -> None:
    deep = np.array([[0, 256, 257, 32896, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        data = zoo.encoded(Image.fromarray(deep), form)
        assert image.read(data, Policy((1, 5, 1)))[0, :, 0].tolist() == [0, 1, 1, 128, 255], form
    whole = zoo.encoded(Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)), "TIFF")
    assert image.read(whole, Policy((1, 3, 1)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([[0, 70_000]], np.int32), "it holds numbers from 0 to 70000, not 0 to 65535"),
        (np.array([[0.0, 2.5]], np.float32), "it holds floats from 0 to 2.5"),
    ],
)
def test_values_that_are_not_pixels_are_rejected(values: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        image.read(zoo.encoded(Image.fromarray(values), "TIFF"), Policy((1, 2, 1)), "it")


def test_the_three_fits() -> None:
    left = Image.new("L", (100, 40), 0)
    left.paste(255, (50, 0, 100, 40))
    data = zoo.encoded(left, "PNG")
    crop, letterbox, stretch = (
        image.read(data, Policy((20, 20, 1), fit))[..., 0] for fit in ("crop", "letterbox", "stretch")
    )
    assert (crop[0, 0], crop[0, -1]) == (0, 255)
    assert (letterbox[:6] == 255).all()
    assert (letterbox[-6:] == 255).all()
    assert letterbox[10, 0] == 0
    assert (stretch[:, :8] < 8).all()
    narrow = image.read(
        zoo.encoded(left.rotate(90, expand=True), "PNG"), Policy((20, 20, 1), "letterbox", (7, 7, 7))
    )
    assert (narrow[:, :6] == 7).all()
    assert (narrow[:, -6:] == 7).all()


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2), (2000, 3)])
def test_extreme_sizes_fit(fit: image.Fit, size: tuple[int, int]) -> None:
    data = zoo.encoded(Image.new("RGB", size, (10, 200, 30)), "JPEG")
    assert image.read(data, Policy((17, 31, 3), fit)).shape == (17, 31, 3)


def test_large_jpegs_are_decoded_at_reduced_scale() -> None:
    assert image.reduction(Policy((64, 64, 3)), 1000, 600) == 4
    assert image.reduction(Policy((64, 64, 3), "letterbox"), 1100, 600) == 8
    assert image.reduction(Policy((64, 64, 3)), 255, 600) == 1
    data, policy = ZOO["large-jpg"], Policy((56, 56, 3))
    whole = image.read(zoo.encoded(Image.open(io.BytesIO(data)), "PNG"), policy)
    assert np.abs(image.read(data, policy).astype(int) - whole).mean() < 3


def test_neither_one_nor_three_channels_is_rejected() -> None:
    with pytest.raises(DataError, match="cannot become 4 channels"):
        image.read(ZOO["colour-png"], Policy((2, 2, 4)))


@pytest.mark.parametrize("side", [1001, 10_000, 20_000])
def test_a_bomb_is_rejected_before_it_is_decoded(side: int) -> None:
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"it is larger than 1,000,000 pixels"):
        image.open_picture(zoo.header_only(side), "it", 1_000_000)
    assert time.monotonic() - begun < 0.1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        ZOO["gray-jpg"][:-300],
        ZOO["colour-png"][:-30],
        ZOO["plain-webp"][:200],
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ],
)
def test_a_file_that_is_not_an_image_is_rejected_by_name(data: bytes) -> None:
    with pytest.raises(DataError, match=r"cat.png is not a readable picture"):
        image.read(data, OWN, "cat.png")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty. Fetch it again"),
        (bytes(70_000), "filled with zeros. Fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n",
            "a pointer of Git LFS.*git lfs pull",
        ),
        (b"/annex/objects/SHA256E-s12--4d.png\n", "a pointer of git-annex.*git annex get"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML><title>404", "a web page. Fetch it again"),
        (b"<svg viewBox='0 0 1 1'/>", "an SVG drawing. Convert it"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg/>", "an SVG drawing. Convert it"),
        (
            b"<?xml version='1.0'?>\n<Error><Code>AccessDenied",
            "the error message of a store. Fetch it again, with credentials",
        ),
        (base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(200))), "a picture as base64 text. Decode it."),
        (b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQAAAQ==", "a picture as base64 text. Decode it."),
        (b'{"message": "too many requests"}', "a JSON text. Fetch it again: a server answered"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video. Save single pictures"),
        (b"8BPS\0\1", "a Photoshop file. Convert it"),
    ],
)
def test_what_lies_in_place_of_a_picture_is_named(data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"cat.png is not a readable picture: it is {said}"):
        image.open_picture(data, "cat.png")


def test_a_heic_picture_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"it is a HEIC picture.*distml\[heic\]"):
        image.open_picture(b"\0\0\0\x18ftypheic" + bytes(40), "it")


def test_gray_palettes_are_gray() -> None:
    assert image.channels(image.open_picture(ZOO["2 bit-png"])) == 1
    assert image.channels(image.open_picture(ZOO["4 bit-png"])) == 3
    assert image.channels(image.open_picture(ZOO["16 bit-png"])) == 1


def test_arrays_are_fitted_alike() -> None:
    pixels = np.asarray(zoo.drawn())
    policy = Policy((20, 30, 1), "letterbox", (3, 3, 3))
    np.testing.assert_array_equal(image.refit(pixels[None], policy)[0], image.read(ZOO["colour-png"], policy))


def test_a_policy_survives_json_and_other_documents_are_rejected() -> None:
    policy = Policy((20, 30, 1), "letterbox", (3, 4, 5))
    assert Policy.from_dict(asdict(policy)) == policy
    wrongs: list[Any] = [{}, [], {**asdict(policy), "fit": "zoom"}, {**asdict(policy), "shape": [1]}]
    for wrong in wrongs:
        with pytest.raises((ValueError, TypeError)):
            Policy.from_dict(wrong)


def test_heic_is_read() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener()
    picture = Image.fromarray(np.repeat(np.arange(0, 256, 4)[None], 48, 0).astype(np.uint8)).convert("RGB")
    sink = io.BytesIO()
    picture.save(sink, "HEIF", quality=100)
    policy = Policy((24, 32, 3))
    decoded = image.read(sink.getvalue(), policy).astype(int)
    assert np.abs(decoded - image.fit(picture, policy)).mean() < 3


def test_the_preview_in_a_raw_file_is_not_the_picture() -> None:
    """NEF, ARW and DNG begin as a TIFF whose first image is said to be a reduced one."""
    sink = io.BytesIO()
    Image.new("RGB", (16, 12)).save(sink, "TIFF", tiffinfo={254: 1})
    with pytest.raises(DataError, match="photo begins with a reduced preview"):
        image.open_picture(sink.getvalue(), "photo")


def test_a_tiff_of_many_bands_is_named() -> None:
    fields = [(256, 8), (257, 8), (258, 16), (259, 1), (262, 1), (277, 13), (273, 200), (278, 8), (279, 1664)]
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in fields)
    data = struct.pack("<2sHIH", b"II", 42, 8, len(fields)) + entries + bytes(2000)
    with pytest.raises(DataError, match=r"x\.tif is not a readable picture: it is a TIFF of 13 bands"):
        image.header(data, "x.tif", 1000)

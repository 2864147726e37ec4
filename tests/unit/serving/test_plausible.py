"""Images that are probably not what their sender means are answered, and said to be odd."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from distml.serving.plausible import doubts
from tests import serving

REAL = np.random.default_rng(5).integers(0, 256, (2, *serving.SHAPE), np.uint8)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (REAL[0] // 128, "values_0_to_1"),
        (np.zeros(serving.SHAPE, np.uint8), "constant"),
        (np.full(serving.SHAPE, 255, np.uint8), "constant"),
        (REAL[0] // 16, "very_dark"),
    ],
)
def test_every_protocol_names_what_is_odd(url: str, image: Any, code: str) -> None:
    given = np.stack([REAL[0], image])
    native = requests.post(f"{url}/predict", json={"instances": given.tolist()})
    assert native.status_code == 200
    (warning,) = native.json()["warnings"]
    assert warning["code"] == code
    assert warning["sentence"].startswith("image 1: ")
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(given.shape), "data": given.tolist()}
    for path, body in (
        ("/v1/models/pets:predict", {"instances": given.tolist()}),
        ("/v2/models/pets/infer", {"inputs": [tensor]}),
    ):
        assert requests.post(url + path, json=body).headers["x-input-warnings"] == code
    assert f'distml_implausible_images_total{{code="{code}"}}' in requests.get(f"{url}/metrics").text


def test_a_picture_of_sixteen_bits_that_uses_twelve_is_said_to_be_dark(url: str) -> None:
    stream = io.BytesIO()
    Image.fromarray((REAL[0, ..., 0].astype(np.uint16)) * 16).save(stream, "PNG")
    got = requests.post(f"{url}/predict/image", stream.getvalue(), headers={"content-type": "image/png"})
    assert got.json()["warnings"][0]["code"] == "very_dark"
    assert "16-bit" in got.json()["warnings"][0]["sentence"]


def test_nothing_is_said_of_what_is_usual(url: str) -> None:
    got = requests.post(f"{url}/predict", json={"instances": REAL.tolist()})
    assert "warnings" not in got.json()
    assert "x-input-warnings" not in got.headers


def test_images_are_counted_by_what_is_odd() -> None:
    zeros = np.zeros((3, *serving.SHAPE), np.uint8)
    found = doubts(np.concatenate([REAL, zeros, REAL // 128]))
    assert [(doubt.code, doubt.images) for doubt in found] == [("constant", 3), ("values_0_to_1", 2)]
    assert found[0].sentence == "image 2 and 2 others: one value everywhere"

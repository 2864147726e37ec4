"""Images that are probably not what their sender means are answered, and said to be odd."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from distml.data import plausible
from distml.data.plausible import doubts, odd
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
def test_every_protocol_reports_input_warnings(url: str, image: Any, code: str) -> None:
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


def png(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue()


def test_sixteen_bit_images_are_scaled_by_their_used_bits_with_a_warning(url: str) -> None:
    plain = REAL[0, ..., 0].astype(np.uint16)
    plain[0, 0] = 255
    kind = {"content-type": "image/png"}
    files = [png(plain.astype(np.uint8)), png(plain * 257), png(plain * 16), png(plain)]
    said = [requests.post(f"{url}/predict/image", file, headers=kind).json() for file in files]
    assert len({answer["predictions"][0]["class"] for answer in said}) == 1
    differences = [
        np.abs(
            np.subtract(answer["predictions"][0]["probabilities"], said[0]["predictions"][0]["probabilities"])
        )
        for answer in said
    ]
    assert np.max(differences) < 0.05
    assert ["warnings" in answer for answer in said] == [False, False, True, True]
    assert said[2]["warnings"][0]["code"] == "unused_bits"
    assert "uses 12 of its 16 bits" in said[2]["warnings"][0]["sentence"]
    form = [("files", (f"{index}.png", file, "image/png")) for index, file in enumerate(files)]
    (warning,) = requests.post(f"{url}/predict/image", files=form).json()["warnings"]
    assert warning["sentence"].startswith("image 2 and 1 others: it uses 12")


def garments(count: int) -> np.ndarray:
    """Light boxes of several sizes and shades on black, uint8 [count, 12, 12, 1]."""
    chance = np.random.default_rng(3)
    images = np.zeros((count, 12, 12, 1), np.uint8)
    for image in images:
        top, left, shade = *chance.integers(2, 5, 2), chance.integers(90, 256)
        image[top : 12 - left, left : 12 - top] = shade
    return images


def test_light_and_dark_are_compared_with_the_training_images() -> None:
    usual = plausible.Usual.of(garments(2000))
    usual = plausible.Usual.from_dict(json.loads(json.dumps(asdict(usual))))
    fresh = garments(2300)[2000:]
    assert odd(fresh, usual).get("inverted", np.zeros(1)).sum() <= 3
    assert odd(255 - fresh, usual)["inverted"].mean() > 0.9
    dim = odd(fresh // 8, usual)
    assert np.all(dim["very_dark"] ^ dim["low_contrast"])
    codes = [[doubt.code for doubt in plausible.doubts(255 - image[None], usual)] for image in fresh]
    assert codes.count(["inverted"]) == odd(255 - fresh, usual)["inverted"].sum()
    assert "inverted" not in odd(255 - fresh)  # nothing is known of the training images
    gray = np.random.default_rng(4).integers(40, 60, (5, 12, 12, 1)).astype(np.uint8)
    assert odd(gray, usual)["low_contrast"].all()
    noise = np.random.default_rng(5).integers(0, 256, (2000, 12, 12, 3), np.uint8)
    neither = odd(255 - noise[:500], plausible.Usual.of(noise))  # both ways round are as usual
    assert neither.get("inverted", np.zeros(1)).mean() < 0.02


def test_usual_images_give_no_warning(url: str) -> None:
    response = requests.post(f"{url}/predict", json={"instances": REAL.tolist()})
    assert "warnings" not in response.json()
    assert "x-input-warnings" not in response.headers


def test_warnings_count_the_affected_images() -> None:
    zeros = np.zeros((3, *serving.SHAPE), np.uint8)
    counted = doubts(np.concatenate([REAL, zeros, REAL // 128]))
    assert [(doubt.code, doubt.images) for doubt in counted] == [("constant", 3), ("values_0_to_1", 2)]
    assert counted[0].sentence.startswith("image 2 and 2 others: all pixels have one value")

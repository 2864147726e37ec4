"""The native protocol over real HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from distml.config import ServeConfig
from distml.serving.core import Core
from tests import serving

IMAGES = np.random.default_rng(0).integers(0, 256, (3, *serving.SHAPE), np.uint8)
EXPECTED = serving.function(7)(IMAGES)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


def encode(image: Any, kind: str = "PNG") -> bytes:
    """A picture file."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, kind, lossless=True)
    return stream.getvalue()


def require_expected(response: requests.Response, expected: Any = EXPECTED) -> None:
    """Every prediction is that of the champion."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert response.headers["x-model-version"] == "7"
    assert body["model"] == {"name": "pets", "version": 7, "run_id": f"{7:032x}", "sha256": f"{7:064x}"}
    assert len(body["predictions"]) == len(expected)
    for prediction, row in zip(body["predictions"], expected, strict=True):
        np.testing.assert_allclose(prediction["probabilities"], row, atol=1e-7)
        label = int(row.argmax())
        assert (prediction["label"], prediction["class"]) == (label, serving.CLASSES[label])
        assert prediction["probability"] == prediction["probabilities"][label]


@pytest.mark.parametrize(
    "instances",
    [IMAGES[..., 0].tolist(), IMAGES.tolist(), IMAGES.astype(float).tolist()],
    ids=["rows", "channels", "floats"],
)
def test_arrays_are_classified(url: str, instances: Any) -> None:
    require_expected(requests.post(f"{url}/predict", json={"instances": instances}))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_pictures_in_base64_are_classified(url: str, kind: str) -> None:
    instances = [{"b64": base64.b64encode(encode(image, kind)).decode()} for image in IMAGES]
    require_expected(requests.post(f"{url}/predict", json={"instances": instances}))


@pytest.mark.parametrize("kind", ["image/png", "IMAGE/PNG; q=1", "application/octet-stream", None])
def test_a_picture_as_the_body_is_classified(url: str, kind: str | None) -> None:
    response = requests.post(f"{url}/predict/image", encode(IMAGES[0]), headers={"content-type": kind})
    require_expected(response, EXPECTED[:1])


@pytest.mark.parametrize("count", [1, 3])
def test_the_files_of_a_form_are_classified_in_their_order(url: str, count: int) -> None:
    files = [("files", (f"{index}.png", encode(image))) for index, image in enumerate(IMAGES[:count])]
    require_expected(requests.post(f"{url}/predict/image", files=files), EXPECTED[:count])


def test_the_model_is_described(url: str) -> None:
    body = requests.get(f"{url}/model").json()
    assert [version["version"] for version in body["versions"]] == [7, 5]
    assert {key: body[key] for key in body["versions"][0]} == body["versions"][0]
    assert body["classes"] == list(serving.CLASSES)
    assert (body["shape"], body["metrics"], body["refused"]) == ([4, 5, 1], {"acc": 0.5}, [])


def test_it_is_healthy_before_it_is_ready() -> None:
    empty = Core(ServeConfig())
    with serving.running(empty) as url:
        assert requests.get(f"{url}/healthz").status_code == 200
        for path in ("/readyz", "/model", "/v2/health/ready"):
            assert requests.get(url + path).status_code == 503, path
        early = requests.post(f"{url}/predict", json={"instances": [[[0]]]})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        full = serving.core()
        empty.swap(full._loaded, full._aliases)
        assert requests.get(f"{url}/readyz").json() == {"status": "ok"}
        require_expected(requests.post(f"{url}/predict", json={"instances": IMAGES.tolist()}))

"""The native protocol over real HTTP."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from distml.config import ServeConfig
from distml.serving.batching import Core, Loaded
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


def explained(url: str, image: Any, **query: str) -> requests.Response:
    kind = {"content-type": "image/png"}
    return requests.post(f"{url}/explain", data=encode(image), headers=kind, params=query)


def test_an_answer_is_explained_by_covering_parts_of_the_picture(url: str) -> None:
    answered = explained(url, IMAGES[0])
    body = answered.json()
    assert (answered.status_code, answered.headers["x-model-version"]) == (200, "7")
    label = int(EXPECTED[0].argmax())
    assert (body["of"], body["prediction"]["label"]) == (serving.CLASSES[label], label)
    assert body["output"] == pytest.approx(float(EXPECTED[0, label]), abs=1e-6)
    # By hand, for the four by five pixels of this model: each window of two by two pixels, and its mean.
    mean = np.rint(IMAGES[0].mean((0, 1)))
    sums, counts = np.zeros((4, 5)), np.zeros((4, 5))
    for row in range(3):
        for column in range(4):
            image = IMAGES[0].copy()
            image[row : row + 2, column : column + 2] = mean
            fall = EXPECTED[0, label] - serving.function(7)(image[None])[0, label]
            sums[row : row + 2, column : column + 2] += fall
            counts[row : row + 2, column : column + 2] += 1
    np.testing.assert_allclose(body["influence"], np.maximum(sums / counts, 0), atol=1e-5)
    assert body["covered_with"] == [int(mean[0])]
    other = serving.CLASSES[(label + 1) % 3]
    assert explained(url, IMAGES[0], of=other).json()["of"] == other
    numbers = requests.post(f"{url}/explain", json={"instances": IMAGES[:1].tolist()}).json()
    assert numbers["influence"] == body["influence"]


def test_explain_rejects_unknown_classes_and_several_pictures(url: str) -> None:
    unknown = explained(url, IMAGES[0], of="cow")
    assert (unknown.status_code, "'cow' among the classes: cat, dog" in unknown.text) == (400, True)
    two = requests.post(f"{url}/explain", json={"instances": IMAGES[:2].tolist()})
    assert (two.status_code, "one picture" in two.text) == (400, True)


def test_covered_pictures_are_bounded_and_are_no_requests_of_the_log() -> None:
    heard: list[Any] = []
    shape, asked = (40, 64, 3), []

    def function(images: Any) -> Any:
        asked.append(len(images))
        return np.tile(np.asarray([0.25, 0.75], np.float32), (len(images), 1))

    core = Core(ServeConfig(), hear=lambda *told: heard.append(told))
    core.swap({1: Loaded(serving.served(1, ("cat", "dog"), shape), function)}, {"champion": 1})
    with serving.running(core) as url:
        body = requests.post(f"{url}/explain", json={"instances": np.zeros((1, *shape), int).tolist()}).json()
    assert np.shape(body["influence"]) == (8, 8)
    assert (sum(asked), max(asked)) == (1 + 7 * 7, 16)
    assert not heard


def test_one_answer_is_explained_at_a_time() -> None:
    going, let = threading.Event(), threading.Event()

    def function(images: Any) -> Any:
        going.set()
        assert let.wait(30)
        return serving.function(7)(images)

    core = Core(ServeConfig(request_timeout_s=60))
    core.swap({7: Loaded(serving.served(7), function)}, {"champion": 7})
    with serving.running(core) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(explained, url, IMAGES[0])
        assert going.wait(30)
        busy = explained(url, IMAGES[0])
        let.set()
        assert first.result().status_code == 200
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")

"""TensorFlow Serving's REST interface over real HTTP."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from tests import serving

IMAGES = np.random.default_rng(0).integers(0, 256, (3, *serving.SHAPE), np.uint8)
MODEL = f"/v1/models/{serving.NAME}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


def encode(image: Any) -> dict[str, str]:
    """A picture in TensorFlow Serving's JSON."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return {"b64": base64.b64encode(stream.getvalue()).decode()}


BARE, ENCODED = IMAGES.tolist(), [encode(image) for image in IMAGES]
BYTES = {"signature_name": "image_bytes"}


@pytest.mark.parametrize(
    ("body", "under"),
    [
        ({"instances": BARE}, "predictions"),
        ({"instances": IMAGES[..., 0].tolist(), "signature_name": "serving_default"}, "predictions"),
        ({"instances": [{"image": image} for image in BARE], "signature_name": ""}, "predictions"),
        ({"instances": ENCODED, **BYTES}, "predictions"),
        ({"instances": [{"image_bytes": text} for text in ENCODED], **BYTES}, "predictions"),
        ({"inputs": BARE, "unknown": True}, "outputs"),
        ({"inputs": {"image": BARE}}, "outputs"),
        ({"inputs": ENCODED, **BYTES}, "outputs"),
        ({"inputs": {"image_bytes": ENCODED}, **BYTES}, "outputs"),
        ({"instances": ENCODED}, "predictions"),
        ({"instances": [{"image_bytes": text} for text in ENCODED]}, "predictions"),
        (
            {"instances": [{"image": text} for text in ENCODED], "signature_name": "serving_default"},
            "predictions",
        ),
        ({"inputs": ENCODED}, "outputs"),
        ({"inputs": {"image_bytes": ENCODED}}, "outputs"),
    ],
)
def test_every_form_of_a_request_gets_the_same_answer(url: str, body: dict[str, Any], under: str) -> None:
    response = requests.post(f"{url}{MODEL}:predict", json=body)
    assert response.status_code == 200, response.text
    assert list(response.json()) == [under]
    np.testing.assert_allclose(response.json()[under], serving.function(7)(IMAGES), atol=1e-7)


def test_a_version_answers_for_itself_and_the_content_type_does_not_matter(url: str) -> None:
    for version in (5, 7):
        path, body = f"{MODEL}/versions/{version}:predict", f'{{"instances": {BARE}}}'
        response = requests.post(
            url + path, body, headers={"content-type": "application/x-www-form-urlencoded"}
        )
        np.testing.assert_allclose(
            response.json()["predictions"], serving.function(version)(IMAGES), atol=1e-7
        )
        assert response.headers["x-model-version"] == str(version)


def test_the_status_lists_versions(url: str) -> None:
    fine = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    both = [{"version": version, **fine} for version in ("7", "5")]
    ready = {"name": serving.NAME, "ready": True}  # what KServe's client looks for
    assert requests.get(url + MODEL).json() == ready | {"model_version_status": both}
    assert requests.get(f"{url}{MODEL}/versions/5").json() == ready | {"model_version_status": both[1:]}
    assert requests.get(f"{url}{MODEL}/versions/6").status_code == 404


def test_the_metadata_describe_both_signatures(url: str) -> None:
    answer = requests.get(f"{url}{MODEL}/versions/5/metadata").json()
    assert answer["model_spec"] == {"name": serving.NAME, "signature_name": "", "version": "5"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    image = signatures["serving_default"]["inputs"]["image"]
    assert image["dtype"] == "DT_UINT8"
    assert [dimension["size"] for dimension in image["tensor_shape"]["dim"]] == ["-1", "4", "5", "1"]
    assert signatures["image_bytes"]["inputs"]["image_bytes"]["dtype"] == "DT_STRING"
    for signature in signatures.values():
        sizes = [
            dimension["size"] for dimension in signature["outputs"]["probabilities"]["tensor_shape"]["dim"]
        ]
        assert sizes == ["-1", "3"]


def test_labels_stand_for_the_aliases_that_are_followed(url: str) -> None:
    for label, version in (("champion", 7), ("previous", 5)):
        response = requests.post(f"{url}{MODEL}/labels/{label}:predict", json={"instances": BARE})
        np.testing.assert_allclose(
            response.json()["predictions"], serving.function(version)(IMAGES), atol=1e-7
        )
        (state,) = requests.get(f"{url}{MODEL}/labels/{label}").json()["model_version_status"]
        assert state["version"] == str(version)
        metadata = requests.get(f"{url}{MODEL}/labels/{label}/metadata").json()
        assert metadata["model_spec"]["version"] == str(version)
    unknown = requests.get(f"{url}{MODEL}/labels/stable")
    assert unknown.status_code == 404
    assert unknown.json()["error"] == "there is no label 'stable'; the labels are champion, previous"


def test_models_are_listed_with_and_without_a_slash(url: str) -> None:
    for path in ("/v1/models", "/v1/models/"):
        assert requests.get(url + path).json() == {"models": [serving.NAME]}
    assert requests.get(f"{url}{MODEL}/").status_code == 200

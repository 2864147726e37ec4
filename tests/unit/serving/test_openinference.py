"""The Open Inference Protocol over real HTTP: Triton's own client, and what it does not send."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from tritonclient import http as triton
from tritonclient.utils import InferenceServerException

from distml.serving.service import Refusal
from tests import serving

IMAGES = np.random.default_rng(0).integers(0, 256, (3, *serving.SHAPE), np.uint8)
EXPECTED = serving.function(7)(IMAGES)
LABELS = EXPECTED.argmax(1)
NAMES = [serving.CLASSES[label] for label in LABELS]
INFER = f"/v2/models/{serving.NAME}/infer"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(url.removeprefix("http://"))
    yield client
    client.close()


def tensor(data: Any, binary: bool, name: str = "image", datatype: str = "UINT8") -> triton.InferInput:
    """An input tensor."""
    made = triton.InferInput(name, data.shape, datatype)
    return made.set_data_from_numpy(data, binary_data=binary)


def test_the_client_reads_server_and_model_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(serving.NAME)
    assert client.is_model_ready(serving.NAME, "5")
    assert not client.is_model_ready(serving.NAME, "6")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "distml"
    assert "binary_tensor_data" in server["extensions"]
    metadata = client.get_model_metadata(serving.NAME)
    assert metadata["versions"] == ["7", "5"]
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 5, 1]}]
    assert metadata["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_the_client_gets_every_output(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool, compression: str | None
) -> None:
    many = np.concatenate([IMAGES] * 100)  # enough for a compressed answer
    result = client.infer(
        serving.NAME,
        [tensor(many, binary_in)],
        outputs=[
            triton.InferRequestedOutput(name, binary_out) for name in ("probabilities", "label", "class")
        ],
        request_id="mine",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_allclose(result.as_numpy("probabilities"), np.concatenate([EXPECTED] * 100), atol=1e-7)
    assert result.as_numpy("label").tolist() == [*LABELS] * 100
    names = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("class")]
    assert names == NAMES * 100
    head = result.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("mine", serving.NAME, "7")


def test_the_client_asks_a_version_without_naming_outputs(client: triton.InferenceServerClient) -> None:
    result = client.infer(serving.NAME, [tensor(IMAGES, True)], model_version="5")
    np.testing.assert_allclose(result.as_numpy("probabilities"), serving.function(5)(IMAGES), atol=1e-7)
    assert result.get_response()["model_version"] == "5"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("datatype", ["INT32", "INT64", "FP32", "FP64"])
def test_whole_numbers_of_other_types_are_pixels(
    client: triton.InferenceServerClient, datatype: str, binary: bool
) -> None:
    kinds = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64}
    given = IMAGES.astype(kinds[datatype])
    result = client.infer(serving.NAME, [tensor(given, binary, datatype=datatype)])
    np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-7)
    given[2, 3, 4, 0] = -1
    with pytest.raises(InferenceServerException, match=r"image\S*\[59\] is -1(\.0)?, not a whole number"):
        client.infer(serving.NAME, [tensor(given, binary, datatype=datatype)])


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 256, -1e30])
def test_fractions_are_rejected_as_pixels(client: triton.InferenceServerClient, value: float) -> None:
    given = IMAGES.astype(np.float32)
    given[0, 0, 0, 0] = value
    with pytest.raises(InferenceServerException, match=r"image\[0\] is .*, not a whole number from 0 to 255"):
        client.infer(serving.NAME, [tensor(given, True, datatype="FP32")])


def test_the_client_gets_ranked_classes(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("probabilities", class_count=2)]
    result = client.infer(serving.NAME, [tensor(IMAGES, True)], outputs=wanted).as_numpy("probabilities")
    assert result.shape == (3, 2)
    value, label, name = result[0, 0].decode().split(":")
    assert (int(label), name) == (LABELS[0], NAMES[0])
    assert float(value) == pytest.approx(EXPECTED[0].max(), abs=1e-6)


@pytest.mark.parametrize("binary", [True, False])
def test_pictures_are_bytes(client: triton.InferenceServerClient, binary: bool) -> None:
    files = []
    for image in IMAGES:
        stream = io.BytesIO()
        Image.fromarray(image[..., 0]).save(stream, "PNG")
        files.append(stream.getvalue() if binary else base64.b64encode(stream.getvalue()))
    for given in (np.array(files, np.object_), np.array(files, np.object_)[:, None]):
        result = client.infer(serving.NAME, [tensor(given, binary, "image_bytes", "BYTES")])
        np.testing.assert_allclose(result.as_numpy("probabilities"), EXPECTED, atol=1e-7)


def test_pictures_may_stand_in_objects_as_for_tensorflow_serving(url: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(IMAGES[0][..., 0]).save(stream, "PNG")
    coded = {"b64": base64.b64encode(stream.getvalue()).decode()}
    given = {"name": "image_bytes", "datatype": "BYTES", "shape": [1], "data": [coded]}
    response = requests.post(url + INFER, json={"inputs": [given]})
    np.testing.assert_allclose(response.json()["outputs"][0]["data"], EXPECTED[0], atol=1e-6)
    refused = requests.post(url + INFER, json={"inputs": [{**given, "data": [{"url": "x"}]}]})
    assert refused.status_code == 400
    assert "image_bytes.data[0] is an object with the keys ['url']" in refused.json()["error"]


@pytest.mark.parametrize("cut", [1, 30, 65])
def test_a_tensor_that_is_cut_off_is_rejected(url: str, cut: int) -> None:
    body, length = triton.InferenceServerClient.generate_request_body([tensor(IMAGES, True)])
    headers = {"inference-header-content-length": str(length)}
    response = requests.post(url + INFER, body[: len(body) - cut], headers=headers)
    assert response.status_code == 400


def test_wrong_element_lengths_are_rejected(url: str) -> None:
    made = tensor(np.array([b"x" * 40], np.object_), True, "image_bytes", "BYTES")
    body, length = triton.InferenceServerClient.generate_request_body([made])
    lying = body[:length] + (2**32 - 1).to_bytes(4, "little") + body[length + 4 :]
    response = requests.post(url + INFER, lying, headers={"inference-header-content-length": str(length)})
    assert "element 0 of image_bytes is longer than" in response.json()["error"]


@pytest.mark.parametrize("shape", [[3, 4, 5, 1], [3, 4, 5]])
def test_data_may_be_flat_or_nested(url: str, shape: list[int]) -> None:
    for data in (IMAGES.ravel().tolist(), IMAGES.tolist(), IMAGES[..., 0].tolist()):
        plain = {"name": "image", "datatype": "UINT8", "shape": shape, "data": data}
        wanted = {"outputs": [{"name": "label"}], "parameters": {"priority": 1}, "extra": None}
        answer = requests.post(url + INFER, json={"inputs": [plain], **wanted}).json()
        expected = {"name": "label", "datatype": "INT32", "shape": [3], "data": LABELS.tolist()}
        assert answer == {"model_name": "pets", "model_version": "7", "outputs": [expected]}


def test_the_client_reads_index_configuration_and_statistics(
    url: str, client: triton.InferenceServerClient
) -> None:
    index = client.get_model_repository_index()
    assert [(entry["name"], entry["version"], entry["state"]) for entry in index] == [
        (serving.NAME, "7", "READY"),
        (serving.NAME, "5", "READY"),
    ]
    config = client.get_model_config(serving.NAME, "5")
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": [4, 5, 1]}]
    assert config["output"][0] == {"name": "probabilities", "data_type": "TYPE_FP32", "dims": [3]}
    assert config["max_batch_size"] > 1

    def counted(version: str) -> dict[str, Any]:
        (statistics,) = client.get_inference_statistics(serving.NAME, version)["model_stats"]
        return dict(statistics)

    before = counted("5")
    body = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [*IMAGES.shape], "data": IMAGES.tolist()}]
    }
    path = f"{url}/v2/models/{serving.NAME}/versions/5/infer"
    assert requests.post(path, json=body).status_code == 200
    after = counted("5")
    assert after["inference_count"] - before["inference_count"] == len(IMAGES)
    assert after["execution_count"] - before["execution_count"] == 1
    success = (after["inference_stats"]["success"], before["inference_stats"]["success"])
    assert success[0]["count"] - success[1]["count"] == 1
    assert success[0]["ns"] > success[1]["ns"]
    assert len(client.get_inference_statistics()["model_stats"]) == 2


def test_a_rejected_version_is_in_the_index_with_the_reason() -> None:
    core = serving.core()
    core.swap(core._loaded, {"champion": 7}, (Refusal(9, "champion", "its files are gone.", 1.0),))
    with serving.running(core) as url:
        index = requests.post(f"{url}/v2/repository/index").json()
    unavailable = {
        "name": serving.NAME,
        "version": "9",
        "state": "UNAVAILABLE",
        "reason": "its files are gone.",
    }
    assert index[-1] == unavailable


def test_models_are_listed_with_and_without_a_slash(url: str) -> None:
    for path in ("/v2/models", "/v2/models/"):
        assert requests.get(url + path).json() == {"models": [serving.NAME]}
    for path in ("/v2/", f"/v2/models/{serving.NAME}/"):
        assert requests.get(url + path).status_code == 200

"""All protocols give the offline model's answers for real Fashion-MNIST images."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from tritonclient import http as triton

from distml import predict
from distml.artifacts.layout import SAVED_MODEL
from distml.artifacts.predictor import Predictor
from distml.config import Config, ServeConfig
from distml.data.formats import fashion_mnist
from distml.data.source import Source
from distml.errors import ServingError
from distml.serving import client as endpoint
from distml.serving.batching import Core, Loaded
from distml.serving.service import Served
from distml.storage import Storage
from tests import serving

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(300),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
NAME, COUNT = "fashion-mnist", 40
Answers = Any
"""Outputs [N, 10]."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Source:
    config = Config.resolve({})
    return fashion_mnist.open_builtin(config, Storage(str(tmp_path_factory.mktemp("data"))))


@pytest.fixture(scope="module")
def images(data: Source) -> Any:
    """uint8 [N, 28, 28, 1] of the test split."""
    return data.splits["test"].gather(np.arange(COUNT)).images


@pytest.fixture(scope="module")
def folder(data: Source, images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a small network."""
    from distml.artifacts.export import export
    from distml.models import registry

    network = registry.build("convnet", data.shape, len(data.classes), {"filters": [4], "dense": 8}, 1)
    made = tmp_path_factory.mktemp("export")
    described = {"name": NAME, "classes": list(data.classes), "shape": list(data.shape)}
    export(network, made, described, images[:2])
    return made


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    served = Served(NAME, 1, "0" * 32, predictor.sha256, predictor.classes, predictor.shape, {}, None, 0.0)
    core = Core(ServeConfig())
    core.swap({1: Loaded(served, predictor.predict)}, {"champion": 1})
    with serving.running(core) as url:
        yield url


def encode(image: Any) -> bytes:
    """A picture file without loss."""
    stream = io.BytesIO()
    Image.fromarray(image[..., 0]).save(stream, "PNG")
    return stream.getvalue()


def b64(images: Any) -> list[dict[str, str]]:
    """Pictures in JSON."""
    return [{"b64": base64.b64encode(encode(image)).decode()} for image in images]


def post(url: str, **body: Any) -> Any:
    """The JSON that comes back."""
    response = requests.post(url, timeout=60, **body)
    assert response.status_code == 200, response.text
    return response.json()


def native(url: str, **body: Any) -> Answers:
    predictions = post(url, **body)["predictions"]
    return [row["probabilities"] for row in predictions]


def infer(url: str, tensor: Any, binary: bool) -> Answers:
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        given = triton.InferInput("image", tensor.shape, "UINT8").set_data_from_numpy(tensor, binary)
        wanted = [triton.InferRequestedOutput("probabilities", binary)]
        return client.infer(NAME, [given], outputs=wanted).as_numpy("probabilities")


TENSORFLOW = f"/v1/models/{NAME}:predict"
PNG: Any = {"headers": {"content-type": "image/png"}}
ENCODED = {"signature_name": "image_bytes"}
WAYS: dict[str, Callable[[str, Any], Answers]] = {
    "numbers": lambda url, x: native(f"{url}/predict", json={"instances": x[..., 0].tolist()}),
    "base64": lambda url, x: native(f"{url}/predict", json={"instances": b64(x)}),
    "form": lambda url, x: native(
        f"{url}/predict/image", files=[("files", (str(i), encode(image))) for i, image in enumerate(x)]
    ),
    "pictures": lambda url, x: [native(f"{url}/predict/image", data=encode(y), **PNG)[0] for y in x],
    "rows": lambda url, x: post(url + TENSORFLOW, json={"instances": x.tolist()})["predictions"],
    "columns": lambda url, x: post(url + TENSORFLOW, json={"inputs": {"image": x.tolist()}})["outputs"],
    "image_bytes": lambda url, x: post(url + TENSORFLOW, json={**ENCODED, "inputs": b64(x)})["outputs"],
    "tensor in JSON": lambda url, x: infer(url, x, False),
    "binary tensor": lambda url, x: infer(url, x, True),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_protocol_returns_the_predictions_of_the_offline_model(
    way: str, url: str, predictor: Predictor, images: Any
) -> None:
    expected = predictor.predict(images)
    assert len(np.unique(expected.argmax(1))) > 1
    np.testing.assert_allclose(np.asarray(WAYS[way](url, images), np.float64), expected, rtol=0, atol=1e-6)


def test_predict_by_url_equals_predict_by_model(
    url: str,
    predictor: Predictor,
    images: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [tmp_path / f"{index}.png" for index in range(5)]
    for file, image in zip(files, images, strict=False):
        file.write_bytes(encode(image))
    monkeypatch.setattr(endpoint, "_BATCH", 2)  # more than one request
    words = [*map(str, files), str(tmp_path / "none.png"), "--url", f"{url}/", "--top", "10"]
    assert predict.main(words) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["model"], result["version"], result["status"]) == (NAME, 1, "failed")
    assert [entry["file"] for entry in result["failed"]] == [str(tmp_path / "none.png")]
    assert "none.png cannot be read" in err
    expected = predictor.predict(images[:5])
    for entry, row in zip(result["predictions"], expected, strict=True):
        assert {other["label"]: other["probability"] for other in entry["top"]} == pytest.approx(
            dict(enumerate(row)), abs=2e-6
        )
        assert entry["class"] == predictor.classes[int(row.argmax())]


def test_predict_rejects_other_servers_and_other_versions(url: str, images: Any) -> None:
    model = endpoint.describe(url)
    with pytest.raises(ServingError, match=r"switched to version 1\. Retry"):
        endpoint.outputs(url, images, replace(model, version=2))
    with pytest.raises(ServingError, match="/predict/model responds 404"):
        endpoint.describe(f"{url}/predict")
    with pytest.raises(ServingError, match=r"healthz/?.*does not describe a model"):
        endpoint.describe(url + "/healthz?")
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9/model does not respond"):
        endpoint.describe("http://127.0.0.1:9")


def test_the_metadata_are_those_of_the_saved_model(url: str, folder: Path) -> None:
    from google.protobuf.json_format import MessageToDict
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((folder / SAVED_MODEL / "saved_model.pb").read_bytes())
    expected = {
        name: MessageToDict(signature, preserving_proto_field_name=True)
        for name, signature in saved.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }
    metadata = requests.get(f"{url}/v1/models/{NAME}/metadata", timeout=60).json()
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert signatures.keys() == expected.keys()
    for name, signature in expected.items():
        assert signatures[name]["method_name"] == signature["method_name"]
        for side in ("inputs", "outputs"):
            assert signatures[name][side].keys() == signature[side].keys()
            for tensor, info in signature[side].items():
                shown = signatures[name][side][tensor]
                assert shown["dtype"] == info["dtype"]
                sizes = [dimension["size"] for dimension in info["tensor_shape"]["dim"]]
                assert [dimension["size"] for dimension in shown["tensor_shape"]["dim"]] == sizes
                assert shown["name"] == info["name"]


def test_the_endpoint_fits_images_as_predict_does(url: str, predictor: Predictor, images: Any) -> None:
    from distml.data.image import read

    stream = io.BytesIO()
    Image.fromarray(images[0, ..., 0]).resize((90, 70)).convert("RGB").save(stream, "PNG")
    expected = predictor.predict(read(stream.getvalue(), predictor.pictures)[None])
    actual = native(f"{url}/predict/image", data=stream.getvalue(), **PNG)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)

"""Several models on one endpoint, as a user starts it: a failing one leaves the others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tritonclient.grpc as triton

from distml import cli
from distml.artifacts.layout import write_digests
from distml.serving import ingress
from distml.tasks.regression import Regression
from tests import endpoint, registered
from tests.endpoint import Endpoint
from tests.registered import Registry

pytestmark = [
    *(pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(300)),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
SHAPE = (6, 8, 3)
MODELS = [
    {"registered_model": registered.NAME, "max_queued_images": 8},
    {"registered_model": "lengths", "alias": "approved"},
    {"registered_model": "torn"},
    {"registered_model": registered.NAME, "name": "trial", "alias": "trial"},
]
NAMES = ["pets", "lengths", "torn", "trial"]
PET, PIXELS = np.zeros(registered.SHAPE, np.uint8), np.full(SHAPE, 9, np.uint8)


def add(registry: Registry, model: str, alias: str, folder: Path, sha256: str) -> None:
    registry.client.create_registered_model(model)
    tags = {"sha256": sha256}
    version = registry.client.create_model_version(model, folder.as_uri(), tags=tags).version
    registry.client.set_registered_model_alias(model, alias, version)


def regression(folder: Path) -> str:
    """An export that answers with two numbers of another shape of pictures; returns its SHA-256."""
    import keras

    from distml.artifacts.export import export

    pixels = keras.Input(SHAPE, dtype="float32")
    network = keras.Model(pixels, keras.layers.Dense(2)(keras.layers.Flatten()(pixels)))
    task = Regression(("length", "width"), scale=((10.0, 5.0), (0.0, 1.0)))
    described = {"name": "lengths", "classes": ["length", "width"], "shape": SHAPE, "task": task.spec()}
    folder.mkdir(parents=True)
    export(network, folder, described, PIXELS[None], registered.FORMATS)
    return write_digests(folder)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Of `pets`, version 1 is champion and 2 on trial; `lengths` predicts numbers; `torn` has other files."""
    made = registered.make_champion(tmp_path_factory.mktemp("several") / "storage")
    sha256 = made.client.get_model_version(registered.NAME, "1").tags["sha256"]
    made.alias("trial", made.register(made.folders[1], sha256))
    folder = Path(made.config.storage.root, "exports", "lengths")
    add(made, "lengths", "approved", folder, regression(folder))
    add(made, "torn", "champion", folder, "0" * 64)
    return made


@pytest.fixture(scope="module")
def grpc_port() -> int:
    return ingress.free_ports()[0]


@pytest.fixture(scope="module")
def live(registry: Registry, grpc_port: int) -> Iterator[Endpoint]:
    flags = [f"--serve.models={json.dumps(MODELS)}", f"--serve.grpc_port={grpc_port}"]
    with endpoint.serving(registry, *flags) as running:
        yield running


def post(url: str, image: Any) -> requests.Response:
    return requests.post(url, json={"instances": [image.tolist()]}, timeout=30)


def answer(url: str, image: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The model that answered, and its prediction."""
    response = post(url, image)
    assert response.status_code == 200, response.text
    document = response.json()
    return document["model"], document["predictions"][0]


def test_each_model_answers_by_its_name_and_the_first_without(live: Endpoint) -> None:
    model, prediction = answer(f"{live.url}/models/pets/predict", PET)
    assert (model["name"], model["version"], prediction["class"]) == ("pets", 1, "cat")
    assert answer(f"{live.url}/predict", PET) == (model, prediction)
    model, numbers = answer(f"{live.url}/models/lengths/predict", PIXELS)
    assert (model["name"], list(numbers["named"])) == ("lengths", ["length", "width"])
    model, again = answer(f"{live.url}/models/trial/predict", PET)
    assert (model["name"], model["version"], again) == ("trial", 2, prediction)
    infer = {
        "inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, *SHAPE], "data": [PIXELS.tolist()]}]
    }
    response = requests.post(f"{live.url}/v2/models/lengths/infer", json=infer, timeout=30).json()
    assert (response["model_name"], response["outputs"][0]["data"]) == ("lengths", numbers["values"])
    rows = post(f"{live.url}/v1/models/pets:predict", PET).json()["predictions"]
    assert rows == [prediction["probabilities"]]


def test_an_unloadable_model_leaves_the_others_ready(live: Endpoint) -> None:
    response = post(f"{live.url}/models/torn/predict", PIXELS)
    assert response.status_code == 503
    assert "version 1 is rejected" in response.json()["error"]
    ready = requests.get(f"{live.url}/readyz", timeout=30)
    assert (ready.status_code, ready.json()) == (200, {"status": "ok, but no champion is loaded of torn"})
    states = {
        name: requests.get(f"{live.url}/v2/models/{name}/ready", timeout=30).status_code for name in NAMES
    }
    assert states == {"pets": 200, "lengths": 200, "torn": 503, "trial": 200}
    unknown = post(f"{live.url}/v2/models/cars/infer", PET)
    sentence = "there is no model 'cars'; the models are 'pets', 'lengths', 'torn', 'trial'"
    assert (unknown.status_code, unknown.json()["error"]) == (404, sentence)


def test_grpc_chooses_by_name(live: Endpoint, grpc_port: int) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_port}") as client:
        given = triton.InferInput("image", [1, *SHAPE], "UINT8").set_data_from_numpy(PIXELS[None])
        values = client.infer("lengths", [given]).as_numpy("values")
        assert [client.is_model_ready(name) for name in NAMES] == [True, True, False, True]
    _, numbers = answer(f"{live.url}/models/lengths/predict", PIXELS)
    assert values.ravel().tolist() == pytest.approx(numbers["values"])


def test_the_status_has_a_line_for_each_model(
    live: Endpoint, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--serve.models={json.dumps(MODELS)}", f"--serve.port={live.port}", "--over-s=0.2"]
    assert cli.run("status", [*registry.flags(), *flags]) == 0
    printed = capsys.readouterr()
    models = json.loads(printed.out)["models"]
    assert {name: model["version"] for name, model in models.items()} == {
        "pets": 1,
        "lengths": 1,
        "torn": None,
        "trial": 2,
    }
    assert "torn      no version is served: version 1 is rejected" in printed.err

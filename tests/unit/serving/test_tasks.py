"""The three protocols for models that give labels or numbers instead of one class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests

from distml.config import ServeConfig
from distml.serving import client
from distml.serving.batching import Core, Loaded
from distml.tasks import Task
from distml.tasks.multilabel import Multilabel
from distml.tasks.regression import Regression
from tests import serving

TASKS: dict[str, Task] = {
    "multilabel": Multilabel(("cat", "dog"), thresholds=(0.5, 0.2)),
    "regression": Regression(("length", "width"), scale=((10.0, 5.0), (0.0, 1.0))),
}
OUTPUTS = np.array([[0.4, 0.3], [0.9, 0.1]], np.float32)
IMAGES = np.zeros((2, 4, 4, 1), np.uint8)


@pytest.fixture(scope="module", params=TASKS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, Task]]:
    task = TASKS[request.param]
    described = dataclasses.replace(
        serving.served(1, task.names, (4, 4, 1)), target=task.spec(), metrics={"test_mae": 0.5}
    )
    core = Core(ServeConfig())
    core.swap({1: Loaded(described, lambda images: np.resize(OUTPUTS, (len(images), 2)))}, {"champion": 1})
    with serving.running(core) as url:
        yield url, task


def test_the_native_protocol_names_predictions_of_every_task(served: tuple[str, Task]) -> None:
    url, task = served
    predictions: Any = requests.post(f"{url}/predict", json={"instances": IMAGES.tolist()}).json()[
        "predictions"
    ]
    if task.kind == "multilabel":
        assert [row["labels"] for row in predictions] == [["dog"], ["cat"]]
    else:
        assert predictions[1]["named"] == {"length": pytest.approx(0.9), "width": pytest.approx(0.1)}
    model = client.describe(url)
    assert model.task == task
    np.testing.assert_allclose(client.outputs(url, IMAGES, model), OUTPUTS)
    assert requests.get(f"{url}/model").json()["what"] == task.what


def test_the_description_has_the_words_of_the_task_and_examples_that_are_answered(
    served: tuple[str, Task],
) -> None:
    url, task = served
    document = requests.get(f"{url}/openapi.json").json()
    bodies = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]
    for example in bodies["application/json"]["examples"].values():
        answered = requests.post(f"{url}/v2/models/{serving.NAME}/infer", json=example["value"])
        assert answered.status_code == 200, answered.text
    schemas = document["components"]["schemas"]
    assert schemas["V2RequestedOutput"]["properties"]["name"]["enum"] == list(task.tensors)
    form = schemas["Predictions"]["properties"]["predictions"]["items"]["$ref"].rpartition("/")[2]
    assert form == {"multilabel": "LabelsPrediction", "regression": "NumbersPrediction"}[task.kind]
    assert schemas["Explanation"]["properties"]["prediction"]["$ref"].endswith(f"/{form}")
    assert not {"Prediction", "LabelsPrediction", "NumbersPrediction"} & schemas.keys() - {form}
    for path in ("/predict/image", "/explain"):
        assert "application/octet-stream" in document["paths"][path]["post"]["requestBody"]["content"]
    assert "lassif" not in document["info"]["description"]


def test_numbers_have_the_same_digits_in_all_forms(served: tuple[str, Task]) -> None:
    url, task = served
    given = {"instances": IMAGES[:1].tolist()}
    (row,) = requests.post(f"{url}/predict", json=given).json()["predictions"]
    explained = requests.post(f"{url}/explain", json=given).json()
    assert explained["output"] == 0.4
    if task.kind == "regression":
        assert (row["values"], row["named"]) == ([0.4, 0.3], {"length": 0.4, "width": 0.3})
        ranked = {"name": "values", "parameters": {"classification": 2}}
        inputs = [{"name": "image", "datatype": "UINT8", "shape": [1, 4, 4, 1], "data": [0] * 16}]
        body = {"inputs": inputs, "outputs": [ranked]}
        answered = requests.post(f"{url}/v2/models/{serving.NAME}/infer", json=body)
        assert answered.json()["error"].startswith(
            "classification ranks probabilities, and 'values' has none"
        )


def test_an_answer_of_every_task_is_explained(served: tuple[str, Task]) -> None:
    url, task = served
    body = requests.post(f"{url}/explain", json={"instances": IMAGES[:1].tolist()}).json()
    assert (body["of"], body["prediction"]) == (
        task.names[0],
        requests.post(f"{url}/predict", json={"instances": IMAGES[:1].tolist()}).json()["predictions"][0],
    )
    assert np.shape(body["influence"]) == (4, 4)
    other, both = ("&".join(f"of={name}" for name in names) for names in (task.names[1:], task.names))
    answered = requests.post(f"{url}/explain?{other}", json={"instances": IMAGES[:1].tolist()})
    assert answered.json()["of"] == task.names[1]
    rejected = requests.post(f"{url}/explain?{both}", json={"instances": IMAGES[:1].tolist()})
    assert (rejected.status_code, "one output is explained at a time, not 2" in rejected.text) == (400, True)


def test_tensorflow_serving_and_open_inference_give_the_outputs(served: tuple[str, Task]) -> None:
    url, task = served
    name = serving.NAME
    rows = requests.post(f"{url}/v1/models/{name}:predict", json={"instances": IMAGES.tolist()}).json()
    np.testing.assert_allclose(rows["predictions"], OUTPUTS)
    metadata = requests.get(f"{url}/v1/models/{name}/metadata").json()["metadata"]["signature_def"]
    assert list(metadata["signature_def"]["serving_default"]["outputs"]) == [task.output]
    raw = {"name": "image", "datatype": "UINT8", "shape": [2, 4, 4, 1], "data": IMAGES.ravel().tolist()}
    answer: Any = requests.post(f"{url}/v2/models/{name}/infer", json={"inputs": [raw]}).json()
    given = {tensor["name"]: tensor for tensor in answer["outputs"]}
    assert list(given) == list(task.tensors)
    np.testing.assert_allclose(given[task.output]["data"], OUTPUTS.ravel())
    declared = requests.get(f"{url}/v2/models/{name}").json()["outputs"]
    assert [output["datatype"] for output in declared] == list(task.tensors.values())
    if task.kind == "multilabel":
        assert given["labels"]["data"] == [False, True, True, False]
    unknown = {"inputs": [raw], "outputs": [{"name": "class"}]}
    rejected = requests.post(f"{url}/v2/models/{name}/infer", json=unknown)
    assert (rejected.status_code, f"each of {', '.join(task.tensors)}" in rejected.text) == (400, True)

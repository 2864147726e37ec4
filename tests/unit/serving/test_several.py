"""Several models on one endpoint choose by name, count apart, and do not depend on each other."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
import requests

from distml import log
from distml.config import Config, ServeConfig
from distml.data.schema import Images
from distml.errors import ConfigError, ServingError
from distml.runtime import compat
from distml.selection import pipeline
from distml.serving import client, deploy, models, rpc, run, watch
from distml.serving.batching import Core, Loaded
from distml.serving.encoded import Decoder
from distml.serving.metrics import Metrics
from distml.serving.models import ModelSet, Record
from distml.serving.rpc import message
from distml.serving.service import Models, Refusal, RegistryState, Standing
from distml.tasks import Outputs
from distml.tracking import registry
from distml.tracking.registry import ModelVersion
from tests import serving

LARGE = (6, 8, 3)
REFUSED = Refusal(3, "champion", "its files are gone.", 1.0)
CONFIG = ServeConfig.model_validate(
    {"models": [{"registered_model": name} for name in ("pets", "shoes", "torn")]}
)


def core(name: str, shape: tuple[int, int, int], version: int, **limits: Any) -> Core:
    made = Core(ServeConfig(**limits), Metrics(model=name))
    loaded = Loaded(serving.served(version, shape=shape, name=name), serving.function(version, shape=shape))
    made.swap({version: loaded}, {"champion": version})
    return made


def endpoint(**limits: Any) -> Models:
    """`pets` and `shoes` answer; of `torn` the only version is rejected."""
    torn = Core(ServeConfig(), Metrics(model="torn"))
    torn.learn(Standing(RegistryState(1.0), (REFUSED,)))
    cores = {"pets": core("pets", serving.SHAPE, 7, **limits), "shoes": core("shoes", LARGE, 2), "torn": torn}
    return Models(cores, {name: made.metrics for name, made in cores.items()})


def parts(served: Models) -> Metrics:
    return Metrics(parts=list(served.metrics.values()))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    served = endpoint()
    with serving.running(served, CONFIG, parts(served)) as address:
        yield address


def instances(shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"instances": [np.zeros(shape, np.uint8).tolist()]}


def infer(shape: tuple[int, int, int]) -> dict[str, Any]:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *shape], "data": [0] * int(np.prod(shape))}
    return {"inputs": [tensor]}


@pytest.mark.parametrize(
    ("path", "body", "version"),
    [
        ("/predict", instances(serving.SHAPE), "7"),
        ("/models/pets/predict", instances(serving.SHAPE), "7"),
        ("/models/shoes/predict", instances(LARGE), "2"),
        ("/v1/models/shoes:predict", instances(LARGE), "2"),
        ("/v1/models/pets/versions/7:predict", instances(serving.SHAPE), "7"),
        ("/v2/models/shoes/infer", infer(LARGE), "2"),
        ("/v2/models/pets/infer", infer(serving.SHAPE), "7"),
    ],
)
def test_the_name_in_the_path_chooses_the_model(url: str, path: str, body: Any, version: str) -> None:
    answered = requests.post(url + path, json=body, timeout=10)
    assert (answered.status_code, answered.headers["x-model-version"]) == (200, version), answered.text


def test_the_address_of_a_model_is_that_of_an_endpoint_of_its_own(url: str) -> None:
    described = client.describe(f"{url}/models/shoes")
    assert (described.name, described.version, described.shape) == ("shoes", 2, LARGE)
    images = np.full((2, *LARGE), 9, np.uint8)
    answered = client.outputs(f"{url}/models/shoes", images, described)
    assert answered == pytest.approx(serving.function(2, shape=LARGE)(images), abs=1e-6)
    assert [client.version(f"{url}/models/{name}") for name in ("pets", "shoes", "torn")] == [7, 2, None]
    explained = requests.post(f"{url}/models/shoes/explain", json=instances(LARGE), timeout=10).json()
    assert explained["model"]["name"] == "shoes"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models/cars/model"),
        ("GET", "/models/cars/readyz"),
        ("POST", "/models/cars/predict"),
        ("GET", "/v2/models/cars"),
        ("POST", "/v2/models/cars/infer"),
        ("GET", "/v1/models/cars/versions/7"),
        ("POST", "/v1/models/cars:predict"),
    ],
)
def test_an_unknown_name_gets_404_and_the_names(url: str, method: str, path: str) -> None:
    answered = requests.request(method, url + path, json=infer(LARGE), timeout=10)
    sentence = "there is no model 'cars'; the models are 'pets', 'shoes', 'torn'"
    assert (answered.status_code, answered.json()) == (404, {"error": sentence})


def test_a_rejected_model_leaves_the_others_ready(url: str) -> None:
    sentence = "no model has been loaded yet; version 3 is rejected: its files are gone."
    answered = requests.post(f"{url}/models/torn/predict", json=instances(LARGE), timeout=10)
    assert (answered.status_code, answered.json()["error"]) == (503, sentence)
    for path in ("/readyz", "/v2/health/ready", "/models/pets/readyz", "/v2/models/shoes/ready"):
        assert requests.get(url + path, timeout=10).status_code == 200, path
    assert requests.get(f"{url}/readyz", timeout=10).json()["status"].endswith("of torn")
    unready = ("/models/torn/readyz", "/v2/models/torn/ready", "/v1/models/torn")
    for path in (*unready, "/v1/models/torn/labels/champion"):
        assert requests.get(url + path, timeout=10).status_code == 503, path
    index = requests.post(f"{url}/v2/repository/index", timeout=10).json()
    assert [(row["name"], row["version"], row["state"]) for row in index] == [
        ("pets", "7", "READY"),
        ("shoes", "2", "READY"),
        ("torn", "3", "UNAVAILABLE"),
    ]
    assert requests.get(f"{url}/v2/models", timeout=10).json() == {"models": ["pets", "shoes"]}


def test_the_status_has_a_line_for_each_model(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run.status(Config.resolve({"storage": {"root": str(tmp_path)}}), url, False, 0.1)
    assert {name: model["version"] for name, model in state["models"].items()} == {
        "pets": 7,
        "shoes": 2,
        "torn": None,
    }
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"2 of 3 models answer at {url}"
    assert lines[1].startswith("pets      champion 7; loaded 7; ")
    assert lines[3] == "torn      no version is served: version 3 is rejected: its files are gone."


def samples(text: str, name: str) -> dict[tuple[str, str], float]:
    """Values by model and route."""
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (sample.labels.get("model", ""), sample.labels.get("route", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted_with_their_model() -> None:
    served = endpoint()
    with serving.running(served, CONFIG, parts(served)) as url:
        requests.post(f"{url}/predict", json=instances(serving.SHAPE), timeout=10)
        for _ in range(2):
            requests.post(f"{url}/models/shoes/predict", json=instances(LARGE), timeout=10)
        requests.get(f"{url}/healthz", timeout=10)
        requests.get(f"{url}/v2/models/cars", timeout=10)
        text = requests.get(f"{url}/metrics", timeout=10).text
    assert samples(text, "distml_requests_total") == {
        ("pets", "/predict"): 1,
        ("shoes", "/models/{name}/predict"): 2,
        ("", "/healthz"): 1,
        ("", "/v2/models/{name}"): 1,
    }
    assert samples(text, "distml_champion_version") == {("pets", ""): 7, ("shoes", ""): 2, ("torn", ""): 0}
    assert samples(text, "distml_refused_versions") == {("pets", ""): 0, ("shoes", ""): 0, ("torn", ""): 1}


def test_a_model_whose_queue_is_full_leaves_the_others_answering() -> None:
    served, entered, released = endpoint(max_queued_images=1), threading.Event(), threading.Event()
    pets = served.services["pets"]
    assert isinstance(pets, Core)

    def hang(images: Images) -> Outputs:
        entered.set()
        released.wait(30)
        return serving.function(7)(images)

    pets.swap({7: replace(pets._loaded[7], function=hang)}, {"champion": 7})
    with serving.running(served, CONFIG, parts(served)) as url:
        body = instances(serving.SHAPE)
        first = threading.Thread(target=lambda: requests.post(f"{url}/predict", json=body, timeout=40))
        first.start()
        assert entered.wait(30)
        assert requests.post(f"{url}/predict", json=body, timeout=10).status_code == 429
        other = requests.post(f"{url}/models/shoes/predict", json=instances(LARGE), timeout=10)
        released.set()
        first.join()
    assert other.status_code == 200


def test_each_model_is_described_with_its_own_shape(url: str) -> None:
    document = requests.get(f"{url}/openapi.json", timeout=10).json()
    assert not [path for path in document["paths"] if "{name}" in path]
    schemas = document["components"]["schemas"]

    def rows(path: str) -> int:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        instances = content["schema"]["properties"]["instances"]
        image = instances["anyOf"][0]["items"]["$ref"].rpartition("/")[2]
        return int(schemas[image]["minItems"])

    assert rows("/predict") == rows("/models/pets/predict") == serving.SHAPE[0]
    assert rows("/models/shoes/predict") == LARGE[0]
    identities = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(set(identities)) == len(identities)


def test_grpc_chooses_by_name() -> None:
    served = endpoint()
    calls = rpc.Rpc(served, CONFIG, parts(served), Decoder(CONFIG).images)

    def call(procedure: str, request: Any) -> tuple[Any, list[Any]]:
        said: list[Any] = []
        context = SimpleNamespace(
            invocation_metadata=tuple,
            trailing_metadata=tuple,
            set_trailing_metadata=lambda metadata: None,
            set_code=said.append,
            set_details=said.append,
        )
        return asyncio.run(calls.call(procedure, request, context)), said

    pixels = np.zeros((1, *LARGE), np.uint8)
    asked = message("ModelInferRequest")(model_name="shoes", raw_input_contents=[pixels.tobytes()])
    asked.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    response, said = call("ModelInfer", asked)
    assert (response.model_name, response.model_version, said) == ("shoes", "2", [])
    spec = message("ModelSpec")(name="pets")
    status, _ = call("GetModelStatus", message("GetModelStatusRequest")(model_spec=spec))
    assert [version.version for version in status.model_version_status] == [7]
    ready = [call("ModelReady", message("ModelReadyRequest")(name=name))[0].ready for name in served.services]
    assert ready == [True, True, False]
    _, said = call("ModelMetadata", message("ModelMetadataRequest")(name="cars"))
    assert said == [
        grpc.StatusCode.NOT_FOUND,
        "there is no model 'cars'; the models are 'pets', 'shoes', 'torn'",
    ]
    text = asyncio.run(parts(served).text()).decode()
    counted = samples(text, "distml_requests_total")
    assert counted["shoes", "/inference.GRPCInferenceService/ModelInfer"] == 1


def several(*entries: dict[str, Any], **serve: Any) -> Config:
    return Config.resolve({"serve": {"models": list(entries), **serve}})


def test_an_entry_takes_what_it_leaves_out_from_serve() -> None:
    config = several(
        {"registered_model": "pets", "max_batch_size": 8, "canary": {"percent": 5}},
        {"registered_model": "pets", "name": "next", "alias": "staging", "engine": "litert"},
        max_batch_size=32,
        request_timeout_s=2,
    )
    pets, following = models.hosted(config).values()
    assert list(models.hosted(config)) == ["pets", "next"]
    assert models.aliases(pets.serve) == ("champion", "challenger")
    assert models.aliases(following.serve) == ("staging",)
    assert (pets.serve.max_batch_size, following.serve.max_batch_size) == (8, 32)
    assert (pets.serve.request_timeout_s, following.serve.engine) == (2, "litert")
    assert [alone.tracking.registered_model for alone in (pets, following)] == ["pets", "pets"]
    alone = Config()
    assert models.hosted(alone) == {alone.tracking.registered_model: alone}


@pytest.mark.parametrize(
    ("entries", "serve", "sentence"),
    [
        (({"registered_model": "a"},) * 2, {}, r"models holds 'a' \(champion\) twice; leave one out"),
        (
            ({"registered_model": "a"}, {"registered_model": "a", "alias": "next"}),
            {},
            "models holds two of the name 'a'; give one of them another name",
        ),
        (({"registered_model": "a"},), {"shadow": "next"}, "shadow belongs to a model; give it in its entry"),
        (({"registered_model": "a"},), {"alias": "next"}, "alias belongs to a model; give it in its entry"),
        (({"registered_model": "a", "port": 4},), {}, "unknown key serve.models.0.port"),
    ],
)
def test_models_that_cannot_be_served_together_are_rejected(
    entries: Any, serve: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        several(*entries, **serve)


def test_a_model_that_was_never_there_is_an_error_at_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = ModelVersion("pets", 1, None, "0" * 64)

    def by_alias(config: Config, alias: str = "champion") -> ModelVersion | None:
        return known if config.tracking.registered_model == "pets" else None

    monkeypatch.setattr(registry, "by_alias", by_alias)
    config = Config.resolve(
        {
            "storage": {"root": str(tmp_path)},
            "serve": {
                "models": [{"registered_model": "pets"}, {"registered_model": "ages", "alias": "next"}]
            },
        }
    )
    with pytest.raises(ServingError, match="no version of ages is next"):
        deploy.require(config)


def test_a_model_whose_files_cannot_be_fetched_leaves_the_others_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    released = threading.Event()

    def look(self: watch.Watch) -> bool:
        if self.models.leading == "stuck":
            released.wait(30)
            return False
        self.models = ModelSet({"champion": 1}, {1: ModelVersion("shoes", 1, None, "0" * 64)})
        return True

    async def followed() -> tuple[str, ModelSet]:
        watcher = watch.Watcher(config.model_dump(mode="json"))
        try:
            told = await asyncio.wait_for(watcher.changes("shoes", ModelSet()), 20)
            return (await watcher.models())["pets"].digest, told
        finally:
            released.set()

    monkeypatch.setattr(watch.Watch, "look", look)
    monkeypatch.delattr(watch.Watcher, "__del__")  # asynchronous: for Ray Serve alone
    monkeypatch.setattr(log, "configure", lambda role: None)
    monkeypatch.setattr(compat, "grpc_on_loopback", lambda: None)
    entries = [{"registered_model": "pets", "alias": "stuck"}, {"registered_model": "shoes"}]
    config = Config.resolve({"storage": {"root": str(tmp_path)}, "serve": {"models": entries}})
    stuck, told = asyncio.run(followed())
    gc.collect()  # the watcher, while it has no such method
    assert (stuck, told.aliases) == ("", {"champion": 1})


def test_records_of_other_leading_aliases_are_not_taken(tmp_path: Path) -> None:
    def configured(alias: str) -> Config:
        return Config.resolve(
            {
                "storage": {"root": str(tmp_path)},
                "tracking": {"registered_model": "pets"},
                "serve": {"alias": alias},
            }
        )

    version = ModelVersion("pets", 3, None, "0" * 64)
    Record(configured("champion")).keep(ModelSet({"champion": 3}, {3: version}, asked_at=9.0), {})
    assert Record(configured("next")).recall() == ModelSet(leading="next")
    assert Record(configured("champion")).recall().champion == version


def test_a_pipeline_serves_the_model_that_it_trains() -> None:
    entries = [{"registered_model": "pets"}, {"registered_model": "shoes", "name": "boots"}]
    config = Config.resolve({"serve": {"models": entries}, "tracking": {"registered_model": "shoes"}})
    assert models.own(config)[0] == "boots"
    assert models.base(config, "http://host") == "http://host/models/boots"
    other = Config.resolve({"serve": {"models": entries}, "tracking": {"registered_model": "cars"}})
    with pytest.raises(ConfigError, match=r"'cars' is none of serve.models \(pets, shoes\)"):
        pipeline.run(other)


def test_only_the_models_of_an_endpoint_redeploy_it() -> None:
    def version(registered: str, *entries: dict[str, Any]) -> str:
        config = several(*entries).model_dump(mode="json")
        config["tracking"]["registered_model"] = registered
        return deploy._version(deploy._relevant(Config.resolve(config)))

    pets, shoes = {"registered_model": "pets"}, {"registered_model": "shoes"}
    assert version("pets", pets, shoes) == version("shoes", pets, shoes)
    assert version("pets", pets, shoes) != version("pets", shoes, pets)

"""What surrounds the protocols: the page's headers, errors in JSON, metrics of several replicas."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from distml.config import ServeConfig
from distml.data.schema import Images
from distml.errors import OverloadedError, TimedOutError
from distml.serving import application
from distml.serving.batching import Core
from distml.serving.exchange import Answer
from distml.serving.metrics import Metrics
from distml.tasks import Outputs
from tests import malformed, serving

GOOD = malformed.single(malformed.IMAGE)


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an endpoint with a page."""
    folder = tmp_path / "page"
    folder.mkdir()
    (folder / "index.html").write_text("<p>hello")
    (folder / "draw.js").write_text("1")
    (tmp_path / "secret").write_text("no")
    monkeypatch.setattr(application, "PAGE", folder)
    with serving.running(serving.core()) as url:
        yield url


def test_the_page_loads_nothing_from_elsewhere_and_cannot_be_framed(page: str) -> None:
    for path, kind in (("/", "text/html"), ("/draw.js", "text/javascript")):
        response = requests.get(page + path)
        assert (response.status_code, response.headers["content-type"].partition(";")[0]) == (200, kind)
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


def test_the_page_does_not_hide_errors_of_the_protocols(page: str) -> None:
    assert requests.get(f"{page}/predict").status_code == 405
    assert requests.post(f"{page}/model").headers["allow"] == "GET, HEAD, OPTIONS"
    for path in ("/none.html", "/../secret", "/%2e%2e/secret", "/v1/models/pets/labels/x"):
        response = requests.get(page + path)
        assert (response.status_code, list(response.json())) == (404, ["error"])
    for path in ("/", "/draw.js"):
        response = requests.post(page + path)
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert response.json()["error"] == f"{path} does not take POST"
    assert requests.post(f"{page}/v1/models/a:b:predict").status_code == 404


PATHS = [
    "/healthz",
    "/readyz",
    "/v2/health/live",
    "/v2/health/ready",
    "/metrics",
    "/model",
    "/openapi.json",
    "/",
]


@pytest.mark.parametrize("path", PATHS)
def test_monitors_may_ask_for_the_head_and_the_options(page: str, path: str) -> None:
    for answer in (requests.head(page + path), requests.head(f"{page}{path}?probe=1")):
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == requests.get(page + path).headers["content-type"]
    options = requests.options(page + path)
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


def test_prediction_routes_do_not_take_head(page: str) -> None:
    assert requests.head(f"{page}/predict").status_code == 405
    assert requests.options(f"{page}/predict").headers["allow"] == "OPTIONS, POST"
    assert requests.options(f"{page}/none").status_code == 404


def test_other_origins_get_no_cors_headers(page: str) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    preflight = requests.options(f"{page}/predict", headers=asked)
    assert preflight.status_code == 204
    for answer in (preflight, requests.post(f"{page}/predict", GOOD, headers=asked)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverloadedError("full."), 429), (TimedOutError("late."), 504), (ZeroDivisionError("secret"), 500)],
)
@pytest.mark.parametrize("path", ["/predict", "/v1/models/pets:predict"])
def test_errors_of_the_service_map_to_statuses(
    error: Exception, status: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    core = serving.core()
    monkeypatch.setattr(core, "classify", fail)
    with serving.running(core) as url:
        response = requests.post(url + path, GOOD)
    assert response.status_code == status
    assert ("retry-after" in response.headers) == (status == 429)
    assert "secret" not in response.text
    assert response.json()["error"] == (
        "the endpoint failed; its log says why" if status == 500 else str(error)
    )


def test_a_champion_of_another_shape_is_served() -> None:
    core = serving.core()
    with serving.running(core) as url:
        assert requests.post(f"{url}/predict", GOOD).status_code == 200
        other = serving.core((2, 2, 3))
        core.swap(other._loaded, other._aliases)
        assert requests.post(f"{url}/predict", GOOD).status_code == 400
        body = {"instances": np.zeros((1, 2, 2, 3), int).tolist()}
        assert requests.post(f"{url}/predict", json=body).status_code == 200
        schemas = requests.get(f"{url}/openapi.json").json()["components"]["schemas"]
        assert schemas["Image"]["maxItems"] == 2


def metrics(text: str, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels' values, in the order of their names."""
    return {
        tuple(sample.labels[key] for key in sorted(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_requests_are_counted() -> None:
    with serving.running(serving.core()) as url:
        for body in (GOOD, GOOD, b"{}"):
            requests.post(f"{url}/predict", body)
        requests.get(f"{url}/v2/models/somebody")
        requests.get(f"{url}/predict")
        response = requests.get(f"{url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = metrics(response.text, "distml_requests_total")
    assert counted == {
        ("POST", "/predict", "200", "7"): 2,
        ("POST", "/predict", "400", ""): 1,
        ("GET", "/v2/models/{name}", "404", ""): 1,
    }
    assert metrics(response.text, "distml_request_images_sum") == {(): 2}
    assert metrics(response.text, "distml_request_seconds_count")[("/predict",)] == 3
    assert metrics(response.text, "distml_requests_running") == {(): 1}


def test_any_replica_exports_the_metrics_of_the_others() -> None:
    first, second = Metrics("one"), Metrics("two")
    for counted, count in ((first, 3), (second, 4)):
        for _ in range(count):
            counted.answered("/predict", "POST", Answer(b"", version=7, images=2), 0.1)
    known: dict[str, Any] = {"two": pickle.loads(pickle.dumps(second.families())), "one": []}

    async def ask() -> dict[str, Any]:
        if known is None:
            raise ConnectionError("the watcher restarts")
        return known

    first.ask_others(ask)
    text = asyncio.run(first.text()).decode()
    assert metrics(text, "distml_requests_total") == {
        ("POST", "one", "/predict", "200", "7"): 3,
        ("POST", "two", "/predict", "200", "7"): 4,
    }
    assert metrics(text, "distml_request_images_sum") == {("one",): 6, ("two",): 8}
    assert text.count("# TYPE distml_requests_total counter") == 1
    kept, known = known, None  # type: ignore[assignment]
    assert '"two"' in asyncio.run(first.text()).decode()  # what was known last
    known = {"one": kept["one"]}
    assert '"two"' not in asyncio.run(first.text()).decode()


def test_batch_sizes_and_queue_length_are_measured() -> None:
    with serving.running(serving.core()) as url:
        requests.post(f"{url}/predict", json={"instances": [malformed.IMAGE] * 5})
        text = requests.get(f"{url}/metrics").text
    assert metrics(text, "distml_batch_images_sum") == {(): 5}
    assert metrics(text, "distml_images_waiting") == {(): 0}


def test_a_shadow_is_compared_and_never_answers() -> None:
    config = ServeConfig(shadow="previous")
    core = serving.core(config=config)
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, *serving.SHAPE), np.uint8)
    with serving.running(core, config) as url:
        for picture in pictures:
            response = requests.post(f"{url}/predict", json={"instances": picture.tolist()})
            assert response.json()["model"]["version"] == 7
        requests.post(f"{url}/v1/models/{serving.NAME}/versions/7:predict", GOOD)  # its version was chosen
        text = requests.get(f"{url}/metrics").text
    counted = metrics(text, "distml_shadow_images_total")
    answers, others = (serving.function(seed)(pictures[:, 0]) for seed in (7, 5))
    if ("skipped", "5") not in counted:  # on a machine that keeps up
        same = int(np.sum(answers.argmax(1) == others.argmax(1)))
        assert counted == {("same", "5"): same, ("other", "5"): 40 - same}
        assert 0 < same < 40
    assert sum(counted.values()) == 40
    assert metrics(text, "distml_shadow_difference_count")[()] > 0


def test_a_failing_shadow_does_not_affect_answers() -> None:
    config = ServeConfig(shadow="previous")
    core = serving.core(config=config)

    def fail(images: Images) -> Outputs:
        raise ZeroDivisionError

    core.swap({7: core._loaded[7], 5: replace(core._loaded[5], function=fail)}, core._aliases)
    with serving.running(core, config) as url:
        assert [requests.post(f"{url}/predict", GOOD).status_code for _ in range(3)] == [200] * 3
        text = requests.get(f"{url}/metrics").text
    assert metrics(text, "distml_shadow_images_total")[("failed", "5")] >= 1


def test_observers_of_answers_are_called_once_each() -> None:
    heard = []
    core = Core(ServeConfig(), hear=lambda *answer: heard.append(answer))
    core.swap(serving.core()._loaded, {"champion": 7})
    with serving.running(core) as url:
        for path in ("/predict", "/v1/models/pets:predict"):
            asked = requests.post(url + path, GOOD, headers={"x-request-id": f"order{path}"})
            assert asked.status_code == 200
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *serving.SHAPE], "data": [0] * 20}
        assert requests.post(f"{url}/v2/models/pets/infer", json={"inputs": [tensor]}).status_code == 200
        assert requests.post(f"{url}/predict", b"{}").status_code == 400
    assert [request for request, *_ in heard] == ["order/predict", "order/v1/models/pets:predict", None]
    assert [(served.version, images.shape, answer.shape) for _, served, images, answer, _ in heard] == [
        (7, (1, *serving.SHAPE), (1, 3))
    ] * 3
    assert all(seconds > 0 for *_, seconds in heard)


def test_requests_before_the_first_model_get_503() -> None:
    with serving.running(Core(ServeConfig())) as url:
        document = requests.get(f"{url}/openapi.json").json()
        assert document["paths"]["/predict"]
        response = requests.post(f"{url}/v2/models/pets/infer", malformed.infer())
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")

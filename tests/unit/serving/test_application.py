"""What surrounds the protocols: the page's headers, errors in JSON, metrics of several replicas."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from distml.config import ServeConfig
from distml.errors import OverloadedError, TimedOutError
from distml.serving import application
from distml.serving.core import Core
from distml.serving.metrics import SHARED
from tests import malformed, serving

GOOD = malformed.one(malformed.IMAGE)


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
        got = requests.get(page + path)
        assert (got.status_code, got.headers["content-type"].partition(";")[0]) == (200, kind)
        policy = got.headers["content-security-policy"]
        assert policy.startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["referrer-policy"] == "no-referrer"


def test_the_page_does_not_hide_errors_of_the_protocols(page: str) -> None:
    assert requests.get(f"{page}/predict").status_code == 405
    assert requests.post(f"{page}/model").headers["allow"] == "GET"
    for path in ("/none.html", "/../secret", "/%2e%2e/secret", "/v1/models/pets/labels/x"):
        got = requests.get(page + path)
        assert (got.status_code, list(got.json())) == (404, ["error"])
    for path in ("/", "/draw.js"):
        got = requests.post(page + path)
        assert (got.status_code, got.headers["allow"]) == (405, "GET, HEAD")
        assert got.json()["error"] == f"{path} does not take POST"
    assert requests.post(f"{page}/v1/models/a:b:predict").status_code == 404


def test_other_origins_are_not_let_in(page: str) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    got = requests.options(f"{page}/predict", headers=asked)
    assert got.status_code == 405
    for answer in (got, requests.post(f"{page}/predict", GOOD, headers=asked)):
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverloadedError("full."), 429), (TimedOutError("late."), 504), (ZeroDivisionError("secret"), 500)],
)
@pytest.mark.parametrize("path", ["/predict", "/v1/models/pets:predict"])
def test_what_the_service_raises_is_a_status(
    error: Exception, status: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    core = serving.core()
    monkeypatch.setattr(core, "classify", fail)
    with serving.running(core) as url:
        got = requests.post(url + path, GOOD)
    assert got.status_code == status
    assert ("retry-after" in got.headers) == (status == 429)
    assert "secret" not in got.text
    assert got.json()["error"] == ("the endpoint failed; its log says why" if status == 500 else str(error))


def test_a_champion_of_another_shape_is_followed() -> None:
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
        got = requests.get(f"{url}/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    counted = metrics(got.text, "distml_requests_total")
    assert counted == {
        ("POST", "/predict", "200", "7"): 2,
        ("POST", "/predict", "400", ""): 1,
        ("GET", "/v2/models/{name}", "404", ""): 1,
    }
    assert metrics(got.text, "distml_request_images_sum") == {(): 2}
    assert metrics(got.text, "distml_request_seconds_count")[("/predict",)] == 3
    assert metrics(got.text, "distml_requests_running") == {(): 1}


REPLICA = """
import sys, time
from distml.serving.exchange import Answer
from distml.serving.metrics import Metrics
metrics = Metrics()
for _ in range(int(sys.argv[1])):
    metrics.answered("/predict", "POST", Answer(b"", version=7, images=2), 0.1)
metrics.running.inc()
print(metrics.text().decode())
"""


def test_any_replica_answers_for_all_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SHARED, str(tmp_path))
    root = str(Path(__file__).parents[3])
    said = [
        subprocess.run(
            [sys.executable, "-c", REPLICA, count], capture_output=True, text=True, check=True, cwd=root
        ).stdout
        for count in ("3", "4")
    ]
    counted = [metrics(text, "distml_requests_total")[("POST", "/predict", "200", "7")] for text in said]
    assert counted == [3, 7]
    assert metrics(said[1], "distml_request_images_sum") == {(): 14}


def test_nothing_is_loaded_yet() -> None:
    with serving.running(Core(ServeConfig())) as url:
        document = requests.get(f"{url}/openapi.json").json()
        assert document["paths"]["/predict"]
        got = requests.post(f"{url}/v2/models/pets/infer", malformed.infer())
        assert (got.status_code, got.headers["retry-after"]) == (503, "1")

"""Several versions behind one endpoint: traffic split, shadow, versions by number, metrics and log of all."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests import registered
from tests.endpoint import Endpoint, serving
from tests.registered import Registry

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PERCENT = 30
FLAGS = [
    "--serve.replicas.min=2",
    "--serve.replicas.max=2",
    "--serve.poll_s=0.5",
    "--serve.canary.alias=challenger",
    f"--serve.canary.percent={PERCENT}",
    "--serve.shadow=silent",
    "--serve.versions=[4]",
    "--log.enabled=true",
    "--log.flush_s=0.5",
]
ALIASES = {"champion": 1, "challenger": 2, "silent": 3}
BIRD = np.zeros(registered.SHAPE, np.uint8)
BIRD[0, 0, 0], BIRD[0, 1, 0] = 200, 130
"""Right is the third class; a network is wrong about it where its threshold is below 130."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    made = registered.make(tmp_path_factory.mktemp("split") / "storage")
    for threshold in (100, 110, 140, 150):
        made.add(threshold)
    for alias, version in ALIASES.items():
        made.alias(alias, version)
    return made


@pytest.fixture(scope="module")
def live(registry: Registry) -> Iterator[Endpoint]:
    with serving(registry, *FLAGS) as endpoint:
        yield endpoint


def ask(live: Endpoint, count: int) -> collections.Counter[int]:
    """Ask for no version in particular; who answered, how often."""
    body = {"instances": [BIRD.tolist()]}
    by_version: collections.Counter[int] = collections.Counter()
    with requests.Session() as session:
        for _ in range(count):
            response = session.post(f"{live.url}/predict", json=body, timeout=10)
            response.raise_for_status()
            by_version[response.json()["model"]["version"]] += 1
    return by_version


def measured(live: Endpoint, name: str, label: str) -> dict[str, float]:
    """A metric of the whole endpoint, summed by a label."""
    text = requests.get(f"{live.url}/metrics", timeout=10).text
    totals: dict[str, float] = collections.defaultdict(float)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                totals[sample.labels.get(label, "")] += sample.value
    return dict(totals)


def eventually(read: Any, holds: Any, timeout_s: float = 20) -> Any:
    """The first value of `read` that holds."""
    deadline = time.monotonic() + timeout_s
    while not holds(value := read()):
        assert time.monotonic() < deadline, value
        time.sleep(0.3)
    return value


def answered(live: Endpoint) -> float:
    return sum(
        value
        for route, value in measured(live, "distml_requests_total", "route").items()
        if route == "/predict"
    )


def test_a_share_of_traffic_goes_to_the_challenger_and_none_to_the_shadow(live: Endpoint) -> None:
    by_version = ask(live, 600)
    assert by_version.keys() == {1, 2}
    share = by_version[2] / 600
    assert abs(share - PERCENT / 100) < 4 * (0.3 * 0.7 / 600) ** 0.5  # one run in 16,000 is further off
    outcomes = measured(live, "distml_shadow_images_total", "outcome")
    assert outcomes["other"] > 100  # 1 and 2 are wrong about the bird, the shadow is right
    assert "same" not in outcomes
    assert measured(live, "distml_shadow_images_total", "version").keys() == {"3"}


def test_a_pinned_version_answers_by_its_number(live: Endpoint, registry: Registry) -> None:
    from distml.artifacts.predictor import Predictor

    for version in (1, 2, 3, 4):
        at = f"{live.url}/v1/models/{registered.NAME}/versions/{version}:predict"
        response = requests.post(at, json={"instances": [BIRD.tolist()]}, timeout=10)
        assert response.status_code == 200, response.text
        offline = Predictor.load(registry.folders[version]).predict(BIRD[None])[0]
        assert response.headers["x-model-version"] == str(version)
        np.testing.assert_allclose(response.json()["predictions"][0], offline, atol=1e-5)
    at = f"{live.url}/v1/models/{registered.NAME}/versions/9:predict"
    assert requests.post(at, json={"instances": [BIRD.tolist()]}, timeout=10).status_code == 404


def test_any_replica_exports_the_metrics_of_all(live: Endpoint) -> None:
    before = eventually(lambda: answered(live), lambda value: value >= 600)
    ask(live, 200)
    assert eventually(lambda: answered(live), lambda value: value >= before + 200) == before + 200
    per_replica = measured(live, "distml_requests_total", "replica")
    assert len(per_replica) == 2
    assert min(per_replica.values()) > 50
    assert measured(live, "distml_batch_images_count", "replica").keys() == per_replica.keys()


def test_every_answer_is_in_the_log(live: Endpoint, registry: Registry) -> None:
    folder = registry.storage.uri("requests", registered.NAME)
    before = eventually(lambda: answered(live), lambda value: value >= 800)
    written = measured(live, "distml_log_rows", "outcome")
    assert (written["dropped"], written["lost"]) == (0, 0)
    ask(live, 50)

    def rows() -> int:
        return sum(len(pq.read_table(path)) for path in registry_files(folder))

    eventually(rows, lambda count: count >= before + 50)
    table = pq.read_table(registry_files(folder)[0])
    assert set(table.column("version").to_pylist()) <= {1, 2, 3, 4}
    assert {"time", "request", "probabilities", "statistics", "image"} <= set(table.column_names)


def registry_files(folder: str) -> list[Any]:
    from pathlib import Path

    return sorted(Path(folder.removeprefix("file://")).rglob("*.parquet"))


def test_a_withdrawn_challenger_gets_no_traffic(live: Endpoint, registry: Registry) -> None:
    registry.client.delete_registered_model_alias(registered.NAME, "challenger")
    time.sleep(3)
    assert ask(live, 60) == {1: 60}

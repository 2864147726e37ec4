"""The endpoint loses replicas, gets other champions and is ended, all under load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from distml.serving import ingress
from tests import registered
from tests.clients import Clients
from tests.endpoint import Endpoint, serving
from tests.registered import Registry
from tests.runner import REPOSITORY, command, environment

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
BIRD = np.zeros(registered.SHAPE, np.uint8)
BIRD[0, 0, 0], BIRD[0, 1, 0] = 200, 130
"""Right is the third class; a network is wrong about it where its threshold is below 130."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 to 3, each with other probabilities; the first is champion."""
    endpoint = registered.make(tmp_path_factory.mktemp("serving") / "storage")
    for threshold in (100, 120, 140):
        endpoint.add(threshold)
    crown(endpoint, 1)
    return endpoint


@pytest.fixture(scope="module")
def live(registry: Registry) -> Iterator[Endpoint]:
    with serving(
        registry, "--serve.replicas.min=2", "--serve.replicas.max=2", "--serve.poll_s=0.5"
    ) as endpoint:
        yield endpoint


def crown(registry: Registry, version: int) -> None:
    registry.alias("champion", version)


def offline(registry: Registry, version: int) -> Any:
    """What a version answers without any server."""
    from distml.artifacts.predictor import Predictor

    return Predictor.load(registry.folders[version]).predict(BIRD[None])[0]


@pytest.fixture
def clients(live: Endpoint) -> Iterator[Clients]:
    result = Clients(live.url, BIRD.tolist())
    yield result
    result.stop()


def served(live: Endpoint) -> dict[str, Any]:
    response: dict[str, Any] = requests.get(f"{live.url}/model", timeout=10).json()
    return response


def await_version(live: Endpoint, version: int) -> None:
    deadline = time.monotonic() + 30
    while served(live)["version"] != version:
        assert time.monotonic() < deadline, served(live)
        time.sleep(0.2)
    time.sleep(2)  # the other replica has heard of it, too


def test_answers_match_their_version_while_champions_change_under_load(
    live: Endpoint, registry: Registry, clients: Clients
) -> None:
    for number, version in enumerate((2, 3, 1), 1):
        crown(registry, version)
        await_version(live, version)
        clients.wait(250 * number)
    folder, sha256 = registry.export(160)
    bad = registry.register(folder, sha256)
    weights = folder / "data" / "model.tflite"
    spoilt = bytearray(weights.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    weights.write_bytes(spoilt)
    crown(registry, bad)
    deadline = time.monotonic() + 30
    while not served(live).get("refused"):
        assert time.monotonic() < deadline, served(live)
        time.sleep(0.2)
    assert served(live)["version"] == 1
    crown(registry, 1)
    clients.wait(1000)
    clients.stop()
    assert clients.failed == []
    assert clients.answers.keys() == {1, 2, 3}
    for version, answers in clients.answers.items():
        np.testing.assert_allclose(answers, np.tile(offline(registry, version), (len(answers), 1)), atol=1e-5)


def test_a_killed_replica_costs_no_request(live: Endpoint, clients: Clients) -> None:
    before = live.replicas()
    assert len(before) == 2
    clients.wait(200)
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while len(live.replicas() - {min(before)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    clients.wait(3000)
    clients.stop()
    assert clients.failed == []


def listening(pids: set[int]) -> set[tuple[str, int]]:
    """Addresses and ports on which some processes listen."""
    result = [
        connection
        for connection in psutil.net_connections("tcp")
        if connection.status == "LISTEN" and connection.pid in pids
    ]
    return {(item.laddr.ip, item.laddr.port) for item in result if item.laddr}


def test_every_process_listens_on_this_machine_alone(live: Endpoint) -> None:
    """Ray opens a dozen ports: of its head, its agents and their metrics, and of each worker."""
    everything = listening({item.pid for item in [live.driver, *live.driver.children(recursive=True)]})
    assert len(everything) > 10
    assert {address.removeprefix("::ffff:") for address, _ in everything} == {"127.0.0.1"}
    assert live.port in {port for _, port in everything}


def test_it_serves_on_the_ipv6_loopback_address(registry: Registry) -> None:
    """Replicas stay at 127.0.0.1; only HAProxy listens there."""
    before = set(Path(tempfile.gettempdir()).iterdir())
    rpc = ingress.free_ports()[0]
    with serving(registry, "--serve.replicas.max=1", f"--serve.grpc_port={rpc}", host="::1") as live:
        numbers = {"instances": [BIRD.tolist()]}
        answered = requests.post(f"{live.url}/predict", json=numbers, timeout=20)
        assert answered.status_code == 200, answered.text
        everything = listening({item.pid for item in [live.driver, *live.driver.children(recursive=True)]})
        outside = {(at, port) for at, port in everything if at.removeprefix("::ffff:") != "127.0.0.1"}
        assert outside == {("::1", live.port), ("::1", rpc)}
    left = {item.name for item in set(Path(tempfile.gettempdir()).iterdir()) - before}
    assert not [name for name in left if name.startswith(("distml-", "pymp-"))]


def test_without_a_champion_serve_fails_with_a_message(registry: Registry, tmp_path: Path) -> None:
    began = time.monotonic()
    flags = [flag for flag in registry.flags() if "registered_model" not in flag]
    port = f"--serve.port={ingress.free_ports()[0]}"
    done = subprocess.run(
        command("serve", *flags, "--tracking.registered_model=nobody", port),
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert time.monotonic() - began <= 60
    assert done.returncode == 1
    assert "no version of nobody is champion" in done.stderr


def test_running_requests_are_answered_before_shutdown(registry: Registry) -> None:
    body = {"instances": [BIRD.tolist()] * 4096}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(8) as pool:
        live = stack.enter_context(serving(registry, "--serve.max_body_bytes=16000000"))
        answer = [pool.submit(requests.post, f"{live.url}/predict", json=body, timeout=30) for _ in range(4)]
        time.sleep(0.05)
        began = time.monotonic()
        stack.close()
        assert time.monotonic() - began <= 20
        codes = {item.result().status_code for item in answer}
        assert codes <= {200, 429}
        assert 200 in codes

"""The registry becomes unreachable under a running endpoint; restarted processes lose nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from distml import tracking
from tests import registered
from tests.clients import Clients
from tests.endpoint import Endpoint, serving
from tests.mlflow_server import TrackingServer
from tests.registered import Registry

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(400)),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
IMAGE = np.zeros(registered.SHAPE, np.uint8).tolist()


def await_true(what: Callable[[], Any], timeout_s: float, state: Callable[[], Any] = str) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, state()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Versions 1 and 2 whose files only the server hands out; the first is champion."""
    made = registered.make(tmp_path_factory.mktemp("away") / "storage")
    for threshold in (100, 140):
        folder, sha256 = made.export(threshold)
        made.register(folder, sha256, source=f"mlflow-artifacts:/{folder.name}")
    made.alias("champion", 1)
    return made


@pytest.fixture
def server(registry: Registry) -> Iterator[TrackingServer]:
    root = Path(registry.config.storage.root)
    started = TrackingServer(root, tracking.uri(registry.config), root / "exports")
    yield started
    started.kill()


def watchers(live: Endpoint) -> set[int]:
    return live.named("ServeReplica:distml:Watcher")


def model(live: Endpoint) -> dict[str, Any]:
    described: dict[str, Any] = requests.get(f"{live.url}/model", timeout=10).json()
    return described


def test_killed_watcher_and_replica_recover_without_the_registry(
    registry: Registry, server: TrackingServer
) -> None:
    flags = ["--serve.replicas.min=2", "--serve.replicas.max=2", "--serve.poll_s=0.5"]
    log = Path(registry.config.storage.root, "serve.log")
    with serving(registry, *flags, f"--tracking.uri={server.uri}") as live:
        await_true(lambda: model(live)["registry"]["answers"], 20, lambda: model(live))
        clients = Clients(live.url, IMAGE, per_s=20)
        clients.wait(40)
        server.kill()
        await_true(lambda: "registry" in log.read_text() and "is still served" in log.read_text(), 90)
        (watcher,), replicas = watchers(live), live.replicas()
        os.kill(watcher, signal.SIGKILL)
        await_true(lambda: watchers(live) - {watcher}, 60)
        await_true(lambda: not model(live)["registry"]["answers"], 60, lambda: model(live))
        os.kill(min(replicas), signal.SIGKILL)
        await_true(lambda: len(live.replicas() - {min(replicas)}) == 2, 60)
        await_true(lambda: loaded_by(live) >= 2, 90, lambda: requests.get(f"{live.url}/metrics").text)
        clients.wait(clients.count + 200)
        assert model(live)["version"] == 1
        assert model(live)["registry"]["age_s"] > 5
        server.start()
        registry.alias("champion", 2)
        await_true(lambda: model(live)["version"] == 2, 60, lambda: model(live))
        clients.wait(clients.count + 60)
        clients.stop()
        assert clients.failed == []
        assert clients.answers.keys() == {1, 2}
        await_true(lambda: "version 2" in log.read_text(), 20, log.read_text)
        assert "the registry responds again" in log.read_text()


def loaded_by(live: Endpoint) -> int:
    """How many living replicas say that a champion answers."""
    text = requests.get(f"{live.url}/metrics", timeout=10).text
    return sum(line.startswith("distml_champion_version{") for line in text.splitlines())


def test_a_registry_that_lost_its_champion_changes_nothing_served(registry: Registry) -> None:
    """An empty new registry answers: the last champion keeps serving, with a warning."""
    registry.alias("champion", 2)
    log = Path(registry.config.storage.root, "serve.log")
    local = registered.NAME
    with serving(registry, "--serve.poll_s=0.5", *local_sources(registry)) as live:
        clients = Clients(live.url, IMAGE, per_s=20)
        registry.client.delete_registered_model_alias(local, "champion")
        await_true(lambda: model(live)["registry"].get("missing") == ["champion"], 30, lambda: model(live))
        (watcher,) = watchers(live)
        psutil.Process(watcher).kill()
        await_true(lambda: watchers(live) - {watcher}, 60)
        clients.wait(clients.count + 200)
        clients.stop()
        assert clients.failed == []
        assert clients.answers.keys() == {3}
        await_true(lambda: "the registry has no champion any more" in log.read_text(), 20, log.read_text)


def local_sources(registry: Registry) -> list[str]:
    """Make version 3 champion, whose files lie in the storage."""
    if 3 not in registry.folders:
        registry.add(120)
    registry.alias("champion", 3)
    return []

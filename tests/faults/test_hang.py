"""A replica that is there and does nothing, and clients before the start and after the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests

from distml.serving import ingress
from tests import registered
from tests.clients import Clients
from tests.endpoint import serving
from tests.registered import Registry
from tests.runner import REPOSITORY, command, environment

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(400)),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
IMAGE = np.zeros(registered.SHAPE, np.uint8).tolist()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registered.make_champion(tmp_path_factory.mktemp("hang") / "storage")


@contextlib.contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it was replaced
            os.kill(process, signal.SIGCONT)


def test_the_second_replica_takes_over_when_the_first_hangs(registry: Registry) -> None:
    with serving(registry, "--serve.replicas.min=2", "--serve.replicas.max=2") as live:
        replicas = live.replicas()
        clients = Clients(live.url, IMAGE, per_s=20)
        clients.wait(100)
        with stopped(min(replicas)):
            began = time.monotonic()
            while len(live.replicas() - {min(replicas)}) < 2:
                assert time.monotonic() - began < 30
                time.sleep(0.2)
            clients.wait(clients.count + 400)
        clients.stop()
        assert clients.failed == []
        assert clients.slowest_s < 5


def test_the_only_replica_is_replaced_when_it_hangs(registry: Registry) -> None:
    with serving(registry, "--serve.replicas.max=1") as live:
        (replica,) = live.replicas()
        clients = Clients(live.url, IMAGE, per_s=10)
        clients.wait(30)
        with stopped(replica):
            began = time.monotonic()
            time.sleep(6)
            missed = len(clients.failed)
            assert missed > 0
            answered = sum(map(len, clients.answers.values()))
            while sum(map(len, clients.answers.values())) < answered + 20:
                assert time.monotonic() - began < 30, clients.failed[-3:]
                time.sleep(0.2)
            recovered = time.monotonic() - began
        clients.stop()
        assert {failure.split()[1] for failure in clients.failed} == {"503"}
        assert clients.slowest_s < 5
        assert recovered < 22  # 20 answers at 10 a second are two seconds


def test_before_start_and_after_stop_requests_get_503_never_404(
    registry: Registry,
) -> None:
    port, seen, over = (
        ingress.free_ports()[0],
        Counter[tuple[int, str | None, str | None]](),
        threading.Event(),
    )
    url = f"http://127.0.0.1:{port}/v2/models/{registered.NAME}/ready"

    def watch() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(requests.RequestException):
                response = requests.get(url, timeout=5)
                seen[
                    response.status_code,
                    response.headers.get("content-type"),
                    response.headers.get("retry-after"),
                ] += 1

    with Path(registry.config.storage.root, "unavailable.log").open("wb") as log:
        process = subprocess.Popen(
            command("serve", *registry.flags(), f"--serve.port={port}"),
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        thread = threading.Thread(target=watch)
        thread.start()
        try:
            deadline = time.monotonic() + 150
            while not any(status == 200 for status, *_ in seen):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            over.set()
            thread.join(20)
    assert seen.keys() == {(200, "application/json", None), (503, "application/json", "1")}

"""Replicas of an endpoint with several models die while one of them predicts; the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests

from tests import registered
from tests.endpoint import Endpoint, serving
from tests.registered import Registry

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(300)),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
MODELS = [
    {"registered_model": registered.NAME},
    {"registered_model": registered.NAME, "name": "trial", "alias": "trial"},
]
IMAGES = np.zeros((2000, *registered.SHAPE), np.uint8).tolist()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    made = registered.make_champion(tmp_path_factory.mktemp("deaths") / "storage")
    made.alias("trial", 1)
    return made


def ask(live: Endpoint, name: str, images: Any = IMAGES[:1]) -> requests.Response | None:
    with contextlib.suppress(requests.RequestException):
        return requests.post(f"{live.url}/models/{name}/predict", json={"instances": images}, timeout=20)
    return None


def await_status(live: Endpoint, name: str, status: int, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while (response := ask(live, name)) is None or response.status_code != status:
        assert time.monotonic() < deadline, response and response.text
        time.sleep(0.2)
    return response.text


@contextlib.contextmanager
def busy(live: Endpoint, name: str) -> Iterator[None]:
    over = threading.Event()

    def load() -> None:
        while not over.is_set():
            ask(live, name, IMAGES)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def marks(process: psutil.Process) -> dict[str, int]:
    """What a replica has marked itself as doing."""
    for path in Path(process.environ()["TMPDIR"]).glob("distml-marks-*/*.marks"):
        header, _, values = path.read_bytes().partition(b"\n")
        if (described := json.loads(header))["pid"] == process.pid:
            named = zip(described["names"], struct.unpack(f"<{len(values) // 8}q", values), strict=True)
            return {name: value for name, value in named if value}
    return {}


def kill_while(live: Endpoint, doing: str) -> None:
    """SIGKILL the replica at a moment at which it does nothing else."""
    (pid,) = live.replicas()
    deadline = time.monotonic() + 60
    while True:
        os.kill(pid, signal.SIGSTOP)
        if marks(psutil.Process(pid)) == {doing: 1}:
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)
        assert time.monotonic() < deadline
        time.sleep(0.003)


def test_a_model_that_kills_replicas_is_withdrawn_and_the_other_goes_on(registry: Registry) -> None:
    log = Path(registry.config.storage.root, "serve.log")
    with serving(registry, f"--serve.models={json.dumps(MODELS)}", "--serve.replicas.max=1") as live:
        for _ in range(3):
            await_status(live, "trial", 200)
            with busy(live, "trial"):
                kill_while(live, "predicting trial")
        refusal = await_status(live, "trial", 503)
        deadline = time.monotonic() + 30
        while "3 replicas in a row died while computing its predictions" not in refusal:
            assert time.monotonic() < deadline, refusal
            refusal = await_status(live, "trial", 503)
        await_status(live, registered.NAME, 200)
        assert "distml_replica_losses" in requests.get(f"{live.url}/metrics", timeout=20).text
        await_status(live, "trial", 200)  # after 30 s it is tried again
        deadline = time.monotonic() + 15
        while "trial: version 1: a replica died while computing its predictions" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        assert "3 replicas in a row died while computing its predictions" in log.read_text()

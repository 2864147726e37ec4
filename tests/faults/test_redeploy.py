"""An endpoint is deployed again while it stands on a cluster, under load: nothing is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest

from distml.serving import ingress
from tests import registered
from tests.clients import Clients
from tests.registered import Registry
from tests.runner import REPOSITORY, command, environment

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(500)),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # Ray's Cluster leaves sockets and pipes of the processes it starts to the garbage collector (2.60).
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
IMAGE = np.zeros(registered.SHAPE, np.uint8).tolist()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registered.make_champion(tmp_path_factory.mktemp("redeploy") / "storage")


class Standing:
    """An endpoint on a cluster that outlives the commands that deploy it."""

    def __init__(self, registry: Registry, address: str, raylet: int) -> None:
        self._port, self._flags, self._address = ingress.free_ports()[0], registry.flags(), address
        self._raylet = raylet
        self.url = f"http://127.0.0.1:{self._port}"

    def deploy(self, *flags: str) -> dict[str, Any]:
        after = [] if "--stop" in flags else ["--detach"]
        done = subprocess.run(
            command("serve", *self._flags, f"--serve.port={self._port}", *flags, *after),
            cwd=REPOSITORY,
            env=environment(RAY_ADDRESS=self._address),
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    def replicas(self) -> set[int]:
        known = set()
        for process in psutil.Process(self._raylet).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ServeReplica:distml:Replica" in " ".join(process.cmdline()):
                    known.add(process.pid)
        return known


@pytest.fixture
def standing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standing]:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # workers import this checkout's package
    monkeypatch.setenv("RAY_worker_niceness", "0")
    quiet = {"include_dashboard": False, "num_cpus": 4, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=quiet)
    try:
        raylet = cluster.head_node.all_processes["raylet"][0].process.pid
        made = Standing(registry, cluster.address, raylet)
        made.deploy("--run.name=first")
        yield made
        made.deploy("--stop")
    finally:
        cluster.shutdown()


def test_redeploying_under_load_loses_no_request(standing: Standing) -> None:
    first = standing.replicas()
    clients = Clients(standing.url, IMAGE, per_s=20, fresh=True)
    clients.wait(60)
    standing.deploy("--run.name=second", "--train.epochs=7")
    assert standing.replicas() == first  # what an endpoint does not depend on does not replace it
    clients.wait(clients.count + 60)
    standing.deploy("--run.name=third", "--serve.max_batch_size=32")
    deadline = time.monotonic() + 90
    while standing.replicas() & first:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    standing.deploy("--run.name=fourth", "--serve.poll_s=1")
    clients.wait(max(820, clients.count + 60))
    clients.stop()
    assert clients.failed == []

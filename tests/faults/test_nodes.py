"""Several nodes without Kubernetes: raylets of one cluster on this machine, one killed, one joining."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import psutil
import pytest
from PIL import Image

from tests import object_store
from tests.integration import test_finetune as finetune
from tests.runner import REPOSITORY, STEPS_PER_EPOCH, Training, assert_logged_once, recorded

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.timeout(900)),
    # Ray's Cluster leaves sockets and pipes of the processes it starts to the garbage collector (2.60).
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Nodes:
    """A cluster whose head does no work, and its working nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quiet = {"include_dashboard": False, "num_cpus": 0, "object_store_memory": 200_000_000}
        self.cluster = Cluster(initialize_head=True, head_node_args=quiet)
        self.nodes: list[Any] = []

    def add(self) -> Any:
        """Let a node of one CPU join."""
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=200_000_000))
        return self.nodes[-1]

    def training(self) -> list[Any]:
        """The nodes with a training worker."""
        return [node for node in self.nodes if _trains(node.all_processes["raylet"][0].process.pid)]

    def kill(self, node: Any) -> None:
        """Take a node away as a power cut does."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)


def _trains(raylet: int) -> bool:
    """Whether a training worker is among a raylet's processes; those that end meanwhile do not count."""
    for process in psutil.Process(raylet).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return True
    return False


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    # Workers read it when they start; without it, they would wait for the machine's idle cores.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # and import this checkout's package
    result = Nodes()
    try:
        yield result
    finally:
        result.cluster.shutdown()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Root of a bucket on an S3 server of this machine."""
    for name, value in object_store.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with object_store.running() as root:
        yield root


def test_a_killed_node_costs_its_epoch_with_everything_durable_in_s3(
    s3: str, nodes: Nodes, tmp_path: Path
) -> None:
    for _ in range(3):
        nodes.add()
    local = tmp_path / "local"
    local.mkdir()
    flags = [f"--storage.root={s3}", f"--tracking.uri=sqlite:///{local}/mlflow.db", "--train.epochs=8"]
    with Training(local, "three", *flags, env={"RAY_ADDRESS": nodes.cluster.address}) as run:
        run.wait_for("epoch 2/8", timeout_s=400)
        busy = nodes.training()
        assert len(busy) == 2, "each worker has a node of its own"
        nodes.kill(busy[0])
        code, result = run.finish(timeout_s=400)
    assert (code, result["status"], result["steps"]) == (0, "finished", 8 * STEPS_PER_EPOCH)
    assert run.said("resumed after epoch") >= 1, "\n".join(run.lines)
    assert_logged_once(recorded(local, "three")[1], epochs=8)
    url = s3.rpartition("endpoint_override=")[2]
    client = boto3.client("s3", endpoint_url=f"http://{url}")
    keys = [content["Key"] for content in client.list_objects_v2(Bucket=object_store.BUCKET)["Contents"]]
    assert any(key.startswith("root/data/") for key in keys)
    assert any(key.startswith("root/runs/three/") for key in keys)
    assert not list(local.glob("data")), "nothing durable was written beside S3"
    assert not run.said("test-canary")


@pytest.mark.slow
def test_three_workers_of_unequal_batches_train_on_a_stream(nodes: Nodes, tmp_path: Path) -> None:
    # 256 rows are 86, 85 and 85: 4,080 rows each are 47 whole batches for one worker, 48 for the others.
    for _ in range(4):
        nodes.add()
    root = tmp_path / "storage"
    flags = ["--train.workers=3", "--train.epochs=2", "--data.memory_budget_bytes=1000000"]
    with Training(root, "uneven", *flags, env={"RAY_ADDRESS": nodes.cluster.address}) as run:
        code, result = run.finish(timeout_s=400)
    assert (code, result["steps"]) == (0, 2 * STEPS_PER_EPOCH), "\n".join(run.lines)
    assert run.said("training on 3 workers")
    assert run.said("shards streamed")
    assert_logged_once(recorded(root, "uneven")[1], epochs=2)


ELASTIC_EPOCHS = 10
"""An epoch takes four seconds on a fast machine: enough to add two nodes and to see them."""


def test_an_elastic_run_shrinks_with_its_cluster_and_grows_with_it(nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(2):
        nodes.add()
    root = tmp_path / "storage"
    flags = ["--train.workers=[1,3]", f"--train.epochs={ELASTIC_EPOCHS}", "--train.elastic_check_s=8"]
    with Training(root, "elastic", *flags, env={"RAY_ADDRESS": nodes.cluster.address}) as run:
        run.wait_for(f"epoch 1/{ELASTIC_EPOCHS}", timeout_s=400)
        first = len(nodes.training())
        nodes.add()
        nodes.add()
        most = first
        until = time.monotonic() + 500
        while run.process.poll() is None and most < 3 and time.monotonic() < until:
            most = max(most, len(nodes.training()))
            time.sleep(0.5)
        code, result = run.finish(timeout_s=600)
    assert first in (1, 2)
    assert most == 3, "\n".join(run.lines)
    assert (code, result["steps"]) == (0, ELASTIC_EPOCHS * STEPS_PER_EPOCH)
    assert_logged_once(recorded(root, "elastic")[1], epochs=ELASTIC_EPOCHS)
    assert os.environ.get("RAY_ADDRESS") is None


@pytest.mark.slow
def test_frozen_layers_on_an_elastic_stream_survive_a_node_and_the_driver(
    nodes: Nodes, tmp_path: Path
) -> None:
    """Features, then the maps in front of the first layer that learns, are computed again from the stream."""
    for _ in range(3):
        nodes.add()
    (tmp_path / "own_finetune.py").write_text(finetune.OWN)
    for number in range(600):
        label = number % 3
        pixels = np.random.default_rng(number).integers(0, 120, (48, 48, 3), np.uint8)
        pixels[8:40, 8:40, label] = 200
        place = tmp_path / "pictures" / finetune.CLASSES[label] / f"{number:03}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    flags = [
        *(f"--data.path={tmp_path / 'pictures'}", "--data.name=drawn", "--data.format=auto"),
        "--data.val_fraction=0.2",
        *("--data.encoding=jpeg", "--data.memory_budget_bytes=1000000", "--train.workers=[1,2]"),
        *("--model.name=own_finetune:network", "--model.freeze_epochs=3", "--model.unfreeze_from=norm"),
        *("--train.epochs=6", "--train.global_batch_size=32", "--train.learning_rate=0.05"),
        *(
            "--train.max_failures=5",
            "--train.checkpoint_every_epochs=1",
            "--model.backbone_learning_rate=0.1",
        ),
    ]
    root, env = tmp_path / "storage", {"RAY_ADDRESS": nodes.cluster.address}
    with Training(root, "frozen", *flags, env=env) as run:
        run.wait_for("epoch 2/6", timeout_s=400)
        nodes.kill(nodes.training()[0])
        run.wait_for("epoch 3/6", timeout_s=400)
        run.kill_all()
    nodes.add()
    with Training(root, "frozen", *flags, env=env) as again:
        code, result = again.finish(timeout_s=500)
    assert code == 0, "\n".join(again.lines)
    assert run.said("shards streamed")
    assert again.said("resumed after epoch")
    epochs = finetune.history(result)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4, 5, 6]
    assert all("features_s" in epoch for epoch in epochs)
    assert {1, 2} >= {epoch["world_size"] for epoch in epochs}
    assert len({epoch["rows_read"] + epoch["rows_dropped"] for epoch in epochs}) == 1
    assert result["test_accuracy"] > 0.9

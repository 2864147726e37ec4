"""A node is taken away with notice: a cluster of raylets, one of them really drained."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner import STEPS_PER_EPOCH, Training, assert_logged_once, recorded

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

NOTICE_S = 15
EPOCHS = 16
"""More than the notice has time for: an epoch takes two seconds on a quick machine."""


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for workers."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def _drain(address: str, node_id: str) -> None:
    """Announce, as a cloud provider's notice makes a cluster do it, that a node will be gone."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # compiled
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    accepted, why = GcsClient(address=address).drain_node(node_id, reason, "preemption", deadline_ms)
    assert accepted, why


def test_a_preempted_node_costs_no_failure(cluster: Any, tmp_path: Path) -> None:
    taken = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    flags = ["--train.max_failures=0", "--train.max_preemptions=1", f"--train.epochs={EPOCHS}"]
    env = {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
    with Training(tmp_path / "storage", "preempted", *flags, env=env) as run:
        run.wait_for(f"epoch 1/{EPOCHS}")
        cluster.add_node(num_cpus=2)
        _drain(cluster.address, taken.node_id)
        noticed = time.monotonic()
        run.wait_for(f"epoch 2/{EPOCHS}")
        time.sleep(max(0.0, noticed + NOTICE_S - time.monotonic()))
        cluster.remove_node(taken, allow_graceful=False)
        code, result = run.finish()
    assert code == 0, run.lines[-40:]
    assert (code, result["status"], result["steps"]) == (0, "finished", EPOCHS * STEPS_PER_EPOCH)
    assert run.said("resumed after epoch") == 1
    tracked, steps = recorded(tmp_path / "storage", "preempted")
    assert tracked.info.status == "FINISHED"
    assert_logged_once(steps, epochs=EPOCHS)

"""Ray's head dies under a standing endpoint, in the pods of both overlays without Kubernetes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from distml.serving import haproxy
from tests import pods, registered

pytestmark = [
    *(pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(540)),
    # Keras 3.15 on NumPy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

BACK_S = 60.0
"""From a head that is ready to the champion's answer."""
REQUESTS_LEAST = 3000
"""From the head's death on."""


@pytest.fixture
def application(tmp_path: Path) -> dict[str, Any]:
    """Arguments of the RayService's application for a registry with two versions and no champion."""
    if haproxy.program() is None:
        pytest.skip("the overlays serve through HAProxy, and there is none here: apt-get install haproxy")
    registry = registered.make(tmp_path / "storage")
    for threshold in (100, 200):
        registry.add(threshold)
    given = dict(flag.removeprefix("--").split("=", 1) for flag in registry.flags())
    args: dict[str, Any] = {path: yaml.safe_load(value) for path, value in given.items()}
    return args | {"serve.host": "0.0.0.0", "serve.replicas.min": 1, "serve.replicas.max": 1}


def test_a_first_champion_is_served_soon_after_the_only_pod_restarts(
    tmp_path: Path, application: dict[str, Any]
) -> None:
    result = pods.run("alone", str(tmp_path), json.dumps(application))
    assert result["back_s"] <= BACK_S


def test_a_restart_of_the_head_loses_no_request_and_replaces_no_replica(
    tmp_path: Path, application: dict[str, Any]
) -> None:
    if shutil.which("redis-server") is None:
        pytest.skip("Redis is not installed; on Debian or Ubuntu: apt-get install redis-server")
    result = pods.run("survived", str(tmp_path), json.dumps(application), str(REQUESTS_LEAST))
    assert result["lost"] == [], result
    assert result["asked"] >= REQUESTS_LEAST
    assert result["asked_alone"] > 100
    # HAProxy and the replicas go on without Redis, too; that the new head knows them is what Redis is for.
    assert result["before"], result
    assert result["before"] == result["after"] == result["later"], result
    assert result["known_s"] <= BACK_S
    assert result["followed_s"] <= BACK_S, "a new champion is taken over by the replicas that stayed"

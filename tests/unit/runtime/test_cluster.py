"""What a run takes from a cluster is decided from numbers alone."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from distml.config import Config, TrainConfig
from distml.errors import ResourceError
from distml.runtime import cluster, compat
from distml.runtime import cluster as joining
from distml.runtime.cluster import Cluster, Plan

ROOT = Path(__file__).parents[3]


def decide(resources: dict[str, float], **train: Any) -> Plan:
    return cluster.plan(TrainConfig.model_validate(train), resources)


@pytest.mark.parametrize(
    ("train", "resources", "workers", "use_gpu"),
    [
        ({"workers": 2}, {"CPU": 3}, (2, 2), False),
        ({"workers": 2}, {"CPU": 16}, (2, 2), False),
        ({"workers": [1, 4]}, {"CPU": 3}, (1, 2), False),
        ({"workers": [1, 4]}, {"CPU": 2}, (1, 1), False),
        ({"workers": [1, 4]}, {"CPU": 64}, (1, 4), False),
        ({"workers": 1, "cpus_per_worker": 4}, {"CPU": 5}, (1, 1), False),
        ({"workers": 7, "cpus_per_worker": 0.1}, {"CPU": 1.7}, (7, 7), False),
        ({"workers": 2}, {"CPU": 8, "GPU": 2}, (2, 2), True),
        ({"workers": 2}, {"CPU": 8, "GPU": 1}, (2, 2), False),
        ({"workers": [1, 4]}, {"CPU": 8, "GPU": 2}, (1, 2), True),
        ({"workers": 2, "device": "cpu"}, {"CPU": 8, "GPU": 2}, (2, 2), False),
        ({"workers": 2, "device": "gpu"}, {"CPU": 8, "GPU": 2}, (2, 2), True),
        ({"workers": [1, 8], "device": "gpu"}, {"CPU": 4, "GPU": 8}, (1, 3), True),
    ],
)
def test_a_run_that_fits(
    train: dict[str, Any], resources: dict[str, float], workers: tuple[int, int], use_gpu: bool
) -> None:
    actual = decide(resources, **train)
    assert (actual.workers, actual.use_gpu) == (workers, use_gpu)
    assert f"{int(resources.get('GPU', 0))} GPU" in actual.reason


@pytest.mark.parametrize(
    ("train", "resources", "said"),
    [
        ({"workers": 2, "device": "gpu"}, {"CPU": 8}, "needs 2 GPU, but the cluster has 0."),
        ({"workers": 2, "device": "gpu"}, {"CPU": 8, "GPU": 1}, "needs 2 GPU, but the cluster has 1."),
        ({"workers": 2}, {"CPU": 2}, "needs 3 CPU, but the cluster has 2."),
        ({"workers": 99}, {"CPU": 9}, "needs 100 CPU, but the cluster has 9."),
        ({"workers": 1, "cpus_per_worker": 8}, {"CPU": 8}, "needs 9 CPU, but the cluster has 8."),
        ({"workers": 1}, {}, "needs 2 CPU, but the cluster has 0."),
    ],
)
def test_a_run_that_does_not_fit_names_the_missing_resource(
    train: dict[str, Any], resources: dict[str, float], said: str
) -> None:
    with pytest.raises(ResourceError) as caught:
        decide(resources, **train)
    assert said in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("cores", "train", "cpus"),
    [
        (2, {"workers": 2}, 3),
        (2, {"workers": 1}, 2),
        (16, {"workers": 2}, 16),
        (2, {"workers": [1, 6]}, 7),
        (2, {"workers": 99}, 9),
    ],
)
def test_a_small_machine_gets_logical_cpus_for_workers_and_data(
    monkeypatch: pytest.MonkeyPatch, cores: int, train: dict[str, Any], cpus: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert cluster.local_cpus(TrainConfig.model_validate(train)) == cpus


def test_a_machine_with_too_few_cores_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config = Config.model_validate({"train": {"workers": 99}})
    with pytest.raises(ResourceError, match="has 2 cores; take fewer train"):
        joining.require_plan(config, Cluster({"CPU": 9.0}, None, True, None))
    monkeypatch.setattr(joining, "JOIN_S", -1)
    with pytest.raises(ResourceError, match="or a larger cluster"):
        joining.require_plan(config, Cluster({"CPU": 9.0}, None, False, None))


def test_a_run_waits_for_the_nodes_of_a_cluster_that_has_just_come_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = Config.model_validate({"train": {"workers": 2, "device": "cpu"}})
    later = iter([{"CPU": 1.0}, {"CPU": 3.0}])
    monkeypatch.setattr(joining, "_joined", lambda *_: next(later))
    assert joining.require_plan(config, Cluster({}, None, False, None)).workers == (2, 2)


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster.address() is None
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert cluster.address() is None
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert cluster.address() == "head:6379"
    assert cluster._init_arguments(Config(), 1, {}) == {"address": "head:6379"}


def test_a_local_dashboard_listens_on_the_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("DISTML_NO_DASHBOARD", "0")
    arguments = cluster._init_arguments(Config(), 1, {})
    assert arguments["dashboard_host"] == "127.0.0.1"
    # True would raise where the dashboard cannot start: `raise_on_api_server_failure` of ray/_private/node.py
    assert arguments["include_dashboard"] is None
    assert cluster._init_arguments(Config(), 1, {}, dashboard=False)["include_dashboard"] is False
    monkeypatch.setenv("DISTML_NO_DASHBOARD", "1")
    assert cluster._init_arguments(Config(), 1, {})["include_dashboard"] is False


@pytest.mark.ray
def test_ray_works_where_its_dashboard_cannot_start(tmp_path: Path) -> None:
    broken = "import os, sys\nif any(word.endswith('dashboard.py') for word in sys.orig_argv): os._exit(1)\n"
    (tmp_path / "sitecustomize.py").write_text(broken)
    program = """
import psutil
import ray
from distml.config import Config
from distml.runtime import cluster
with cluster.connect(Config.resolve({"train": {"workers": 1}})) as connected:
    with cluster.connect(Config(), dashboard=False) as inner:
        assert inner is connected
    processes = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("/monitor.py" in words for words in processes)
    assert not any("log_monitor" in words for words in processes)
    print(connected.shown, ray.get(ray.remote(lambda: 6 * 7).remote()))
assert not ray.is_initialized()
"""
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path, "DISTML_NO_DASHBOARD": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == ["no dashboard 42"], done.stderr


def test_a_ray_of_the_users_own_is_used_and_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 2.0})
    monkeypatch.setitem(sys.modules, "ray", own)  # neither `init` nor `shutdown` may be called
    with cluster.connect(Config()) as connected:
        assert connected == Cluster({"CPU": 2.0}, None, False, None)
    monkeypatch.delenv("RAY_SERVE_HAPROXY_STATS_PORT", raising=False)
    with (
        pytest.raises(ResourceError, match="started without the settings of the endpoint") as caught,
        cluster.connect(Config(), variables={"RAY_SERVE_HAPROXY_STATS_PORT": "1"}),
    ):
        pytest.fail("there is no connection")
    assert "python -m distml.serve" in caught.value.remedy


@pytest.mark.parametrize(
    ("where", "said", "remedy"),
    [
        (None, "cannot start Ray on this machine: The node timed out during startup.", "less busy"),
        ("head:6379", "cannot connect to head:6379: The node timed out during startup.", "Check RAY_ADDRESS"),
    ],
)
def test_a_failed_start_of_ray_is_an_error_message(
    monkeypatch: pytest.MonkeyPatch, where: str | None, said: str, remedy: str
) -> None:
    def init(**_: Any) -> None:
        raise Exception("The node timed out during startup.\nMore.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    monkeypatch.setattr(compat, "few_processes", lambda dashboard: contextlib.nullcontext())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if where:
        monkeypatch.setenv("RAY_ADDRESS", where)
    with pytest.raises(ResourceError) as caught, cluster.connect(Config()):
        pytest.fail("there is no connection")
    assert caught.value.message == said
    assert remedy in caught.value.remedy


def test_an_interrupted_start_leaves_no_process_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        words = ["raylet", "-c", "import time; time.sleep(600)"]
        started.append(subprocess.Popen(words, executable=sys.executable))
        raylet = psutil.Process(started[0].pid)
        while raylet.cmdline()[:1] != ["raylet"]:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init, shutdown=lambda: None))
    monkeypatch.setattr(compat, "few_processes", lambda dashboard: contextlib.nullcontext())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(KeyboardInterrupt), cluster.connect(Config()):
        pytest.fail("there is no connection")
    started[0].wait(timeout=30)
    assert not psutil.pid_exists(started[0].pid)


def test_an_elastic_run_keeps_its_maximum_where_nodes_may_join() -> None:
    train = TrainConfig.model_validate({"workers": [1, 3], "device": "cpu"})
    assert cluster.plan(train, {"CPU": 2}).workers == (1, 1)
    assert cluster.plan(train, {"CPU": 2}, grows=True).workers == (1, 3)
    with pytest.raises(ResourceError):
        cluster.plan(train, {"CPU": 1}, grows=True)


def test_missing_resources_are_requested_from_the_autoscaler() -> None:
    train = TrainConfig.model_validate({"workers": 2, "device": "gpu"})
    actual = cluster.plan(train, {"CPU": 1}, autoscaled=True)
    assert (actual.workers, actual.use_gpu) == ((2, 2), True)


def test_the_dashboard_address_is_logged_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    url = "http://127.0.0.1:8265"
    assert Cluster({}, url, True, None).shown == f"dashboard {url} (token: ray get-auth-token)"
    assert Cluster({}, url, False, None).shown == f"dashboard {url}"
    assert Cluster({}, None, True, None).shown == "no dashboard"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a" * 64)
    assert Cluster({}, url, True, None).shown == f"dashboard {url}"

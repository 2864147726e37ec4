"""Workers against CPUs and GPUs, rows against a step, and ports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from distml.checks import GIB, machine
from distml.config import Config


def config(**train: Any) -> Config:
    return Config.model_validate({"train": train})


@pytest.mark.parametrize(
    ("train", "resources", "status", "said"),
    [
        ({"workers": 2}, {"CPU": 3.0}, "ok", "2 on CPU; 1 of 3 Ray CPUs are left for Ray Data on here"),
        ({"workers": [1, 4]}, {"CPU": 3.0}, "ok", "1 to 2 on CPU"),
        ({"workers": 2}, {"CPU": 8.0, "GPU": 2.0}, "ok", "2 on one GPU each; 6 of 8"),
        ({"workers": 2}, {"CPU": 2.0}, "problem", "needs 3 CPU, but the cluster has 2"),
        ({"workers": 1, "device": "gpu"}, {"CPU": 8.0}, "problem", "needs 1 GPU, but the cluster has 0"),
    ],
)
def test_cpus_for_the_workers_are_checked(
    train: Any, resources: dict[str, float], status: str, said: str
) -> None:
    check = machine.workers(config(**train), resources, "here")
    assert check.status == status
    assert said in check.detail


@pytest.mark.parametrize(
    ("rows", "status", "said"),
    [
        (None, "ok", "256 rows a step, 128 on each of 2 workers"),
        (256, "ok", "256 rows a step"),
        (255, "problem", "is more than the 255 training rows"),
    ],
)
def test_a_step_has_no_more_rows_than_there_are(rows: int | None, status: str, said: str) -> None:
    check = machine.batch(config(), rows)
    assert check.status == status
    assert said in check.detail


@pytest.mark.parametrize(
    ("visible", "nodes", "gpus"),
    [
        (None, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], 2),
        ("0", ["nvidia0", "nvidia1"], 1),
        ("0,1,2", ["nvidia0", "nvidia1"], 2),
        ("", ["nvidia0"], 0),
        ("-1", ["nvidia0"], 0),
        (None, [], 0),
    ],
)
def test_gpus_are_counted_without_tensorflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, nodes: list[str], gpus: int
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", "")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for node in nodes:
        (tmp_path / node).touch()
    assert machine.gpus(tmp_path) == gpus


@pytest.mark.parametrize(
    ("text", "gpus"), [("GPU 0: H100 (UUID: x)\nGPU 1: H100 (UUID: y)", 2), ("No devices", 0)]
)
def test_without_device_files_nvidia_smi_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, gpus: int
) -> None:
    command = tmp_path / "nvidia-smi"
    command.write_text(f"#!/bin/sh\necho '{text}'\n")
    command.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert machine.gpus(tmp_path) == gpus


@pytest.mark.parametrize(
    ("dashboard", "serve", "status", "said"),
    [
        (True, True, "ok", "are free"),
        (False, True, "warning", "in use: 127.0.0.1:8265 (Ray dashboard)"),
        (True, False, "warning", "in use: 127.0.0.1:8000 (serve)"),
        (False, False, "warning", "8265 (Ray dashboard), 127.0.0.1:8000 (serve)"),
    ],
)
def test_taken_ports_are_named(dashboard: bool, serve: bool, status: str, said: str) -> None:
    check = machine.ports(Config(), dashboard, serve)
    assert check.status == status
    assert said in check.detail
    assert ("--serve.port" in check.remedy) == (not serve)


MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "data", "status"),
    [
        (16 * GIB, 0, "ok"),
        (4 * GIB, 0, "warning"),
        (1 * GIB, 0, "problem"),
        (5 * GIB, 43 * MIB, "ok"),
        (5 * GIB, 900 * MIB, "warning"),
        (9 * GIB, 900 * GIB, "ok"),  # what is over the budget is streamed
    ],
)
def test_memory(free: int, data: int, status: str) -> None:
    check = machine.memory(Config(), free, data)
    assert check.status == status
    assert "for 2 workers" in check.detail
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("free", "data", "status"),
    [(None, 0, "ok"), (64 * MIB, 0, "warning"), (GIB, 0, "ok"), (GIB, GIB, "warning")],
)
def test_shared_memory(free: int | None, data: int, status: str) -> None:
    check = machine.shared_memory(free, data)
    assert check.status == status
    assert ("--shm-size" in check.remedy) == (status == "warning")


@pytest.mark.parametrize(("free", "status"), [(50 * MIB, "problem"), (GIB, "warning"), (9 * GIB, "ok")])
def test_disk(free: int, status: str) -> None:
    check = machine.disk(Path("/somewhere"), free)
    assert check.status == status
    assert "/somewhere" in check.detail


@pytest.mark.parametrize(("used", "status"), [(0.5, "ok"), (0.95, "ok"), (0.96, "warning")])
def test_the_temporary_folder_is_checked(used: float, status: str) -> None:
    assert machine.scratch(Path("/tmp"), used).status == status


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    free = machine.free_memory()
    assert free > 3 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{MIB}\n")
    assert machine.free_memory() > 3 * MIB
    (tmp_path / "memory.max").write_text(f"{3 * MIB}\n")
    assert machine.free_memory() == 2 * MIB


def test_a_path_that_is_not_there_yet_lies_on_the_disk_of_its_nearest_folder(tmp_path: Path) -> None:
    assert machine.free_on(tmp_path / "a" / "b") == pytest.approx(machine.free_on(tmp_path), rel=0.05)
    assert 0 < machine.used_on(tmp_path / "a") < 1
    assert machine.free_on(Path("relative")) > 0


@pytest.mark.parametrize(
    ("installed", "gpus", "device", "status", "said"),
    [
        ({"tensorflow-cpu": "2.21.0"}, 0, "auto", "ok", "tensorflow-cpu 2.21.0"),
        ({"tensorflow-cpu": "2.21.0"}, 2, "cpu", "ok", ""),
        ({"tensorflow": "2.21.3"}, 2, "gpu", "ok", "tensorflow 2.21.3"),
        ({"tensorflow": "2.20.0"}, 0, "auto", "warning", "is not the 2.21"),
        ({"tensorflow-cpu": "2.21.0"}, 2, "auto", "warning", "uses CPUs only"),
        ({"tensorflow-cpu": "2.21.0"}, 0, "gpu", "problem", "uses CPUs only"),
        ({}, 0, "auto", "problem", "no TensorFlow is installed"),
        (
            {"tensorflow": "2.21.0", "tensorflow-cpu": "2.21.0"},
            0,
            "auto",
            "problem",
            "2 TensorFlows are installed",
        ),
    ],
)
def test_one_tensorflow_for_the_device(
    installed: Any, gpus: int, device: str, status: str, said: str
) -> None:
    check = machine.tensorflow(installed, gpus, device)
    assert check.status == status
    assert said in check.detail
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("installed", "status"), [({"keras": "3.15.1"}, "ok"), ({"keras": "2.15.0"}, "problem"), ({}, "problem")]
)
def test_keras_3(installed: dict[str, str], status: str) -> None:
    assert machine.keras(installed).status == status


def test_this_environment_has_one_tensorflow_and_keras_3() -> None:
    assert len(machine.tensorflows()) == 1
    assert machine.keras(machine.installed(("keras", "no-such-distribution"))).status == "ok"


@pytest.mark.parametrize(
    ("model", "status", "said"),
    [
        ({"name": "convnet", "options": {"dense": 8}}, "ok", "convnet(dense=8)"),
        ({"name": "convnte"}, "problem", "'convnte'"),
        ({"name": "resnet", "options": {"widht": 8}}, "problem", "model.options.widht"),
    ],
)
def test_the_model(model: dict[str, Any], status: str, said: str) -> None:
    check = machine.model(Config.model_validate({"model": model}))
    assert check.status == status
    assert said in check.detail


def test_environment_variables_are_listed_with_their_effect(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check = machine.shell(Config(), {"EDITOR": "vi"})
    assert (check.status, check.detail) == ("ok", "is not a variable that distml or its dependencies read")
    shell = {
        "RAY_ADDRESS": "a:1",
        "TF_CONFIG": "{}",
        "MLFLOW_RUN_ID": "1",
        "MLFLOW_TRACKING_PASSWORD": "secret",
    }
    check = machine.shell(Config(), shell)
    assert check.detail == (
        "used: MLFLOW_TRACKING_PASSWORD, RAY_ADDRESS; replaced: TF_CONFIG (workers get the addresses of "
        "their own group); not used: MLFLOW_RUN_ID (set run.name instead)"
    )


@pytest.mark.parametrize(
    ("root", "shell", "said"),
    [
        (
            "gs://b/r",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/none.json"},
            "names /none.json, which is not there",
        ),
        ("s3://b/r", {"AWS_PROFILE": "work"}, "AWS_PROFILE = work is in neither"),
        ("s3://b/r", {"MLFLOW_S3_ENDPOINT_URL": "http://m:9000"}, "and AWS_ENDPOINT_URL is not"),
    ],
)
def test_invalid_credentials_are_a_problem_where_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: str, shell: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    check = machine.shell(Config.resolve({"storage": {"root": root}}), shell)
    assert (check.status, said in check.detail, bool(check.remedy)) == ("problem", True, True)
    assert machine.shell(Config(), shell).status == "ok"
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[profile work]\nregion = x\n")
    (tmp_path / "key.json").touch()
    right = {
        "AWS_PROFILE": "work",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        "MLFLOW_S3_ENDPOINT_URL": "http://m:9000",
        "AWS_ENDPOINT_URL": "http://m:9000",
    }
    assert machine.shell(Config.resolve({"storage": {"root": root}}), right).status == "ok"

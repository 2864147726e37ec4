"""Workers against CPUs and GPUs, rows against a step, and ports."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from distml.checks import machine
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
def test_room_for_the_workers(train: Any, resources: dict[str, float], status: str, said: str) -> None:
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

"""Exactly one TensorFlow, Keras 3, and a model that exists."""

from __future__ import annotations

from typing import Any

import pytest

from distml.checks import machine
from distml.config import Config


@pytest.mark.parametrize(
    ("found", "gpus", "device", "status", "said"),
    [
        ({"tensorflow-cpu": "2.21.0"}, 0, "auto", "ok", "tensorflow-cpu 2.21.0"),
        ({"tensorflow-cpu": "2.21.0"}, 2, "cpu", "ok", ""),
        ({"tensorflow": "2.21.3"}, 2, "gpu", "ok", "tensorflow 2.21.3"),
        ({"tensorflow": "2.20.0"}, 0, "auto", "warning", "is not the 2.21"),
        ({"tensorflow-cpu": "2.21.0"}, 2, "auto", "warning", "computes on CPUs alone"),
        ({"tensorflow-cpu": "2.21.0"}, 0, "gpu", "problem", "computes on CPUs alone"),
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
def test_one_tensorflow_for_the_device(found: Any, gpus: int, device: str, status: str, said: str) -> None:
    check = machine.tensorflow(found, gpus, device)
    assert check.status == status
    assert said in check.detail
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("found", "status"), [({"keras": "3.15.1"}, "ok"), ({"keras": "2.15.0"}, "problem"), ({}, "problem")]
)
def test_keras_3(found: dict[str, str], status: str) -> None:
    assert machine.keras(found).status == status


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

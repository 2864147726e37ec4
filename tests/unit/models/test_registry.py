"""Names and options are checked without TensorFlow and without running the builder's module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distml.errors import ConfigError
from distml.models import registry

OWN = """
raise RuntimeError("checking must not run this module")

def network(shape, classes, width=8, *, rate=0.5, bias=True, label="x", sizes=(1, 2), free=None):
    ...

def anything(shape, classes, **options):
    ...
"""


@pytest.fixture
def own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (workdir / "own_networks.py").write_text(OWN)
    return "own_networks"


def refusal(name: str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        registry.check(name, options or {})
    return str(caught.value)


def test_the_registry_lists_every_built_in_model() -> None:
    assert registry.names() == ["cnn", "cnn_batchnorm", "cnn_dropout", "convnet", "poolnet", "resnet"]


def test_checking_imports_neither_tensorflow_nor_keras() -> None:
    program = (
        "import sys; from distml.models import registry\n"
        "for name in registry.names(): registry.check(name, {})\n"
        "registry.check('resnet', {'widths': [8, 16]})\n"
        "print(sorted({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "guess"), [("convnte", "convnet"), ("cnn_batch_norm", "cnn_batchnorm"), ("ResNet", "resnet")]
)
def test_an_unknown_name_gets_the_nearest_name(name: str, guess: str) -> None:
    said = refusal(name)
    assert f"'{name}'" in said
    assert f"Did you mean {guess}?" in said


def test_a_dissimilar_name_gets_the_list_of_names() -> None:
    said = refusal("transformer-9000")
    assert "Did you mean" not in said
    assert all(name in said for name in registry.names())


def test_an_unknown_option_is_named_with_the_accepted_ones() -> None:
    said = refusal("cnn_dropout", {"droput": 0.3})
    assert "model.options.droput" in said
    assert "rate=0.5" in said
    assert "dense=64" in said


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("convnet", "dense", "64"),
        ("convnet", "dense", 64.0),
        ("convnet", "dense", True),
        ("convnet", "filters", 32),
        ("convnet", "filters", []),
        ("convnet", "filters", [32, "64"]),
        ("cnn_dropout", "rate", "half"),
        ("cnn_batchnorm", "synchronized", 1),
        ("resnet", "widths", {"a": 1}),
    ],
)
def test_an_option_of_the_wrong_type_is_named(name: str, option: str, value: object) -> None:
    said = refusal(name, {option: value})
    assert f"model.options.{option} = {value!r}" in said
    assert f"{option}=" in said.split("It accepts")[1]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convnet", {"filters": [8], "dense": 16, "dropout": 0}),
        ("cnn_batchnorm", {"momentum": 0.9, "synchronized": True}),
        ("resnet", {"widths": [8, 16], "blocks": 2, "dropout": 0.1}),
    ],
)
def test_accepts_options_of_the_right_type(name: str, options: dict[str, Any]) -> None:
    registry.check(name, options)


def test_shape_and_classes_cannot_be_given_as_options() -> None:
    assert "model.options.classes" in refusal("cnn", {"classes": 3})


def test_a_users_builder_is_checked_without_running_its_module(own: str) -> None:
    registry.check(
        f"{own}:network",
        {"width": 4, "rate": 1, "bias": False, "label": "y", "sizes": [3], "free": object()},
    )
    assert "width=8, rate=0.5, bias=True, label=x, sizes=[1, 2], free=..." in refusal(
        f"{own}:network", {"widht": 4}
    )
    assert "model.options.bias" in refusal(f"{own}:network", {"bias": "no"})
    registry.check(f"{own}:anything", {"whatever": [None]})


def test_a_users_missing_module_or_function_is_named(own: str, workdir: Path) -> None:
    assert "no Python module nowhere" in refusal("nowhere:network")
    assert "no Python module absent.inside" in refusal("absent.inside:network")
    assert "Did you mean network?" in refusal(f"{own}:netwrok")
    (workdir / "own_broken.py").write_text("def network(:\n")
    said = refusal("own_broken:network")
    assert "not valid Python" in said
    assert "own_broken.py, line 1" in said


def test_the_line_is_one_of_the_builder_or_of_what_it_calls(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "own_lines.py").write_text(
        "def other(): return Dense(3, activation='softmax')\n"
        "def head(): return Softmax()\n"
        "def plain(shape, classes): return applications.MobileNetV2(classes=classes)\n"
        "def network(shape, classes): return head()\n"
    )
    monkeypatch.setitem(sys.modules, "own_lines", SimpleNamespace(__file__=str(workdir / "own_lines.py")))
    assert registry.line_of("own_lines:network", "softmax", "Softmax") == " (own_lines.py line 2)"
    assert registry.line_of("own_lines:plain", "softmax", "Softmax") == ""


def test_a_builder_without_readable_source_is_checked_when_built(own: str, workdir: Path) -> None:
    (workdir / "own_front.py").write_text("from own_networks import network as shown\nother = shown\n")
    registry.check("own_front:shown", {"width": 4})
    registry.check("own_front:other", {})
    assert "no third" in refusal("own_front:third")

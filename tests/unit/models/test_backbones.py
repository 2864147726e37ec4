"""Backbones by name: options and sizes are checked, and the list is printed, without TensorFlow."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from distml import cli
from distml.config import Config, DataConfig, ModelConfig
from distml.errors import ConfigError, ModelError
from distml.models import backbones, registry


def test_every_name_is_snake_case_and_none_of_ours_is_hidden() -> None:
    assert len(backbones.BACKBONES) == 45
    assert all(re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name) for name in backbones.BACKBONES)
    assert not set(registry.names()) & backbones.BACKBONES.keys()
    assert {f"efficientnet_lite{number}" for number in range(5)} <= backbones.BACKBONES.keys()


def test_options_are_checked_against_the_backbone() -> None:
    registry.check("mobilenet_v2", {"alpha": 0.35, "dropout": 0, "momentum": 0.9})
    with pytest.raises(
        ConfigError, match=r"model.options.alpha is unknown to efficientnet_lite0.*dropout=0.2"
    ):
        registry.check("efficientnet_lite0", {"alpha": 0.5})
    with pytest.raises(ConfigError, match=r"model.options.dropout = 'much' is not accepted by vgg16"):
        registry.check("vgg16", {"dropout": "much"})


@pytest.mark.parametrize(
    ("name", "guess"), [("efficientnet_b00", "efficientnet_b0"), ("mobilenetv2", "mobilenet_v2")]
)
def test_a_misspelt_backbone_gets_the_nearest_name(name: str, guess: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {guess}?.*`distml models` lists 45"):
        registry.check(name, {})


@pytest.mark.parametrize(("name", "least"), [("xception", 71), ("inception_v3", 75), ("resnet50", 32)])
def test_images_too_small_for_a_backbone_are_rejected_before_anything_starts(name: str, least: int) -> None:
    registry.check_shape(name, (least, least + 9, 3))
    with pytest.raises(ModelError, match=rf"{least + 9}x{least - 1} pixels .* {name}, which needs {least}"):
        registry.check_shape(name, (least + 9, least - 1, 3))


def test_channels_other_than_1_or_3_are_rejected() -> None:
    registry.check_shape("resnet50", (64, 64, 1))
    registry.check_shape("resnet", (2, 2, 7))
    with pytest.raises(ModelError, match="4 channels cannot be given to resnet50"):
        registry.check_shape("resnet50", (64, 64, 4))


def test_the_list_names_every_model_with_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("models", []) == 0
    out, err = capsys.readouterr()
    listed = {row["name"]: row for row in json.loads(out)["models"]}
    assert listed.keys() == {*registry.names(), *backbones.BACKBONES}
    assert listed["efficientnet_lite0"] == {
        "name": "efficientnet_lite0",
        "parameters": 3_413_024,
        "gflops": 0.768,
        "megabytes": 13.7,
        "image_size": 224,
        "min_size": 32,
    }
    (line,) = [line for line in err.splitlines() if line.startswith("efficientnet_lite0")]
    assert line.split() == ["efficientnet_lite0", "3.4", "M", "0.768", "13.7", "224", "32"]


def test_the_list_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("models", ["lite"]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 5
    assert cli.run("models", ["transformer"]) == 2
    assert "contains 'transformer'" in json.loads(capsys.readouterr().out)["error"]


def test_listing_imports_neither_tensorflow_nor_keras() -> None:
    program = (
        "import sys; from distml import cli; cli.run('models', [])\n"
        "print(sorted({'tensorflow', 'keras'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"freeze_epochs": 2}, "model.freeze_epochs = 2, but convnet has no backbone"),
        ({"backbone_learning_rate": 0.1}, "model.backbone_learning_rate = 0.1, but convnet has no backbone"),
        ({"name": "vgg16", "freeze_epochs": 2}, "would freeze a backbone with random weights"),
        ({"name": "cnn", "dropout": 0.5}, "model.dropout = 0.5, but cnn has no option dropout"),
    ],
)
def test_options_that_a_model_lacks_are_rejected(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        registry.check_config(ModelConfig.model_validate(section))
    assert said in caught.value.message


def test_a_backbone_may_be_frozen_and_dropout_reaches_the_builder() -> None:
    section = {"name": "vgg16", "weights": "imagenet", "freeze_epochs": 2, "dropout": 0.5}
    model = ModelConfig.model_validate(section)
    registry.check_config(model)
    assert model.builder_options == {"dropout": 0.5}
    assert ModelConfig.model_validate({"options": {"dropout": 0.1}}).builder_options == {"dropout": 0.1}
    with pytest.raises(ValueError, match=r"dropout or options\.dropout, not both"):
        ModelConfig.model_validate({"dropout": 0.1, "options": {"dropout": 0.1}})


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_the_image_size_defaults_to_that_of_the_backbone(name: str) -> None:
    given = {"model": {"name": name}, "data": {"path": "photos"}}
    assert Config.resolve(given).data.image_size == backbones.BACKBONES[name].image_size


def test_a_size_that_is_given_and_networks_of_ours_keep_theirs() -> None:
    model = {"name": "efficientnet_b3"}
    assert Config.resolve({"model": model, "data": {"path": "x", "image_size": 64}}).data.image_size == 64
    assert (
        Config.resolve({"model": model, "data": {"path": "x", "image_size": "auto"}}).data.image_size == 300
    )
    assert Config.resolve({"model": model}).data.image_size == "auto"
    assert Config.resolve({"model": {"name": "resnet"}, "data": {"path": "x"}}).data.image_size == "auto"
    assert Config.resolve({"model": model, "data": {"path": "x"}}).data.path == "x"
    made = Config(model=ModelConfig(name="efficientnet_b3"), data=DataConfig(path="x"))
    assert (made.data.image_size, made.data.path) == (300, "x")

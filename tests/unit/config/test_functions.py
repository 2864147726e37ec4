"""Layers, optimizers and schedules are checked by name and option before anything starts."""

from __future__ import annotations

import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distml.config import Config, functions
from distml.config.schema import AugmentConfig
from distml.errors import ConfigError
from distml.models import registry

OWN = """
raise RuntimeError("checking must not run this module")

def lion(learning_rate, beta=0.9): ...

def steps(step, total_steps, learning_rate, drops=2): ...

class Blur:
    def __init__(self, width, times=1, **options):
        self.width = width

class Noise:
    def __init__(self, amount=0.1): ...

def alone(targets): ...

def third(targets, logits, gamma): ...

def word(targets, logits, *, gamma): ...

def anything(*given): ...

def default(targets, logits, gamma=2.0): ...

async def later(targets, logits): ...

class Loss:
    def __call__(self, targets, logits): ...
"""


@pytest.fixture
def own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (workdir / "own_training.py").write_text(OWN)


def check(train: dict[str, Any]) -> None:
    registry.check_run(Config.resolve({"train": train}))


@pytest.mark.parametrize(
    "train",
    [
        {"augment": {"layers": [{"RandomColorJitter": {"saturation_factor": 0}}, "Solarization"]}},
        {"augment": {"layers": [{"RandomSaturation": {"factor": 0}}, {"RandomShear": {"y_factor": 0.1}}]}},
        {"augment": {"layers": ["RandAugment", {"RandomFlip": {"mode": "horizontal"}}, "AugMix"]}},
        {"augment": {"layers": [{"RandomRotation": {"factor": 0.1}}, {"RandomErasing": None}]}},
        {"augment": {"layers": [{"own_training:Noise": {"amount": 0.2}}]}},
        {"optimizer": "own_training:lion", "optimizer_options": {"beta": 0.8}},
        {"schedule": "own_training:steps", "schedule_options": {"own": {"drops": 3}}},
        {"loss": "own_training:anything"},
        {"loss": "own_training:default"},
    ],
)
def test_existing_functions_are_accepted_without_running_them(own: None, train: dict[str, Any]) -> None:
    check(train)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"augment": {"layers": ["RandomFlp"]}}, "Keras has no layer RandomFlp"),
        ({"augment": {"layers": ["MixUp"]}}, "MixUp mixes targets, too"),
        ({"augment": {"layers": ["CenterCrop"]}}, "CenterCrop is no layer here, .* train.augment.crop_scale"),
        ({"augment": {"layers": ["RandomRotation"]}}, "RandomRotation needs factor"),
        ({"augment": {"layers": [{"RandomFlip": {"mod": "h"}}]}}, "layers.mod is unknown to RandomFlip"),
        ({"augment": {"layers": [{"RandAugment": {"factor": "x"}}]}}, "factor = 'x' is not accepted"),
        (
            {"augment": {"layers": [{"RandomFlip": {"mode": "horizontl"}}]}},
            r"mode = 'horizontl' is not accepted by RandomFlip\. Did you mean horizontal\?",
        ),
        (
            {"augment": {"layers": ["RandomShear"]}},
            "RandomShear changes nothing without x_factor or y_factor",
        ),
        ({"augment": {"layers": ["RandomColorJitter"]}}, r"Write {RandomColorJitter: {\w+_factor: 0.1}}"),
        ({"augment": {"layers": [{"RandomZoom": {"height_factor": [0, 0.0]}}]}}, "changes nothing without"),
        ({"augment": {"layers": [{"RandomFlip": {"mode": "left"}}]}}, "It accepts horizontal, vertical, "),
        ({"augment": {"layers": [{"RandomFlip": {"mode": 1}}]}}, "mode = 1 is not accepted"),
        (
            {"augment": {"layers": [{"RandomContrast": {"factor": 0.2, "value_range": [0, 1]}}]}},
            r"value_range = \[0, 1\] of RandomContrast, but images have values from 0 to 255",
        ),
        ({"augment": {"layers": ["own_training:Nose"]}}, "the module has no Nose"),
        ({"augment": {"layers": [{"own_training:Noise": {"amout": 1}}]}}, "amout is unknown to own_training"),
        ({"augment": {"layers": [{"A": {}, "B": {}}]}}, "is not a layer; write {NAME: {OPTION: VALUE}}"),
        ({"augment": {"crop_scale": [1.0, 0.5]}}, "crop_scale must ascend"),
        ({"augment": {"frozen_views": 2}}, "frozen_views needs a random augmentation"),
        ({"augment": {"frozen_views": 2, "flip": True, "mixup": 0.2}}, "set mixup and cutmix to 0"),
        ({"optimizer": "adm"}, r"expected adam, adamw, .* \(did you mean adam\?\)"),
        ({"optimizer": "own_training:lon"}, "the module has no lon"),
        ({"optimizer": "own_training:lion", "optimizer_options": {"b": 1}}, "optimizer_options.b is unknown"),
        ({"optimizer": "own_training:lion", "weight_decay": 0.1}, "weight_decay = 0.1 is not given to own"),
        ({"optimizer_options": {"beta": 0.8}}, "used only with a train.optimizer of your own"),
        ({"schedule": "own_training:absent"}, "the module has no absent"),
        ({"schedule_options": {"own": {"a": 1}}}, "used only with a train.schedule of your own"),
        ({"schedule": "nowhere:steps"}, "there is no Python module nowhere"),
        ({"loss": "own_training:alone"}, r"alone takes targets\. It is given targets and logits\."),
        ({"loss": "own_training:third"}, r"third needs gamma, which .* Give that argument a default"),
        ({"loss": "own_training:word"}, "word needs gamma, which it is not given"),
        ({"loss": "own_training:later"}, "later is a coroutine"),
        ({"loss": "own_training:Loss"}, r"Loss is a class\. Name a function of targets and logits"),
        ({"loss": "own_training:default", "label_smoothing": 0.1}, "label_smoothing = 0.1 is not given to"),
        ({"optimizer": "own_training:third"}, r"needs logits, .* Set train.optimizer_options.logits"),
        ({"schedule": "own_training:alone"}, "It is given step, total steps and learning rate"),
        ({"augment": {"layers": ["own_training:alone"]}}, "Write {own_training:alone: {targets: VALUE}}"),
        (
            {"augment": {"layers": ["own_training:Blur"]}},
            "needs width, .* Write {own_training:Blur: {width: ",
        ),
    ],
)
def test_unusable_functions_are_rejected_with_a_message(
    own: None, train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check(train)


def test_metrics_of_the_task_and_of_the_users_may_be_listed_together(own: None) -> None:
    config = Config.resolve({"evaluate": {"metrics": ["macro_f1", "top_5", "own_training:default"]}})
    registry.check_run(config)
    assert config.evaluate.own_metrics == ("own_training:default",)


@pytest.mark.parametrize(
    ("evaluate", "message"),
    [
        (["own_training:alone"], "evaluate.metrics: own_training:alone takes targets"),
        (["own_training:absent"], "the module has no absent"),
        (["kappa"], "classification has no metric kappa. Its metrics are accuracy"),
        (["own_training:default", "other:default"], "two metrics are called default"),
        (["top_3"], "evaluate.metrics = top_3 is not measured: evaluate.top_k = 5"),
        (["a:b:c"], "expected a metric of the task or module:function"),
    ],
)
def test_unusable_metrics_are_rejected_with_a_message(own: None, evaluate: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.check_run(Config.resolve({"evaluate": {"metrics": evaluate}}))


def test_random_augmentation_layers_are_recognised() -> None:
    assert not AugmentConfig().drawn
    assert AugmentConfig(mixup=0.2).drawn
    assert AugmentConfig(flip=True, frozen_views=3).drawn


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"unfreeze_from": 3}, "unfreeze_from = 3, but convnet has no backbone"),
        ({"unfreeze_from": 0}, "expected a layer's name or a number of layers, at least 1"),
        ({"name": "vgg16", "unfreeze_from": "block5"}, "unfreeze_from = block5 would freeze a backbone with"),
        (
            {"test_time_views": ["sideways"]},
            "unknown view 'sideways'; expected some of mirror, flip, turn, zoom",
        ),
        ({"test_time_views": ["zoom", "zoom"]}, "name each view once"),
    ],
)
def test_an_unusable_optimizer_loss_or_layer_is_rejected(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.check_run(Config.resolve({"model": model}))


def test_the_horizontal_flip_is_one_of_the_views() -> None:
    assert Config.resolve({"model": {"mirror": True, "test_time_views": ["zoom"]}}).model.views == [
        "mirror",
        "zoom",
    ]
    assert Config.resolve({"model": {"unfreeze_from": 12}}).model.unfreeze_from == "12"


def test_candidates_that_are_checked_together_are_parsed_one_after_another() -> None:
    source = Path(registry.__file__)

    def wait(*_: Any) -> None:
        time.sleep(0.0001)  # the collector's callbacks let another thread run within a parse

    usual = gc.get_threshold()
    gc.callbacks.append(wait)
    gc.set_threshold(200)
    try:
        with ThreadPoolExecutor(4) as pool:
            trees = list(pool.map(functions.parsed, [source] * 12))
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(wait)
    assert {len(tree.body) for tree in trees} == {len(trees[0].body)}

"""A network cut at its features: both parts together are the whole, wherever the backbone lies."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from distml.errors import ModelError
from distml.models import registry, transform

if TYPE_CHECKING:
    from distml.training.step import Scope

pytestmark = pytest.mark.tensorflow

SHAPE = (32, 32, 3)
OWN = """
import keras

def network(shape, classes):
    inputs = keras.Input(shape)
    layers = [keras.Input(shape), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    body = keras.Sequential(layers, name="backbone")
    pooled = keras.layers.GlobalMaxPooling2D(name="pool")(body(inputs))
    hidden = keras.layers.Dense(5, activation="relu", name="hidden")(pooled)
    return keras.Model(inputs, keras.layers.Dense(classes)(hidden))

def raw(shape, classes):
    return network(shape, classes)

raw.raw_pixels = True
"""


@pytest.fixture
def own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's in the current directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (workdir / "own_parts.py").write_text(OWN)
    yield "own_parts"
    sys.modules.pop("own_parts", None)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", ["efficientnet_lite0", "own_parts:network", "own_parts:raw"])
def test_backbone_and_head_together_equal_the_network(keras: Any, own: str, name: str, policy: str) -> None:
    keras.config.set_dtype_policy(policy)
    try:
        network = registry.build(name, SHAPE, 3, {}, 0)
        cut = transform.split(network)
    finally:
        keras.config.set_dtype_policy("float32")
    assert cut is not None
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.float32)
    features = cut.features(pixels, training=False)
    assert len(features.shape) == 2
    logits = cut.head(features, training=False)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, network(pixels, training=False), rtol=1e-5, atol=1e-5)
    trained = [variable.path for variable in cut.head.trainable_variables]
    assert len(trained) == (2 if name == "efficientnet_lite0" else 4)
    both = {id(weight) for weight in (*cut.features.trainable_variables, *cut.head.trainable_variables)}
    assert both == {id(weight) for weight in network.trainable_variables}


@pytest.mark.parametrize(
    ("name", "first", "edge"),
    [
        ("efficientnet_lite0", "block15", (1, 1, 192)),
        # The block adds what it is given: between its layers there is no place to cut.
        ("efficientnet_lite0", "block14_project", (1, 1, 192)),
        ("own_parts:network", "batch_normalization", (30, 30, 4)),
        ("own_parts:raw", "1", (30, 30, 4)),
    ],
)
def test_lower_and_upper_layers_together_equal_the_network(
    keras: Any, own: str, name: str, first: str, edge: tuple[int, ...]
) -> None:
    network = registry.build(name, SHAPE, 3, {}, 0)
    assert transform.split_frozen(network) is None
    transform.freeze_below(network, first)
    transform.fuse(network)
    cut = transform.split_frozen(network)
    assert cut is not None
    assert cut.features.output_shape[1:] == edge
    assert not cut.features.trainable_variables
    assert {id(variable) for variable in cut.head.trainable_variables} == {
        id(variable) for variable in network.trainable_variables
    }
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype(np.float32)
    logits = cut.head(cut.features(pixels, training=False), training=False)
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, network(pixels, training=False), rtol=1e-5, atol=1e-5)
    whole = transform.split(network)
    assert whole is not None
    assert cut.pool is not None
    pooled = cut.pool(cut.features(pixels, training=False), training=False)
    np.testing.assert_allclose(pooled, whole.features(pixels, training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet", "resnet", "poolnet"])
def test_a_network_without_a_backbone_is_not_cut(keras: Any, name: str) -> None:
    assert transform.split(registry.build(name, SHAPE, 3, {}, 0)) is None


@pytest.mark.parametrize(
    ("first", "learning"),
    [("block15_project_conv", 4), ("block15", 8), ("1", 1), ("head_norm", 1), ("51", 51)],
)
def test_layers_in_front_of_the_first_that_learns_are_frozen(keras: Any, first: str, learning: int) -> None:
    network = registry.build("efficientnet_lite0", SHAPE, 3, {}, 0)
    transform.freeze_below(network, first)
    backbone = network.get_layer("backbone")
    layers = [layer for layer in backbone.layers if layer.weights]
    assert [layer.trainable for layer in layers] == [False] * (len(layers) - learning) + [True] * learning
    assert network.get_layer("logits").trainable


@pytest.mark.parametrize("scope", ["all", "maps"])
def test_frozen_layers_stay_bitwise_equal_and_the_others_learn(keras: Any, scope: Scope) -> None:
    import tensorflow as tf

    from distml.config import AugmentConfig, TrainConfig
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    network = registry.build("tests.ranks:tiny", SHAPE, 3, {}, 0)
    transform.fuse(network)
    transform.freeze_below(network, "batch_normalization")
    before = {weight.path: weight.numpy() for weight in network.weights}
    optimizer = optimizers.make(TrainConfig(), [1e-2])
    optimizer.build(network.trainable_variables)
    step = Step(tf.distribute.get_strategy(), network, optimizer, StepSpec(6, 0, 0, 0, 0, AugmentConfig()))
    images: Any = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
    rows = images if scope == "all" else step.features(scope, images)
    labels, order = (np.arange(6) % 3).astype(np.int32), np.arange(6, dtype=np.int32)[None]
    curve, _ = step.train(rows, labels, order, scope)
    step.synchronise(scope)
    assert float(curve[0, 0]) == pytest.approx(1.3, abs=0.5)
    after = {weight.path: weight.numpy() for weight in network.weights}
    same = {path for path in before if np.array_equal(before[path], after[path])}
    assert {path.rpartition("/")[2] for path in same} == {"kernel", "bias"}
    assert all("conv2d" in path for path in same)
    assert len(after) - len(same) == 6


@pytest.mark.parametrize(
    ("name", "first", "message"),
    [
        (
            "efficientnet_lite0",
            "blok15",
            r"unfreeze_from = blok15, but the backbone of .* Did you mean block",
        ),
        ("efficientnet_lite0", "500", "unfreeze_from = 500"),
        ("resnet", "stem", "no layer of resnet is named backbone"),
    ],
)
def test_an_unknown_layer_name_is_reported(keras: Any, name: str, first: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        transform.freeze_below(registry.build(name, SHAPE, 3, {}, 0), first)

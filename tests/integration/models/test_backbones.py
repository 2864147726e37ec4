"""Backbones: their shapes, their scaling against Keras's own, EfficientNet-Lite against its description."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.models import backbones, registry, transform
from distml.models.backbones import BACKBONES

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15 on NumPy 2, while it saves.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SMALL = ("efficientnet_b0", "efficientnet_lite0", "efficientnetv2_b0", "mobilenet", "mobilenet_v3_small")
"""Of each way of building one, at most a second each; `slow` builds all."""
CHOSEN = [pytest.param(name, marks=() if name in SMALL else pytest.mark.slow) for name in BACKBONES]


def pixels(size: int, channels: int = 3, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, channels)).astype(np.float32)


def multiplications(keras: Any, network: Any) -> int:
    """Of one image, in convolutions and dense layers."""
    total = 0
    for layer in network._flatten_layers():
        kernels = [weight for weight in layer.weights if "kernel" in weight.name]
        if kernels and not isinstance(layer, keras.Model):
            places = math.prod(layer.output.shape[1:-1]) if len(layer.output.shape) == 4 else 1
            total += places * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


def test_every_network_of_keras_applications_is_there(keras: Any) -> None:
    functions = {name for name, value in vars(keras.applications).items() if inspect.isfunction(value)}
    assert {value.function for value in BACKBONES.values() if value.function} == functions


@pytest.mark.parametrize("name", CHOSEN)
def test_the_table_of_backbones_matches_the_networks(
    keras: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("GlorotUniform", "VarianceScaling", "TruncatedNormal"):  # drawing takes most of the time
        initialiser = getattr(keras.initializers, kind)
        monkeypatch.setattr(initialiser, "__call__", lambda _, shape, dtype=None: np.zeros(shape, "float32"))
    said, size = BACKBONES[name], BACKBONES[name].image_size
    network = registry.build(name, (size, size, 3), 7, {}, 0)
    backbone = network.get_layer(backbones.BACKBONE)
    assert backbone.count_params() == said.parameters
    assert 2 * multiplications(keras, backbone) / 1e9 == pytest.approx(said.gflops, rel=0.005)
    assert network.get_layer(backbones.POOL).output.shape[1] == backbone.output_shape[-1]
    assert (network.input.dtype, network.output.dtype) == ("float32", "float32")
    assert network.output_shape == (None, 7)


@pytest.mark.parametrize("name", CHOSEN)
def test_a_backbone_can_be_built_at_its_minimum_size(keras: Any, name: str) -> None:
    least = BACKBONES[name].min_size
    assert registry.build(name, (least, least, 3), 2, {}, 0).output_shape == (None, 2)


MODULES = {
    "mobilenet": ("mobilenet", "symmetric"),
    "mobilenet_v2": ("mobilenet_v2", "symmetric"),
    "resnet_v2": ("resnet50_v2", "symmetric"),
    "inception_v3": ("inception_v3", "symmetric"),
    "inception_resnet_v2": ("inception_resnet_v2", "symmetric"),
    "xception": ("xception", "symmetric"),
    "nasnet": ("nasnet_mobile", "symmetric"),
    "densenet": ("densenet121", "standardised"),
    "resnet": ("resnet50", "caffe"),
    "vgg16": ("vgg16", "caffe"),
    "vgg19": ("vgg19", "caffe"),
}


@pytest.mark.parametrize("module", MODULES)
def test_scaling_equals_keras_preprocess_input_of_the_family(keras: Any, module: str) -> None:
    name, scaling = MODULES[module]
    assert BACKBONES[name].scaling == scaling
    image = keras.Input((8, 8, 3))
    ours = keras.Model(image, backbones._scaled(image, scaling))
    theirs = getattr(keras.applications, module).preprocess_input(pixels(8).copy())
    np.testing.assert_allclose(ours(pixels(8)), theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v3_small",
        "efficientnetv2_b0",
        pytest.param("efficientnetv2_s", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_scaling_layers_inside_a_keras_network_equal_ours(keras: Any, name: str) -> None:
    ours = registry.build(name, (32, 32, 3), 2, {}, 0)
    build = getattr(keras.applications, BACKBONES[name].function)
    theirs = build(include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg")
    theirs.set_weights(ours.get_layer(backbones.BACKBONE).get_weights())
    features = keras.Model(ours.input, ours.get_layer(backbones.POOL).output)
    np.testing.assert_allclose(features(pixels(32)), theirs(pixels(32)), rtol=1e-3, atol=1e-4)


def test_efficientnet_b_loses_only_its_own_scaling(keras: Any) -> None:
    assert BACKBONES["efficientnet_b0"].scaling == "standardised"
    ours = registry.build("efficientnet_b0", (32, 32, 3), 2, {}, 0)
    theirs = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    assert not [layer for layer in ours._flatten_layers() if isinstance(layer, keras.layers.Normalization)]
    by_name = {weight.path: weight.numpy() for weight in ours.weights}
    (front,) = (layer for layer in theirs.layers if isinstance(layer, keras.layers.Normalization))
    for weight in theirs.weights:
        if weight.path in by_name:
            weight.assign(by_name.pop(weight.path))
    assert sorted(by_name) == ["logits/bias", "logits/kernel"]
    front.adapt_mean.assign(backbones._MEAN)
    front.adapt_variance.assign(np.square(backbones._DEVIATION))
    front.finalize_state()
    features = keras.Model(ours.input, ours.get_layer(backbones.POOL).output)
    np.testing.assert_allclose(features(pixels(32)), theirs(pixels(32)), rtol=1e-3, atol=1e-4)


def test_gray_images_are_repeated_to_three_channels(keras: Any) -> None:
    gray = registry.build("efficientnet_lite0", (32, 32, 1), 3, {}, 5)
    colour = registry.build("efficientnet_lite0", (32, 32, 3), 3, {}, 5)
    once = pixels(32, channels=1)
    np.testing.assert_allclose(gray(once), colour(np.repeat(once, 3, axis=-1)), rtol=1e-4, atol=1e-5)


STAGES = [(1, 3, 1, 1), (2, 3, 2, 6), (2, 5, 2, 6), (3, 3, 2, 6), (3, 5, 1, 6), (4, 5, 2, 6), (1, 3, 1, 6)]


def described(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """EfficientNet-Lite0 as its weights' publisher describes it, in TensorFlow's own operations."""
    import tensorflow as tf

    def norm(x: Any, name: str) -> Any:
        gamma, beta, mean, variance = (
            weights[f"{name}_norm/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        return norm(tf.nn.conv2d(x, weights[f"{name}_conv/kernel"], stride, "SAME"), name)

    x, number = tf.nn.relu6(conv((images - 127) / 128, "stem", 2)), 0
    for repeats, _, first, expansion in STAGES:
        for repeat in range(repeats):
            name, entered, stride = f"block{number:02d}", x, first if repeat == 0 else 1
            if expansion > 1:
                x = tf.nn.relu6(conv(x, f"{name}_expand"))
            kernel = weights[f"{name}_depthwise_conv/kernel"]
            x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")
            x = conv(tf.nn.relu6(norm(x, f"{name}_depthwise")), f"{name}_project")
            x = x + entered if stride == 1 and x.shape == entered.shape else x
            number += 1
    return np.asarray(tf.reduce_mean(tf.nn.relu6(conv(x, "head")), [1, 2]))


def test_efficientnet_lite_matches_its_published_description(keras: Any) -> None:
    network = registry.build("efficientnet_lite0", (48, 64, 3), 3, {}, 0)
    numbers = np.random.default_rng(1)
    for weight in network.weights:  # uneven statistics, which fresh ones are not
        if "norm" in weight.path:
            weight.assign(numbers.uniform(0.5, 1.5, weight.shape))
    images = numbers.integers(0, 256, (2, 48, 64, 3)).astype(np.float32)
    expected = described({weight.path: weight.numpy() for weight in network.weights}, images)
    features = keras.Model(network.input, network.get_layer(backbones.POOL).output)
    np.testing.assert_allclose(features(images), expected, rtol=1e-3, atol=1e-4)
    kernels = [w.shape[0] for w in network.weights if w.path.endswith("depthwise_conv/kernel")]
    assert kernels == [kernel for repeats, kernel, *_ in STAGES for _ in range(repeats)]


def test_momentum_reaches_every_normalisation_and_the_options_the_head(keras: Any) -> None:
    network = registry.build(
        "mobilenet_v2", (32, 32, 3), 3, {"momentum": 0.9, "alpha": 0.35, "dropout": 0}, 0
    )
    norms = [part for part in network._flatten_layers() if isinstance(part, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.9}
    assert "dropout" not in [layer.name for layer in network.layers]
    assert network.count_params() < 1_000_000


@pytest.fixture
def policy(keras: Any) -> Iterator[None]:
    """Mixed precision, as the training configuration sets it."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy("float32")


def test_pixels_are_scaled_and_logits_given_in_float32(keras: Any, policy: None) -> None:
    network = registry.build("efficientnet_lite0", (32, 32, 3), 3, {}, 0)
    assert network.get_layer("scaling").compute_dtype == "float32"
    assert network.get_layer(backbones.BACKBONE).get_layer("stem_conv").compute_dtype == "bfloat16"
    assert network.output.dtype == "float32"
    assert transform.fuse(network) == 49 + 4  # normalisations, and strided depthwise convolutions


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_the_saved_network_is_plain_keras(keras: Any, tmp_path: Path, name: str) -> None:
    network = registry.build(name, (32, 32, 1), 3, {}, 0)
    network.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(pixels(32, 1)), network(pixels(32, 1)), rtol=1e-4, atol=1e-5)

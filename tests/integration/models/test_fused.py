"""Faster layers against the stock ones: what they compute, learn and leave alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.models import registry, transform

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15 on NumPy 2, while it saves.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SHAPE = (6, 5, 3)
TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 3e-2, "mixed_float16": 5e-3}


def pair(keras: Any, policy: str = "float32", **options: Any) -> tuple[Any, Any]:
    """The stock layer and the fused one in a network each, with the same uneven weights."""
    made = []
    for _ in range(2):
        inputs = keras.Input(SHAPE)
        layer = keras.layers.BatchNormalization(momentum=0.7, dtype=policy, **options)
        made.append(keras.Model(inputs, layer(inputs)))
    numbers = np.random.default_rng(1)
    weights = [numbers.uniform(0.5, 2.0, weight.shape) for weight in made[0].get_weights()]
    for model in made:
        model.set_weights(weights)
    assert transform.fuse(made[1]) == 1
    return made[0], made[1]


def learn(model: Any, images: np.ndarray, training: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """Outputs, then the gradients with respect to images and weights and the moving statistics."""
    import tensorflow as tf

    watched = tf.constant(images)
    weight = tf.constant(np.random.default_rng(3).normal(size=images.shape), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        outputs = model(watched, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * weight)
    gradients = tape.gradient(loss, [watched, *(variable.value for variable in model.trainable_variables)])
    statistics = [variable.numpy() for variable in model.non_trainable_variables]
    return tf.cast(outputs, tf.float32).numpy(), [variable.numpy() for variable in gradients] + statistics


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", TOLERANCE)
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"trainable": False}])
def test_outputs_gradients_and_moving_statistics_are_the_stock_layers(
    keras: Any, training: bool, policy: str, options: dict[str, bool]
) -> None:
    images = np.random.default_rng(2).normal(0.3, 2.0, (4, *SHAPE)).astype(np.float32)
    stock, ours = (learn(model, images, training) for model in pair(keras, policy, **options))
    near = TOLERANCE[policy]
    np.testing.assert_allclose(ours[0], stock[0], rtol=near, atol=near)
    assert len(ours[1]) == len(stock[1])
    for mine, theirs in zip(ours[1], stock[1], strict=True):
        size = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(mine / size, theirs / size, rtol=near, atol=near)


def test_every_stock_layer_of_a_network_is_fused_and_its_weights_stay(keras: Any) -> None:
    network = registry.build("resnet", (28, 28, 1), 10, {}, 0)
    before = network.get_weights()
    names = [weight.path for weight in network.weights]
    assert transform.fuse(network) == 9
    assert transform.fuse(network) == 0
    assert [weight.path for weight in network.weights] == names
    assert all(np.array_equal(*both) for both in zip(before, network.get_weights(), strict=True))


@pytest.mark.parametrize(
    "options", [{"renorm": True}, {"synchronized": True}, {"axis": 1}], ids=["renorm", "synchronized", "axis"]
)
def test_layers_that_cannot_be_fused_are_left_unchanged(keras: Any, options: dict[str, Any]) -> None:
    inputs = keras.Input(SHAPE)
    assert transform.fuse(keras.Model(inputs, keras.layers.BatchNormalization(**options)(inputs))) == 0
    flat = keras.Input((7,))
    assert transform.fuse(keras.Model(flat, keras.layers.BatchNormalization()(flat))) == 0


def test_a_subclassed_layer_of_the_user_is_left_unchanged(keras: Any) -> None:
    class Own(keras.layers.BatchNormalization):
        pass

    inputs = keras.Input(SHAPE)
    assert transform.fuse(keras.Model(inputs, Own()(inputs))) == 0


def test_layers_of_a_subclassed_model_are_fused(keras: Any) -> None:
    class Own(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.inner = keras.Sequential([keras.layers.Conv2D(2, 3), keras.layers.BatchNormalization()])

        def call(self, inputs: Any, training: bool = False) -> Any:
            return self.inner(inputs, training=training)

    model = Own()
    model(np.zeros((1, *SHAPE), np.float32))
    assert transform.fuse(model) == 1


def test_weights_move_to_a_stock_network_that_plain_keras_loads(keras: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(4).uniform(0, 255, (8, 28, 28, 1)).astype(np.float32)
    trained = registry.build("resnet", (28, 28, 1), 10, {"widths": [4, 8]}, 0)
    transform.fuse(trained)
    for _ in range(3):
        trained(images, training=True)
    stock = registry.build("resnet", (28, 28, 1), 10, {"widths": [4, 8]}, 1)
    stock.set_weights(trained.get_weights())
    stock.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), trained(images, training=False), rtol=1e-4, atol=1e-5)


def _convolved(keras: Any, changed: int, **options: Any) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """What a stock convolution and one that was passed to `fuse` compute and learn."""
    results = []
    images = np.random.default_rng(2).normal(0.3, 2.0, (4, *SHAPE)).astype(np.float32)
    for fused in (False, True):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPE)
        layer = keras.layers.DepthwiseConv2D(3, bias_initializer="ones", **options)
        pooled = keras.layers.GlobalAveragePooling2D(dtype="float32")(layer(inputs))
        model = keras.Model(inputs, keras.layers.Reshape((1, 1, -1))(pooled))
        assert not fused or transform.fuse(model) == changed
        results.append(_gradients(model, images))
    return results


def _gradients(model: Any, images: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    import tensorflow as tf

    watched = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(watched)
        outputs = model(watched, training=True)
        loss = tf.reduce_sum(outputs**2)
    values = [watched, *(variable.value for variable in model.trainable_variables)]
    return outputs.numpy(), [gradient.numpy() for gradient in tape.gradient(loss, values)]


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid", "activation": "relu6"},
        {"padding": "same", "use_bias": False, "depth_multiplier": 2},
    ],
)
def test_a_strided_depthwise_convolution_in_bfloat16_has_the_stock_gradients(
    keras: Any, options: dict[str, Any]
) -> None:
    stock, ours = _convolved(keras, 1, strides=2, dtype="mixed_bfloat16", **options)
    np.testing.assert_array_equal(ours[0], stock[0])
    assert len(ours[1]) == len(stock[1]) == 2 + options.get("use_bias", True)
    for mine, theirs in zip(ours[1], stock[1], strict=True):
        size = max(1.0, float(np.abs(theirs).max()))
        np.testing.assert_allclose(mine / size, theirs / size, atol=TOLERANCE["mixed_bfloat16"])


@pytest.mark.parametrize(
    "options",
    [{"strides": 2, "dtype": "float32"}, {"strides": 1, "dtype": "mixed_bfloat16"}],
)
def test_other_depthwise_convolutions_are_left_as_they_are(keras: Any, options: dict[str, Any]) -> None:
    stock, ours = _convolved(keras, 0, padding="same", **options)
    np.testing.assert_array_equal(ours[0], stock[0])

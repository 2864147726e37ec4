"""What one step computes, in one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml.config import AugmentConfig, TrainConfig

pytestmark = pytest.mark.tensorflow


def first_loss(class_weights: tuple[float, ...]) -> tuple[float, np.ndarray, np.ndarray]:
    """The reported loss of one step, and loss and label of its rows before it."""
    import tensorflow as tf

    from distml.models import registry
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    model = registry.build("cnn", (8, 8, 1), 3, {}, 0)
    optimizer = optimizers.make(TrainConfig(), [1e-3])
    optimizer.build(model.trainable_variables)
    spec = StepSpec(16, 0, 0, 0.0, 0.0, AugmentConfig(), class_weights)
    step = Step(tf.distribute.get_strategy(), model, optimizer, spec)
    numbers = np.random.default_rng(0)
    images: Any = numbers.integers(0, 256, (16, 8, 8, 1), np.uint8)
    labels = (np.arange(16) % 3).astype(np.int32)
    losses, _ = step.scores(images, labels)
    curve, _ = step.train(images, labels, np.arange(16, dtype=np.int32)[None])
    return float(curve.numpy()[0, 0]), losses, labels


def trained(model: str, parts: int, precision: str = "float32") -> tuple[list[np.ndarray], np.ndarray]:
    """Weights and curve after three steps of 17 rows."""
    import keras
    import tensorflow as tf

    from distml.models import registry
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    train = TrainConfig.model_validate({"clip_norm": 0.5, "precision": precision})
    keras.config.set_dtype_policy(precision)
    network = registry.build(model, (20, 20, 1), 3, {}, 0)
    keras.config.set_dtype_policy("float32")
    optimizer = optimizers.make(train, [1e-3] * 3)
    optimizer.build(network.trainable_variables)
    spec = StepSpec(17, 0, 0, 0.1, 0.0, AugmentConfig(flip=True), accumulate_steps=parts)
    step = Step(tf.distribute.get_strategy(), network, optimizer, spec)
    numbers = np.random.default_rng(0)
    images: Any = numbers.integers(0, 256, (51, 20, 20, 1), np.uint8)
    curve, _ = step.train(
        images, (np.arange(51) % 3).astype(np.int32), np.arange(51, dtype=np.int32).reshape(3, 17)
    )
    return network.get_weights(), curve.numpy()


@pytest.mark.parametrize("parts", [2, 5, 17])
def test_gradient_accumulation_equals_one_large_batch(parts: int) -> None:
    weights, curve = trained("convnet", 1)
    others, other = trained("convnet", parts)
    np.testing.assert_allclose(other, curve, rtol=1e-5)
    for actual, expected in zip(weights, others, strict=True):
        np.testing.assert_allclose(expected, actual, atol=1e-5)


def test_gradient_accumulation_works_with_normalisation_and_loss_scaling() -> None:
    _, curve = trained("cnn_batchnorm", 3, "mixed_float16")
    assert np.isfinite(curve).all()


def test_rows_are_weighted_by_class() -> None:
    weights = (1.0, 3.0, 0.5)
    loss, rows, labels = first_loss(weights)
    assert loss == pytest.approx(float((rows * np.take(weights, labels)).mean()), rel=1e-5)
    plain, rows, _ = first_loss(())
    assert plain == pytest.approx(float(rows.mean()), rel=1e-5)
    assert abs(plain - loss) > 0.01

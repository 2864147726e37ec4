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


def test_a_row_counts_as_much_as_its_class() -> None:
    weights = (1.0, 3.0, 0.5)
    loss, rows, labels = first_loss(weights)
    assert loss == pytest.approx(float((rows * np.take(weights, labels)).mean()), rel=1e-5)
    plain, rows, _ = first_loss(())
    assert plain == pytest.approx(float(rows.mean()), rel=1e-5)
    assert abs(plain - loss) > 0.01

"""The optimizer a configuration names, its learning rate looked up step by step (worker)."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from distml.config import TrainConfig

Tensor = Any


class _Table(keras.optimizers.schedules.LearningRateSchedule):
    """Looks the rate of a step up in the table that `schedule.table` computed."""

    def __init__(self, rates: list[float]) -> None:
        self._rates = tf.constant(rates, tf.float32)

    def __call__(self, step: Tensor) -> Tensor:
        last = tf.shape(self._rates)[0] - 1
        return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int32), last))


def make(train: TrainConfig, rates: list[float]) -> keras.optimizers.Optimizer:
    """Build the optimizer a configuration names; call inside the strategy's scope.

    Args:
        train: The training section.
        rates: Learning rate of every step.
    """
    shared: dict[str, Any] = {"learning_rate": _Table(rates), "global_clipnorm": train.clip_norm}
    if train.weight_decay:
        shared["weight_decay"] = train.weight_decay
    optimizer: keras.optimizers.Optimizer
    if train.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(momentum=train.momentum, nesterov=train.momentum > 0, **shared)
    else:
        kind = {"adam": "Adam", "adamw": "AdamW", "lamb": "Lamb"}[train.optimizer]
        optimizer = getattr(keras.optimizers, kind)(**shared)
    if train.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if train.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer

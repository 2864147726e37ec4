"""The optimizer a configuration names, its learning rate looked up step by step (worker)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Backbone:
    """What is different for the variables of a backbone.

    Attributes:
        variables: Its trainable variables.
        factor: On the learning rate and the weight decay.
        first_step: Steps before it is trained; its own steps are counted from there.
    """

    variables: Sequence[Any]
    factor: float
    first_step: int


def make(
    train: TrainConfig, rates: list[float], backbone: Backbone | None = None
) -> keras.optimizers.Optimizer:
    """Build the optimizer a configuration names; call inside the strategy's scope.

    Args:
        train: The training section.
        rates: Learning rate of every step.
        backbone: Variables that are trained in another way than the rest, None where all are alike.
    """
    shared: dict[str, Any] = {"learning_rate": _Table(rates), "global_clipnorm": train.clip_norm}
    if train.weight_decay:
        shared["weight_decay"] = train.weight_decay
    kind = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lamb": "Lamb"}[train.optimizer]
    if train.optimizer == "sgd":
        shared |= {"momentum": train.momentum, "nesterov": train.momentum > 0}
    optimizer: keras.optimizers.Optimizer = _kind(getattr(keras.optimizers, kind), backbone)(**shared)
    if train.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    if train.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _kind(base: Any, backbone: Backbone | None) -> Any:
    """Keras's class, or one that updates the backbone's variables at their own rate and step."""
    if backbone is None or (backbone.factor == 1 and backbone.first_step == 0):
        return base
    return _grouped(base, backbone)


def _grouped(base: Any, backbone: Backbone) -> Any:
    """One optimizer for both groups keeps one loss scale, one global norm and one set of variables.

    Adam corrects its averages by the number of steps they are over: counted from the start of the run, the
    first steps of a backbone that has been frozen would be three times too large.
    """

    class Grouped(base):
        """The optimizer with two groups of variables. Final."""

        weight_decay: float | None

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._steps_before = 0
            self._slow = {self._var_key(variable) for variable in backbone.variables}

        @property
        def iterations(self) -> Any:
            """Steps done, of the group that is being updated."""
            done = self._iterations
            # A step skipped by the loss scale counts for neither group, so the difference may be negative.
            return keras.ops.maximum(done - self._steps_before, 0) if self._steps_before else done

        def update_step(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
            """Update one variable."""
            if self._var_key(variable) not in self._slow:
                super().update_step(gradient, variable, learning_rate)
                return
            self._steps_before = backbone.first_step
            try:
                super().update_step(gradient, variable, learning_rate * backbone.factor)
            finally:
                self._steps_before = 0

        def _apply_weight_decay(self, variables: list[Any]) -> None:
            slow = [one for one in variables if self._var_key(one) in self._slow]
            super()._apply_weight_decay([one for one in variables if self._var_key(one) not in self._slow])
            decay = self.weight_decay
            if slow and decay:
                self.weight_decay = decay * backbone.factor
                super()._apply_weight_decay(slow)
                self.weight_decay = decay

    return Grouped

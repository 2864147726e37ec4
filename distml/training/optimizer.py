"""Builds the optimizer, and the learning-rate schedule (worker).

The rate is a pure function of the step: no schedule knows the number of workers, so a run that shrinks,
grows or resumes keeps its rate. Keras's schedules are not used. Of 3.15.1's, `PiecewiseConstantDecay` gives
the same numbers; `CosineDecay` computes in float32 and differs in 588 of 1,070 steps, by up to 0.3 %; there
is no one-cycle schedule. A rate takes 1.6 ms there, 0.5 µs here. Keras is imported where an optimizer is
built: rates are needed before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distml.config import TrainConfig, functions
from distml.errors import ModelError
from distml.runtime import compat

if TYPE_CHECKING:
    import keras

Tensor = Any

Schedule = Callable[[float], float]
"""Learning rate for a step counted from 0."""


def schedule(train: TrainConfig, steps_per_epoch: int, frozen: int = 0) -> Schedule:
    """Return the schedule a configuration names.

    `cosine` and `one_cycle` run once over the frozen epochs and again over the others: a backbone whose
    training began in the tail of a cycle would hardly learn, and would do so without a warm-up.

    Args:
        train: The training section.
        steps_per_epoch: Optimizer steps in one epoch.
        frozen: First epochs, which train the head alone.
    """
    if 0 < frozen < train.epochs and train.schedule in ("cosine", "one_cycle"):
        cut = frozen * steps_per_epoch
        head, whole = (
            schedule(train.model_copy(update={"epochs": epochs}), steps_per_epoch)
            for epochs in (frozen, train.epochs - frozen)
        )
        return lambda step: head(step) if step < cut else whole(step - cut)
    total = max(1, train.epochs * steps_per_epoch)
    if ":" in train.schedule:
        return _own_schedule(train, total)
    made: Schedule = _MAKERS[train.schedule](train, steps_per_epoch, total)
    return made


def _own_schedule(train: TrainConfig, total: int) -> Schedule:
    """The user's function, its values checked."""
    function = functions.load(train.schedule, functions.SCHEDULE)

    def rate(step: float) -> float:
        given = (train.schedule, function, functions.SCHEDULE, step, total, train.learning_rate)
        value = functions.called(*given, **train.schedule_options.own)
        try:
            number = float(value)  # of NumPy or TensorFlow, too
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number < math.inf:
            raise ModelError(
                f"train.schedule: {train.schedule} returns {value!r} for step {step} of {total}.",
                "Return the learning rate as a number of at least 0.",
            )
        return number

    return rate


def table(train: TrainConfig, steps_per_epoch: int, frozen: int = 0) -> list[float]:
    """The rate of every step of the run, in order; what the optimizer looks up in the graph."""
    rate = schedule(train, steps_per_epoch, frozen)
    return [rate(step) for step in range(train.epochs * steps_per_epoch)]


def _constant(train: TrainConfig, _steps_per_epoch: int, _total: int) -> Schedule:
    return lambda _step: train.learning_rate


def _piecewise(train: TrainConfig, steps_per_epoch: int, _total: int) -> Schedule:
    """Constant intervals; the defaults are 1e-3 below epoch 3, 1e-4 below epoch 7, then 1e-5."""
    options = train.schedule_options

    def rate(step: float) -> float:
        passed = sum(step >= boundary * steps_per_epoch for boundary in options.boundaries)
        return train.learning_rate * options.factors[passed]

    return rate


def _cosine_between(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2


def _cosine(train: TrainConfig, steps_per_epoch: int, total: int) -> Schedule:
    """Linear warm-up, then half a cosine to zero (Loshchilov & Hutter 2017, without restarts)."""
    warmup = min(total - 1, round(train.schedule_options.warmup_epochs * steps_per_epoch))
    peak, first = train.learning_rate, train.learning_rate / train.schedule_options.initial_divisor

    def rate(step: float) -> float:
        if step < warmup:
            return first + (peak - first) * step / warmup
        return _cosine_between(peak, 0.0, (step - warmup) / max(1, total - warmup))

    return rate


def _one_cycle(train: TrainConfig, _steps_per_epoch: int, total: int) -> Schedule:
    """Up to the peak and down below the start, both along a cosine (Smith & Topin 2018)."""
    options, peak = train.schedule_options, train.learning_rate
    top = max(1, round(options.peak_fraction * total))
    first, last = peak / options.initial_divisor, peak / options.final_divisor

    def rate(step: float) -> float:
        if step < top:
            return _cosine_between(first, peak, step / top)
        return _cosine_between(peak, last, (step - top) / max(1, total - 1 - top))

    return rate


_MAKERS: dict[str, Any] = {
    "constant": _constant,
    "piecewise": _piecewise,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
}


def _lookup(rates: list[float]) -> keras.optimizers.schedules.LearningRateSchedule:
    """A schedule of Keras's that looks the rate of a step up in a table."""
    import keras
    import tensorflow as tf

    class Table(keras.optimizers.schedules.LearningRateSchedule):
        """Final."""

        def __init__(self) -> None:
            self._rates = tf.constant(rates, tf.float32)

        def __call__(self, step: Tensor) -> Tensor:
            last = tf.shape(self._rates)[0] - 1
            return tf.gather(self._rates, tf.minimum(tf.cast(step, tf.int32), last))

    return Table()


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
        backbone: Variables with their own learning rate, None where all share one.
    """
    import keras

    if ":" in train.optimizer:
        return _scaled(train, _own(train, rates, backbone))
    shared: dict[str, Any] = {"learning_rate": _lookup(rates), "global_clipnorm": train.clip_norm}
    if train.weight_decay:
        shared["weight_decay"] = train.weight_decay
    kind = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lamb": "Lamb"}[train.optimizer]
    if train.optimizer == "sgd":
        shared |= {"momentum": train.momentum, "nesterov": train.momentum > 0}
    optimizer: keras.optimizers.Optimizer = _kind(getattr(keras.optimizers, kind), backbone)(**shared)
    if train.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return _scaled(train, optimizer)


def _scaled(train: TrainConfig, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    import keras

    if train.precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _own(train: TrainConfig, rates: list[float], backbone: Backbone | None) -> keras.optimizers.Optimizer:
    """What the user's function returns for the learning rate of each step."""
    import keras

    use, name = functions.OPTIMIZER, train.optimizer
    function = functions.load(name, use)
    optimizer = functions.called(name, function, use, _lookup(rates), **train.optimizer_options)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ModelError(
            f"train.optimizer: {name} returns {type(optimizer).__name__}, not an optimizer of Keras.",
            "Return one that was given the first argument as its learning rate.",
        )
    kind = _kind(type(optimizer), backbone)
    if kind is not type(optimizer):
        compat.swap_class(optimizer, kind)
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
    import keras

    class Grouped(base):
        """The optimizer with two groups of variables. Final."""

        weight_decay: float | None
        _steps_before = 0

        @property
        def _slow(self) -> set[Any]:
            return {self._var_key(variable) for variable in backbone.variables}

        @property
        def iterations(self) -> Any:
            """Steps done, of the group that is being updated."""
            # A step skipped by the loss scale counts for neither group, so the difference may be negative.
            done, before = self._iterations, self._steps_before
            return keras.ops.maximum(done - before, 0) if before else done

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
            slow = [variable for variable in variables if self._var_key(variable) in self._slow]
            super()._apply_weight_decay([each for each in variables if self._var_key(each) not in self._slow])
            if slow and (decay := self.weight_decay):
                self.weight_decay = decay * backbone.factor
                super()._apply_weight_decay(slow)
                self.weight_decay = decay

    return Grouped

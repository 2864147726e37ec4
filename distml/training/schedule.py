"""Learning rate as a pure function of the step (worker).

No schedule knows the number of workers: a run that shrinks, grows or resumes keeps its rate.

Keras's schedules are not used. Of 3.15.1's, `PiecewiseConstantDecay` gives the same numbers; `CosineDecay`
computes in float32 and differs in 588 of 1,070 steps, by up to 0.3 %; there is no one-cycle schedule. A rate
takes 1.6 ms there, 0.5 µs here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from distml.config import TrainConfig

Schedule = Callable[[float], float]
"""Learning rate for a step counted from 0."""


def make(train: TrainConfig, steps_per_epoch: int) -> Schedule:
    """Return the schedule a configuration names.

    Args:
        train: The training section.
        steps_per_epoch: Optimizer steps in one epoch.
    """
    total = max(1, train.epochs * steps_per_epoch)
    made: Schedule = _MAKERS[train.schedule](train, steps_per_epoch, total)
    return made


def table(train: TrainConfig, steps_per_epoch: int) -> list[float]:
    """The rate of every step of the run, in order; what the optimizer looks up in the graph."""
    schedule = make(train, steps_per_epoch)
    return [schedule(step) for step in range(train.epochs * steps_per_epoch)]


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

"""The losses of each task, the metric of a training step, and the output layer of an export (worker).

A loss takes targets and float32 logits [N, K] and returns the loss of each row, float32 [N].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distml.config import functions
from distml.errors import ModelError
from distml.tasks.task import Task

Tensor = Any
Loss = Callable[[Tensor, Tensor], Tensor]
AUTO = "auto"
_FOCUS = 2.0
"""Exponent of the focal loss, as in Lin et al., "Focal Loss for Dense Object Detection"."""
_HUBER = 1.0
"""Deviations from which the Huber loss is linear."""


def cross_entropy(labels: Tensor, logits: Tensor, smoothing: float = 0.0) -> Tensor:
    """Loss per row.

    Args:
        labels: int32 (N,).
        logits: float32 (N, classes).
        smoothing: Share of the target spread evenly over all classes.

    Returns:
        float32 (N,), natural logarithm.
    """
    hard = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not smoothing:
        return hard
    spread = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
    return (1 - smoothing) * hard + smoothing * spread


def _focal(labels: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    loss = cross_entropy(labels, logits, smoothing)
    right = tf.exp(-tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    return (1 - right) ** _FOCUS * loss


def _huber(errors: Tensor) -> Tensor:
    size = tf.abs(errors)
    return tf.where(size <= _HUBER, 0.5 * errors**2, _HUBER * (size - 0.5 * _HUBER))


class _Classes:
    """Losses of one class a row; `weights` by class multiply the loss of a row. Final."""

    def __init__(self, task: Task, smoothing: float, weights: Sequence[float]) -> None:
        self._smoothing, self._weights = smoothing, weights

    def weighed(self, rows: Tensor, targets: Tensor) -> Tensor:
        if not self._weights:
            return rows
        return rows * tf.gather(tf.constant(self._weights, tf.float32), targets)

    def given(self, targets: Tensor) -> Tensor:
        return targets

    def loss(self, name: str) -> Loss:
        plain = {"cross_entropy": cross_entropy, "focal": _focal}[name]
        return lambda targets, logits: self.weighed(plain(targets, logits, self._smoothing), targets)

    def curve(self, targets: Tensor, logits: Tensor) -> Tensor:
        return tf.cast(tf.argmax(logits, -1, tf.int32) == targets, tf.float32)


class _Labels:
    """Losses of several labels a row; `weights` by label multiply the loss of rows that have it. Final."""

    def __init__(self, task: Task, smoothing: float, weights: Sequence[float]) -> None:
        self._smoothing, self._weights = smoothing, weights

    def weighed(self, rows: Tensor, targets: Tensor) -> Tensor:
        return rows

    def given(self, targets: Tensor) -> Tensor:
        return targets

    def loss(self, name: str) -> Loss:
        exponent = {"binary_cross_entropy": 0.0, "focal": _FOCUS}[name]

        def rows(targets: Tensor, logits: Tensor) -> Tensor:
            soft = targets * (1 - self._smoothing) + self._smoothing / 2
            losses = tf.nn.sigmoid_cross_entropy_with_logits(soft, logits)
            if exponent:
                right = tf.exp(-tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
                losses *= (1 - right) ** exponent
            if self._weights:
                losses *= 1 + targets * (tf.constant(self._weights, tf.float32) - 1)
            return tf.reduce_mean(losses, -1)

        return rows

    def curve(self, targets: Tensor, logits: Tensor) -> Tensor:
        return tf.reduce_mean(tf.cast((logits > 0) == (targets > 0), tf.float32), -1)


class _Numbers:
    """Losses of numbers, scaled by the training rows. Final."""

    def __init__(self, task: Task, smoothing: float, weights: Sequence[float]) -> None:
        self._centre = tf.constant([mean for mean, _ in task.spec()["scale"]] or [0.0], tf.float32)
        self._unit = tf.constant(task.unit, tf.float32)
        self._single = len(task.names) == 1

    def weighed(self, rows: Tensor, targets: Tensor) -> Tensor:
        return rows

    def given(self, targets: Tensor) -> Tensor:
        return (targets - self._centre) / self._unit

    def _errors(self, targets: Tensor, scaled: Tensor) -> Tensor:
        return scaled - self.given(targets)

    def loss(self, name: str) -> Loss:
        values = {"mse": tf.square, "mae": tf.abs, "huber": _huber}[name]
        return lambda targets, scaled: tf.reduce_mean(values(self._errors(targets, scaled)), -1)

    def curve(self, targets: Tensor, scaled: Tensor) -> Tensor:
        unit = self._unit if self._single else 1.0
        return tf.reduce_mean(tf.abs(self._errors(targets, scaled)) * unit, -1)


_PARTS: dict[str, Any] = {"classification": _Classes, "multilabel": _Labels, "regression": _Numbers}


def loss(task: Task, wanted: str = AUTO, smoothing: float = 0.0, weights: Sequence[float] = ()) -> Loss:
    """The loss that is trained.

    Args:
        task: Has targets of this form.
        wanted: A loss of the task, `auto` for its first one, or the user's own as `module:function`.
        smoothing: Share of a target spread evenly over the others.
        weights: By name; () weights all rows equally.

    Raises:
        ConfigError: The task has no such loss.
        ModelError: The user's own cannot be imported, fails, or is no loss of rows.
    """
    parts = _PARTS[task.kind](task, smoothing, weights)
    if ":" in wanted:
        # With AutoGraph, which the step that calls it goes without: it may branch on a tensor.
        own = tf.function(functions.load(wanted, functions.LOSS))
        _try(wanted, own, task)

        def rows(targets: Tensor, logits: Tensor) -> Tensor:
            return parts.weighed(tf.cast(own(parts.given(targets), logits), tf.float32), targets)

        return rows
    built: Loss = parts.loss(task.losses_allowed[0] if wanted == AUTO else wanted)
    return built


_TRIED, _LOW = 5, -4.0
"""Rows of the trial of a loss, and logits that no probability is."""


def _try(name: str, own: Loss, task: Task) -> None:
    """Call a loss of the user's in a graph, as training does.

    Raises:
        ModelError: It fails, does not return the loss of each row, or takes logits for probabilities.
    """
    like = task.empty(0)
    targets = tf.ones([_TRIED, *like.shape[1:]], like.dtype)
    logits = _LOW + tf.linspace(0.0, 1.0, _TRIED * len(task.names))
    logits = tf.reshape(logits, [_TRIED, len(task.names)])

    def losses(targets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            rows = tf.convert_to_tensor(own(targets, logits))
        return rows, tape.gradient(rows, logits)

    rows, slopes = functions.called(name, tf.function(losses), functions.LOSS, targets, logits)
    shape, kind = tuple(rows.shape), rows.dtype
    if shape != (_TRIED,) or not kind.is_floating:
        what = f"{kind.name} of shape {shape} for {_TRIED} rows"
        remedy = "Return the loss of each row, float32 [N], neither summed nor averaged over rows."
        if len(shape) == 2 and shape[0] == _TRIED:
            remedy = "Return the loss of each row, float32 [N]: average over the last axis."
        raise ModelError(f"train.loss: {name} returns {what}.", remedy)
    if not np.isfinite(rows).all():
        raise ModelError(
            f"train.loss: {name} returns {float(rows[np.argmin(np.isfinite(rows))])} for logits of "
            f"{_LOW:g} to {_LOW + 1:g}.",
            "Logits may be below 0: set from_logits=True, and bound what a logarithm or a division is given.",
        )
    if slopes is None:
        raise ModelError(
            f"train.loss: {name} has no gradient by its second argument.",
            "It is given targets and logits, in this order; compute with TensorFlow or keras.ops alone.",
        )
    if task.output == "probabilities" and not np.any(slopes):
        raise ModelError(
            f"train.loss: {name} stays the same where logits change.",
            "It is given logits, not probabilities: set from_logits=True, or use a loss of logits.",
        )


def plain_loss(task: Task) -> Loss:
    """The loss that is measured: the task's first one, without smoothing or weights, whatever is trained."""
    return loss(task)


def curve(task: Task) -> Loss:
    """The metric of a training step, see `Task.curve`; of each row, so that it adds up over workers."""
    measured: Loss = _PARTS[task.kind](task, 0.0, ()).curve
    return measured


def head(task: Task, logits: Tensor) -> Tensor:
    """Turn logits into outputs by Keras's own layers, as the export has them."""
    spec = task.spec()
    if "scale" in spec:
        deviations, means = task.unit.tolist(), [mean for mean, _ in spec["scale"]]
        return keras.layers.Rescaling(deviations, means, dtype="float32", name=task.output)(logits)
    if spec["temperature"] != 1.0:
        logits = keras.layers.Rescaling(1 / spec["temperature"], dtype="float32", name="temperature")(logits)
    if task.kind == "multilabel":
        return keras.layers.Activation("sigmoid", dtype="float32", name=task.output)(logits)
    return keras.layers.Softmax(dtype="float32", name=task.output)(logits)

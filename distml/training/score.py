"""Loss and predicted class of rows, without learning from them (worker)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Tensor = Any
Scores = tuple[np.ndarray, np.ndarray]
"""Loss, float32 (N,), and predicted class, int32 (N,)."""

_MOST_ROWS, _MOST_PIXELS = 500, 64 * 224 * 224
"""Limits of rows scored at a time, for the memory of activations; 500 divides the built-in splits evenly."""


def batch_rows(network: keras.Model) -> int:
    """Rows that a network is given at a time where it does not learn from them."""
    shape = network.input_shape[1:-1]
    return max(1, min(_MOST_ROWS, _MOST_PIXELS // int(np.prod(shape)))) if shape else _MOST_ROWS


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


def scorer(network: keras.Model) -> Callable[[np.ndarray, np.ndarray], Scores]:
    """Compile the scoring of a network.

    Args:
        network: Raw pixels in, float32 logits out.

    Returns:
        A function of images, uint8 (N, H, W, C), and labels, int32 (N,).
    """

    @tf.function(reduce_retracing=True)
    def batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(tf.cast(images, tf.float32), training=False)
        return cross_entropy(labels, logits), tf.argmax(logits, -1, tf.int32)

    size = batch_rows(network)

    def scores(images: np.ndarray, labels: np.ndarray) -> Scores:
        parts = [batch(images[at : at + size], labels[at : at + size]) for at in range(0, len(labels), size)]
        losses = [loss.numpy() for loss, _ in parts]
        predicted = [label.numpy() for _, label in parts]
        return np.concatenate(losses or [np.zeros(0, np.float32)]), np.concatenate(
            predicted or [np.zeros(0, np.int32)]
        )

    return scores

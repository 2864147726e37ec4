"""Compiles the function that computes loss and logits of held-out rows, for `evaluate`, `step` (worker)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distml.tasks import Task
from distml.tasks.losses import plain_loss

Tensor = Any
Scores = tuple[np.ndarray, np.ndarray]
"""Plain loss, float32 (N,), and logits, float32 (N, K)."""

_MOST_ROWS, _MOST_PIXELS = 500, 64 * 224 * 224
"""Limits of rows scored at a time, for the memory of activations; 500 divides the built-in splits evenly."""


def batch_rows(network: keras.Model) -> int:
    """Rows that a network is given at a time where it does not learn from them."""
    shape = network.input_shape[1:-1]
    return max(1, min(_MOST_ROWS, _MOST_PIXELS // int(np.prod(shape)))) if shape else _MOST_ROWS


def scorer(network: keras.Model, task: Task) -> Callable[[np.ndarray, np.ndarray], Scores]:
    """Compile the scoring of a network.

    Args:
        network: Raw pixels in, float32 logits out.
        task: What it predicts.

    Returns:
        A function of images, uint8 (N, H, W, C), and targets, (N,) or (N, K).
    """
    loss, outputs = plain_loss(task), len(task.names)

    @tf.function(reduce_retracing=True, autograph=False)
    def batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = network(tf.cast(images, tf.float32), training=False)
        return loss(labels, logits), logits

    size = batch_rows(network)

    def scores(images: np.ndarray, labels: np.ndarray) -> Scores:
        parts = [batch(images[at : at + size], labels[at : at + size]) for at in range(0, len(labels), size)]
        losses = [np.zeros(0, np.float32), *(loss.numpy() for loss, _ in parts)]
        logits = [np.zeros((0, outputs), np.float32), *(values.numpy() for _, values in parts)]
        return np.concatenate(losses), np.concatenate(logits)

    return scores

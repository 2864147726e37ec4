"""Predictions that look twice: at the image and at its mirror image (worker)."""

from __future__ import annotations

import keras


def mirrored(network: keras.Model) -> keras.Model:
    """Average a network's logits over an image and its mirror image.

    Made of Keras's own operations, so that the saved model needs nothing of ours; it shares the weights of
    `network`, in their order.

    Args:
        network: (N, H, W, C) to logits, (N, classes).

    Returns:
        A model of the same input and output, at twice the work.
    """
    image = keras.layers.Input(network.input_shape[1:], dtype="float32", name="image")
    mirror = keras.ops.flip(image, axis=2)
    logits = keras.layers.Average(dtype="float32", name="both")([network(image), network(mirror)])
    return keras.Model(image, logits, name=network.name)

"""The model all servers answer with, as one TensorFlow function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def load() -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """Load `$MODEL`; returns uint8 [N, 28, 28, 1] to float32 [N, classes], traced and warm."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    model = keras.saving.load_model(os.environ["MODEL"], compile=False)
    spec = tf.TensorSpec((None, 28, 28, 1), tf.uint8)
    answer = tf.function(lambda images: model(images, training=False), input_signature=[spec])
    answer(tf.zeros((1, 28, 28, 1), tf.uint8))

    def classify(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.asarray(answer(tf.constant(images.reshape(-1, 28, 28, 1), tf.uint8)), np.float32)

    return classify

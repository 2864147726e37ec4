"""Exporting a trained network as `.keras`, as a SavedModel and for LiteRT (rank 0)."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distml import tasks
from distml.artifacts.layout import CLASSES, EXAMPLE, LITE, MODEL, SAVED_MODEL, write_digests
from distml.data import graph
from distml.data.image import Policy
from distml.tasks import Task
from distml.tasks.network import head

logger = logging.getLogger(__name__)

Tensor = Any
AGREEMENT = 1e-4
"""Greatest difference of an output between a model and its conversion, in units of the task."""


def served(network: keras.Model, task: Task) -> keras.Model:
    """Wrap a network for prediction.

    Args:
        network: Raw pixels in, logits out.
        task: What it predicts.

    Returns:
        uint8 (N, H, W, C) in, float32 outputs (N, K) of the task out.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(image)
    return keras.Model(image, head(task, network(pixels)), name=network.name)


class _Served(tf.Module):
    """The signatures of the SavedModel. Final."""

    def __init__(self, model: keras.Model, pictures: Policy, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.pictures = pictures
        batch = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="image")
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.endpoints = {
            "serving_default": tf.function(self.predict, input_signature=[batch]),
            "image_bytes": tf.function(self.decode_and_predict, input_signature=[encoded]),
        }

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs for raw pixels."""
        return {self.task.output: self.model(image, training=False)}

    def decode_and_predict(self, image_bytes: Tensor) -> dict[str, Tensor]:
        """Outputs for encoded pictures (JPEG, PNG, WebP, BMP, GIF) of any size."""
        images = tf.map_fn(
            lambda data: graph.fit(data, self.pictures), image_bytes, fn_output_signature=tf.uint8
        )
        return self.predict(images)


def converted(module: _Served, example: np.ndarray) -> bytes | None:
    """Convert a model for LiteRT, which predicts several times faster than TensorFlow.

    Args:
        module: The model.
        example: uint8 (N, H, W, C), images for which both must predict the same.

    Returns:
        The `.tflite` file, or None where LiteRT lacks an operation of the network or its predictions differ.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    predict = module.endpoints["serving_default"].get_concrete_function()
    try:
        # The converter loses the variables of a Keras 3 model unless they are constants already.
        frozen = convert_variables_to_constants_v2(predict)
        with _without_warnings():
            lite = bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())
        actual = _predicted(lite, example)
    except Exception as error:  # the converter raises anything on what it does not know
        logger.info("not converted for LiteRT: %s", str(error).partition("\n")[0][:200])
        return None
    expected = predict(image=tf.constant(example))[module.task.output].numpy()
    difference = module.task.difference(actual, expected)
    if not difference <= AGREEMENT:
        logger.warning("not converted for LiteRT: its outputs differ by %g", difference)
        return None
    return lite


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the converter's warning about frozen variables."""
    absl = logging.getLogger("absl")
    before = absl.level
    absl.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl.setLevel(before)


def _predicted(lite: bytes, images: np.ndarray) -> np.ndarray:
    """Outputs of a converted model."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=lite)
    (image,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(image["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(image["index"], images)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(probabilities["index"]))


def export(network: keras.Model, folder: Path, described: dict[str, Any], example: np.ndarray) -> None:
    """Write the model into a folder in every form, with the digest of every file.

    Args:
        network: Built outside any strategy, so that nothing distributed is saved.
        folder: An existing, empty folder.
        described: Data set's `name`, `classes`, `shape`, `policy`, how pictures became images, and `task`.
        example: uint8 (N, H, W, C), a few images to try the model on.
    """
    task = tasks.restore(described["classes"], described.get("task"))
    model = served(network, task)
    (folder / "data").mkdir()
    model.save(folder / MODEL)
    (folder / "data" / "keras_module.txt").write_text("keras")  # MLflow's Keras flavour reads this
    policy = described.get("policy")
    pictures = Policy.from_dict(policy) if policy else Policy.of_arrays(model.input_shape[1:])
    module = _Served(model, pictures, task)
    tf.saved_model.save(module, str(folder / SAVED_MODEL), signatures=module.endpoints)
    if lite := converted(module, example):
        (folder / LITE).write_bytes(lite)
    (folder / CLASSES).write_text(json.dumps(described))
    (folder / EXAMPLE).write_text(json.dumps({"inputs": example.tolist()}))
    write_digests(folder)

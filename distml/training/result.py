"""What a finished run leaves behind: the exported model and its evaluation (rank 0)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Tensor = Any
MODEL = "data/model.keras"
SAVED_MODEL = "saved_model"
DIGESTS = "digests.json"
CLASSES = "classes.json"
EXAMPLE = "example.json"


def served(network: keras.Model) -> keras.Model:
    """Wrap a network for prediction.

    Args:
        network: Raw pixels in, logits out.

    Returns:
        uint8 (N, H, W, C) in, float32 probabilities (N, classes) out.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(image)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(network(pixels))
    return keras.Model(image, probabilities, name=network.name)


class _Served(tf.Module):  # type: ignore[misc]
    """The signatures of the SavedModel. Final."""

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self.model = model
        self.shape = model.input_shape[1:]
        batch = tf.TensorSpec([None, *self.shape], tf.uint8, name="image")
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.signatures = {
            "serving_default": tf.function(self.predict, input_signature=[batch]),
            "image_bytes": tf.function(self.decode_and_predict, input_signature=[encoded]),
        }

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Probabilities of raw pixels."""
        return {"probabilities": self.model(image, training=False)}

    def decode_and_predict(self, image_bytes: Tensor) -> dict[str, Tensor]:
        """Probabilities of encoded images (PNG, JPEG, BMP, GIF) of any size."""
        return self.predict(tf.map_fn(self._decode, image_bytes, fn_output_signature=tf.uint8))

    def _decode(self, data: Tensor) -> Tensor:
        height, width, channels = self.shape
        image = tf.io.decode_image(data, channels=channels, expand_animations=False)
        resized = tf.image.resize(image, [height, width], antialias=True)
        return tf.ensure_shape(tf.cast(tf.round(resized), tf.uint8), self.shape)


def export(network: keras.Model, folder: Path, described: dict[str, Any], example: np.ndarray) -> None:
    """Write the model into a folder as `.keras` and as a SavedModel, with the digest of every file.

    Args:
        network: Built outside any strategy, so that nothing distributed is saved.
        folder: An existing, empty folder.
        described: Data set's `name`, `classes` and `shape`.
        example: uint8 (N, H, W, C), a few images to try the model on.
    """
    model = served(network)
    (folder / "data").mkdir()
    model.save(folder / MODEL)
    (folder / "data" / "keras_module.txt").write_text("keras")  # MLflow's Keras flavour reads this
    module = _Served(model)
    tf.saved_model.save(module, str(folder / SAVED_MODEL), signatures=module.signatures)
    (folder / CLASSES).write_text(json.dumps(described))
    (folder / EXAMPLE).write_text(json.dumps({"inputs": example.tolist()}))
    write_digests(folder)


def write_digests(folder: Path) -> str:
    """Write the SHA-256 of every file below a folder; returns the SHA-256 of that list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    text = json.dumps(digests, indent=1, sort_keys=True)
    (folder / DIGESTS).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()


def evaluate(labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, classes: list[str]) -> dict[str, Any]:
    """Summarise predictions on a split.

    Args:
        labels: int32 (N,).
        predicted: int32 (N,), the most probable class.
        losses: float32 (N,).
        classes: Name of each class.

    Returns:
        `accuracy`, `loss`, `per_class` (share of each class found) and `confusion` (row: true class).
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    found = np.diag(confusion) / np.maximum(1, confusion.sum(1))
    return {
        "accuracy": float(np.mean(labels == predicted)),
        "loss": float(np.mean(losses)),
        "per_class": {name: float(share) for name, share in zip(classes, found, strict=True)},
        "confusion": confusion.tolist(),
    }


def worst(labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, count: int = 25) -> np.ndarray:
    """Positions of the most confident mistakes, worst first: int64 (at most `count`,)."""
    wrong = np.flatnonzero(labels != predicted)
    return wrong[np.argsort(-losses[wrong], kind="stable")][:count]

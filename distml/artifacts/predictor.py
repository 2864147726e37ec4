"""A verified export, loaded as a function of images (driver, replica)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from distml.artifacts import digests
from distml.artifacts.engines import Lite
from distml.artifacts.layout import LITE, MODEL
from distml.data.image import Policy
from distml.data.schema import Images
from distml.errors import ModelError
from distml.runtime import compat

Engine = Literal["auto", "litert", "tensorflow"]

_BATCH = 256
"""Images per call: bounds the memory of activations."""


@dataclass(frozen=True)
class Predictor:
    """A model that has been verified. Final.

    Args:
        classes: Name of each class, by label.
        shape: (H, W, C) of an image.
        sha256: Stands for the whole export.
        function: uint8 [N, H, W, C] to float32 [N, classes]; for one thread at a time.
        pictures: How a picture becomes such an image.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sha256: str
    function: Any
    pictures: Policy

    @classmethod
    def load(cls, folder: Path, expected_sha256: str | None = None) -> Self:
        """Verify an export and load its model.

        Args:
            folder: As training wrote it, or as the registry gave it back.
            expected_sha256: Of its `digests.json`, as the registry has it.

        Raises:
            ModelError: Changed, incomplete, unsafe to load, or not a classifier of images.
        """
        return cls.of(digests.verify(folder, expected_sha256))

    @classmethod
    def of(cls, export: digests.Export, engine: Engine = "auto", threads: int = 1) -> Self:
        """Load the model of a verified export.

        Args:
            export: As `digests.verify` returned it.
            engine: auto takes LiteRT where the export was converted for it, else TensorFlow; TensorFlow is
                imported only where it is used.
            threads: Threads of a call in LiteRT; TensorFlow decides for itself.

        Raises:
            ModelError: Unsafe to load, or not a classifier of images.
        """
        if engine == "tensorflow" or (engine == "auto" and not (export.folder / LITE).exists()):
            function = _keras_function(export)
            return cls(export.classes, export.shape, export.sha256, function, export.pictures)
        lite = Lite(export.folder / LITE, export.shape, len(export.classes), threads)
        return cls(export.classes, export.shape, export.sha256, lite, export.pictures)

    def warm(self) -> None:
        """Predict once alone and in batches, so that no request waits for the first trace."""
        for count in (1, 2, 16):
            self.predict(np.zeros((count, *self.shape), np.uint8))

    def predict(self, images: Images) -> npt.NDArray[np.float32]:
        """Classify images.

        Args:
            images: uint8 [N, H, W, C], pixel values 0 to 255.

        Returns:
            Probabilities, float32 [N, classes].

        Raises:
            ModelError: Another type or shape.
        """
        given = f"{images.dtype} {list(images.shape)}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.shape:
            raise ModelError(f"the model takes uint8 {['N', *self.shape]}, not {given}.".replace("'", ""))
        probabilities = np.empty((len(images), len(self.classes)), np.float32)
        for at in range(0, len(images), _BATCH):
            probabilities[at : at + _BATCH] = self.function(images[at : at + _BATCH])
        return probabilities


def _keras_function(export: digests.Export) -> Any:
    path = export.folder / MODEL
    model = _load(path)
    _require_classifier(path, model, export)
    return _compiled(model)


def _keras() -> Any:
    """Import Keras on TensorFlow, independent of the user's Keras settings."""
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with compat.imports():
        import keras
    return keras


def _load(path: Path) -> Any:
    keras = _keras()
    try:
        # Safe mode rejects Lambda layers and configurations that name functions of other modules.
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly anything on a model it cannot or will not load
        cause = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise ModelError(
            f"{path} cannot be loaded safely: {cause}",
            "Layers of your own need @keras.saving.register_keras_serializable; Lambda layers are refused.",
        ) from error


def _require_classifier(path: Path, model: Any, export: digests.Export) -> None:
    actual = (getattr(model, "input_shape", None), getattr(model, "output_shape", None))
    expected = ((None, *export.shape), (None, len(export.classes)))
    if actual != expected:
        raise ModelError(f"{path} maps {actual[0]} to {actual[1]}, expected {expected[0]} to {expected[1]}.")


def _compiled(model: Any) -> Any:
    """One graph for every batch size."""
    import tensorflow as tf

    def predict(images: Any) -> Any:
        return model(images, training=False)

    return tf.function(predict, input_signature=[tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)])

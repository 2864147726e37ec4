"""A verified export, loaded as a function of images (driver, replica)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from distml.artifacts import layout
from distml.artifacts.layout import LITE, MODEL
from distml.data.image import Policy
from distml.data.plausible import Usual
from distml.data.schema import Images
from distml.errors import ModelError
from distml.runtime import compat, environment
from distml.tasks import Task

_SIZES = (16, 1)
"""Images per call. A batch of any size is cut into these: another size would allocate the tensors anew, and
an image costs the same in each."""


class Lite:
    """A LiteRT model as a function of images, for one thread at a time. Final.

    Measured on two AVX-512 cores with a two-layer CNN of 28 x 28, one thread: 0.06 ms per image alone or in a
    batch, where a TensorFlow function takes 0.9 ms for one image and two cores for 0.04 ms in a batch of 64.
    ONNX Runtime was as fast, from a converter that is no longer maintained.

    Args:
        path: A `.tflite` file.
        shape: (H, W, C) of an image.
        classes: How many outputs an image has.
        threads: Threads of a call.

    Raises:
        ModelError: Not a model of uint8 images of that shape and as many float32 outputs.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], classes: int, threads: int = 1) -> None:
        self._classes = classes
        self._interpreters = {size: _interpreter(path, (size, *shape), classes, threads) for size in _SIZES}

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute outputs, float32 [N, K], of uint8 [N, H, W, C]."""
        probabilities = np.empty((len(images), self._classes), np.float32)
        at = 0
        for size in _SIZES:
            interpreter, input_index, output_index = self._interpreters[size]
            while len(images) - at >= size:
                interpreter.set_tensor(input_index, images[at : at + size])
                interpreter.invoke()
                probabilities[at : at + size] = interpreter.get_tensor(output_index)
                at += size
        return probabilities


def _interpreter(path: Path, shape: tuple[int, ...], classes: int, threads: int) -> tuple[Any, int, int]:
    """Allocate an interpreter for one batch size; returns it with the indices of its input and output."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=threads)
        (image,), (probabilities,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(image["index"], shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.invoke()
        output = interpreter.get_output_details()[0]
    except (ValueError, RuntimeError) as error:
        cause = str(error).strip().partition("\n")[0][:200]
        raise ModelError(f"{path} is not a model of images {list(shape[1:])}: {cause}.") from error
    kinds = (image["dtype"], output["dtype"], tuple(output["shape"]))
    if kinds != (np.uint8, np.float32, (shape[0], classes)):
        raise ModelError(f"{path} does not map uint8 images to float32 [N, {classes}].")
    return interpreter, image["index"], probabilities["index"]


Engine = Literal["auto", "litert", "tensorflow"]

_BATCH = 256
"""Images per call: bounds the memory of activations."""


@dataclass(frozen=True)
class Predictor:
    """A model that has been verified. Final.

    Attributes:
        classes: Name of each class, by label.
        shape: (H, W, C) of an image.
        sha256: Stands for the whole export.
        function: uint8 [N, H, W, C] to float32 [N, classes]; for one thread at a time.
        pictures: How a picture becomes such an image.
        task: What it predicts.
        usual: How training images look, None where the export does not say.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sha256: str
    function: Any
    pictures: Policy
    task: Task
    usual: Usual | None = None

    @classmethod
    def load(cls, folder: Path, expected_sha256: str | None = None) -> Self:
        """Verify an export and load its model.

        Args:
            folder: As training wrote it, or as the registry gave it back.
            expected_sha256: Of its `digests.json`, as the registry has it.

        Raises:
            ModelError: Changed, incomplete, unsafe to load, or not a classifier of images.
        """
        return cls.of(layout.verify(folder, expected_sha256))

    @classmethod
    def of(cls, export: layout.Export, engine: Engine = "auto", threads: int = 1) -> Self:
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
            return cls(
                export.classes,
                export.shape,
                export.sha256,
                function,
                export.pictures,
                export.task,
                export.usual,
            )
        lite = Lite(export.folder / LITE, export.shape, len(export.classes), threads)
        return cls(
            export.classes, export.shape, export.sha256, lite, export.pictures, export.task, export.usual
        )

    def warm(self) -> None:
        """Predict once alone and in batches, so that no request waits for the first trace."""
        for count in (1, 2, 16):
            self.predict(np.zeros((count, *self.shape), np.uint8))

    def predict(self, images: Images) -> npt.NDArray[np.float32]:
        """Classify images.

        Args:
            images: uint8 [N, H, W, C], pixel values 0 to 255.

        Returns:
            Outputs of the task, float32 [N, K].

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


def _keras_function(export: layout.Export) -> Any:
    path = export.folder / MODEL
    model = _load(path)
    _require_classifier(path, model, export)
    return _compiled(model)


@dataclass(frozen=True)
class Embedder:
    """A verified model that gives its features, too. Final.

    Attributes:
        predictor: The model by its Keras file, whatever copies it has.
        function: uint8 [N, H, W, C] to outputs, float32 [N, K], and features, float32 [N, F].
    """

    predictor: Predictor
    function: Any

    @classmethod
    def of(cls, export: layout.Export) -> Self:
        """Load the Keras model of a verified export.

        Raises:
            ModelError: Unsafe to load, or its last layer with weights takes no vectors of features.
        """
        predictor = Predictor.of(export, "tensorflow")
        model = _load(export.folder / MODEL)
        import tensorflow as tf

        from distml.models import transform

        places = transform.inside(model)
        if places.head is None:
            raise ModelError(
                "the model has no features: its last layer with weights takes no vectors.",
                "Leave out --embeddings, or end the network with pooling and a dense layer.",
            )

        def look(images: Any) -> Any:
            seen = transform.look(model, places, images)
            return seen.outputs, tf.cast(seen.features, tf.float32)

        signature = [tf.TensorSpec([None, *export.shape], tf.uint8)]
        return cls(predictor, tf.function(look, input_signature=signature))

    def predict(self, images: Images) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Outputs and features of images; see `Predictor.predict`."""
        some = images if len(images) else np.zeros((1, *self.predictor.shape), np.uint8)  # for the width
        parts = [self.function(some[at : at + _BATCH]) for at in range(0, len(some), _BATCH)]
        outputs, features = (np.concatenate(values)[: len(images)] for values in zip(*parts, strict=True))
        return outputs, features


def _keras() -> Any:
    """Import Keras on TensorFlow, independent of the user's Keras settings."""
    environment.PREDICTOR.apply()
    with compat.imports():
        import keras
    environment.plain(keras)
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


def _require_classifier(path: Path, model: Any, export: layout.Export) -> None:
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

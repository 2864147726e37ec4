"""Inference engines: a converted model in LiteRT, without TensorFlow (replica, driver).

Measured on two AVX-512 cores with a two-layer CNN of 28 x 28, one thread: 0.06 ms an image alone or in a
batch, where a TensorFlow function takes 0.9 ms for one image and two cores for 0.04 ms in a batch of 64.
ONNX Runtime was as fast, from a converter that is no longer maintained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from distml.data.schema import Images
from distml.errors import ModelError

_SIZES = (16, 1)
"""Images per call. A batch of any size is cut into these: another size would allocate the tensors anew, and
an image costs the same in each."""


class Lite:
    """A LiteRT model as a function of images, for one thread at a time. Final.

    Args:
        path: A `.tflite` file.
        shape: (H, W, C) of an image.
        classes: How many probabilities an image has.
        threads: Threads of a call.

    Raises:
        ModelError: Not a model of uint8 images of that shape and float32 probabilities of those classes.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], classes: int, threads: int = 1) -> None:
        self._classes = classes
        self._interpreters = {size: _interpreter(path, (size, *shape), classes, threads) for size in _SIZES}

    def __call__(self, images: Images) -> npt.NDArray[np.float32]:
        """Compute probabilities, float32 [N, classes], of uint8 [N, H, W, C]."""
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

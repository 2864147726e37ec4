"""The engine of all servers of photographs: LiteRT on one thread, batches cut into the sizes it was made for.

`$MODEL` is a `.tflite` file that takes uint8 images [N, 224, 224, 3]. As a program, given seconds,
it prints how many images a second the engine alone does.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

SIDE = 224
SIZES = (16, 4, 1)
"""Images a call; another size would allocate the tensors anew."""


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """Decode a JPEG at reduced scale and crop it to uint8 [224, 224, 3]."""
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (2 * SIDE, 2 * SIDE))
    return np.asarray(ImageOps.fit(picture.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC))


class Engine:
    """The model: uint8 [N, 224, 224, 3] to float32 [N, classes]. Not for several threads."""

    def __init__(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreters: dict[int, Any] = {}
        for size in SIZES:
            interpreter = Interpreter(os.environ["MODEL"], num_threads=1)
            interpreter.resize_tensor_input(
                interpreter.get_input_details()[0]["index"], (size, SIDE, SIDE, 3)
            )
            interpreter.allocate_tensors()
            self._interpreters[size] = interpreter

    def _call(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        interpreter = self._interpreters[len(images)]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
        interpreter.invoke()
        answers: npt.NDArray[np.float32] = interpreter.get_tensor(
            interpreter.get_output_details()[0]["index"]
        )
        return answers

    def __call__(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Answer a batch of any size."""
        answers, begin = [], 0
        while begin < len(images):
            size = next(size for size in SIZES if size <= len(images) - begin)
            answers.append(self._call(images[begin : begin + size]))
            begin += size
        return np.concatenate(answers)


def _alone(seconds: float) -> dict[str, float]:
    """Images a second of each batch size."""
    engine, rates = Engine(), {}
    for size in SIZES:
        images = np.random.default_rng(0).integers(0, 256, (size, SIDE, SIDE, 3), np.uint8)
        calls, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            engine(images)
            calls += 1
        rates[str(size)] = calls * size / taken
    return rates


if __name__ == "__main__":
    print(json.dumps(_alone(float(sys.argv[1]))))

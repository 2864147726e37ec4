"""The work that both peers do: the model, the rows and the figures (launcher, worker).

Independent of distml on purpose, and free of TensorFlow until a model is built.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

TRAIN_ROWS = 60_000


@dataclass(frozen=True)
class Figures:
    """What a peer measures.

    Attributes:
        peer: Which one.
        workers: Worker processes.
        epochs: Epochs trained.
        batch: Rows per step over all workers.
        steady_samples_per_s: Rows of an epoch over the seconds of the fastest epoch but the first.
        first_epoch_s: Seconds of the first epoch, with tracing.
        wall_s: Seconds from the start of the command to the end of training.
    """

    peer: str
    workers: int
    epochs: int
    batch: int
    steady_samples_per_s: float
    first_epoch_s: float
    wall_s: float

    def print(self) -> None:
        """Print the result line."""
        rounded = {
            key: round(value, 2) if isinstance(value, float) else value for key, value in asdict(self).items()
        }
        print(json.dumps(rounded), flush=True)


def arguments(doc: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line: workers, epochs, batch and the folder of the IDX files."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=256, help="rows per step over all workers")
    parser.add_argument(
        "--data", default=os.environ.get("FMNIST"), help="folder of the four .gz files; $FMNIST"
    )
    chosen = parser.parse_args(argv)
    if not chosen.data:
        parser.error("--data or FMNIST must name the folder of the IDX files")
    return chosen


def train_rows(folder: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Read the training split.

    Returns:
        Images, uint8 (60000, 28, 28, 1), and labels, int32 (60000,).
    """
    images, labels = (
        np.frombuffer(gzip.decompress((Path(folder) / f"train-{name}.gz").read_bytes())[header:], np.uint8)
        for name, header in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    )
    return images.reshape(-1, 28, 28, 1), labels.astype(np.int32)


def compiled_convnet() -> Any:
    """Build and compile distml's `convnet` in legacy Keras; call it inside the strategy's scope."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    model.compile(
        optimizer=tf_keras.optimizers.Adam(1e-3),
        loss=tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def whole(dataset: Any) -> Any:
    """Tell the strategy that a dataset already holds just this worker's rows."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def steady(seconds: Sequence[float]) -> float:
    """Seconds of the fastest epoch after the first, which also traces the graph."""
    return min(seconds[1:] or seconds)

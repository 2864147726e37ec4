"""Peer: Keras 3's `fit` with tf.data in one process on all cores, the backbone frozen and not.

python -m benchmarks.peers.keras_fit --epochs 3
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def main() -> dict[str, Any]:
    """Train frozen, then all; images a second of the fastest epoch after the first of each."""
    import keras
    import tensorflow as tf

    from benchmarks import finetune

    epochs = int(sys.argv[sys.argv.index("--epochs") + 1])
    images, labels = finetune.drawn()["train"]
    rows = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels), seed=0)
    rows = rows.batch(finetune.BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            seconds.append(-time.perf_counter())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds[-1] += time.perf_counter()

    speeds = {}
    for name, frozen in (("frozen", True), ("full", False)):
        network = finetune.network(images.shape[1:], finetune.CLASSES)
        network.get_layer("backbone").trainable = not frozen
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # XLA on the CPU is slower and takes minutes to compile: the peer's better side is measured.
        network.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=False)
        seconds.clear()
        network.fit(rows, epochs=epochs, verbose=0, callbacks=[Clock()])
        speeds[f"{name}_images_per_s"] = len(rows) * finetune.BATCH / min(seconds[1:])
    return {"peer": "keras_fit", **speeds}


if __name__ == "__main__":
    print(json.dumps(main()))

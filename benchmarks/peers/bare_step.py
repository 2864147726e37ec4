"""Peer: our own step over a tensor in memory, one process a worker, and nothing else: no Ray, no tracking.

python -m benchmarks.peers.bare_step --workers 2 --epochs 4 --batch 256 --data FOLDER
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from distml.config import AugmentConfig, TrainConfig
from distml.data import feed
from distml.runtime import compat
from distml.serving import ingress
from distml.training import optimizer as optimizers
from distml.training import worker


def _launch(arguments: dict[str, str]) -> int:
    addresses = [f"127.0.0.1:{port}" for port in ingress.free_ports(int(arguments["workers"]))]
    processes = []
    for rank in range(len(addresses)):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = os.environ | {"TF_CONFIG": json.dumps(cluster), "CUDA_VISIBLE_DEVICES": "-1"}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.bare_step", *sys.argv[1:]],
                env=environment,
                stdout=None if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )
    return max(process.wait() for process in processes)


def _rows(folder: str, rank: int, world_size: int) -> feed.Rows:
    images = gzip.decompress((Path(folder) / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((Path(folder) / "train-labels-idx1-ubyte.gz").read_bytes())[8:]
    pixels = np.frombuffer(images, np.uint8).reshape(-1, 28, 28, 1)
    return pixels[rank::world_size], np.frombuffer(labels, np.uint8).astype(np.int32)[rank::world_size]


def _train(arguments: dict[str, str]) -> dict[str, Any]:
    rank, world_size = json.loads(os.environ["TF_CONFIG"])["task"]["index"], int(arguments["workers"])
    epochs, batch = int(arguments["epochs"]), int(arguments["batch"])
    with compat.imports():
        import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) // world_size))
    tf.config.threading.set_inter_op_parallelism_threads(2)
    from distml.models import registry
    from distml.training.step import Step, StepSpec

    train = TrainConfig(epochs=epochs, global_batch_size=batch)
    images, labels = _rows(arguments["data"], rank, world_size)
    steps = 60_000 // batch
    strategy = worker.strategy(tf, use_gpu=False)  # the same ring that distml asks for
    with strategy.scope():
        model = registry.build("convnet", (28, 28, 1), 10, {}, 0)
        optimizer = optimizers.make(train, optimizers.table(train, steps))
        optimizer.build(model.trainable_variables)
    step = Step(strategy, model, optimizer, StepSpec(batch, rank, 0, 0.0, 0.0, AugmentConfig()))
    pixels, classes = tf.constant(images), tf.constant(labels)
    seconds = []
    for epoch in range(epochs):
        began = time.perf_counter()
        order = feed.order(len(labels), batch // world_size, steps, (0, epoch, world_size, rank, 0))
        for at in range(0, steps, train.log_every_steps):
            step.train(pixels, classes, order[at : at + train.log_every_steps])[0].numpy()
        seconds.append(time.perf_counter() - began)
    fastest = min(seconds[1:] or seconds)
    return {"peer": "bare_step", "steady_samples_per_s": steps * batch / fastest, "epoch_s": fastest}


def main() -> int:
    """Entry point."""
    words = sys.argv[1:]
    arguments = {flag.removeprefix("--"): value for flag, value in zip(words[::2], words[1::2], strict=True)}
    if "TF_CONFIG" not in os.environ:
        return _launch(arguments)
    print(json.dumps(_train(arguments)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

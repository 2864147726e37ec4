"""TensorFlow alone: MultiWorkerMirroredStrategy and legacy Keras `fit` over tf.data, no Ray, no tracking.

python -m benchmarks.peers.plain_mwms --workers 2 --epochs 4 --batch 256 --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time

from benchmarks.peers import work

STARTED = "PEER_STARTED_S"
"""Environment variable: when the launcher began, so that wall time covers starting the processes."""


def launch(workers: int) -> int:
    """Start one process per worker on free ports, wait for all; returns the worst exit code."""
    began, addresses = str(time.time()), _free_addresses(workers)
    processes = []
    with tempfile.TemporaryFile() as log:
        for rank in range(workers):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            environment = os.environ | {"TF_CONFIG": json.dumps(task), STARTED: began}
            command = [sys.executable, "-m", "benchmarks.peers.plain_mwms", *sys.argv[1:]]
            output = None if rank == 0 else log
            processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=log))
        code = max(abs(process.wait()) for process in processes)
        if code:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace")[-4000:])
    return code


def _free_addresses(count: int) -> list[str]:
    """Loopback addresses with free ports; all are held until the last is known, so that none is twice."""
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in sockets]
    for listener in sockets:
        listener.close()
    return addresses


def train(chosen: argparse.Namespace) -> None:
    """Run one worker; rank 0 prints the figures."""
    import tensorflow as tf

    rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    if chosen.workers > 1:  # as many threads as this worker's share of the cores
        tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) // chosen.workers))
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    images, labels = (rows[rank :: chosen.workers] for rows in work.train_rows(chosen.data))
    with strategy.scope():
        model = work.compiled_convnet()
    rows = tf.data.Dataset.from_tensor_slices((images, labels)).cache().shuffle(len(images))
    batches = rows.batch(chosen.batch, drop_remainder=True).repeat().prefetch(tf.data.AUTOTUNE)
    steps = work.TRAIN_ROWS // chosen.batch
    seconds = []
    for _ in range(chosen.epochs):
        began = time.time()
        model.fit(work.whole(batches), epochs=1, steps_per_epoch=steps, verbose=0)
        seconds.append(time.time() - began)
    if rank == 0:
        samples_per_s = steps * chosen.batch / work.steady(seconds)
        wall_s = time.time() - float(os.environ[STARTED])
        settings = (chosen.workers, chosen.epochs, chosen.batch)
        work.Figures("plain_mwms", *settings, samples_per_s, seconds[0], wall_s).print()


def main() -> int:
    """Entry point of the launcher and, where TF_CONFIG is set, of a worker."""
    os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="-1", TF_USE_LEGACY_KERAS="1")
    chosen = work.arguments(__doc__ or "")
    if STARTED not in os.environ:
        return launch(chosen.workers)
    train(chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

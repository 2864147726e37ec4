"""Ranks of the real step in processes of their own, without Ray: what every rank ends with, as JSON lines."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from distml.serving import ports

REPOSITORY = Path(__file__).resolve().parent.parent


def launch(model: str, train: dict[str, Any], world_size: int = 2, steps: int = 6) -> list[dict[str, Any]]:
    """Train `steps` steps on random images with that many processes; returns what each rank printed."""
    addresses = [f"127.0.0.1:{port}" for port in ports.free(world_size)]
    work = json.dumps({"model": model, "train": train, "steps": steps})
    processes = []
    for rank in range(world_size):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        environment = os.environ | {"TF_CONFIG": json.dumps(cluster), "CUDA_VISIBLE_DEVICES": "-1"}
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "tests.ranks", work]
        processes.append(
            subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world_size, said
    return [json.loads(text.splitlines()[-1]) for text in said]


def _main(work: dict[str, Any]) -> None:
    from distml.training import devices

    cluster = json.loads(os.environ["TF_CONFIG"])
    rank, world_size = cluster["task"]["index"], len(cluster["cluster"]["worker"])
    tf = devices.import_tensorflow(use_gpu=False, local_world_size=world_size)
    import numpy as np

    from distml.config import TrainConfig
    from distml.data import feed
    from distml.models import fused, registry
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    train = TrainConfig.model_validate(work["train"])
    strategy = devices.strategy(tf, use_gpu=False)
    with strategy.scope():
        model = registry.build(work["model"], (28, 28, 1), 10, {}, 0)
        fused.fuse(model)
        optimizer = optimizers.make(train, [1e-3] * work["steps"])
        optimizer.build(model.trainable_variables)
    spec = StepSpec(train.global_batch_size, rank, 0, train.label_smoothing, train.ema, train.augment)
    step = Step(strategy, model, optimizer, spec)
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (512, 28, 28, 1), np.uint8)
    labels = numbers.integers(0, 10, 512).astype(np.int32)
    # Every world size takes the same rows in each step, so that their sums must agree.
    size = train.global_batch_size
    batches = np.arange(512 // size * size, dtype=np.int32).reshape(-1, size)[: work["steps"]]
    batch = feed.replica_batch_size(train.global_batch_size, rank, world_size)
    first = sum(
        feed.replica_batch_size(train.global_batch_size, before, world_size) for before in range(rank)
    )
    mine = batches[:, first : first + batch]
    # A window's rest is a shorter call.
    curves, done = zip(*(step.train(images, labels, part) for part in (mine[:-2], mine[-2:])), strict=True)
    curve = np.concatenate(curves)
    step.synchronise()
    digest = hashlib.sha256()
    for variable in model.variables:
        if variable.dtype.startswith("float"):
            digest.update(variable.numpy().tobytes())
    said = {"rank": rank, "weights": digest.hexdigest(), "losses": curve[:, 0].tolist()}
    print(
        json.dumps(said | {"done": int(sum(done)), "total": step.total(np.array([1.0 + rank])).tolist()}),
        flush=True,
    )


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

"""Ranks of the real step in processes of their own, without Ray: what every rank ends with, as JSON.

Importing TensorFlow takes longer than all that is trained here, so one process imports it, and the ranks are
its children; a group of ranks does one piece of work after another.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from distml.serving import ingress

REPOSITORY = Path(__file__).resolve().parent.parent


Work = dict[str, Any]


def steps(model: str, train: dict[str, Any], count: int = 6) -> Work:
    """Train so many steps on random images."""
    return {"model": model, "train": train, "steps": count}


WAYS = ("head", "features", "resumed")


def frozen(train: dict[str, Any], ways: tuple[str, ...] = WAYS) -> Work:
    """Train the head of a small backbone, then all of it.

    There are three ways to do it: on images (`head`), on features in the first half (`features`), and with
    another model and optimizer in the second half that take up the variables of the first (`resumed`).
    """
    return {"frozen": ways, "train": train}


def launch(groups: dict[int, dict[str, Work]]) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """Do the work of groups of that many ranks; returns what each rank gave, by size and the work's name."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ranks", json.dumps(groups)],
        cwd=REPOSITORY,
        env=environment | {"PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        written, _ = process.communicate(timeout=300)
    finally:  # ranks that wait for one that failed
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, written[-5000:]
    return {int(size): result for size, result in json.loads(written.splitlines()[-1]).items()}


def tiny(shape: tuple[int, int, int], classes: int) -> Any:
    """A backbone with normalisation and dropout in it, and a head."""
    import keras
    from keras import layers

    image = keras.Input(shape)
    body = [layers.Conv2D(8, 3, strides=2), layers.BatchNormalization(), layers.Dropout(0.5)]
    features = keras.Sequential([keras.Input(shape), *body], name="backbone")(image)
    pooled = layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(image, layers.Dense(classes, dtype="float32")(pooled))


def _steps(work: Work, strategy: Any, rank: int, world_size: int) -> dict[str, Any]:
    import numpy as np

    from distml.config import TrainConfig
    from distml.data import feed
    from distml.models import registry, transform
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    train = TrainConfig.model_validate(work["train"])
    with strategy.scope():
        model = registry.build(work["model"], (28, 28, 1), 10, {}, 0)
        transform.fuse(model)
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
    result = {"rank": rank, "weights": digest.hexdigest(), "losses": curve[:, 0].tolist()}
    return result | {"done": int(sum(done)), "total": step.total(np.array([1.0 + rank])).tolist()}


def _frozen(work: Work, strategy: Any, rank: int, world_size: int) -> dict[str, Any]:
    import keras
    import numpy as np

    from distml.config import TrainConfig
    from distml.data import feed
    from distml.models import registry, transform
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    train, steps = TrainConfig.model_validate(work["train"]), 4
    size = train.global_batch_size

    def build() -> Any:
        keras.config.set_dtype_policy(train.precision)
        with strategy.scope():
            model = registry.build("tests.ranks:tiny", (16, 16, 3), 4, {}, 0)
            transform.fuse(model)
            cut = transform.split(model)
            assert cut is not None
            slow = optimizers.Backbone(cut.features.trainable_variables, 0.1, steps)
            optimizer = optimizers.make(train, [1e-3] * 2 * steps, slow)
            optimizer.build(model.trainable_variables)
        return Step(strategy, model, optimizer, StepSpec(size, rank, 0, 0, train.ema, train.augment))

    def variables(step: Any) -> list[Any]:
        both = (*step.model.variables, *step.optimizer.variables)
        return [*(variable.value for variable in both), *step.ema]

    def digest(values: list[Any]) -> str:
        return hashlib.sha256(b"".join(value.numpy().tobytes() for value in values)).hexdigest()

    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (256, 16, 16, 3), np.uint8)
    labels = numbers.integers(0, 4, 256).astype(np.int32)
    batches = np.arange(256 // size * size, dtype=np.int32).reshape(-1, size)[:steps]
    first = sum(feed.replica_batch_size(size, before, world_size) for before in range(rank))
    mine = batches[:, first : first + feed.replica_batch_size(size, rank, world_size)]

    result: dict[str, Any] = {}
    for way in work["frozen"]:
        step = build()
        backbone = [variable.value for variable in step.parts["features"].features.weights]
        before = digest(backbone)
        rows = images if way == "head" else step.features("features", images)
        curves = [step.train(rows, labels, mine, "head" if way == "head" else "features")[0].numpy()]
        step.synchronise("head")
        kept = digest(backbone) == before
        if way == "resumed":
            values = [variable.numpy() for variable in variables(step)]
            step = build()
            for variable, value in zip(variables(step), values, strict=True):
                variable.assign(value)
        curves.append(step.train(images, labels, mine, "all")[0].numpy())
        step.synchronise()
        moved = digest([variable.value for variable in step.parts["features"].features.weights]) != before
        losses = np.concatenate(curves)[:, 0].tolist()
        result[way] = {"kept": kept, "moved": moved, "weights": digest(variables(step)), "losses": losses}
    return result


def _rank(works: dict[str, Work], strategy: Any, rank: int, world_size: int) -> dict[str, Any]:
    """Do every piece of work as one of the ranks."""
    import keras

    results = {}
    for name, work in works.items():
        keras.config.set_dtype_policy("float32")
        done = _frozen if "frozen" in work else _steps
        results[name] = done(work, strategy, rank, world_size)
    return results


def _group(works: dict[str, Work], world_size: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Fork the ranks of a group before TensorFlow has started anything, and wait for them."""
    from distml.training import worker

    addresses = [f"127.0.0.1:{port}" for port in ingress.free_ports(world_size)]
    files = [folder / f"{world_size}-{rank}.json" for rank in range(world_size)]
    done = multiprocessing.get_context("fork").Barrier(world_size)
    pids = []
    for rank, file in enumerate(files):
        pids.append(os.fork())
        if pids[-1] == 0:
            cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            os.environ["TF_CONFIG"] = json.dumps(cluster)
            try:
                tf = worker.import_tensorflow(use_gpu=False, local_world_size=world_size)
                strategy = worker.strategy(tf, use_gpu=False)
                file.write_text(json.dumps(_rank(works, strategy, rank, world_size)), encoding="utf-8")
                # A rank that ends takes what others have still to receive of the last sum with it.
                done.wait(timeout=250)
            except BaseException:
                traceback.print_exc()
            os._exit(not file.exists() or done.broken)
    for _ in pids:
        _, status = os.wait()
        assert status == 0  # the others would wait for it
    ranks = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {name: [rank[name] for rank in ranks] for name in works}


def _main(groups: dict[str, dict[str, Work]]) -> None:
    from distml.training import worker

    worker.import_tensorflow(use_gpu=False, local_world_size=1)
    importlib.import_module("distml.training.step")
    with tempfile.TemporaryDirectory() as folder:
        results = {size: _group(works, int(size), Path(folder)) for size, works in groups.items()}
    print(json.dumps(results), flush=True)


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

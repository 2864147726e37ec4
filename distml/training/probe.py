"""`train.global_batch_size: auto`: measures the largest batch that fits into memory (driver, a Ray task).

python -m distml.training.probe SPEC

The process trains one step of 8, 16, 32, … rows and says what that took; it is ended when it takes more than
it may, and the kernel ends it before any other. A run never meets a batch that did not fit here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distml.config import Config
from distml.data import shards
from distml.errors import TrainingError
from distml.storage import Storage
from distml.training import optimizer as optimizers
from distml.training import worker

_LOG = logging.getLogger(__name__)

FIRST, LAST = 8, 256
"""Rows of a worker that are tried; more would not make a step faster per row."""
_SHARE = 0.8
"""Of the memory that is free, for what a step does not show: checkpoints, the export, other processes."""
_STEPS_PER_EPOCH = 20
"""Least steps of an epoch: with fewer a small data set would be learnt from too seldom."""
_TIMEOUT_S = 300.0
_FILE = "batch.json"


def resolve(
    config: Config, storage: Storage, manifest: shards.Manifest, folder: tuple[str, ...], use_gpu: bool
) -> Config:
    """Put a number where the configuration says `global_batch_size: auto`.

    Args:
        config: Of the run.
        storage: Keeps the number, so that a resumed run has the same.
        manifest: Of the data.
        folder: The run's, as parts below the storage root.
        use_gpu: Whether workers train on GPUs.

    Returns:
        The configuration, with a number.

    Raises:
        TrainingError: Not even the smallest batch fits, or the process fails.
    """
    train = config.train
    if train.global_batch_size:
        return config
    where = (*folder, _FILE)
    if storage.exists(*where):
        size = int(json.loads(storage.read_text(*where))["global_batch_size"])
    else:
        spec = {"config": config.model_dump(mode="json"), "manifest": manifest.to_json(), "use_gpu": use_gpu}
        _LOG.info("train.global_batch_size = auto: measuring which batch fits into a worker's memory")
        least = train.workers[0] if isinstance(train.workers, list) else train.workers
        measured = _on_a_worker(spec, config)
        size = choose(measured, least, manifest.rows["train"], train.max_workers * train.accumulate_steps)
        storage.write_bytes(json.dumps({"global_batch_size": size, "measured": measured}).encode(), *where)
    accumulated = f", in {train.accumulate_steps} parts" if train.accumulate_steps > 1 else ""
    _LOG.info("train.global_batch_size = auto: %d rows a step%s", size, accumulated)
    return config.model_copy(update={"train": train.model_copy(update={"global_batch_size": size})})


def choose(measured: Mapping[str, float], workers: int, rows: int, least: int) -> int:
    """Return the global batch: what fits, but no more than leaves an epoch enough steps.

    Args:
        measured: Peak bytes by rows of one worker that fit, as text.
        workers: Least number of workers that may share a batch.
        rows: Training rows.
        least: Rows that a batch must have.

    Raises:
        TrainingError: None fits.
    """
    if not measured:
        raise TrainingError(
            f"train.global_batch_size = auto: not even {FIRST} rows fit into a worker's memory.",
            "Use a smaller model or data.image_size, fewer workers a machine, or more memory.",
        )
    fits = max(int(batch) for batch in measured) * workers
    enough = max(FIRST, rows // _STEPS_PER_EPOCH)
    return max(least, min(fits, 1 << (enough.bit_length() - 1)))


def _on_a_worker(spec: dict[str, Any], config: Config) -> dict[str, float]:
    """Measure where workers run: as a task of the cluster."""
    import ray

    options = {"num_cpus": config.train.cpus_per_worker, "num_gpus": int(spec["use_gpu"]), "max_retries": 0}
    try:
        measured: dict[str, float] = ray.get(ray.remote(_task).options(**options).remote(spec))
    except ray.exceptions.RayTaskError as error:
        raise TrainingError(str(error.cause)) from error
    except ray.exceptions.RayError as error:
        raise TrainingError(f"train.global_batch_size = auto: the probe failed: {error}") from error
    return measured


def _task(spec: dict[str, Any]) -> dict[str, float]:
    config = Config.model_validate(spec["config"])
    return measure(json.dumps(spec), limit_bytes(config, shards.Manifest.from_json(spec["manifest"])))


def limit_bytes(config: Config, manifest: shards.Manifest) -> int:
    """Memory that one worker's steps may take on this machine, beside its rows.

    Args:
        config: Of the run.
        manifest: Of the data.
    """
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text("utf-8").strip() if (group / "memory.max").exists() else "max"
    if limit != "max":
        free = min(free, int(limit) - int((group / "memory.current").read_text("utf-8")))
    here = min(config.train.max_workers, max(1, int((os.cpu_count() or 1) // config.train.cpus_per_worker)))
    rows = min(manifest.nbytes("train") // here, config.data.memory_budget_bytes)
    return int(free * _SHARE / here) - rows


def measure(spec: str, limit: int) -> dict[str, float]:
    """Run the process and watch it.

    Args:
        spec: `config` and `manifest`, as JSON.
        limit: Bytes that it may take.

    Returns:
        Peak bytes by rows of a worker, of those that fit.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        child = subprocess.Popen(
            [sys.executable, "-m", "distml.training.probe", spec], stdout=out, stderr=err, text=True
        )
        ended = _watched(child, limit)
        out.seek(0)
        measured = {str(batch): peak for batch, peak in map(json.loads, out.read().splitlines())}
        if child.returncode and not ended and not measured:
            err.seek(0)
            last = (err.read().strip().splitlines() or [f"it ended with {child.returncode}"])[-1]
            raise TrainingError(f"train.global_batch_size = auto: the probe failed: {last[:300]}")
    return {batch: peak for batch, peak in measured.items() if peak <= limit}


def _watched(child: subprocess.Popen[str], limit: int) -> bool:
    """Wait for a process; end it beyond its memory or its time. Returns whether that was necessary."""
    deadline = time.monotonic() + _TIMEOUT_S
    process = psutil.Process(child.pid)
    while child.poll() is None:
        try:
            too_much = process.memory_info().rss > limit
        except psutil.Error:
            break
        if too_much or time.monotonic() > deadline:
            child.kill()
            child.wait()
            return True
        time.sleep(0.05)
    return child.wait() == -9  # the kernel was faster


def _main(spec: dict[str, Any]) -> None:
    """Train a step of more and more rows; a line for each: the rows and the peak of this process."""
    with contextlib.suppress(OSError):  # not on Linux
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    config = Config.model_validate(spec["config"])
    manifest, train = shards.Manifest.from_json(spec["manifest"]), config.train
    tf = worker.import_tensorflow(spec["use_gpu"], train.max_workers)
    from distml.models import transform
    from distml.training.step import Scope, Step, StepSpec

    network = worker.network(config, manifest, worker.precision(train.precision, spec["use_gpu"]))
    if config.model.unfreeze_from:
        transform.freeze_below(network, config.model.unfreeze_from)
    transform.fuse(network)
    optimizer = optimizers.make(train, [1e-3])
    optimizer.build(network.trainable_variables)
    scope: Scope = "all" if config.model.freeze_epochs < train.epochs else "head"
    images = np.zeros((LAST, *manifest.shape_of("train")), np.uint8)
    targets = np.zeros_like(manifest.task.empty(LAST))
    batch = FIRST
    while batch <= LAST:
        how = StepSpec(
            *(batch, 0, 0, train.label_smoothing, train.ema, train.augment),
            accumulate_steps=train.accumulate_steps,
            stored_size=manifest.train_size,
            task=manifest.task,
            loss=train.loss,
        )
        step = Step(tf.distribute.get_strategy(), network, optimizer, how)
        step.train(images[:batch], targets[:batch], np.arange(batch, dtype=np.int32)[None], scope)[0].numpy()
        print(json.dumps([batch, _peak_bytes()]), flush=True)
        batch *= 2


def _peak_bytes() -> int:
    """Return the peak of this process's resident memory.

    Linux counts that of `getrusage` from the peak of the process that started this one.
    """
    try:
        status = Path("/proc/self/status").read_text("utf-8")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(re.search(r"^VmHWM:\s*(\d+) kB$", status, re.M)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))

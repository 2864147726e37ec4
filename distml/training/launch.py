"""Launches the Ray Train job: datasets, limits, restarts (driver)."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import ray
import ray.data
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from distml.config import Config
from distml.data import schema, shards
from distml.runtime import compat, environment, processes
from distml.runtime.cluster import Plan
from distml.storage import Storage
from distml.training import events, group, worker
from distml.training.events import Event, Observer, Started


def _environment(config: Config, grows: bool) -> None:
    """Set Ray Train's environment variables: health checks within `train.stall_timeout_s`, start limits."""
    stall_timeout_s = config.train.stall_timeout_s
    environment.TRAIN.apply(
        {
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{stall_timeout_s:g}",
            "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": f"{3 * stall_timeout_s:g}",
        }
    )
    if not grows:
        environment.LOCAL_TRAIN.apply()


def _blocks(storage: Storage, manifest: shards.Manifest, workers: int) -> list[Any]:
    """The training split as references to a Ray Data set with one block per worker.

    Slicing an Arrow table starts no task and no actor; Ray Data's own reader and `streaming_split` start
    five, which cost more than training an epoch (8 to 16 s for 47 MB on 2 cores).
    """
    table = shards.table(storage, manifest, "train")
    size = -(-len(table) // workers)
    blocks = [table.slice(at * size, size).combine_chunks() for at in range(workers)]
    references: list[Any] = ray.data.from_blocks(blocks).to_arrow_refs()
    return references


def _stream(config: Config, storage: Storage, manifest: shards.Manifest) -> ray.data.Dataset:
    """The training split as a Ray Data stream, its files in an order drawn from the seed in each epoch.

    Ray Data does not limit a reader until the size of the first blocks is known. With its default blocks of
    128 MiB, all of 400 MB were in the object store; with small blocks it stays within its limit, half of a
    worker's budget per worker (`_options`).
    Its newer reader starts actors for the footers of files anew in each epoch, of 2.5 CPU-seconds each: an
    epoch of 900 rows waited 6 s for its first rows, and 1 s with the older one (2 cores).
    """
    filesystem, base = storage.arrow()
    paths = [f"{base.rstrip('/')}/{shard.path}" for shard in manifest.shards["train"]]
    shuffle = ray.data.FileShuffleConfig(seed=config.run.seed)
    context = ray.data.DataContext.get_current().copy()
    context.use_datasource_v2 = False
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # how many bytes it estimates a row to have
    with ray.data.DataContext.current(context):
        dataset = ray.data.read_parquet(paths, filesystem=filesystem, shuffle=shuffle)
    block_bytes = _block_bytes(config)
    dataset.context.target_max_block_size = block_bytes
    if manifest.encoding is None:
        return dataset
    shape = manifest.shape_of("train")
    return dataset.map_batches(
        schema.decoded,
        fn_kwargs={"shape": shape},
        batch_format="pyarrow",
        batch_size=max(1, min(1024, block_bytes // math.prod(shape))),
        zero_copy_batch=True,
    )


def _block_bytes(config: Config) -> int:
    return min(128 << 20, max(1 << 20, config.data.memory_budget_bytes // 16))


def _data(
    config: Config, storage: Storage, manifest: shards.Manifest, workers: tuple[int, int]
) -> dict[str, Any]:
    """How the training split reaches the workers: `blocks` in memory, or a `stream` that is split.

    It is kept in memory when it fits the memory budget of the smallest number of workers.
    """
    if manifest.nbytes("train") <= config.data.memory_budget_bytes * workers[0]:
        return {"blocks": _blocks(storage, manifest, workers[1])}
    return {"stream": _stream(config, storage, manifest)}


def _options(config: Config, workers: int) -> ray.data.ExecutionOptions:
    """Execution options of Ray Data: rows in order, prefetching limited by the memory budget.

    Below some blocks for each worker Ray Data starts no task until it has been idle for 20 s.
    """
    limit = workers * max(config.data.memory_budget_bytes // 2, 8 * _block_bytes(config))
    return ray.data.ExecutionOptions(
        preserve_order=True,
        resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=limit),
    )


def _trainer(
    spec: dict[str, Any], config: Config, plan: Plan, data: dict[str, Any], where: tuple[str, str]
) -> DataParallelTrainer:
    least, most = plan.workers
    train = config.train
    trainer: DataParallelTrainer = compat.trainer(local=not plan.grows and least == most)(
        worker.loop,
        train_loop_config=spec | {"blocks": data.get("blocks")},
        backend_config=group.TensorFlowGroup(),
        scaling_config=ScalingConfig(
            num_workers=most if least == most else (least, most),
            elastic_resize_monitor_interval_s=train.elastic_check_s,
            use_gpu=plan.use_gpu,
            resources_per_worker={"CPU": plan.cpus_per_worker} | ({"GPU": 1} if plan.use_gpu else {}),
            # GPUs talk fastest within a node; CPU workers want memory and cores of their own.
            placement_strategy="PACK" if plan.use_gpu else "SPREAD",
        ),
        run_config=RunConfig(
            storage_path=where[0],
            name=where[1],
            checkpoint_config=CheckpointConfig(num_to_keep=train.checkpoints_kept),
            failure_config=FailureConfig(
                max_failures=train.max_failures,
                controller_failure_limit=2,
                max_preemption_failures=train.max_preemptions,
            ),
            worker_runtime_env={"env_vars": environment.WORKER.values()},
            callbacks=[group.Failures(spec["events"])],
        ),
        datasets={"train": data["stream"]} if "stream" in data else {},
        dataset_config=DataConfig(datasets_to_split=["train"], execution_options=_options(config, most)),
    )
    return trainer


def fit(
    config: Config,
    storage: Storage,
    manifest: shards.Manifest,
    plan: Plan,
    run: tuple[tuple[str, ...], str],
    observers: Sequence[Observer],
    logs: str | None,
) -> None:
    """Train to the end, restarts included.

    Args:
        config: The configuration.
        storage: The storage root.
        manifest: The prepared data.
        plan: What the run takes from the cluster.
        run: The run's folder, and the attempt's folder within it.
        observers: Called with every event, in order.
        logs: Folder of the workers' logs, for messages.

    Raises:
        TrainingError: Training failed and its restarts are used up.
    """
    _environment(config, plan.grows)
    queue = events.create_queue()
    spec = {
        "config": config.model_dump(mode="json"),
        "manifest": manifest.to_json(),
        "storage": storage.root,
        "run": list(run[0]),
        "events": queue,
        "use_gpu": plan.use_gpu,
    }
    data = _data(config, storage, manifest, plan.workers)
    trainer = _trainer(spec, config, plan, data, (storage.uri(*run[0]), run[1]))

    def lower_priorities(event: Event) -> None:
        if isinstance(event, Started):
            processes.step_back()  # every monitoring process has started by now

    with events.observed(queue, [lower_priorities, *observers]):
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise group.explain(error, logs) from error
        except ray.exceptions.RayError as error:
            raise group.explain(error, logs) from error

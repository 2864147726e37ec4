"""Launches the Ray Train job: datasets, TF_CONFIG, worker failures and restarts (driver, controller).

Ray's own `ray.train.tensorflow` is not used: importing it imports TensorFlow into the driver and the
controller, and its backend switches the workers to legacy Keras.
"""

from __future__ import annotations

import json
import logging
import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.train import CheckpointConfig, DataConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from distml.config import Config
from distml.data import schema, shards
from distml.errors import TrainingError
from distml.runtime import compat, environment, processes
from distml.runtime.cluster import Plan, address
from distml.storage import Storage
from distml.training import events, worker
from distml.training.events import Event, Observer, Started, WorkerFailed


def _own_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _join(addresses: list[str], index: int) -> None:
    place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    hosts = [address.rpartition(":")[0].strip("[]") for address in addresses]
    direct = environment.with_hosts(hosts, "no_grpc_proxy", "no_proxy")  # gRPC reads the first that is set
    environment.RANK.apply({"TF_CONFIG": json.dumps(place), "no_grpc_proxy": direct})


class _TensorFlowBackend(Backend):
    """Sets TF_CONFIG, the addresses of all workers, in each worker."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        addresses = worker_group.execute(_own_address)
        ray.get(
            [
                worker_group.execute_single_async(rank, _join, addresses=addresses, index=rank)
                for rank in range(len(worker_group))
            ]
        )


@dataclass
class TensorFlowGroup(BackendConfig):
    """Backend configuration for `DataParallelTrainer`: sets TF_CONFIG and nothing else."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend."""
        return _TensorFlowBackend


logger = logging.getLogger(__name__)


def _environment(config: Config) -> None:
    """Set Ray Train's environment variables: health checks within `train.stall_timeout_s`, start limits."""
    stall_timeout_s = config.train.stall_timeout_s
    environment.TRAIN.apply(
        {
            "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": f"{stall_timeout_s:g}",
            "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": f"{3 * stall_timeout_s:g}",
        }
    )
    if address() is None:
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
    """
    filesystem, base = storage.arrow()
    paths = [f"{base.rstrip('/')}/{shard.path}" for shard in manifest.shards["train"]]
    shuffle = ray.data.FileShuffleConfig(seed=config.run.seed)
    dataset = ray.data.read_parquet(paths, filesystem=filesystem, shuffle=shuffle)
    block_bytes = min(128 << 20, max(1 << 20, config.data.memory_budget_bytes // 16))
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
    """Execution options of Ray Data: rows in order, prefetching limited by the memory budget."""
    limit = config.data.memory_budget_bytes * workers // 2
    return ray.data.ExecutionOptions(
        preserve_order=True,
        resource_limits=ray.data.ExecutionResources.for_limits(object_store_memory=limit),
    )


_OOM = "the worker ran out of memory (OOM)"
_FULL = "the storage is full (ENOSPC)"
_PEER_LOST = "a worker that it exchanges gradients with was lost"
_SIGNS = (
    ("OutOfMemory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    ("low on memory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    (
        "No space left on device",
        _FULL,
        "Free space below storage.root and run again.",
    ),
    ("ActorDiedError", "the worker process died", ""),
    ("actor died", "the worker process died", ""),
    ("ActorUnavailableError", "the worker process died", ""),
    ("WorkerHealthCheckTimeout", "the worker stopped responding", ""),
    # What TensorFlow raises on the other ranks when a rank is lost: connection reset or collective aborted.
    ("errors_impl.UnavailableError", _PEER_LOST, ""),
    ("errors_impl.AbortedError", _PEER_LOST, ""),
    ("node while/CollectiveReduce", _PEER_LOST, ""),
)


def _sign(error: BaseException) -> tuple[str, str] | None:
    text = f"{type(error).__name__}: {error}"
    return next(((cause, remedy) for sign, cause, remedy in _SIGNS if sign in text), None)


def cause(error: BaseException) -> str:
    """Return the cause of a worker's failure in a few words."""
    if known := _sign(error):
        return known[0]
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def explain(error: BaseException, logs: str | None) -> TrainingError:
    """Translate an exception of Ray Train into an error that names rank, cause and remedy."""
    failures = getattr(error, "worker_failures", {}) or {}
    rank, first = next(iter(failures.items()), (None, error))
    who = "the controller" if rank is None else f"rank {rank}"
    known = _sign(first)
    remedy = f"The worker logs are in {logs}." if logs else "See the worker logs on the Ray dashboard."
    return TrainingError(
        f"training failed on {who} with no restart left: {cause(first)}.",
        f"{known[1]} {remedy}".strip() if known else remedy,
    )


class Failures(UserCallback):
    """Sends the driver the reason of a restart of the worker group, or ends the run. Final.

    An exception that leaves a callback ends the run without a restart (controller, Ray 2.60); only a full
    disk is meant to.
    """

    def __init__(self, events: Any) -> None:
        self._events = events

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send rank and cause of each failure; end the run where the storage is full."""
        causes = {rank: cause(error) for rank, error in worker_exceptions.items()}
        try:
            for rank, why in causes.items():
                self._events.put.remote(WorkerFailed(rank, why))
        except Exception:
            logger.exception("the failure could not be sent to the driver")
        if _FULL in causes.values():
            raise TrainingError("No space left on device")


def _trainer(
    spec: dict[str, Any], config: Config, plan: Plan, data: dict[str, Any], where: tuple[str, str]
) -> DataParallelTrainer:
    least, most = plan.workers
    train = config.train
    kind = compat.local_trainer() if address() is None and least == most else DataParallelTrainer
    return kind(
        worker.loop,
        train_loop_config=spec | {"blocks": data.get("blocks")},
        backend_config=TensorFlowGroup(),
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
            callbacks=[Failures(spec["events"])],
        ),
        datasets={"train": data["stream"]} if "stream" in data else {},
        dataset_config=DataConfig(datasets_to_split=["train"], execution_options=_options(config, most)),
    )


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
    _environment(config)
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
            raise explain(error, logs) from error
        except ray.exceptions.RayError as error:
            raise explain(error, logs) from error

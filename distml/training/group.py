"""What Ray Train's controller runs: TF_CONFIG of the workers, reasons of failures (any process).

Imports neither the configuration nor the data, which the controller does not need. Ray's own
`ray.train.tensorflow` is not used: importing it imports TensorFlow into the driver and the controller, and
its backend switches the workers to legacy Keras.
"""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.callback import UserCallback

from distml.errors import TrainingError
from distml.runtime import environment, processes
from distml.training.events import WorkerFailed

logger = logging.getLogger(__name__)


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


_OOM = "the worker ran out of memory (OOM)"
_FULL = "the storage is full (ENOSPC)"
_NO_SCRATCH = "the folder of temporary files is full (ENOSPC)"
_PEER_LOST = "a worker that it exchanges gradients with was lost"
_SIGNS = (
    ("OutOfMemory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    ("low on memory", _OOM, "Lower train.global_batch_size or data.memory_budget_bytes."),
    (
        processes.SCRATCH_IS_FULL,
        _NO_SCRATCH,
        "Free space there, set TMPDIR to another folder, or keep features of frozen layers in memory with a "
        "larger data.memory_budget_bytes.",
    ),
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
        """Send rank and cause of each failure; end the run where no space is left."""
        causes = {rank: cause(error) for rank, error in worker_exceptions.items()}
        try:
            for rank, why in causes.items():
                self._events.put.remote(WorkerFailed(rank, why))
        except Exception:
            logger.exception("the failure could not be sent to the driver")
        for rank, why in causes.items():
            if why in (_FULL, _NO_SCRATCH):  # with its own text, which tells the two apart
                raise TrainingError(str(worker_exceptions[rank]))

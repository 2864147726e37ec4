"""Ray Train backend that makes the worker group a TensorFlow cluster (controller, worker).

Ray's own `ray.train.tensorflow` is not used: importing it imports TensorFlow into the driver and the
controller, and its backend switches the workers to legacy Keras.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig

from distml.runtime import environment


def _own_address() -> str:
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _join(addresses: list[str], index: int) -> None:
    place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    environment.RANK.apply({"TF_CONFIG": json.dumps(place)})


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

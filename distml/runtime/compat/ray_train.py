"""Ray Train without the actors that have nothing to do on one machine (driver, controller)."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class _NoAutoscaler(FixedScalingPolicy):
    """Scaling to a fixed number of workers without requests to an autoscaler. Final."""

    def _maybe_send_resource_request(self) -> None: ...

    def _send_resource_request(self) -> None: ...

    def _cancel_resource_request(self) -> None: ...


class LocalTrainer(DataParallelTrainer):
    """`DataParallelTrainer` for a fixed number of workers on a Ray that this process started. Final.

    Every actor of Ray Train and Ray Data imports both (5 to 7 CPU-seconds each, 2.60, 2 cores). Three of them
    have nothing to do on one machine and are left out: the one that asks an autoscaler for nodes, the one
    that frees placement groups when the driver's node is lost, and the one that splits data sets where there
    is none to split.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()
        unused = (PlacementGroupCleanerCallback, *(() if self.datasets else (DatasetsCallback,)))
        return [callback for callback in callbacks if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        settings["scaling_policy"] = _NoAutoscaler(self.scaling_config)
        return super()._initialize_and_run_controller(**settings)

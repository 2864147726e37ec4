"""`LocalTrainer` overrides private names of Ray 2.60: they are still there."""

from __future__ import annotations

import inspect

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from distml.training.launch import LocalTrainer


def test_the_hooks_it_overrides_are_still_called() -> None:
    fit = inspect.getsource(DataParallelTrainer.fit)
    assert "self._create_default_callbacks()" in fit
    assert "self._initialize_and_run_controller(" in fit
    assert "scaling_policy=" in fit
    for name in ("_maybe_send_resource_request", "_send_resource_request", "_cancel_resource_request"):
        assert hasattr(FixedScalingPolicy, name)


def test_it_omits_the_two_callbacks_and_nothing_else() -> None:
    def kinds(trainer: DataParallelTrainer) -> list[type]:
        return [type(callback) for callback in trainer._create_default_callbacks()]

    everything, mine = kinds(DataParallelTrainer(lambda: None)), kinds(LocalTrainer(lambda: None))
    assert set(everything) - set(mine) == {PlacementGroupCleanerCallback, DatasetsCallback}
    assert set(mine) < set(everything)

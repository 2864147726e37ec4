"""A run that belongs to a sweep, and a trial: such a run in a process of Ray Tune (driver, trial)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from distml import log, tasks
from distml.config import Config
from distml.runtime.cluster import Cluster
from distml.selection.candidates import candidate
from distml.storage import Storage
from distml.tracking import runs
from distml.training.events import EpochFinished, Event, Observer, Resumed


@dataclass(frozen=True)
class Child:
    """The place of a run in a sweep.

    Attributes:
        name: Of the candidate; shown before each of its lines.
        cluster: The connection that the sweep has opened and will close.
        parent: Name and key of the parent run on the tracking server.
        observer: Called with every event of the run.
    """

    name: str
    cluster: Cluster
    parent: tuple[str, str]
    observer: Observer | None = None


Train = Callable[[Config, Child], dict[str, Any]]
"""Trains one candidate to its end and returns its result line."""


def name(trial_id: str) -> str:
    """Tune's identifiers end in the number of the trial, which outlives a restart."""
    return f"trial-{int(trial_id.rpartition('_')[2]):03d}"


def folder(of: Any) -> str:
    """Tune's folder of a trial, from which its name is known even where it never reported."""
    return str(of.trial_id)


def trial(
    params: dict[str, Any],
    values: dict[str, Any],
    ray_cluster: Cluster,
    parent: tuple[str, str],
    train: Train,
) -> None:
    """One trial (trial process): train, and tell Tune of every epoch; Tune ends the process to stop it.

    Args:
        params: Overrides that Tune has drawn.
        values: The configuration of the sweep.
        ray_cluster: The connection of the driver.
        parent: Name and key of the parent run.
        train: Trains one run.
    """
    from ray import tune

    log.configure("trial")
    mine = name(tune.get_context().get_trial_id())
    chosen = candidate(Config.model_validate(values), params, mine)
    metric = f"val_{tasks.of(chosen.config.task.kind).main}"
    told, last = 0, chosen.config.train.epochs

    def report(event: Event) -> None:
        nonlocal told
        epochs: Sequence[Event] = event.history if isinstance(event, Resumed) else [event]
        for epoch in epochs:
            # The last epoch is reported when the model is registered: Tune may stop the trial at any report.
            if isinstance(epoch, EpochFinished) and told < epoch.epoch < last:
                told = epoch.epoch
                tune.report({metric: epoch.metrics[metric], "epoch": told})

    known = runs.taken(chosen.config, Storage(chosen.config.storage.root))
    result = known.result if known else train(chosen.config, Child(mine, ray_cluster, parent, report))
    tune.report({metric: result[metric], "epoch": result["epochs"]})

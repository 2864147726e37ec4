"""Builds and validates the configurations of the candidates of a sweep, and runs one trial (driver, trial).

A candidate differs from the others in keys of `model` and `train` and in its seed: only so are all measured
on the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from distml import log, tasks
from distml.config import Config, RangeConfig, TrainConfig, load
from distml.errors import ConfigError
from distml.models import registry
from distml.runtime.cluster import SPARE_CPUS, Cluster
from distml.storage import Storage
from distml.tracking import runs
from distml.training.events import EpochFinished, Event, Observer, Resumed

_NAME_LENGTH = 63
_OWN = ("model", "train", "run.seed")
"""What may differ: whole sections, or one key."""


@dataclass(frozen=True)
class Candidate:
    """One model to train.

    Attributes:
        name: Within the sweep.
        config: Its whole configuration; `run.name` is the sweep's with the candidate's name behind.
        overrides: What it differs in, by dotted path.
    """

    name: str
    config: Config
    overrides: dict[str, Any]


def candidates(config: Config) -> list[Candidate]:
    """Return the configured candidates.

    Raises:
        ConfigError: An override is not accepted, or two candidates have the same name; with its path.
    """
    known: dict[str, Candidate] = {}
    for at, given in enumerate(config.sweep.candidates):
        where = f"sweep.candidates.{at}"
        try:
            chosen = candidate(config, given)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.message}", error.remedy) from None
        if chosen.name in known:
            raise ConfigError(
                f"{where}: the name {chosen.name} is taken by another candidate.",
                "Give it a `name` of its own.",
            )
        known[chosen.name] = chosen
    return list(known.values())


def candidate(config: Config, given: Mapping[str, Any], name: str | None = None) -> Candidate:
    """Make a candidate out of overrides.

    A model takes its own options: where `model.name` is overridden, the options of the other model are
    dropped.

    Args:
        config: Of the sweep.
        given: Overrides by dotted path; `name` among them names the candidate.
        name: Names it otherwise.

    Raises:
        ConfigError: An override is not accepted.
    """
    overrides = load.flatten({path: value for path, value in given.items() if path != "name"})
    for path in overrides:
        if not _own(path):
            guess = Config.nearest(path) or ""
            raise ConfigError(
                f"a candidate cannot override {path}: only model, train and run.seed may differ.",
                f"Did you mean {guess}?" if _own(guess) else "Move it to its section.",
            )
    name = str(given.get("name") or name or _named(overrides))
    base = config.model_dump(mode="json")
    if "model.name" in overrides:
        base["model"] = {}
    base["sweep"] = {}
    base["run"]["name"] = _run_name(config.run.name, name)
    resolved = Config.resolve(load.merge(base, load.nest(overrides)))
    registry.check_run(resolved)
    return Candidate(name, resolved, overrides)


def _own(path: str) -> bool:
    return path.partition(".")[0] in _OWN or path in _OWN


def _named(overrides: Mapping[str, Any]) -> str:
    """A name that says what is different."""
    words = [
        str(value) if path == "model.name" else f"{path.rpartition('.')[2]}-{value}"
        for path, value in overrides.items()
    ]
    return re.sub(r"-+", "-", re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(words))).strip("-.") or "base"


def _run_name(sweep: str, name: str) -> str:
    full = f"{sweep}-{name}"
    if len(full) > _NAME_LENGTH:
        raise ConfigError(
            f"run.name would be {full}, longer than {_NAME_LENGTH} letters.",
            "Give the candidate a short `name`.",
        )
    return full


def concurrent(
    wanted: Literal["auto"] | int, trains: Sequence[TrainConfig], cpus: float, gpus: int = 0
) -> int:
    """Decide how many candidates train side by side.

    Ray's CPUs are tickets, and a local Ray is given as many as the workers need, so it would start any
    number of TensorFlow processes on two cores. Side by side pays only where each candidate has cores, or
    GPUs, of its own.

    Args:
        wanted: `sweep.concurrent`.
        trains: Training section of each candidate.
        cpus: Cores of this machine for a local Ray, else the CPUs of the cluster.
        gpus: Of the cluster.

    Returns:
        A number from 1 to that of the candidates.
    """
    if wanted != "auto":
        return max(1, min(wanted, len(trains)))
    share = max(train.max_workers * train.cpus_per_worker for train in trains)
    limit = math.floor((cpus - SPARE_CPUS) / share + 1e-9)
    if any(
        train.device == "gpu" or (train.device == "auto" and gpus >= train.min_workers) for train in trains
    ):
        limit = min(limit, gpus // max(train.max_workers for train in trains))
    return max(1, min(limit, len(trains)))


def check_space(config: Config) -> None:
    """Check a search space: every value of a choice and both ends of a range, each alone.

    Raises:
        ConfigError: A key is unknown or a value is not accepted.
    """
    assert config.sweep.search is not None
    for path, values in config.sweep.search.space.items():
        try:
            for value in _ends(values):
                candidate(config, {path: value}, "trial")
        except ConfigError as error:
            raise ConfigError(f"sweep.search.space.{path}: {error.message}", error.remedy) from None


def _ends(values: RangeConfig) -> list[Any]:
    return list(values.choice or values.uniform or values.log_uniform or values.integers or ())


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


def trial_name(trial_id: str) -> str:
    """Tune's identifiers end in the number of the trial, which outlives a restart."""
    return f"trial-{int(trial_id.rpartition('_')[2]):03d}"


def trial_folder(of: Any) -> str:
    """Tune's folder of a trial, from which its name is known even where it never reported."""
    return str(of.trial_id)


def run_trial(
    params: dict[str, Any],
    values: dict[str, Any],
    ray_cluster: Cluster,
    parent: tuple[str, str],
    train: Train,
) -> None:
    """One trial (trial process): train, and report every epoch to Tune; Tune ends the process to stop it.

    Args:
        params: Overrides that Tune has drawn.
        values: The configuration of the sweep.
        ray_cluster: The connection of the driver.
        parent: Name and key of the parent run.
        train: Trains one run.
    """
    from ray import tune

    log.configure("trial")
    mine = trial_name(tune.get_context().get_trial_id())
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

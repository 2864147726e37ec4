"""Hyperparameter search by Ray Tune, as `sweep.search` of the configuration says (driver).

Every trial is an ordinary run of this product, begun in a process of Tune's; Tune draws the values, says how
many trials run at a time and stops those that fall behind. An interrupted search resumes: Tune stores
its trials, and each trial resumes from its own checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback
from rich.console import Console
from rich.markup import escape

from distml import log, tasks, tracking
from distml.config import Config, RangeConfig
from distml.data import ingestion
from distml.runtime import cluster, environment
from distml.runtime.cluster import Cluster
from distml.selection import candidates, leaderboard
from distml.selection.candidates import Candidate, Train, candidate, trial_name
from distml.selection.leaderboard import Row
from distml.selection.record import Parent
from distml.storage import Storage
from distml.tasks import quality
from distml.tracking import runs
from distml.tracking.operations import CloseRun, OpenRun

if TYPE_CHECKING:
    from ray.tune import ResultGrid

FOLDER = "tune"


def run(config: Config, storage: Storage, parent: Parent, train: Train, console: Console) -> dict[str, Row]:
    """Search to the end.

    Args:
        config: With `sweep.search`.
        storage: Where Tune remembers its trials.
        parent: Of the sweep.
        train: Trains one run.
        console: For the progress.

    Returns:
        The row of every trial, by name.

    Raises:
        DistmlError: The cluster or the data cannot be used.
    """
    cores = os.cpu_count() or 1
    search, wanted = config.sweep.search, config.sweep.concurrent
    assert search is not None
    trains = [config.train] * search.trials
    with cluster.connect(config, runs=candidates.concurrent(wanted, trains, cores)) as ray_cluster:
        gpus = ray_cluster.resources.get("GPU", 0)
        cpus = cores if ray_cluster.local else ray_cluster.resources.get("CPU", 0)
        at_once = candidates.concurrent(wanted, trains, cpus, int(gpus))
        cluster.require_plan(config, ray_cluster)
        ingestion.prepare(config, storage)
        console.print(
            f"search [bold]{escape(config.run.name)}[/bold]: {at_once} trials at a time "
            f"(sweep.concurrent {wanted}), {ray_cluster.shown}"
        )
        results = _tune(config, storage, parent, train, ray_cluster, at_once, console)
        return {row.candidate: row for row in rows(config, storage, results)}


def _tune(
    config: Config,
    storage: Storage,
    parent: Parent,
    train: Train,
    ray_cluster: Cluster,
    at_once: int,
    console: Console,
) -> ResultGrid:
    environment.SEARCH.apply()
    from ray import tune

    values = config.model_dump(mode="json")
    function = tune.with_parameters(
        candidates.run_trial, values=values, ray_cluster=ray_cluster, parent=parent.key, train=train
    )
    # A trial waits for its workers and needs no core; Ray wants every actor of Tune's to ask for something.
    trainable = tune.with_resources(function, {"cpu": 0, "memory": 1 << 20})
    where = storage.uri(*parent.parts)
    if tune.Tuner.can_restore(f"{where}/{FOLDER}"):
        tuner = tune.Tuner.restore(f"{where}/{FOLDER}", trainable, restart_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=_space(config),
            tune_config=_how(config, at_once),
            run_config=tune.RunConfig(
                name=FOLDER, storage_path=where, verbose=0, callbacks=[Reporter(console)]
            ),
        )
    with contextlib.redirect_stdout(log.Aside()):  # whatever Tune says, standard output is one line of ours
        return tuner.fit()


def _space(config: Config) -> dict[str, Any]:
    from ray import tune

    search = config.sweep.search
    assert search is not None

    def domain(values: RangeConfig) -> Any:
        if values.choice is not None:
            return (tune.grid_search if search.method == "grid" else tune.choice)(values.choice)
        if values.integers is not None:
            return tune.randint(values.integers[0], values.integers[1] + 1)
        if values.log_uniform is not None:
            return tune.loguniform(*values.log_uniform)
        assert values.uniform is not None
        return tune.uniform(*values.uniform)

    return {path: domain(values) for path, values in search.space.items()}


def _how(config: Config, at_once: int) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    search, epochs = config.sweep.search, config.train.epochs
    assert search is not None
    metric = tasks.of(config.task.kind).main
    scheduler = None
    if search.scheduler == "asha":
        grace = min(search.grace_epochs, epochs)
        scheduler = ASHAScheduler(
            "epoch", max_t=epochs + 1, grace_period=grace, reduction_factor=search.reduction
        )
    return tune.TuneConfig(
        metric=f"val_{metric}",
        mode="max" if quality.higher(metric) else "min",
        trial_dirname_creator=candidates.trial_folder,
        scheduler=scheduler,
        num_samples=1 if search.method == "grid" else search.trials,
        search_alg=BasicVariantGenerator(random_state=config.run.seed, max_concurrent=at_once),
    )


def rows(config: Config, storage: Storage, results: ResultGrid) -> list[Row]:
    """Return a row for every trial, from the record of its run; what did not finish was stopped or failed.

    Args:
        config: Of the sweep.
        storage: Holds the records.
        results: Of Ray Tune.
    """
    known = []
    for result in results:
        name = trial_name(result.path.rstrip("/").rpartition("/")[2])
        chosen = candidate(config, result.config or {}, name)
        known.append(_trial_row(chosen, storage, result))
    return sorted(known, key=lambda row: row.candidate)


def _trial_row(chosen: Candidate, storage: Storage, result: Any) -> Row:
    run = chosen.config.run.name
    plain = chosen.config.model_copy(update={"run": chosen.config.run.model_copy(update={"restart": False})})
    if done := runs.taken(plain, storage):
        return leaderboard.of_result(chosen.name, run, chosen.overrides, done.result)
    metrics = result.metrics or {}
    metric = tasks.of(chosen.config.task.kind).main
    value = metrics.get(f"val_{metric}")
    reached: dict[str, Any] = {"metric": metric, "val": value, "epochs": metrics.get("epoch")}
    reached |= {"val_accuracy": metrics.get("val_accuracy")}
    if result.error is not None:
        cause = str(result.error).strip().splitlines()[-1][:300]
        return Row(chosen.name, run, chosen.overrides, "failed", **reached, error=cause)
    _close(chosen, storage)
    return Row(chosen.name, run, chosen.overrides, "stopped", **reached, wall_s=metrics.get("time_total_s"))


def _close(chosen: Candidate, storage: Storage) -> None:
    """End the run of a trial that was stopped: its own process had no time to."""
    record = runs.newest(storage, chosen.config.run.name)
    if record is None:
        return
    tracker = tracking.Tracker(chosen.config, f"{record.name}-{record.generation:03d}-stopped")
    tags = {"distml.stopped": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    tracker.put(OpenRun(record.name, tags, {}, record.key))
    tracker.put(CloseRun("KILLED"))
    tracker.close()
    record.status, record.run_id = "stopped", tracker.sender.run_id
    record.save(storage)


class Reporter(Callback):
    """One line for every epoch and the end of every trial. Final; used by Ray Tune."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; a console cannot be saved."""
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__(Console(stderr=True, highlight=False, soft_wrap=True))  # type: ignore[misc]

    def _say(self, trial: Any, text: str) -> None:
        number = int(str(trial.trial_id).rpartition("_")[2])
        mark = f"[dim]{time.monotonic() - self._began:6.1f}s[/dim] [cyan]trial-{number:03d}[/cyan]"
        self._console.print(f"{mark} {text}")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say what was drawn."""
        self._say(trial, escape(", ".join(f"{path} {value}" for path, value in trial.config.items())))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print an epoch."""
        for metric in [key for key in result if key.startswith("val_")]:
            self._say(trial, f"epoch {result['epoch']}  {metric} {quality.digits(result[metric])}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that it failed."""
        self._say(trial, "[red]failed[/red]")

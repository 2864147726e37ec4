"""One training run from its configuration to its registered model (driver)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import time
from typing import Any

from distml import tracking
from distml.config import Config
from distml.data import shards
from distml.errors import ConfigError
from distml.models import registry
from distml.runtime import cluster
from distml.selection.trial import Child
from distml.storage import Storage
from distml.tracking import runs
from distml.tracking.operations import CloseRun
from distml.training import summary, weight_sources, weighting
from distml.training.events import Observer, Outcome
from distml.training.observers.display import Display
from distml.training.observers.gauges import Gauges
from distml.training.observers.tensorboard import TensorBoard
from distml.training.observers.tracker import RunTracker


def _check_sizes(config: Config, manifest: shards.Manifest) -> None:
    rows, batch = manifest.rows["train"], config.train.global_batch_size
    if rows < batch:
        raise ConfigError(
            f"train.global_batch_size = {batch} is more than the {rows} training rows.",
            f"Set it to {rows} or less.",
        )
    registry.check_shape(config.model.name, manifest.shape)
    weighting.check(config.train.class_weights, manifest.classes)


def train(config: Config) -> dict[str, Any]:
    """Train as the configuration says: one model, or the candidates of a sweep.

    Returns:
        The result line.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed.
    """
    if not config.sweep.wanted:
        return run(config)
    sweep = importlib.import_module("distml.selection.sweep")  # a single run is spared its imports
    return dict(sweep.run(config, run))


def run(config: Config, child: Child | None = None) -> dict[str, Any]:
    """Train one model.

    Args:
        config: Of the run; its sweep is not looked at.
        child: Its place in a sweep, None where it stands alone.

    Returns:
        The result line: run id, model, version, accuracies, throughput, wall time and places.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed.
    """
    began = time.monotonic()
    registry.check_config(config.model)
    storage = Storage(config.storage.root)
    storage.probe()
    weight_sources.resolve(config, storage)
    tracking.uri(config)
    if config.tracking.required:
        tracking.check(config)
    with runs.alone(config, storage):
        if (registered := _registered(config, storage)) is not None:
            return registered
        return _recorded(config, storage, began, child)


def _registered(config: Config, storage: Storage) -> dict[str, Any] | None:
    """The result line of a run that is trained and was not registered until now: the server was away."""
    found = None if config.run.restart else runs.newest(storage, config.run.name)
    if found is None or found.status != "finished" or found.version:
        return None
    trained = runs.taken(config, storage)
    registered = tracking.register(config, storage, trained) if trained else None
    return registered.result if registered and registered.version else None


def _recorded(config: Config, storage: Storage, began: float, child: Child | None) -> dict[str, Any]:
    """Train with a record under the storage root of what is being done and how it ended."""
    display = Display(config.train.epochs, name=child.name if child else "")
    record, resumed = runs.begin(config, storage)
    display.say(f"run [bold]{record.name}[/bold]{' resumed' if resumed else ''}, storage {storage.root}")
    tracker = tracking.Tracker(config, f"{record.name}-{record.generation:03d}", record.run_id)
    status = "FAILED"
    try:
        result = _train(config, storage, record, tracker, display, began, child)
        status = "FINISHED"
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "KILLED" if interrupted else "FAILED"
        record.status = "running" if interrupted else "failed"
        raise
    finally:
        display.close()
        if status != "FINISHED":
            tracker.put(CloseRun(status))
            tracker.close()
            record.run_id = tracker.sender.run_id or record.run_id
            record.save(storage)
    record.status, record.result = "finished", result
    record.save(storage)
    return result


def _train(
    config: Config,
    storage: Storage,
    record: runs.Run,
    tracker: tracking.Tracker,
    display: Display,
    began: float,
    child: Child | None,
) -> dict[str, Any]:
    """Everything between opening and closing a run."""
    outcome, tracked = Outcome(), RunTracker(tracker)
    observers: list[Observer] = [outcome, display, tracked, Gauges(record.name)]
    if config.train.tensorboard:
        observers.append(TensorBoard(storage, record.paths.folder))
    observers += [child.observer] if child and child.observer else []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Importing Ray Train and drawing take seconds of one core; Ray starts and stops meanwhile.
        fitting = pool.submit(importlib.import_module, "distml.training.launch")
        source = None if child else shards.look(config, storage)
        with contextlib.nullcontext(child.cluster) if child else cluster.connect(config) as ray:
            plan = cluster.require_plan(config, ray)
            if child is None:
                display.say(f"Ray {'started here' if ray.local else 'connected'}, {ray.shown}")
            manifest = shards.prepare(config, storage, source)
            _check_sizes(config, manifest)
            tracked.begin(config, record, manifest, child.parent if child else None)
            where = (record.paths.folder, record.paths.attempt[-1])
            fitting.result().fit(config, storage, manifest, plan, where, observers, ray.logs)
            finished = outcome.finished(ray.logs)
            run_id, so_far_s = tracker.sender.run_id, time.monotonic() - began
            drawing = pool.submit(summary.draw, config, storage, manifest, record, outcome, run_id, so_far_s)
        drawn = drawing.result()
    complete = tracked.end(storage, manifest, finished)
    record.run_id = tracker.sender.run_id
    wall_s = time.monotonic() - began
    if child is None:
        summary.show(display, config, outcome, tracker.sender.version, drawn, wall_s)
    return summary.result(config, storage, tracker, finished) | {
        "tracking_complete": complete,
        "wall_s": round(wall_s, 2),
    }

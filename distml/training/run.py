"""The driver of one training run: from configuration to registered model and its result (driver)."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib
import json
import shlex
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape

from distml import tasks, tracking
from distml.artifacts import layout
from distml.artifacts.layout import DIGESTS
from distml.config import Config, ExportConfig
from distml.data import ingestion, schema, shards
from distml.data.source import Source
from distml.errors import ConfigError
from distml.models import registry
from distml.runtime import cluster
from distml.selection import gate
from distml.selection.candidates import Child
from distml.storage import Storage
from distml.tasks.classification import check_weights
from distml.tracking import runs
from distml.tracking.operations import CloseRun
from distml.training import preflight, pretrained
from distml.training.events import Observer, Outcome, RunFinished, Started
from distml.training.metrics import DURATIONS
from distml.training.observers.display import Display
from distml.training.observers.exporters import Gauges, TensorBoard
from distml.training.observers.tracker import RunTracker, commit


def draw(
    config: Config,
    storage: Storage,
    manifest: shards.Manifest,
    run: runs.Run,
    outcome: Outcome,
    run_id: str | None,
    wall_s: float,
) -> list[str]:
    """Draw the figures and write the report into the export; returns the figures' URIs.

    Args:
        config: Of the run.
        storage: Has the data and takes what is drawn.
        manifest: Of the data.
        run: The run.
        outcome: How it ended.
        run_id: MLflow run id, None where the tracking server cannot be reached.
        wall_s: Since the start of the command.
    """
    from distml.reports import figures, page

    finished = outcome.finished()
    report = finished.to_json()
    wrong = [mistake.row for mistake in finished.mistakes]
    images, _ = shards.pick(storage, manifest, finished.shown, wrong)
    called = shards.names(storage, manifest, finished.shown)
    photos = page.photos(config, storage, [called[row] for row in wrong] if called else [])
    known = _nearest(storage, manifest, finished)
    facts = page.Facts(
        run=run.name,
        run_id=run_id,
        commit=commit(),
        attempts=run.attempts,
        started_at=run.started_at,
        steady=finished.steady_samples_per_s,
        parameters=outcome.started.parameters if outcome.started else None,
        times=times(finished, outcome.started, wall_s),
    )
    html = page.render(config, manifest, report, facts, images, photos, known)
    storage.write_bytes(html.encode(), *finished.export, page.FOLDER, page.FILE)
    parts = (*finished.export, "figures")
    storage.write_bytes(json.dumps(report).encode(), *finished.export, "report.json")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.draw(Path(folder), report, list(manifest.classes), images)
        storage.upload(folder, *parts)
        return [storage.uri(*parts, path.name) for path in drawn]


def _nearest(
    storage: Storage, manifest: shards.Manifest, finished: RunFinished
) -> dict[int, tuple[schema.Images, str]]:
    """Pictures of the training rows that are nearest to a mistake, and what is true of them."""
    near = sorted({row for rows in finished.nearest for row in rows})
    pictures, targets = shards.pick(storage, manifest, "train", near)
    return {
        row: (schema.centred(picture[None], manifest.shape[:2])[0], manifest.task.text(target))
        for row, picture, target in zip(near, pictures, targets, strict=True)
    }


def times(finished: RunFinished, started: Started | None, wall_s: float) -> dict[str, float]:
    """Return seconds by part of this command, without epochs of earlier ones; the remainder is the start."""
    epochs = [epoch.metrics for epoch in finished.history if epoch.time > finished.time - wall_s]
    total = {name: sum(epoch.get(name, 0.0) for epoch in epochs) for name in DURATIONS}
    known = {
        "import TensorFlow": started.import_s if started else 0.0,
        "build and resume": started.build_s + started.wait_data_s if started else 0.0,
        "training steps": total["train_s"] - total["data_wait_s"],
        **({"features": total["features_s"]} if total["features_s"] else {}),
        "waiting for data": total["data_wait_s"],
        "validation": total["evaluate_s"],
        "checkpoints": total["checkpoint_s"] + total["report_s"],
        "test": finished.evaluate_s,
        "export": finished.export_s,
    }
    return known | {"start, tracking, figures": wall_s - sum(known.values())}


def result(
    config: Config, storage: Storage, tracker: tracking.Tracker, finished: RunFinished
) -> dict[str, Any]:
    """The result line of a finished run."""
    metrics, name = finished.quality, tasks.of(config.task.kind).main
    return {
        "run_id": tracker.sender.run_id,
        "model": config.tracking.registered_model,
        "version": tracker.sender.version,
        "metric": name,
        **{f"val_{key}": metrics.get(f"val_{key}") for key in ("accuracy", name)},
        **{f"test_{key}": metrics.get(f"test_{key}") for key in ("accuracy", name)},
        **finished.own,
        "steady_samples_per_s": round(finished.steady_samples_per_s, 1),
        "epochs": len(finished.history),
        "best_epoch": finished.best_epoch,
        "steps": finished.history[-1].step,
        "tracking_uri": tracking.uri(config),
        "artifacts": storage.uri(*finished.export),
        "formats": finished.formats,
        "sha256": hashlib.sha256(storage.read_bytes(*finished.export, DIGESTS)).hexdigest(),
    }


def show(
    display: Display, config: Config, outcome: Outcome, version: int | None, drawn: list[str], wall_s: float
) -> None:
    """Print the closing table and the next command."""
    from distml.reports import page

    finished = outcome.finished()
    monitor = tasks.of(config.task.kind).metric(config.train.monitor)
    name = config.tracking.registered_model
    facts = {
        "model": f"{name} version {version}" if version else f"{name}, registered when the server is back",
        **(
            {"epoch": f"{finished.best_epoch}, the best of {len(finished.history)} by {monitor}"}
            if finished.best_epoch
            else {}
        ),
        "files": Storage(config.storage.root).uri(*finished.export),
        "formats": written(finished.formats, config.export),
        "figures": ", ".join(drawn),
        "report": Storage(config.storage.root).uri(*finished.export, page.FOLDER, page.FILE),
        "runs": viewed_by(tracking.uri(config)),
        "next": asked_by(config.run.name, config.storage.root),
    }
    spent = times(finished, outcome.started, wall_s) | {"[bold]all[/bold]": wall_s}
    display.summary(finished.shown, finished.evaluation[finished.shown], spent, facts)


def written(formats: Mapping[str, Mapping[str, Any]], wanted: ExportConfig) -> str:
    """Say which forms of a model were written, and why one that was asked for was not.

    Args:
        formats: As the export recorded them, by name.
        wanted: What was asked for.
    """
    kept, missing = [], []
    for name, form in formats.items():
        if "left_out" in form:
            asked = name == "litert_int8" or (wanted.formats != "auto" and name in wanted.formats)
            missing += [f"{name} is left out: {form['left_out']}"] if asked else []
            continue
        size = f" {form['bytes'] / 1e6:.1f} MB" if "bytes" in form else ""
        if "accuracy" in form:
            shares = (form["accuracy"], form["accuracy_float"])
            size += " (validation rows correct: {:.4f}, of litert {:.4f})".format(*shares)
        kept.append(f"{name}{size}")
    return "; ".join([", ".join(kept), *missing])


def asked_by(run: str, root: str) -> str:
    """Return the command that asks a run's model, quoted for the shell it will be pasted into."""
    return f"python -m distml.predict IMAGE {shlex.join(['--run', run, '--storage.root', root])}"


def viewed_by(uri: str) -> str:
    """Where to see the runs: the server's address, or the command that starts MLflow's page."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


def _sized(
    config: Config, storage: Storage, manifest: shards.Manifest, record: runs.Run, plan: cluster.Plan
) -> Config:
    """The configuration with a number for the batch, checked against the data."""
    if not config.train.global_batch_size:
        from distml.training import probe  # brings Ray Train

        config = probe.resolve(config, storage, manifest, record.paths.folder, plan.use_gpu)
    _check_sizes(config, manifest)
    return config


def _check_sizes(config: Config, manifest: shards.Manifest) -> None:
    rows, batch = manifest.rows["train"], config.train.global_batch_size
    if rows < batch:
        raise ConfigError(
            f"train.global_batch_size = {batch} is more than the {rows} training rows.",
            f"Set it to {rows} or less.",
        )
    registry.check_shape(config.model.name, manifest.shape)
    check_weights(config.train.class_weights, manifest.classes)
    gate.check(config.promote, manifest.task)


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
        config: Of the run; its sweep is ignored.
        child: Its place in a sweep, None where it stands alone.

    Returns:
        The result line: run id, model, version, accuracies, throughput, wall time and places.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed.
    """
    began = time.monotonic()
    registry.check_run(config)
    layout.require_formats(config.export)
    storage = Storage(config.storage.root)
    storage.probe()
    pretrained.resolve(config, storage)
    tracking.require_experiment(config)
    if config.tracking.required:
        tracking.check(config)
    with runs.alone(config, storage):
        if (registered := _registered(config, storage)) is not None:
            return registered
        return _recorded(config, storage, began, child)


def _registered(config: Config, storage: Storage) -> dict[str, Any] | None:
    """The result line of a run that was trained while the server was unreachable, and is registered now."""
    record = None if config.run.restart else runs.newest(storage, config.run.name)
    if record is None or record.status != "finished" or record.version:
        return None
    trained = runs.taken(config, storage)
    registered = tracking.register(config, storage, trained) if trained else None
    return registered.result if registered and registered.version else None


def _recorded(config: Config, storage: Storage, began: float, child: Child | None) -> dict[str, Any]:
    """Train with a record under the storage root of what is being done and how it ended."""
    frozen = config.model.freeze_epochs
    display = Display(config.train.epochs, name=child.name if child else "", frozen=frozen)
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


def _try(
    pool: concurrent.futures.Executor, config: Config, storage: Storage, source: Source | None
) -> concurrent.futures.Future[list[str]] | None:
    """Begin the trial of a network of the user's, which takes seconds of a core; None for one of ours."""
    data = source or ingestion.find(config, storage)
    case = None if data is None else preflight.of(config, data.shape, data.task)
    return None if case is None else pool.submit(preflight.run, case, storage)


def _tell(display: Display, trying: concurrent.futures.Future[list[str]] | None) -> None:
    """Wait for the trial, and show what it remarks.

    Raises:
        ModelError: The network cannot be trained or served.
    """
    for note in trying.result() if trying else ():
        display.say(escape(note))


def _observers(config: Config, storage: Storage, record: runs.Run, child: Child | None) -> list[Observer]:
    """Observers of the run's events besides the display and the tracker."""
    observers: list[Observer] = [Gauges(record.name)]
    if config.train.tensorboard:
        observers.append(TensorBoard(storage, record.paths.folder))
    return observers + ([child.observer] if child and child.observer else [])


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
    observers = [outcome, display, tracked, *_observers(config, storage, record, child)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        # Importing Ray Train and drawing take seconds of one core; Ray starts and stops meanwhile.
        fitting = pool.submit(importlib.import_module, "distml.training.launch")
        source = None if child else ingestion.look(config, storage)
        trying = _try(pool, config, storage, source)
        with contextlib.nullcontext(child.cluster) if child else cluster.connect(config) as ray:
            plan = cluster.require_plan(config, ray)
            if child is None:
                display.say(f"Ray {'started here' if ray.local else 'connected'}, {ray.shown}")
            manifest = ingestion.prepare(config, storage, source)
            config = _sized(config, storage, manifest, record, plan)
            tracked.begin(config, record, manifest, child.parent if child else None)
            _tell(display, trying)
            where = (record.paths.folder, record.paths.attempt[-1])
            fitting.result().fit(config, storage, manifest, plan, where, observers, ray.logs)
            finished = outcome.finished(ray.logs)
            run_id, so_far_s = tracker.sender.run_id, time.monotonic() - began
            drawing = pool.submit(draw, config, storage, manifest, record, outcome, run_id, so_far_s)
        drawn = drawing.result()
    complete = tracked.end(storage, manifest, finished)
    record.run_id = tracker.sender.run_id
    wall_s = time.monotonic() - began
    if child is None:
        show(display, config, outcome, tracker.sender.version, drawn, wall_s)
    return result(config, storage, tracker, finished) | {
        "tracking_complete": complete,
        "wall_s": round(wall_s, 2),
    }

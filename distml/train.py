"""Train a model on Ray, tracked, resumable and registered (driver)."""

from __future__ import annotations

import concurrent.futures
import hashlib
import importlib
import importlib.metadata
import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distml import cli, cluster, runs, tracking
from distml.config import Config
from distml.data import shards
from distml.display import Display
from distml.errors import ConfigError, TrainingError
from distml.loading import flatten
from distml.models import registry
from distml.storage import Storage

Event = dict[str, Any]
_STEP_VALUES = ("loss", "accuracy", "learning_rate", "samples_per_s")
_EPOCH_VALUES = (
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "samples_per_s",
    "learning_rate",
    "world_size",
)
_BY_EPOCH = ("val_accuracy", "val_loss")
_TIMES = ("train_s", "data_wait_s", "evaluate_s", "checkpoint_s", "report_s")


class Recorder:
    """Passes the board's events on to the display and the tracker, and keeps what the end needs. Final."""

    def __init__(self, display: Display, tracker: tracking.Tracker) -> None:
        self._display, self._tracker = display, tracker
        self.result: Event | None = None
        self.failure: TrainingError | None = None
        self.ready: Event = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self._display(event)
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler:
            handler(event)

    def _on_ready(self, event: Event) -> None:
        self.ready = event

    def _on_steps(self, event: Event) -> None:
        values = {f"step/{key}": event[key] for key in _STEP_VALUES}
        self._tracker.metrics("step/loss", event["step"], values, event["time"])

    def _on_epoch(self, event: Event) -> None:
        values = {key: event[key] for key in _EPOCH_VALUES}
        values |= {f"time/{key}": event[key] for key in _TIMES if key in event}
        self._tracker.metrics("loss", event["epoch"], values, event["time"])

    def _on_resumed(self, event: Event) -> None:
        # An epoch that was checkpointed just before the driver died may not be on record yet.
        for metrics in event["history"]:
            self._on_epoch(metrics)

    def _on_result(self, event: Event) -> None:
        self.result = event

    def _on_failed(self, event: Event) -> None:
        self.failure = TrainingError(event["message"], event["remedy"])

    def finished(self, logs: str | None) -> Event:
        """The result event of a run that ended well; raises why there is none."""
        if self.failure:
            raise self.failure
        if self.result is None:
            raise TrainingError("training ended without a result.", f"See the worker logs in {logs}.")
        return self.result


def _commit() -> str | None:
    """Commit of the checkout the command runs in, None outside one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _tags(config: Config, manifest: shards.Manifest) -> dict[str, str]:
    packages = ("ray", "tensorflow-cpu", "tensorflow", "keras", "mlflow", "pyarrow", "numpy")
    tags = {"distml.config_digest": config.digest(), "distml.data_digest": manifest.digest}
    for name in packages:
        try:
            tags[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = _commit()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _open(tracker: tracking.Tracker, config: Config, run: runs.Run, manifest: shards.Manifest) -> None:
    params = {path: str(value)[:500] for path, value in flatten(config.model_dump(mode="json")).items()}
    tracker.put("open", name=run.name, tags=_tags(config, manifest), params=params, key=run.key)
    profile = {"rows": manifest.rows, "classes": len(manifest.classes), "shape": list(manifest.shape)}
    tracker.put(
        "dataset", name=manifest.name, digest=manifest.digest, source=manifest.folder, profile=profile
    )
    tracker.put("text", file="config.json", text=config.model_dump_json(indent=1))


def _check_sizes(config: Config, manifest: shards.Manifest) -> None:
    rows, batch = manifest.rows["train"], config.train.global_batch_size
    if rows < batch:
        raise ConfigError(
            f"train.global_batch_size = {batch} is more than the {rows} training rows.",
            f"Set it to {rows} or less.",
        )


def _draw(storage: Storage, manifest: shards.Manifest, found: Event) -> list[str]:
    """Draw the figures into the export; returns where they are."""
    from distml import figures

    split = "test" if "test" in found["evaluation"] else "validation"
    images, _ = shards.read(storage, manifest, split)
    worst = (
        (images[[mistake[0] for mistake in found["worst"]]], found["worst"])
        if found["worst"]
        else (images[:0], [])
    )
    parts = (*found["export"], "figures")
    report = {key: found[key] for key in ("evaluation", "history", "worst")}
    storage.write_bytes(json.dumps(report).encode(), *found["export"], "report.json")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.draw(
            Path(folder), found["history"], found["evaluation"], list(manifest.classes), worst
        )
        storage.upload(folder, *parts)
        return [storage.uri(*parts, path.name) for path in drawn]


def _final_metrics(found: Event) -> dict[str, float]:
    metrics = {}
    for split, evaluation in found["evaluation"].items():
        prefix = {"validation": "val", "test": "test"}[split]
        metrics[f"{prefix}_accuracy"] = evaluation["accuracy"]
        metrics[f"{prefix}_loss"] = evaluation["loss"]
        metrics |= {
            f"{prefix}_accuracy/{_key(name)}": share for name, share in evaluation["per_class"].items()
        }
    return metrics


def _key(name: str) -> str:
    """A class's name as part of a metric's name, where MLflow allows few characters."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "-" for letter in name)


def steady(history: list[Event]) -> float:
    """Samples per second: the median over epochs, the first left out when there are others."""
    return float(np.median([metrics["samples_per_s"] for metrics in history[1:] or history]))


def _record_result(
    tracker: tracking.Tracker, storage: Storage, manifest: shards.Manifest, found: Event
) -> bool:
    """Record the result, register the model and close the run; whether all of it arrived."""
    digests = storage.read_bytes(*found["export"], "digests.json")
    metrics = _final_metrics(found)
    chosen = {key: value for key, value in metrics.items() if key not in _BY_EPOCH}
    last = found["history"][-1]["epoch"]
    tracker.metrics("result", last, chosen | {"steady_samples_per_s": steady(found["history"])})
    tracker.put("artifacts", parts=[*found["export"], "figures"], path="figures")
    tracker.put(
        "model",
        parts=list(found["export"]),
        shape=list(manifest.shape),
        classes=len(manifest.classes),
        metrics={key: value for key, value in metrics.items() if "/" not in key},
        digest=hashlib.sha256(digests).hexdigest(),
    )
    tracker.put("close", status="FINISHED", tags={})
    return tracker.close()


def _times(found: Event, ready: Event, wall_s: float) -> dict[str, float]:
    history = found["history"]
    total = {key: sum(metrics.get(key, 0.0) for metrics in history) for key in _TIMES}
    known = {
        "import TensorFlow": ready.get("import_s", 0.0),
        "build and resume": ready.get("build_s", 0.0) + ready.get("wait_data_s", 0.0),
        "training steps": total["train_s"] - total["data_wait_s"],
        "waiting for data": total["data_wait_s"],
        "validation": total["evaluate_s"],
        "checkpoints": total["checkpoint_s"] + total["report_s"],
        "test": found["test_s"],
        "export": found["export_s"],
    }
    return known | {"start, tracking, figures": wall_s - sum(known.values()), "[bold]all[/bold]": wall_s}


def run(config: Config) -> dict[str, Any]:
    """Train as the configuration says.

    Returns:
        The result line: run id, model, version, accuracies, throughput, wall time and places.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed.
    """
    began = time.monotonic()
    registry.check(config.model.name, config.model.options)
    storage = Storage(config.storage.root)
    storage.probe()
    tracking.uri(config)
    if config.tracking.required:
        tracking.check(config)
    display = Display(config.train.epochs)
    record, resumed = runs.begin(config, storage)
    display.say(f"run [bold]{record.name}[/bold]{' resumed' if resumed else ''}, storage {storage.root}")
    tracker = tracking.Tracker(config, f"{record.name}-{record.generation:03d}", record.run_id)
    status = "FAILED"
    try:
        result = _train(config, storage, record, tracker, display, began)
        status = "FINISHED"
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        status = "KILLED" if interrupted else "FAILED"
        record.status = "running" if interrupted else "failed"
        raise
    finally:
        display.close()
        if status != "FINISHED":
            tracker.put("close", status=status, tags={})
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
) -> dict[str, Any]:
    """Everything between opening and closing a run."""
    recorder = Recorder(display, tracker)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        # Importing Ray Train and drawing take seconds of one core; Ray starts and stops meanwhile.
        fitting = pool.submit(importlib.import_module, "distml.training.fit")
        with cluster.connect(config) as ray:
            plan = cluster.require_plan(config, ray)
            display.say(f"Ray {'started here' if ray.local else 'connected'}, dashboard {ray.dashboard}")
            manifest = shards.prepare(config, storage)
            _check_sizes(config, manifest)
            _open(tracker, config, record, manifest)
            where = (record.parts, record.attempt)
            fitting.result().fit(config, storage, manifest, plan, where, recorder, ray.logs)
            drawing = pool.submit(_draw, storage, manifest, recorder.finished(ray.logs))
        drawn = drawing.result()
    found = recorder.finished(ray.logs)
    complete = _record_result(tracker, storage, manifest, found)
    record.run_id = tracker.sender.run_id
    wall_s = time.monotonic() - began
    _summarise(display, config, record, tracker, recorder, drawn, wall_s)
    return _result(config, storage, tracker, found) | {
        "tracking_complete": complete,
        "wall_s": round(wall_s, 2),
    }


def _result(config: Config, storage: Storage, tracker: tracking.Tracker, found: Event) -> dict[str, Any]:
    metrics = _final_metrics(found)
    return {
        "run_id": tracker.sender.run_id,
        "model": config.tracking.registered_model,
        "version": tracker.sender.version,
        "val_accuracy": metrics["val_accuracy"],
        "test_accuracy": metrics.get("test_accuracy"),
        "steady_samples_per_s": round(steady(found["history"]), 1),
        "epochs": len(found["history"]),
        "steps": found["history"][-1]["step"],
        "tracking_uri": tracking.uri(config),
        "artifacts": storage.uri(*found["export"]),
    }


def _summarise(
    display: Display,
    config: Config,
    record: runs.Run,
    tracker: tracking.Tracker,
    recorder: Recorder,
    drawn: list[str],
    wall_s: float,
) -> None:
    found = recorder.finished(None)
    version = tracker.sender.version
    name = config.tracking.registered_model
    facts = {
        "model": f"{name} version {version}" if version else f"{name}, to be registered by `distml sync`",
        "files": Storage(config.storage.root).uri(*found["export"]),
        "figures": ", ".join(drawn),
        "runs": f"mlflow ui --backend-store-uri {tracking.uri(config)}",
        "next": f"python -m distml.predict IMAGE --run {record.name} --storage.root {config.storage.root}",
    }
    display.summary(found["evaluation"], _times(found, recorder.ready, wall_s), facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("train", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

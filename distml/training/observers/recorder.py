"""What of a run is recorded: from the board's events to the display and the tracker (driver)."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np

from distml import tracking
from distml.config import Config
from distml.config.load import flatten
from distml.data import shards
from distml.errors import TrainingError
from distml.storage import Storage
from distml.tracking import runs
from distml.training.observers.display import Display
from distml.training.observers.tensorboard import Events
from distml.training.result import DIGESTS

Event = dict[str, Any]
_STEP_VALUES = ("loss", "accuracy", "learning_rate", "samples_per_s")
_EPOCH_VALUES = (*_STEP_VALUES, "val_loss", "val_accuracy", "world_size", "rows_read", "rows_dropped")
_BY_EPOCH = ("val_accuracy", "val_loss")
TIMES = ("train_s", "data_wait_s", "evaluate_s", "checkpoint_s", "report_s")
"""Parts of an epoch that are timed."""


def commit() -> str | None:
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
    # What MLflow's own client would have filled in; its page of a run shows them first.
    tags |= {"mlflow.source.name": "distml train", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    found = commit()
    return tags | ({"mlflow.source.git.commit": found} if found else {})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def begin(
    tracker: tracking.Tracker,
    config: Config,
    run: runs.Run,
    manifest: shards.Manifest,
    parent: tuple[str, str] | None = None,
) -> None:
    """Open the run on the tracking server: parameters, tags, the data set, the resolved configuration.

    Args:
        tracker: Of the run.
        config: Of the run.
        run: Its record.
        manifest: Of the data.
        parent: Name and key of the sweep it belongs to.
    """
    params = {path: str(value)[:500] for path, value in flatten(config.model_dump(mode="json")).items()}
    tags = _tags(config, manifest)
    tracker.put("open", name=run.name, tags=tags, params=params, key=run.key, parent=parent)
    profile = {"rows": manifest.rows, "classes": len(manifest.classes), "shape": list(manifest.shape)}
    tracker.put(
        "dataset", name=manifest.name, digest=manifest.digest, source=manifest.folder, profile=profile
    )
    tracker.put("text", file="config.json", text=config.model_dump_json(indent=1))
    if config.tracking.system_metrics:
        tracker.watch(run.started_at)


class Recorder:
    """Passes the board's events on to the display and the tracker, and keeps what the end needs. Final."""

    def __init__(
        self,
        display: Display,
        tracker: tracking.Tracker,
        events: Events | None,
        listen: Callable[[Event], None] | None = None,
    ) -> None:
        self._display, self._tracker, self._events = display, tracker, events
        self._listen = listen
        self.result: Event | None = None
        self.failure: TrainingError | None = None
        self.ready: Event = {}

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self._display(event)
        if self._listen:
            self._listen(event)
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
        values |= {f"time/{key}": event[key] for key in TIMES if key in event}
        self._tracker.metrics("loss", event["epoch"], values, event["time"])
        if self._events:
            self._events.write(values | {"epoch": event["epoch"], "time": event["time"]})

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


def final_metrics(found: Event) -> dict[str, float]:
    """Accuracy and loss of each held-out split, and accuracy by class, under their metric names."""
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


def end(tracker: tracking.Tracker, storage: Storage, manifest: shards.Manifest, found: Event) -> bool:
    """Record the result, register the model and close the run; whether all of it arrived."""
    digests = storage.read_bytes(*found["export"], DIGESTS)
    metrics = final_metrics(found)
    chosen = {key: value for key, value in metrics.items() if key not in _BY_EPOCH}
    last = found["history"][-1]["epoch"]
    tracker.metrics("result", last, chosen | {"steady_samples_per_s": steady(found["history"])})
    for folder in ("figures", "report"):
        tracker.put("artifacts", parts=[*found["export"], folder], path=folder)
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

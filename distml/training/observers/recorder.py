"""What of a run goes to the tracking server, and the outcome that its last events tell (driver)."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import subprocess
from collections.abc import Mapping, Sequence

import numpy as np

from distml import tracking
from distml.artifacts.layout import DIGESTS
from distml.config import Config
from distml.config.load import flatten
from distml.data import shards
from distml.errors import TrainingError
from distml.storage import Storage
from distml.tracking import runs
from distml.training import metrics as catalogue
from distml.training.events import (
    EpochFinished,
    Evaluation,
    Event,
    Resumed,
    RunFailed,
    RunFinished,
    Started,
    StepsDone,
    WeightsLoaded,
)


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
    """Sends the metrics of a run to the tracking server. Final; an observer."""

    def __init__(self, tracker: tracking.Tracker) -> None:
        self._tracker = tracker

    def __call__(self, event: Event) -> None:
        """Record one event."""
        match event:
            case StepsDone():
                values = {f"step/{name}": value for name, value in event.metrics.items()}
                self._tracker.metrics("step/loss", event.step, values, event.time)
            case EpochFinished():
                self._epoch(event)
            case WeightsLoaded():
                text = f"{event.source} (SHA-256 {event.sha256}): {event.summary}\n"
                self._tracker.put("text", file="weights.txt", text=text)
            case Resumed():
                # An epoch that was checkpointed just before the driver died may not be on record yet.
                for epoch in event.history:
                    self._epoch(epoch)

    def _epoch(self, epoch: EpochFinished) -> None:
        values = {catalogue.record_name(name): value for name, value in epoch.metrics.items()}
        self._tracker.metrics("loss", epoch.epoch, values, epoch.time)


class Outcome:
    """Keeps the events that the end of a run needs. Final; an observer."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self._finished: RunFinished | None = None
        self._failed: RunFailed | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        match event:
            case Started():
                self.started = event
            case RunFinished():
                self._finished = event
            case RunFailed():
                self._failed = event

    def finished(self, logs: str | None = None) -> RunFinished:
        """How a run that ended well ended.

        Args:
            logs: Folder of the workers' logs, for messages.

        Raises:
            TrainingError: It did not end well.
        """
        if self._failed:
            raise TrainingError(self._failed.message, self._failed.remedy)
        if self._finished is None:
            raise TrainingError("training ended without a result.", f"See the worker logs in {logs}.")
        return self._finished


def final_metrics(evaluation: Mapping[str, Evaluation]) -> dict[str, float]:
    """Metrics of each held-out split, and accuracy by class, by the names under which they are recorded."""
    values: dict[str, float] = {}
    for split, result in evaluation.items():
        prefix = catalogue.HELD_OUT[split]
        values |= {f"{prefix}_{name}": value for name, value in result.metrics.items()}
        values |= {f"{prefix}_accuracy/{_key(name)}": share for name, share in result.per_class.items()}
    return values


def _key(name: str) -> str:
    """A class's name as part of a metric's name, where MLflow allows few characters."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "-" for letter in name)


def steady(history: Sequence[EpochFinished]) -> float:
    """Samples per second: the median over epochs, the first left out when there are others."""
    return float(np.median([epoch.metrics["samples_per_s"] for epoch in history[1:] or history]))


def end(
    tracker: tracking.Tracker, storage: Storage, manifest: shards.Manifest, finished: RunFinished
) -> bool:
    """Record the result, register the model and close the run.

    Returns:
        Whether all of it arrived.
    """
    digests = storage.read_bytes(*finished.export, DIGESTS)
    metrics = final_metrics(finished.evaluation)
    last = finished.history[-1]
    # Validation is on record by epoch; a value of the end under the same name would break its curve.
    fresh = {name: value for name, value in metrics.items() if name not in last.metrics}
    speed = {"steady_samples_per_s": steady(finished.history)}
    catalogue.check(speed)
    tracker.metrics("result", last.epoch, fresh | speed)
    for folder in ("figures", "report"):
        tracker.put("artifacts", parts=[*finished.export, folder], path=folder)
    tracker.put(
        "model",
        parts=list(finished.export),
        shape=list(manifest.shape),
        classes=len(manifest.classes),
        metrics={key: value for key, value in metrics.items() if "/" not in key},
        digest=hashlib.sha256(digests).hexdigest(),
    )
    tracker.put("close", status="FINISHED", tags={})
    return tracker.close()

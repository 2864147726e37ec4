"""Observer that records the run in MLflow (driver)."""

from __future__ import annotations

import getpass
import hashlib
import importlib.metadata
import os
import subprocess
from collections.abc import Mapping

from distml import tracking
from distml.artifacts.layout import DIGESTS
from distml.config import Config
from distml.config.load import flatten
from distml.data import shards
from distml.storage import Storage
from distml.tasks import Evaluation
from distml.tracking import runs
from distml.tracking.operations import CloseRun, LogArtifacts, LogDataset, LogText, OpenRun, RegisterModel
from distml.training import metrics as catalogue
from distml.training.events import (
    EpochFinished,
    Event,
    Resumed,
    RunFinished,
    StepsDone,
    WeightsLoaded,
)


def commit() -> str | None:
    """Commit of the checkout the command runs in, None outside one."""
    try:
        completed = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return completed.stdout.strip() or None


def _tags(config: Config, manifest: shards.Manifest) -> dict[str, str]:
    packages = ("ray", "tensorflow-cpu", "tensorflow", "keras", "mlflow", "pyarrow", "numpy")
    tags = {"distml.config_digest": config.digest(), "distml.data_digest": manifest.digest}
    for name in packages:
        try:
            tags[f"version.{name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    # MLflow's own client sets these; its page of a run shows them first.
    tags |= {"mlflow.source.name": "distml train", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}
    head = commit()
    return tags | ({"mlflow.source.git.commit": head} if head else {})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


class RunTracker:
    """Records a run on the tracking server, from its parameters to its registered model. Final; an observer.

    Args:
        tracker: The outbox of the run.
    """

    def __init__(self, tracker: tracking.Tracker) -> None:
        self._tracker = tracker

    def begin(
        self,
        config: Config,
        run: runs.Run,
        manifest: shards.Manifest,
        parent: tuple[str, str] | None = None,
    ) -> None:
        """Open the run: parameters, tags, the data set, the resolved configuration.

        Args:
            config: Of the run.
            run: Its record.
            manifest: Of the data.
            parent: Name and key of the sweep it belongs to.
        """
        put = self._tracker.put
        params = {path: str(value)[:500] for path, value in flatten(config.model_dump(mode="json")).items()}
        tags = _tags(config, manifest)
        put(OpenRun(run.name, tags, params, run.key, parent))
        profile = {"rows": manifest.rows, "classes": len(manifest.classes), "shape": list(manifest.shape)}
        put(LogDataset(manifest.name, manifest.digest, manifest.folder, profile))
        put(LogText("config.json", config.model_dump_json(indent=1)))
        if config.tracking.system_metrics:
            self._tracker.watch(run.started_at)

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
                self._tracker.put(LogText("weights.txt", text))
            case Resumed():
                # An epoch that was checkpointed just before the driver died may not have been recorded.
                for epoch in event.history:
                    self._epoch(epoch)

    def _epoch(self, epoch: EpochFinished) -> None:
        values = {catalogue.record_name(name): value for name, value in epoch.metrics.items()}
        self._tracker.metrics("loss", epoch.epoch, values, epoch.time)

    def end(self, storage: Storage, manifest: shards.Manifest, finished: RunFinished) -> bool:
        """Record the result, register the model and close the run.

        Args:
            storage: Has the export.
            manifest: Of the data.
            finished: How the run ended.

        Returns:
            Whether all of it arrived.
        """
        put, last = self._tracker.put, finished.history[-1]
        # Validation is recorded by epoch; a final value under the same name would break its curve.
        values = {name: value for name, value in finished.metrics.items() if name not in last.metrics}
        self._tracker.metrics("result", last.epoch, values | finished.own | by_class(finished.evaluation))
        for folder in ("figures", "report"):
            put(LogArtifacts([*finished.export, folder], folder))
        put(
            RegisterModel(
                parts=list(finished.export),
                shape=list(manifest.shape),
                classes=len(manifest.classes),
                metrics=finished.quality,
                digest=hashlib.sha256(storage.read_bytes(*finished.export, DIGESTS)).hexdigest(),
            )
        )
        put(CloseRun("FINISHED"))
        return self._tracker.close()


def by_class(evaluation: Mapping[str, Evaluation]) -> dict[str, float]:
    """The metric of each class, label or number on each held-out split, by names that MLflow takes."""
    return {
        f"{catalogue.HELD_OUT[split]}_{result.each}/{_allowed(name)}": value
        for split, result in evaluation.items()
        for name, value in result.per_class.items()
    }


def _allowed(name: str) -> str:
    """The name of a class as part of a metric's name, where MLflow allows few characters."""
    return "".join(letter if letter.isalnum() or letter in "_-. " else "-" for letter in name)

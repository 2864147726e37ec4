"""The summary of a finished run: figures, report, closing table, result line (driver)."""

from __future__ import annotations

import hashlib
import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from distml import tracking
from distml.artifacts.layout import DIGESTS
from distml.config import Config
from distml.data import shards
from distml.storage import Storage
from distml.tracking import runs
from distml.training.events import Outcome, RunFinished, Started
from distml.training.metrics import DURATIONS
from distml.training.observers.display import Display
from distml.training.observers.tracker import commit


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
    images, _ = shards.read(storage, manifest, finished.shown)
    images = images[np.array([mistake.row for mistake in finished.mistakes], np.int64)]
    facts = page.Facts(
        run=run.name,
        run_id=run_id,
        commit=commit(),
        attempts=run.attempts,
        started_at=run.started_at,
        steady=finished.steady_samples_per_s,
        parameters=outcome.started.parameters if outcome.started else None,
        times=_times(finished, outcome.started, wall_s),
    )
    html = page.render(config, manifest, report, facts, images)
    storage.write_bytes(html.encode(), *finished.export, page.FOLDER, page.FILE)
    parts = (*finished.export, "figures")
    storage.write_bytes(json.dumps(report).encode(), *finished.export, "report.json")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.draw(Path(folder), report, list(manifest.classes), images)
        storage.upload(folder, *parts)
        return [storage.uri(*parts, path.name) for path in drawn]


def _times(finished: RunFinished, started: Started | None, wall_s: float) -> dict[str, float]:
    """Seconds by part of the run; the remainder is start-up, tracking and figures."""
    total = {name: sum(epoch.metrics.get(name, 0.0) for epoch in finished.history) for name in DURATIONS}
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
    metrics = finished.quality
    return {
        "run_id": tracker.sender.run_id,
        "model": config.tracking.registered_model,
        "version": tracker.sender.version,
        "val_accuracy": metrics["val_accuracy"],
        "test_accuracy": metrics.get("test_accuracy"),
        "steady_samples_per_s": round(finished.steady_samples_per_s, 1),
        "epochs": len(finished.history),
        "best_epoch": finished.best_epoch,
        "steps": finished.history[-1].step,
        "tracking_uri": tracking.uri(config),
        "artifacts": storage.uri(*finished.export),
        "sha256": hashlib.sha256(storage.read_bytes(*finished.export, DIGESTS)).hexdigest(),
    }


def show(
    display: Display, config: Config, outcome: Outcome, version: int | None, drawn: list[str], wall_s: float
) -> None:
    """Print the closing table and the next command."""
    from distml.reports import page

    finished, monitor = outcome.finished(), config.train.monitor
    name = config.tracking.registered_model
    facts = {
        "model": f"{name} version {version}" if version else f"{name}, registered when the server is back",
        **(
            {"epoch": f"{finished.best_epoch}, the best of {len(finished.history)} by {monitor}"}
            if finished.best_epoch
            else {}
        ),
        "files": Storage(config.storage.root).uri(*finished.export),
        "figures": ", ".join(drawn),
        "report": Storage(config.storage.root).uri(*finished.export, page.FOLDER, page.FILE),
        "runs": viewed_by(tracking.uri(config)),
        "next": asked_by(config.run.name, config.storage.root),
    }
    times = _times(finished, outcome.started, wall_s) | {"[bold]all[/bold]": wall_s}
    display.summary(finished.shown, finished.evaluation[finished.shown], times, facts)


def asked_by(run: str, root: str) -> str:
    """Return the command that asks a run's model, quoted for the shell it will be pasted into."""
    return f"python -m distml.predict IMAGE {shlex.join(['--run', run, '--storage.root', root])}"


def viewed_by(uri: str) -> str:
    """Where to see the runs: the server's address, or the command that starts MLflow's page."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

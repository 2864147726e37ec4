"""What a finished run leaves to look at: figures, report, the closing table, the result line (driver)."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from distml import tracking
from distml.config import Config
from distml.data import shards
from distml.storage import Storage
from distml.tracking import runs
from distml.training.observers.display import Display
from distml.training.observers.recorder import TIMES, Recorder, commit, final_metrics, steady
from distml.training.result import DIGESTS

Event = dict[str, Any]


def draw(
    config: Config,
    storage: Storage,
    manifest: shards.Manifest,
    run: runs.Run,
    recorder: Recorder,
    run_id: str | None,
    wall_s: float,
) -> list[str]:
    """Draw the figures and write the report into the export; returns where they are.

    Args:
        config: Of the run.
        storage: Has the data and takes what is drawn.
        manifest: Of the data.
        run: The run.
        recorder: Has the result.
        run_id: On the tracking server, None where it is away.
        wall_s: Since the start of the command.
    """
    from distml.reports import figures, page

    found = recorder.finished(None)
    split = "test" if "test" in found["evaluation"] else "validation"
    images, _ = shards.read(storage, manifest, split)
    images = images[[mistake[0] for mistake in found["worst"]]] if found["worst"] else images[:0]
    worst = (images, found["worst"])
    facts = page.Facts(
        run=run.name,
        run_id=run_id,
        commit=commit(),
        attempts=run.attempts,
        started_at=run.started_at,
        steady=steady(found["history"]),
        parameters=recorder.ready.get("parameters"),
        times=_times(found, recorder.ready, wall_s),
    )
    html = page.render(config, manifest, found, facts, images)
    storage.write_bytes(html.encode(), *found["export"], page.FOLDER, page.FILE)
    parts = (*found["export"], "figures")
    report = {key: found[key] for key in ("evaluation", "history", "worst")}
    storage.write_bytes(json.dumps(report).encode(), *found["export"], "report.json")
    with tempfile.TemporaryDirectory() as folder:
        drawn = figures.draw(
            Path(folder), found["history"], found["evaluation"], list(manifest.classes), worst
        )
        storage.upload(folder, *parts)
        return [storage.uri(*parts, path.name) for path in drawn]


def _times(found: Event, ready: Event, wall_s: float) -> dict[str, float]:
    history = found["history"]
    total = {key: sum(metrics.get(key, 0.0) for metrics in history) for key in TIMES}
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
    return known | {"start, tracking, figures": wall_s - sum(known.values())}


def result(config: Config, storage: Storage, tracker: tracking.Tracker, found: Event) -> dict[str, Any]:
    """The result line of a finished run."""
    metrics = final_metrics(found)
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
        "sha256": hashlib.sha256(storage.read_bytes(*found["export"], DIGESTS)).hexdigest(),
    }


def show(
    display: Display, config: Config, recorder: Recorder, version: str | None, drawn: list[str], wall_s: float
) -> None:
    """Print the closing table and what to type next."""
    from distml.reports import page

    found = recorder.finished(None)
    name = config.tracking.registered_model
    again = f"--run {config.run.name} --storage.root {config.storage.root}"
    facts = {
        "model": f"{name} version {version}" if version else f"{name}, to be registered by `distml sync`",
        "files": Storage(config.storage.root).uri(*found["export"]),
        "figures": ", ".join(drawn),
        "report": Storage(config.storage.root).uri(*found["export"], page.FOLDER, page.FILE),
        "runs": _shown(tracking.uri(config)),
        "next": f"python -m distml.predict IMAGE {again}",
    }
    times = _times(found, recorder.ready, wall_s) | {"[bold]all[/bold]": wall_s}
    display.summary(found["evaluation"], times, facts)


def _shown(uri: str) -> str:
    """How to look at the runs: a server shows them itself."""
    return uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}"

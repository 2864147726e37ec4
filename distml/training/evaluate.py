"""The end of a run on one rank: evaluate the held-out splits, export the model (worker)."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.artifacts import export
from distml.data import feed, schema, shards
from distml.data.plausible import Usual
from distml.models import transform
from distml.tasks import Evaluation, Task
from distml.training import checkpoint, metrics, score
from distml.training.events import RunFinished

if TYPE_CHECKING:
    from distml.training.worker import Rank

_DESCRIBED_CLASSES = 200  # beyond it the confusion matrix would be larger than a small model
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Targets, logits float32 (N, K) and losses float32 (N,) of a split."""


def evaluate_and_export(rank: Rank) -> None:
    """Evaluate the validation and test splits on all workers; rank 0 exports and sends the result."""
    began = time.perf_counter()
    rank.step.swap()  # the moving averages replace the weights for evaluation and export
    network = _network(rank)
    scores = score.scorer(network, rank.manifest.task)
    held_out = [split for split in ("validation", "test") if rank.manifest.rows.get(split)]
    splits = {split: _score(rank, split, scores) for split in held_out}
    evaluated = time.perf_counter()
    if rank.rank:
        return
    task = _tuned(rank, splits["validation"])
    evaluation = {split: _evaluation(rank, task, scored) for split, scored in splits.items()}
    shown = "test" if "test" in splits else "validation"
    parts = _export(rank, network, task, evaluation[shown].confusion)
    targets, logits, losses = splits[shown]
    rank.send(
        RunFinished(
            export=parts,
            evaluation=evaluation,
            history=rank.history,
            mistakes=task.mistakes(targets, task.activate(logits), losses),
            evaluate_s=evaluated - began,
            export_s=time.perf_counter() - evaluated,
            best_epoch=_best_epoch(rank),
        )
    )


def _tuned(rank: Rank, validation: Scored) -> Task:
    """The task with temperature and thresholds; they are chosen on validation rows and nowhere else."""
    targets, logits, _ = validation
    return rank.manifest.task.tuned(targets, logits, rank.config.evaluate.calibrate)


def _evaluation(rank: Rank, task: Task, scored: Scored) -> Evaluation:
    targets, logits, losses = scored
    outputs = task.activate(logits)
    if not rank.config.evaluate.calibrate:
        return task.evaluate(targets, outputs, losses)
    before = rank.manifest.task.measure(targets, rank.manifest.task.activate(logits)).get("ece")
    evaluation = task.evaluate(targets, outputs, task.row_losses(targets, outputs))
    if before is None:
        return evaluation
    return replace(evaluation, metrics={**evaluation.metrics, "ece_uncalibrated": before})


def _best_epoch(rank: Rank) -> int | None:
    if rank.best is None:
        return None
    monitor = rank.monitor
    return rank.history[metrics.best(monitor, [epoch.metrics[monitor] for epoch in rank.history])].epoch


def _network(rank: Rank) -> Any:
    """The network to evaluate and export: Keras's own layers in float32, built outside the strategy."""
    network = rank.network()
    network.set_weights(rank.best or checkpoint.weights(rank))
    views = rank.config.model.views
    return transform.averaged(network, views) if views else network


def _score(rank: Rank, split: str, scores: Callable[..., score.Scores]) -> Scored:
    """Score a split, each worker its own rows; every rank gets the values of all rows."""
    images, targets = _rows(rank, split)
    losses, logits = scores(images, targets)
    room, rows = rank.manifest.task.empty(0), rank.manifest.rows[split]
    wide = targets.reshape(len(targets), -1)
    own = np.concatenate([wide.astype(np.float32), losses[:, None], logits], 1)
    values = np.zeros((rows, own.shape[1]), np.float32)
    values[rank.rank :: rank.world_size] = own
    total, size = (
        rank.step.total(values),
        wide.shape[1],
    )  # zeros of the other workers leave values as they are
    everything = total[:, :size].reshape(rows, *room.shape[1:]).astype(room.dtype)
    return everything, total[:, size + 1 :], total[:, size]


def _rows(rank: Rank, split: str) -> feed.Rows:
    """This rank's rows of a held-out split; the validation rows were read when the rank started."""
    if split == "validation":
        return rank.validation
    return shards.read(rank.storage, rank.manifest, split, rank.rank, rank.world_size)


def _export(rank: Rank, network: Any, task: Task, confusion: list[list[int]] | None) -> tuple[str, ...]:
    """Write the export into the run's folder; returns its path as parts."""
    manifest = rank.manifest
    described = {
        "name": manifest.name,
        "classes": list(manifest.classes),
        "shape": list(manifest.shape),
        "task": task.spec(),
        "policy": asdict(manifest.pictures),
        "data_digest": manifest.digest,
        "usual": asdict(Usual.of(schema.centred(rank.validation[0], manifest.shape[:2]))),
        "confusion": confusion if manifest.num_classes <= _DESCRIBED_CLASSES else None,
    }
    parts = (*rank.run, f"export-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="distml-export-") as folder:
        export.export(network, Path(folder), described, rank.validation[0][:2])
        rank.storage.upload(folder, *parts)
    return parts

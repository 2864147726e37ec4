"""The end of a run on one rank: evaluate the held-out splits, export the model (worker)."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.artifacts import export
from distml.data import feed, shards
from distml.models import transform
from distml.training import checkpoint, metrics, score
from distml.training.events import Evaluation, RunFinished, worst_mistakes

if TYPE_CHECKING:
    from distml.training.worker import Rank

_DESCRIBED_CLASSES = 200  # beyond it the confusion matrix would be larger than a small model
Scored = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels int32, predicted classes int32 and losses float32 of a split, each (N,)."""


def evaluate_and_export(rank: Rank) -> None:
    """Evaluate the validation and test splits on all workers; rank 0 exports and tells the driver."""
    began = time.perf_counter()
    rank.step.swap()  # the moving averages replace the weights for evaluation and export
    network = _network(rank)
    scores = score.scorer(network)
    held_out = [split for split in ("validation", "test") if rank.manifest.rows.get(split)]
    splits = {split: _score(rank, split, scores) for split in held_out}
    evaluated = time.perf_counter()
    if rank.rank:
        return
    classes = list(rank.manifest.classes)
    evaluation = {split: Evaluation.of(*scored, classes) for split, scored in splits.items()}
    shown = evaluation.get("test") or evaluation["validation"]
    parts = _export(rank, network, shown.confusion)
    rank.send(
        RunFinished(
            export=parts,
            evaluation=evaluation,
            history=rank.history,
            mistakes=worst_mistakes(*(splits.get("test") or splits["validation"])),
            evaluate_s=evaluated - began,
            export_s=time.perf_counter() - evaluated,
            best_epoch=_best_epoch(rank),
        )
    )


def _best_epoch(rank: Rank) -> int | None:
    if rank.best is None:
        return None
    monitor = rank.config.train.monitor
    return rank.history[metrics.best(monitor, [epoch.metrics[monitor] for epoch in rank.history])].epoch


def _network(rank: Rank) -> Any:
    """The network to evaluate and export: Keras's own layers in float32, built outside the strategy."""
    network = rank.network()
    network.set_weights(rank.best or checkpoint.weights(rank))
    return transform.mirrored(network) if rank.config.model.mirror else network


def _score(rank: Rank, split: str, scores: Callable[..., score.Scores]) -> Scored:
    """Score a split, each worker its own rows; every rank gets the values of all rows."""
    images, labels = _rows(rank, split)
    losses, predicted = scores(images, labels)
    values = np.zeros((3, rank.manifest.rows[split]), np.float64)
    for position, own in enumerate((labels, predicted, losses)):
        values[position, rank.rank :: rank.world_size] = own
    total = rank.step.total(values)
    return total[0].astype(np.int32), total[1].astype(np.int32), total[2].astype(np.float32)


def _rows(rank: Rank, split: str) -> feed.Rows:
    """This rank's rows of a held-out split; the validation rows were read when the rank started."""
    if split == "validation":
        return rank.validation
    return shards.read(rank.storage, rank.manifest, split, rank.rank, rank.world_size)


def _export(rank: Rank, network: Any, confusion: list[list[int]]) -> tuple[str, ...]:
    """Write the export into the run's folder; returns its path as parts."""
    manifest = rank.manifest
    described = {
        "name": manifest.name,
        "classes": list(manifest.classes),
        "shape": list(manifest.shape),
        "policy": asdict(manifest.pictures),
        "data_digest": manifest.digest,
        "confusion": confusion if manifest.num_classes <= _DESCRIBED_CLASSES else None,
    }
    parts = (*rank.run, f"export-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="distml-export-") as folder:
        export.export(network, Path(folder), described, rank.validation[0][:2])
        rank.storage.upload(folder, *parts)
    return parts

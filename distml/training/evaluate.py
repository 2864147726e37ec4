"""The end of training on one rank: evaluates the held-out splits and exports the model (worker)."""

from __future__ import annotations

import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from distml.artifacts import export
from distml.config import functions
from distml.data import feed, schema, shards
from distml.data.plausible import Usual
from distml.errors import ModelError
from distml.models import transform
from distml.runtime import processes
from distml.tasks import Evaluation, Mistake, Task
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
    scores = score.scorer(network, rank.task)
    held_out = [split for split in ("validation", "test") if rank.manifest.rows.get(split)]
    splits = {split: _score(rank, split, scores) for split in held_out}
    evaluated = time.perf_counter()
    if rank.rank:
        return
    task = _tuned(rank, splits["validation"])
    evaluation = {split: _evaluation(rank, task, scored) for split, scored in splits.items()}
    shown = "test" if "test" in splits else "validation"
    described = {
        "confusion": evaluation[shown].confusion if rank.manifest.num_classes <= _DESCRIBED_CLASSES else None,
        "predicted": task.mix(task.decide(task.activate(splits["validation"][1]))).tolist(),
    }
    parts, formats = _export(rank, network, task, described)
    targets, logits, losses = splits[shown]
    mistakes = task.mistakes(targets, task.activate(logits), losses)
    heat, nearest = _explained(rank, network, task, shown, mistakes)
    rank.send(
        RunFinished(
            export=parts,
            evaluation=evaluation,
            history=rank.history,
            mistakes=mistakes,
            evaluate_s=evaluated - began,
            export_s=time.perf_counter() - evaluated,
            best_epoch=_best_epoch(rank),
            heat=heat,
            nearest=nearest,
            formats=formats,
        )
    )


_NEAREST = 3
_SEARCHED, _SEARCHED_PIXELS = 1000, 25_000_000
"""Training rows among which the nearest are looked for: some seconds of a large network."""
_AT_ONCE = 64
logger = logging.getLogger(__name__)


def _explained(
    rank: Rank, network: Any, task: Task, split: str, mistakes: Sequence[Mistake]
) -> tuple[list[list[list[float]]], list[list[int]]]:
    """What counts in the pictures of the mistakes, and training rows that look alike to the network."""
    if not mistakes:
        return [], []
    try:
        images, targets = shards.pick(
            rank.storage, rank.manifest, split, [mistake.row for mistake in mistakes]
        )
        places = transform.inside(network)
        heat = _heat(network, places, task, images, targets) if places.maps is not None else []
        near = _nearest(rank, network, places, images) if places.head is not None else []
    except (tf.errors.OpError, TypeError, ValueError, AttributeError) as error:
        # A network of the user's may do anything inside; its run must not fail for a picture in the report.
        logger.warning("the mistakes are not explained: %s", str(error).partition("\n")[0][:200])
        return [], []
    return heat, near


def _heat(
    network: Any, places: transform.Inside, task: Task, images: np.ndarray, targets: np.ndarray
) -> list[list[list[float]]]:
    outputs = task.activate(network(images.astype(np.float32), training=False).numpy())
    chosen = [task.focus(row, target) for row, target in zip(outputs, targets, strict=True)]
    maps = task.influence(transform.class_activation(network, places, images, chosen))
    most = np.maximum(maps.max((1, 2), keepdims=True), np.finfo(np.float32).tiny)
    scaled: list[list[list[float]]] = np.round(maps / most, 3).tolist()
    return scaled


def _nearest(rank: Rank, network: Any, places: transform.Inside, images: np.ndarray) -> list[list[int]]:
    """The nearest of the first training rows by the cosine of features."""
    most = min(_SEARCHED, max(1, _SEARCHED_PIXELS // int(np.prod(images.shape[1:3]))))
    first = range(min(most, rank.manifest.rows["train"]))
    known = schema.centred(shards.pick(rank.storage, rank.manifest, "train", first)[0], images.shape[1:3])

    def features(some: np.ndarray) -> np.ndarray:
        parts = [
            transform.look(network, places, some[at : at + _AT_ONCE].astype(np.float32)).features
            for at in range(0, len(some), _AT_ONCE)
        ]
        vectors = np.concatenate([np.asarray(part, np.float32) for part in parts])
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(lengths, 1e-12))

    order = np.argsort(-features(images) @ features(known).T, axis=1, kind="stable")
    nearest: list[list[int]] = order[:, :_NEAREST].tolist()
    return nearest


def _tuned(rank: Rank, validation: Scored) -> Task:
    """The task with temperature and thresholds; they are chosen on validation rows and nowhere else."""
    targets, logits, _ = validation
    return rank.task.tuned(targets, logits, rank.config.evaluate.calibrate)


def _evaluation(rank: Rank, task: Task, scored: Scored) -> Evaluation:
    targets, logits, losses = scored
    outputs = task.activate(logits)
    own = _own_metrics(rank, targets, outputs)
    if not rank.config.evaluate.calibrate:
        return replace(task.evaluate(targets, outputs, losses), own=own)
    before = rank.task.measure(targets, rank.task.activate(logits)).get("ece")
    evaluation = task.evaluate(targets, outputs, task.row_losses(targets, outputs))
    evaluation = replace(evaluation, own=own)
    if before is None:
        return evaluation
    return replace(evaluation, metrics={**evaluation.metrics, "ece_uncalibrated": before})


def _own_metrics(rank: Rank, targets: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
    """Metrics of the user's; one that fails on these rows, after it was tried, does not cost the model."""
    values = {}
    for name in rank.config.evaluate.own_metrics:
        try:
            values[name.partition(":")[2]] = functions.measured(name, targets, outputs)
        except ModelError as error:
            logger.warning("%s It is left out.", error)
    return values


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
    room, rows = rank.task.empty(0), rank.manifest.rows[split]
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


def _export(
    rank: Rank, network: Any, task: Task, measured: dict[str, Any]
) -> tuple[tuple[str, ...], export.Record]:
    """Write the export with what was measured into the run's folder; returns its path as parts, its forms."""
    manifest = rank.manifest
    described = {
        "name": manifest.name,
        "classes": list(manifest.classes),
        "shape": list(manifest.shape),
        "task": task.spec(),
        "policy": asdict(manifest.pictures),
        "data_digest": manifest.digest,
        "usual": asdict(Usual.of(schema.centred(rank.validation[0], manifest.shape[:2]))),
        **measured,
    }
    parts = (*rank.run, f"export-{uuid.uuid4().hex[:8]}")
    with tempfile.TemporaryDirectory(prefix="distml-export-") as folder:
        example, wanted = rank.validation[0][:2], rank.config.export
        with processes.scratch():
            formats = export.export(network, Path(folder), described, example, wanted, _quantising(rank))
        rank.storage.upload(folder, *parts)
    return parts, formats


_CALIBRATING, _JUDGING = 256, 5000


def _quantising(rank: Rank) -> export.Rows | None:
    """Training rows that calibrate an export of 8 bits, and this rank's validation rows that judge it."""
    if not rank.config.export.quantize:
        return None
    manifest = rank.manifest
    images = shards.sample(rank.storage, manifest, "train", _CALIBRATING)
    held_out, targets = rank.validation
    centred = schema.centred(images, manifest.shape[:2])
    return export.Rows(centred, held_out[:_JUDGING], targets[:_JUDGING])

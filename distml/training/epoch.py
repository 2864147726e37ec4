"""One epoch on one rank: train, validate, checkpoint, report (worker)."""

from __future__ import annotations

import dataclasses
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train
import tensorflow as tf

from distml.config import AugmentConfig
from distml.data import feed
from distml.errors import DataError, ModelError, NotFiniteError
from distml.training import checkpoint
from distml.training import metrics as catalogue
from distml.training.events import EpochFinished, StepsDone
from distml.training.step import Scope

if TYPE_CHECKING:
    from distml.training.worker import Rank

Metrics = dict[str, float]
"""Values by their names in `training.metrics`."""


class Epochs:
    """Trains a rank epoch after epoch. Final.

    Args:
        rank: Prepared and, where there is a checkpoint, resumed.
    """

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._kept: tuple[Any, Any] | None = None
        self._features: dict[str, Any] = {}
        self._rows_read = 0

    def run(self) -> None:
        """Train the epochs that are left, or until early stopping."""
        while not self._ended():
            self._epoch(len(self._rank.history))

    def _ended(self) -> bool:
        train, history = self._rank.config.train, self._rank.history
        if len(history) >= train.epochs:
            return True
        if train.early_stopping_patience is None or not history:
            return False
        values = [epoch.metrics[train.monitor] for epoch in history]
        return len(values) - 1 - catalogue.best(train.monitor, values) >= train.early_stopping_patience

    def _epoch(self, epoch: int) -> None:
        rank = self._rank
        scope = self._scope(epoch)
        metrics = self._train(epoch, scope)
        rank.step.synchronise(frozen=scope != "all")
        metrics |= self._validate(scope)
        metrics["world_size"] = rank.world_size
        finished = EpochFinished(epoch + 1, rank.step.iterations, metrics)
        rank.history.append(finished)
        began = time.perf_counter()
        saved = self._save(epoch)
        checkpoint_s = time.perf_counter() - began
        ray.train.report(
            finished.to_json(),
            saved,
            checkpoint_dir_name=checkpoint.folder_name(epoch + 1, uuid.uuid4().hex[:8]),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
        )
        report_s = time.perf_counter() - began - checkpoint_s
        timed = metrics | {"checkpoint_s": checkpoint_s, "report_s": report_s}
        rank.history[-1] = dataclasses.replace(finished, metrics=timed)
        rank.send(rank.history[-1])

    def _scope(self, epoch: int) -> Scope:
        """What an epoch trains; features are kept where they are the same each time and the budget allows."""
        rank = self._rank
        if epoch >= rank.config.model.freeze_epochs:
            self._features.clear()
            return "all"
        if rank.step.parts is None:
            raise ModelError(
                f"model.freeze_epochs = {rank.config.model.freeze_epochs}, but no layers of "
                f"{rank.config.model.name} are named backbone and pool.",
                "Name them so in its builder, or set model.freeze_epochs to 0.",
            )
        rows = len(rank.shard.rows[1]) if isinstance(rank.shard, feed.Memory) else 0
        fits = rank.step.feature_bytes(rows) <= rank.config.data.memory_budget_bytes
        return "features" if rows and fits and rank.config.train.augment == AugmentConfig() else "head"

    def _features_of(self, split: str, images: Any) -> tuple[Any, float]:
        """Features of a split's rows on this rank, computed once, and the seconds that took."""
        began = time.perf_counter()
        if split not in self._features:
            self._features[split] = self._rank.step.features(images)
        return self._features[split], time.perf_counter() - began

    def _train(self, epoch: int, scope: Scope) -> Metrics:
        rank, done, curves, self._rows_read = self._rank, 0, [], 0
        features_s = 0.0
        waited, began = rank.shard.wait_s, time.perf_counter()
        for number, (window, fresh) in enumerate(self._windows(epoch)):
            images, labels = self._tensors(window)
            if scope == "features":
                images, seconds = self._features_of("train", images)
                features_s += seconds
            seed = (rank.config.run.seed, epoch, rank.world_size, rank.rank, number)
            # Every rank cuts its steps into the same calls: a step's collective is known to TensorFlow
            # by its place in its call, and a rank at another place would be waited for, for ever.
            steps = min(rank.shard.window_steps, rank.steps_per_epoch - done)
            order = feed.order(len(window[1]), rank.batch, steps, seed)
            for at in range(0, len(order), rank.config.train.log_every_steps):
                block = order[at : at + rank.config.train.log_every_steps]
                curves.append(self._block(epoch, done, (images, labels), block, scope))
                done += len(block)
            self._rows_read += min(order.size, len(window[1])) if fresh else 0
            if done >= rank.steps_per_epoch:
                break
        train_s = time.perf_counter() - began - features_s
        curve = np.concatenate(curves)
        return {
            "loss": float(curve[:, 0].mean()),
            "accuracy": float(curve[:, 1].mean()),
            "learning_rate": rank.rate(epoch * rank.steps_per_epoch + done - 1),
            "samples_per_s": done * rank.config.train.global_batch_size / train_s,
            "train_s": train_s,
            "data_wait_s": rank.shard.wait_s - waited,
        } | ({"features_s": features_s} if scope == "features" else {})

    def _windows(self, epoch: int) -> Iterator[tuple[feed.Rows, bool]]:
        """The epoch's windows, and whether their rows are read for the first time in it.

        The first workers take one row a step more where the global batch does not divide, and their equal
        share of the rows then falls short of the fixed number of steps: a window comes again. One of less
        than a batch is left out.
        """
        whole = None
        for window in self._rank.shard.windows(epoch):
            if len(window[1]) >= self._rank.batch:
                whole = window
                yield window, True
        if whole is None:
            raise DataError(
                f"rank {self._rank.rank} read fewer rows than its batch of {self._rank.batch} in epoch "
                f"{epoch + 1}.",
                "Lower train.global_batch_size or train.workers.",
            )
        while True:
            yield whole, False

    def _tensors(self, rows: feed.Rows) -> tuple[Any, Any]:
        """The window as tensors; a shard kept in memory is converted once."""
        if isinstance(self._rank.shard, feed.Stream):
            return tf.constant(rows[0]), tf.constant(rows[1])
        if self._kept is None:
            self._kept = (tf.constant(rows[0]), tf.constant(rows[1]))
            self._rank.shard.rows = (rows[0][:0], rows[1])  # the tensor holds the images from now on
        return self._kept

    def _block(
        self, epoch: int, done: int, data: tuple[Any, Any], block: np.ndarray, scope: Scope
    ) -> np.ndarray:
        """Run some steps in one graph call, tell the driver, stop at a loss that is no number."""
        rank, began = self._rank, time.perf_counter()
        curve, count = rank.step.train(*data, block, scope)
        values: np.ndarray = curve.numpy()[: int(count)]
        step = epoch * rank.steps_per_epoch + done + len(values)
        if not np.isfinite(values[-1, 0]):
            raise NotFiniteError(
                f"the loss became {values[-1, 0]} at step {step} (epoch {epoch + 1}).",
                "Lower train.learning_rate, set train.clip_norm, or look at the data.",
            )
        rows = len(values) * rank.config.train.global_batch_size
        metrics = {
            "loss": float(values[:, 0].mean()),
            "accuracy": float(values[:, 1].mean()),
            "learning_rate": rank.rate(step - 1),
            "samples_per_s": rows / (time.perf_counter() - began),
        }
        rank.send(StepsDone(epoch + 1, step, metrics))
        return values

    def _validate(self, scope: Scope) -> Metrics:
        """Validation over all workers on the averaged weights, and the epoch's account of training rows.

        Every rank gets the same numbers; `rows_read` and `rows_dropped` are together the training split.
        """
        step, (images, labels), began = self._rank.step, self._rank.validation, time.perf_counter()
        scores = step.scores
        if scope == "features":
            images, _ = self._features_of("validation", images)
            scores = step.head_scores
        step.swap()
        losses, predicted = scores(images, labels)
        hits = (predicted == labels).sum()
        mine = np.array([losses.sum(), hits, len(labels), self._rows_read], np.float64)
        loss, hits, count, read = step.total(mine)
        metrics = {"val_loss": float(loss / count), "val_accuracy": float(hits / count)}
        self._keep_best(metrics)
        step.swap()
        return metrics | {
            "evaluate_s": time.perf_counter() - began,
            "rows_read": int(read),
            "rows_dropped": self._rank.manifest.rows["train"] - int(read),
        }

    def _keep_best(self, metrics: Metrics) -> None:
        """Keep the weights that were just validated where no earlier epoch was as good."""
        rank, monitor = self._rank, self._rank.config.train.monitor
        values = [*(epoch.metrics[monitor] for epoch in rank.history), metrics[monitor]]
        if rank.config.train.restore_best and catalogue.best(monitor, values) == len(values) - 1:
            rank.best = checkpoint.weights(rank)

    def _save(self, epoch: int) -> ray.train.Checkpoint | None:
        """Write the checkpoint on rank 0 when one is due; Ray uploads it while training goes on."""
        rank = self._rank
        due = (epoch + 1) % rank.config.train.checkpoint_every_epochs == 0 or self._ended()
        if rank.rank or not due:
            return None
        folder = tempfile.mkdtemp(prefix="distml-checkpoint-")
        state = {
            "epoch": epoch + 1,
            "step": rank.step.iterations,
            "history": [finished.to_json() for finished in rank.history],
            "seed": rank.config.run.seed,
            "world_size": rank.world_size,
        }
        checkpoint.write(Path(folder), state, checkpoint.arrays(rank))
        return ray.train.Checkpoint.from_directory(folder)

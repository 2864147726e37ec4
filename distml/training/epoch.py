"""Runs a rank's epochs, frozen ones first: rows, steps, validation, early stopping, checkpoint (worker)."""

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

from distml.data import feed
from distml.errors import DataError, NotFiniteError
from distml.runtime import processes
from distml.training import checkpoint
from distml.training import metrics as catalogue
from distml.training.events import EpochFinished, FeaturesStarted, StepsDone
from distml.training.step import Scope

Tensor = Any


class FeatureStore:
    """Features and labels of a rank's training rows. Final.

    They are kept in memory up to a limit, beyond it in a file among the temporary files of the machine.

    Args:
        limit_bytes: Memory that features may take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._whole: tuple[Any, Any] | None = None

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Append rows.

        Args:
            features: (rows, ...).
            labels: (rows, ...).
        """
        self._labels.append(labels)
        self._parts.append(features)
        if self._folder or sum(part.nbytes for part in self._parts) > self._limit_bytes:
            self._spill()

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="distml-features-")
        with processes.scratch(), self._file.open("ab") as file:
            for part in self._parts:
                file.write(np.ascontiguousarray(part).tobytes())
        self._parts = [part[:0] for part in self._parts[:1]]  # remembers width and type

    def close(self) -> None:
        """Delete the file."""
        self._whole = None
        if self._folder:
            self._folder.cleanup()

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "features"

    @property
    def on_disk(self) -> bool:
        """Whether the limit was too low."""
        return self._folder is not None

    @property
    def labels(self) -> np.ndarray:
        """Targets of all rows, in their order."""
        return np.concatenate(self._labels)

    def __len__(self) -> int:
        """Rows."""
        return sum(len(labels) for labels in self._labels)

    def block(self, order: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """What `Step.train` takes for some steps.

        Args:
            order: int32 (steps, batch), positions among all rows.

        Returns:
            Features and labels, and the positions among those.
        """
        features, labels = self._opened()
        if not self.on_disk:
            return features, labels, order
        rows, positions = np.unique(order, return_inverse=True)  # ascending, as a file is read best
        return (
            tf.constant(features[rows]),
            tf.constant(labels[rows]),
            positions.reshape(order.shape).astype(np.int32),
        )

    def _opened(self) -> tuple[Any, Any]:
        if self._whole is None:
            labels = np.concatenate(self._labels)
            if self.on_disk:
                like = self._parts[0]
                shape = (len(labels), *like.shape[1:])
                self._whole = np.memmap(self._file, like.dtype, "r", shape=shape), labels
            else:
                self._whole = tf.constant(np.concatenate(self._parts)), tf.constant(labels)
                self._parts = []
        return self._whole


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
        self._kept_scope: Scope = "all"
        self._stores: dict[tuple[Scope, int | None], FeatureStore] = {}
        self._validated: dict[Scope, Any] = {}
        self._rows_read = 0

    def run(self) -> None:
        """Train the epochs that are left, or until early stopping."""
        try:
            while not self._ended():
                self._epoch(len(self._rank.history))
        finally:
            self._forget("features")
            self._forget("maps")

    def _ended(self) -> bool:
        train, history = self._rank.config.train, self._rank.history
        if len(history) >= train.epochs:
            return True
        if train.early_stopping_patience is None or not history:
            return False
        monitor = self._rank.monitor
        values = [epoch.metrics[monitor] for epoch in history]
        return len(values) - 1 - catalogue.best(monitor, values) >= train.early_stopping_patience

    def _epoch(self, epoch: int) -> None:
        rank = self._rank
        scope = self._scope(epoch)
        metrics = self._train(epoch, scope)
        rank.step.synchronise(scope)
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
        """What an epoch trains: features are computed once where images do not change, or in fixed views."""
        rank = self._rank
        augment, frozen = rank.config.train.augment, epoch < rank.config.model.freeze_epochs
        if frozen and "features" not in rank.step.parts:
            from distml.models import transform

            raise transform.no_backbone(rank.config.model.name, rank.config.model.freeze_epochs)
        scope: Scope = "features" if frozen else "maps"
        if (augment.drawn and not augment.frozen_views) or scope not in rank.step.parts:
            scope = "head" if frozen else "all"
        if scope != self._kept_scope:
            self._forget(self._kept_scope)
        self._kept_scope = scope
        return scope

    def _forget(self, scope: Scope) -> None:
        """Free what is kept for a scope; maps that frozen epochs made stay for those that train on them."""
        for place in [place for place in self._stores if place[0] == scope]:
            self._stores.pop(place).close()
        self._validated.pop(scope, None)

    def _kept_scopes(self) -> tuple[Scope, ...]:
        """Scopes whose features are computed together: pooled ones from the maps of a later phase.

        Most of the time goes into the layers in front of the maps, which both phases share.
        """
        train, model = self._rank.config.train, self._rank.config.model
        both = self._kept_scope == "features" and "maps" in self._rank.step.parts
        return ("maps", "features") if both and train.epochs > model.freeze_epochs else (self._kept_scope,)

    def _computed(self, images: Any, view: int | None = None) -> dict[Scope, Any]:
        """Features of images, by scope."""
        step, scopes = self._rank.step, self._kept_scopes()
        computed: dict[Scope, Any] = {scopes[0]: step.features(scopes[0], images, view)}
        if scopes[1:]:
            computed["features"] = step.pooled(computed["maps"])
        return computed

    def _validation_features(self) -> Any:
        """Features of this rank's validation rows, computed once."""
        if self._kept_scope not in self._validated:
            self._validated |= self._computed(self._rank.validation[0])
        return self._validated[self._kept_scope]

    def _stored(self, epoch: int) -> tuple[FeatureStore, float]:
        """Features of the training rows for an epoch, computed once, and the seconds that took."""
        began = time.perf_counter()
        views = self._rank.config.train.augment.frozen_views
        view = epoch % views if views else None
        if (self._kept_scope, view) not in self._stores:
            self._store(epoch, view)
        return self._stores[self._kept_scope, view], time.perf_counter() - began

    def _store(self, epoch: int, view: int | None) -> None:
        rank, views, scopes = self._rank, self._rank.config.train.augment.frozen_views, self._kept_scopes()
        rank.send(FeaturesStarted(rank.manifest.rows["train"], None if view is None else view + 1, views))
        limit_bytes = rank.config.data.memory_budget_bytes // (max(1, views) * len(scopes))
        stores = {scope: FeatureStore(limit_bytes) for scope in scopes}
        self._stores |= {(scope, view): store for scope, store in stores.items()}
        for window in rank.shard.windows(epoch):
            images, labels = self._tensors(window)
            for scope, features in self._computed(images, view).items():
                stores[scope].add(features.numpy(), labels.numpy())
        if len(stores[self._kept_scope]) < rank.batch:
            raise self._too_few(epoch)

    def _on_features(self, epoch: int, store: FeatureStore) -> list[np.ndarray]:
        """Train what is behind the features for an epoch; returns the curve of each block."""
        rank, curves, done = self._rank, [], 0
        order = self._order(store.labels, rank.steps_per_epoch, self._seed(epoch, 0))
        for at in range(0, len(order), rank.config.train.log_every_steps):
            block = order[at : at + rank.config.train.log_every_steps]
            features, labels, positions = store.block(block)
            curves.append(self._block(epoch, done, (features, labels), positions, self._kept_scope))
            done += len(block)
        self._rows_read = np.unique(order).size
        return curves

    def _on_images(self, epoch: int, scope: Scope) -> list[np.ndarray]:
        """Train on images for an epoch; returns the curve of each block."""
        rank, curves, done = self._rank, [], 0
        for number, (window, fresh) in enumerate(self._windows(epoch)):
            data = self._tensors(window)
            # Every rank cuts its steps into the same calls: a collective is known to TensorFlow by its place
            # in its call, and a rank at another place deadlocks the others.
            steps = min(rank.shard.window_steps, rank.steps_per_epoch - done)
            order = self._order(window[1], steps, self._seed(epoch, number))
            for at in range(0, len(order), rank.config.train.log_every_steps):
                block = order[at : at + rank.config.train.log_every_steps]
                curves.append(self._block(epoch, done, data, block, scope))
                done += len(block)
            self._rows_read += np.unique(order).size if fresh else 0
            if done >= rank.steps_per_epoch:
                break
        return curves

    def _seed(self, epoch: int, window: int) -> tuple[int, ...]:
        rank = self._rank
        return (rank.config.run.seed, epoch, rank.world_size, rank.rank, window)

    def _train(self, epoch: int, scope: Scope) -> Metrics:
        rank, features_s = self._rank, 0.0
        self._rows_read = 0
        kept = scope in rank.step.parts
        if kept:
            store, features_s = self._stored(epoch)
        waited, began = rank.shard.wait_s, time.perf_counter()
        curves = self._on_features(epoch, store) if kept else self._on_images(epoch, scope)
        train_s = time.perf_counter() - began
        curve = np.concatenate(curves)
        done = len(curve)
        return {
            "loss": float(curve[:, 0].mean()),
            rank.step.task.curve: float(curve[:, 1].mean()),
            "learning_rate": rank.rate(epoch * rank.steps_per_epoch + done - 1),
            "samples_per_s": done * rank.config.train.global_batch_size / train_s,
            "train_s": train_s,
            "data_wait_s": rank.shard.wait_s - waited,
        } | ({"features_s": features_s} if kept else {})

    def _order(self, targets: np.ndarray, steps: int, seed: tuple[int, ...]) -> np.ndarray:
        """Positions of a window's rows by step, as `train.sampler` draws them."""
        rank = self._rank
        if rank.config.train.sampler == "balanced":
            strata = rank.task.strata(targets)
            return feed.balanced_order(strata, rank.batch, steps, seed)
        return feed.order(len(targets), rank.batch, steps, seed)

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
            raise self._too_few(epoch)
        while True:
            yield whole, False

    def _too_few(self, epoch: int) -> DataError:
        rank = self._rank
        return DataError(
            f"rank {rank.rank} read fewer rows than its batch of {rank.batch} in epoch {epoch + 1}.",
            "Lower train.global_batch_size or train.workers.",
        )

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
        """Run some steps in one graph call, send their event, stop at a loss that is not finite."""
        rank, began = self._rank, time.perf_counter()
        curve, count = rank.step.train(*data, block, scope)
        values: np.ndarray = curve.numpy()[: int(count)]
        step = epoch * rank.steps_per_epoch + done + len(values)
        if not np.isfinite(values[-1, 0]):
            raise NotFiniteError(
                f"the loss became {values[-1, 0]} at step {step} (epoch {epoch + 1}).",
                "Lower train.learning_rate, set train.clip_norm, or check the data.",
            )
        rows = len(values) * rank.config.train.global_batch_size
        metrics = {
            "loss": float(values[:, 0].mean()),
            rank.step.task.curve: float(values[:, 1].mean()),
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
        scores = step.scorer(scope)
        if scope in step.parts:
            images = self._validation_features()
        step.swap()
        losses, logits = scores(images, labels)
        task = step.task
        tally = task.tally(labels, task.activate(logits))
        loss, count, read, *summed = step.total(
            np.array([losses.sum(), len(labels), self._rows_read, *tally], np.float64)
        )
        metrics = {"val_loss": float(loss / count)}
        metrics |= {f"val_{name}": value for name, value in task.tallied(np.array(summed)).items()}
        self._keep_best(metrics)
        step.swap()
        return metrics | {
            "evaluate_s": time.perf_counter() - began,
            "rows_read": int(read),
            "rows_dropped": self._rank.manifest.rows["train"] - int(read),
        }

    def _keep_best(self, metrics: Metrics) -> None:
        """Keep the weights that were just validated where no earlier epoch was as good."""
        rank, monitor = self._rank, self._rank.monitor
        values = [*(epoch.metrics[monitor] for epoch in rank.history), metrics[monitor]]
        if rank.config.train.restore_best and catalogue.best(monitor, values) == len(values) - 1:
            rank.best = checkpoint.weights(rank)

    def _save(self, epoch: int) -> ray.train.Checkpoint | None:
        """Write the checkpoint on rank 0 when one is due; Ray uploads it in the background."""
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
        with processes.scratch():
            checkpoint.write(Path(folder), state, checkpoint.arrays(rank))
        return ray.train.Checkpoint.from_directory(folder)

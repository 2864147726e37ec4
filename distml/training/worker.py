"""The training loop of one rank (worker).

Everything heavy is imported inside, after the environment is set; what arrives and what leaves are
plain values: a specification in, events on the board, checkpoints and an export in storage out.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train

from distml import log
from distml.config import Config
from distml.data import feed, shards
from distml.errors import CheckpointError, DistmlError, ModelError, TrainingError
from distml.storage import Storage
from distml.training import checkpoint, lean, schedule

if TYPE_CHECKING:
    from distml.training.step import Step

logger = logging.getLogger(__name__)
Metrics = dict[str, Any]


def usable_cpus() -> int:
    """Cores this process may really use: its affinity, or the container's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    words = quota.read_text().split() if quota.exists() else ["max"]
    return cores if words[0] == "max" else max(1, min(cores, -(-int(words[0]) // int(words[1]))))


def _import_tensorflow(use_gpu: bool, local_world_size: int) -> Any:
    """Import TensorFlow and Keras 3 with this rank's share of the machine."""
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    if not use_gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    with lean.imports():
        import keras
        import tensorflow as tf
    if not keras.__version__.startswith("3."):
        raise TrainingError(f"Keras {keras.__version__} was imported.", "Unset TF_USE_LEGACY_KERAS.")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.threading.set_intra_op_parallelism_threads(max(1, usable_cpus() // local_world_size))
    tf.config.threading.set_inter_op_parallelism_threads(2)
    return tf


def _strategy(tf: Any, use_gpu: bool) -> Any:
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if use_gpu else kinds.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Worker:
    """One rank of one run. Final.

    Args:
        spec: What the driver sent: `config`, `manifest`, `storage`, `run`, `board`, `use_gpu`, and
            `blocks`, references to the training split in order, or None where it is streamed.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        self.started_at = time.time()
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.local_world_size = context.get_local_world_size()
        self.config = Config.model_validate(spec["config"])
        self.manifest = shards.Manifest.from_json(spec["manifest"])
        self.storage = Storage(spec["storage"])
        self.run: tuple[str, ...] = tuple(spec["run"])
        self.use_gpu: bool = spec["use_gpu"]
        self._board, self._blocks = spec["board"], spec["blocks"]
        train = self.config.train
        self.batch = feed.replica_batch_size(train.global_batch_size, self.rank, self.world_size)
        self.steps_per_epoch = self.manifest.rows["train"] // train.global_batch_size
        self.history: list[Metrics] = []

    def post(self, kind: str, **values: Any) -> None:
        """Tell the driver, from rank 0 only."""
        if self.rank == 0:
            self._board.post.remote({"kind": kind, "time": time.time(), **values})

    # ------------------------------------------------------------------ set-up

    def _open_feed(self) -> feed.Memory | feed.Stream:
        if self._blocks is not None:
            blocks = (ray.get(block) for block in self._blocks)
            return feed.Memory(feed.share(blocks, self.manifest.rows["train"], self.rank, self.world_size))
        height, width, channels = self.manifest.shape
        budget = self.config.data.memory_budget_bytes
        return feed.Stream(
            ray.train.get_dataset_shard("train"), budget, height * width * channels, self.batch
        )

    def _validation(self) -> feed.Rows:
        return shards.read(self.storage, self.manifest, "validation", self.rank, self.world_size)

    def prepare(self) -> None:
        """Read the shard while TensorFlow is imported, then build or restore model and optimizer."""
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(self._open_feed)
            validation = pool.submit(self._validation)
            tf = _import_tensorflow(self.use_gpu, self.local_world_size)
            imported = time.perf_counter()
            self.strategy = _strategy(tf, self.use_gpu)
            self.step = self._build()
            built = time.perf_counter()
            self.feed, self.validation = reading.result(), validation.result()
        self._resume()
        self._constants: Any = None
        rows = self.step.total(np.array([0.0 if self.feed.streaming else self.feed.rows_read]))
        self.post(
            "ready",
            world_size=self.world_size,
            epoch=len(self.history),
            steps_per_epoch=self.steps_per_epoch,
            rows_read=int(rows[0]),
            streaming=self.feed.streaming,
            parameters=int(self.step.model.count_params()),
            started_at=self.started_at,
            import_s=imported - began,
            build_s=built - imported,
            wait_data_s=time.perf_counter() - built,
            pid=os.getpid(),
        )

    def network(self) -> Any:
        """Build the network, its initial weights a function of the seed alone."""
        from distml.models import registry

        model = self.config.model
        return registry.build(
            model.name, self.manifest.shape, len(self.manifest.classes), model.options, self.config.run.seed
        )

    def _build(self) -> Step:
        import keras

        from distml.training.step import Step, StepSpec, make_optimizer

        train = self.config.train
        keras.config.set_dtype_policy(train.precision)
        # Dropout and other layers draw from this; each rank drops other units.
        keras.utils.set_random_seed(self.config.run.seed + self.rank)
        with self.strategy.scope():
            model = self.network()
            optimizer = make_optimizer(train, schedule.table(train, self.steps_per_epoch))
            optimizer.build(model.trainable_variables)
        spec = StepSpec(
            train.global_batch_size,
            self.rank,
            self.config.run.seed,
            train.label_smoothing,
            train.ema,
            train.augment,
        )
        return Step(self.strategy, model, optimizer, spec)

    # ------------------------------------------------------------------ resuming

    def _variables(self) -> dict[str, list[Any]]:
        return {
            "model": [variable.value for variable in self.step.model.variables],
            "optimizer": [variable.value for variable in self.step.optimizer.variables],
            "ema": list(self.step.ema),
        }

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            f"{group}/{position:04d}": variable.numpy()
            for group, variables in self._variables().items()
            for position, variable in enumerate(variables)
        }

    def _resume(self) -> None:
        """Take up the newest checkpoint that verifies; every rank reads the same one."""
        found, skipped = checkpoint.newest(self.storage, self.run)
        for one in skipped:
            self.post("skipped", name=one.name, reason=one.reason)
        if found is None:
            return
        for group, variables in self._variables().items():
            for position, variable in enumerate(variables):
                value = found.arrays.get(f"{group}/{position:04d}")
                if value is None or value.shape != tuple(variable.shape):
                    raise CheckpointError(
                        f"checkpoint {'/'.join(found.parts)} does not fit the model ({group} {position}).",
                        "Pass --run.restart true or choose another run.name.",
                    )
                variable.assign(value)
        self.history = list(found.state["history"])
        self.post("resumed", epoch=found.epoch, name="/".join(found.parts[-2:]), history=self.history)

    # ------------------------------------------------------------------ an epoch

    def _tensors(self, rows: feed.Rows) -> tuple[Any, Any]:
        """The window as tensors; a shard kept in memory is converted once."""
        import tensorflow as tf

        if isinstance(self.feed, feed.Stream):
            return tf.constant(rows[0]), tf.constant(rows[1])
        if self._constants is None:
            self._constants = (tf.constant(rows[0]), tf.constant(rows[1]))
            self.feed.rows = (np.zeros((0, 1)), rows[1])  # the tensor holds the images from now on
        return self._constants  # type: ignore[no-any-return]

    def _windows(self, epoch: int) -> Any:
        """Windows of the epoch, the last one again should rows fall short of the fixed step count."""
        window = None
        for window in self.feed.windows(epoch):
            yield window
        while True:
            yield window

    def _train_epoch(self, epoch: int) -> Metrics:
        seed, done, curves = self.config.run.seed, 0, []
        wait_before, began = self.feed.wait_s, time.perf_counter()
        windows = self._windows(epoch)
        for number, window in enumerate(windows):
            images, labels = self._tensors(window)
            positions = feed.order(
                len(window[1]), self.batch, (seed, epoch, self.world_size, self.rank, number)
            )
            for block in _blocks(positions[: self.steps_per_epoch - done], self.config.train.log_every_steps):
                curves.append(self._run_block(epoch, done, images, labels, block))
                done += len(block)
            if done >= self.steps_per_epoch:
                break
        train_s = time.perf_counter() - began
        curve = np.concatenate(curves)
        return {
            "loss": float(curve[:, 0].mean()),
            "accuracy": float(curve[:, 1].mean()),
            "learning_rate": self._rate(epoch * self.steps_per_epoch + done - 1),
            "samples_per_s": done * self.config.train.global_batch_size / train_s,
            "train_s": train_s,
            "data_wait_s": self.feed.wait_s - wait_before,
        }

    def _rate(self, step: int) -> float:
        return schedule.make(self.config.train, self.steps_per_epoch)(step)

    def _run_block(self, epoch: int, done: int, images: Any, labels: Any, block: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        curve, count = self.step.train(images, labels, block)
        values: np.ndarray = curve.numpy()[: int(count)]
        step = epoch * self.steps_per_epoch + done + len(values)
        if not np.isfinite(values[-1, 0]):
            raise _NotFiniteError(
                f"the loss became {values[-1, 0]} at step {step} (epoch {epoch + 1}).",
                "Lower train.learning_rate, set train.clip_norm, or look at the data.",
            )
        rate = len(values) * self.config.train.global_batch_size / (time.perf_counter() - began)
        self.post(
            "steps",
            epoch=epoch + 1,
            step=step,
            loss=float(values[:, 0].mean()),
            accuracy=float(values[:, 1].mean()),
            learning_rate=self._rate(step - 1),
            samples_per_s=rate,
        )
        return values

    def _evaluate(self) -> Metrics:
        """Validation over all workers; every rank gets the same numbers."""
        images, labels = self.validation
        losses, predicted = self.step.scores(images, labels)
        mine = np.array([losses.sum(), (predicted == labels).sum(), len(labels)], np.float64)
        loss, hits, count = self.step.total(mine)
        return {"val_loss": float(loss / count), "val_accuracy": float(hits / count)}

    def _save(self, epoch: int, folder: str) -> ray.train.Checkpoint | None:
        """Rank 0 writes the checkpoint locally; Ray uploads it while training goes on."""
        if self.rank:
            return None
        state = {
            "epoch": epoch + 1,
            "step": self.step.iterations,
            "history": self.history,
            "seed": self.config.run.seed,
            "world_size": self.world_size,
        }
        checkpoint.write(Path(folder), state, self._arrays())
        return ray.train.Checkpoint.from_directory(folder)

    def epoch(self, epoch: int) -> None:
        """Train, evaluate, checkpoint and report one epoch."""
        train = self.config.train
        metrics = self._train_epoch(epoch)
        self.step.synchronise()
        began = time.perf_counter()
        self.step.swap()
        metrics |= self._evaluate()
        self.step.swap()
        metrics |= {
            "evaluate_s": time.perf_counter() - began,
            "epoch": epoch + 1,
            "step": self.step.iterations,
        }
        metrics |= {"world_size": self.world_size, "time": time.time()}
        self.history.append(metrics)
        began = time.perf_counter()
        saved, upload = None, ray.train.CheckpointUploadMode.ASYNC
        if (epoch + 1) % train.checkpoint_every_epochs == 0 or self._last(epoch):
            saved = self._save(epoch, tempfile.mkdtemp(prefix="distml-checkpoint-"))
        metrics["checkpoint_s"] = time.perf_counter() - began
        name = checkpoint.folder_name(epoch + 1, uuid.uuid4().hex[:8])
        ray.train.report(metrics, saved, checkpoint_dir_name=name, checkpoint_upload_mode=upload)
        metrics["report_s"] = time.perf_counter() - began - metrics["checkpoint_s"]
        self.post("epoch", **metrics)

    def _last(self, epoch: int) -> bool:
        return epoch + 1 >= self.config.train.epochs or self._stale()

    def _stale(self) -> bool:
        """Whether early stopping ends the run after the epochs done so far."""
        patience = self.config.train.early_stopping_patience
        if patience is None or not self.history:
            return False
        accuracies = [metrics["val_accuracy"] for metrics in self.history]
        return len(accuracies) - 1 - int(np.argmax(accuracies)) >= patience

    # ------------------------------------------------------------------ the end

    def conclude(self) -> None:
        """Evaluate the test split with all workers and export the model from rank 0."""
        from distml.training import export, result

        began = time.perf_counter()
        self.step.swap()
        splits = {
            split: self._predict(split) for split in ("validation", "test") if self.manifest.rows.get(split)
        }
        evaluated = time.perf_counter()
        if self.rank:
            return
        with tempfile.TemporaryDirectory(prefix="distml-export-") as folder:
            network = self._detached()
            described = {
                "name": self.manifest.name,
                "classes": list(self.manifest.classes),
                "shape": list(self.manifest.shape),
            }
            export.export(network, Path(folder), described, self.validation[0][:2])
            exported = time.perf_counter()
            parts = (*self.run, f"export-{uuid.uuid4().hex[:8]}")
            self.storage.upload(folder, *parts)
        classes = list(self.manifest.classes)
        evaluation = {
            split: result.evaluate(labels, predicted, losses, classes)
            for split, (labels, predicted, losses) in splits.items()
        }
        labels, predicted, losses = splits.get("test") or splits["validation"]
        worst = result.worst(labels, predicted, losses)
        self.post(
            "result",
            export=parts,
            evaluation=evaluation,
            history=self.history,
            worst=[[int(at), int(labels[at]), int(predicted[at]), float(losses[at])] for at in worst],
            test_s=evaluated - began,
            export_s=exported - evaluated,
        )

    def _detached(self) -> Any:
        """The trained network outside the strategy, so that what is saved holds nothing distributed."""
        network = self.network()
        network.set_weights([variable.numpy() for variable in self._variables()["model"]])
        return network

    def _predict(self, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, predictions and losses of a whole split, each worker having scored its rows."""
        _, all_labels = shards.read(self.storage, self.manifest, split)
        images, labels = shards.read(self.storage, self.manifest, split, self.rank, self.world_size)
        losses, predicted = self.step.scores(images, labels)
        mine = np.zeros((2, len(all_labels)), np.float32)
        mine[0, self.rank :: self.world_size], mine[1, self.rank :: self.world_size] = losses, predicted
        total = self.step.total(mine)
        return all_labels, total[1].astype(np.int32), total[0]


class _NotFiniteError(TrainingError):
    """The loss is no number; trying again would only find the same."""


def _blocks(positions: np.ndarray, size: int) -> list[np.ndarray]:
    return [positions[at : at + size] for at in range(0, len(positions), size)]


def loop(spec: dict[str, Any]) -> None:
    """Train this rank from wherever the run stands to its end; what Ray Train calls.

    An error that would only repeat itself is posted and ends the loop normally on every rank, so that
    Ray Train does not spend its restarts on it; any other error is raised for Ray Train to act on.
    """
    worker = Worker(spec)
    log.configure("worker", worker.rank)
    try:
        worker.prepare()
        for epoch in range(len(worker.history), worker.config.train.epochs):
            if worker._stale():
                break
            worker.epoch(epoch)
        worker.conclude()
    except (_NotFiniteError, ModelError, CheckpointError) as error:
        logger.error("%s", error)
        _final(worker, error)


def _final(worker: Worker, error: DistmlError) -> None:
    worker.post("failed", message=error.message, remedy=error.remedy, error=type(error).__name__)

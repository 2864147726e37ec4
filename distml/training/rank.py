"""One rank of a run: what it was told, what it built, and how it speaks to the driver (worker)."""

from __future__ import annotations

import concurrent.futures
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train

from distml.config import Config
from distml.data import feed, shards
from distml.errors import ModelError
from distml.storage import Storage
from distml.training import devices, pretrained, schedule, weighting
from distml.training.events import EpochFinished, Event, Started, WeightsLoaded

if TYPE_CHECKING:
    from distml.training.optimizer import Backbone
    from distml.training.step import Step


class Rank:
    """The state of one rank. Final.

    Attributes:
        history: Epochs completed.
        best: Weights of the best epoch so far, in the order of `Model.get_weights`, where they are kept.

    Args:
        spec: What the driver sent: `config`, `manifest`, `storage`, `run`, `events`, `use_gpu`, and
            `blocks`, references to the training split in order, or None where it is streamed.
    """

    step: Step
    precision: str
    shard: feed.Memory | feed.Stream
    validation: feed.Rows

    def __init__(self, spec: dict[str, Any]) -> None:
        self.started_at = time.time()
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self._local_world_size = context.get_local_world_size()
        self.config = Config.model_validate(spec["config"])
        self.manifest = shards.Manifest.from_json(spec["manifest"])
        self.storage = Storage(spec["storage"])
        self.run: tuple[str, ...] = tuple(spec["run"])
        self._use_gpu: bool = spec["use_gpu"]
        self._events, self._blocks = spec["events"], spec["blocks"]
        train = self.config.train
        self.batch = feed.replica_batch_size(train.global_batch_size, self.rank, self.world_size)
        self.steps_per_epoch = self.manifest.rows["train"] // train.global_batch_size
        self.rate = schedule.make(train, self.steps_per_epoch)
        self.history: list[EpochFinished] = []
        self.best: list[np.ndarray] | None = None

    def send(self, event: Event) -> None:
        """Send an event to the driver, from rank 0 only."""
        if self.rank == 0:
            self._events.put.remote(event)

    def _open_feed(self) -> feed.Memory | feed.Stream:
        size = self.manifest.shape[:2]
        if self._blocks is not None:
            blocks = (ray.get(block) for block in self._blocks)
            rows = self.manifest.rows["train"]
            return feed.Memory(feed.share(blocks, rows, self.rank, self.world_size, size))
        row_bytes = int(np.prod(self.manifest.shape_of("train")))
        budget = self.config.data.memory_budget_bytes
        largest = feed.replica_batch_size(self.config.train.global_batch_size, 0, self.world_size)
        shard = ray.train.get_dataset_shard("train")
        return feed.Stream(shard, budget, row_bytes, self.batch, largest, size)

    def _validation(self) -> feed.Rows:
        return shards.read(self.storage, self.manifest, "validation", self.rank, self.world_size)

    def prepare(self) -> dict[str, float]:
        """Read the shard while TensorFlow is imported, then build model and optimizer.

        Returns:
            Seconds spent: `import_s`, `build_s`, `wait_data_s`.
        """
        began = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading, validation = pool.submit(self._open_feed), pool.submit(self._validation)
            tf = devices.import_tensorflow(self._use_gpu, self._local_world_size)
            imported = time.perf_counter()
            self.step = self._build(devices.strategy(tf, self._use_gpu))
            built = time.perf_counter()
            self.shard, self.validation = reading.result(), validation.result()
        waited = time.perf_counter() - built
        return {"import_s": imported - began, "build_s": built - imported, "wait_data_s": waited}

    def ready(self, times: dict[str, float]) -> None:
        """Tell the driver what is about to be trained."""
        event = Started(
            world_size=self.world_size,
            epoch=len(self.history),
            steps_per_epoch=self.steps_per_epoch,
            streaming=self.shard.streaming,
            precision=self.precision,
            parameters=int(self.step.model.count_params()),
            started_at=self.started_at,
            pid=os.getpid(),
            **times,
        )
        self.send(event)

    def network(self, precision: str = "float32") -> Any:
        """Build the network of Keras's own layers, its initial weights a function of the seed alone.

        Args:
            precision: Keras's dtype policy; what is exported computes in float32 on any machine.
        """
        import keras

        from distml.models import registry

        keras.config.set_dtype_policy(precision)

        model, classes = self.config.model, len(self.manifest.classes)
        options, seed = model.builder_options, self.config.run.seed
        return registry.build(model.name, self.manifest.shape, classes, options, seed)

    def _backbone(self, model: Any) -> Backbone | None:
        """What the optimizer does otherwise for the backbone's variables."""
        from distml.models import parts
        from distml.training.optimizer import Backbone

        wanted, cut = self.config.model, parts.split(model)
        if cut is None:
            return None
        first_step = wanted.freeze_epochs * self.steps_per_epoch
        return Backbone(cut.features.trainable_variables, wanted.backbone_learning_rate, first_step)

    def _class_weights(self) -> tuple[float, ...]:
        wanted, manifest = self.config.train.class_weights, self.manifest
        balanced = wanted == "balanced"
        counts = shards.class_counts(self.storage, manifest, "train") if balanced else np.zeros(0, np.int64)
        return weighting.weights(wanted, manifest.classes, counts)

    def _load_weights(self, model: Any) -> None:
        """Start from the configured weights, which the driver put under the storage root."""
        from distml.models import weights

        source, wanted = pretrained.source(self.config), self.config.model
        if source is None:
            return
        copy = pretrained.cached(self.storage, source)
        if copy is None:
            raise ModelError(
                f"the weights {wanted.weights} are gone from {self.storage.root}.", "Start again."
            )
        with pretrained.opened(self.storage, copy) as path:
            loaded = weights.load(model, path, str(wanted.weights), wanted.name, wanted.builder_options)
        self.send(WeightsLoaded(str(wanted.weights), copy.sha256, str(loaded)))

    def _build(self, strategy: Any) -> Step:
        from distml.models import fused
        from distml.training import optimizer as optimizers
        from distml.training.step import Step, StepSpec

        train, seed = self.config.train, self.config.run.seed
        self.precision = devices.precision(train.precision, self._use_gpu)
        with strategy.scope():
            model = self.network(self.precision)
            self._load_weights(model)
            fused.fuse(model)
            rates = schedule.table(train, self.steps_per_epoch)
            optimizer = optimizers.make(train, rates, self._backbone(model))
            optimizer.build(model.trainable_variables)
        spec = StepSpec(
            train.global_batch_size,
            self.rank,
            seed,
            train.label_smoothing,
            train.ema,
            train.augment,
            self._class_weights(),
            train.accumulate_steps,
        )
        return Step(strategy, model, optimizer, spec)

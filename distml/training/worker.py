"""What Ray Train runs on each worker: sets up its rank, then calls `training.epoch` and `evaluate` (worker).

Modules that need TensorFlow are imported inside, after `Rank.prepare` has imported it with this rank's share
of the machine. Input is a specification of plain values; output is events in the queue, and checkpoints and
an export in storage.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.train

from distml import log
from distml.config import Config
from distml.data import feed, shards
from distml.errors import CheckpointError, DataError, ModelError, NotFiniteError, TrainingError
from distml.runtime import compat, environment
from distml.storage import Storage
from distml.tasks.classification import class_weights
from distml.training import optimizer as optimizers
from distml.training import pretrained
from distml.training.events import EpochFinished, Event, RunFailed, Started, WeightsLoaded


def usable_cpus() -> int:
    """Number of cores this process may use: its affinity, limited by the container's CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    words = quota.read_text("utf-8").split() if quota.exists() else ["max"]
    return cores if words[0] == "max" else max(1, min(cores, -(-int(words[0]) // int(words[1]))))


def import_tensorflow(use_gpu: bool, local_world_size: int) -> Any:
    """Import TensorFlow and Keras 3 and give this rank its share of the machine's threads."""
    environment.KERAS.apply()
    if not use_gpu:
        environment.CPU_WORKER.apply()
    with compat.imports():
        import keras
        import tensorflow as tf
    environment.plain(keras)
    if not keras.__version__.startswith("3."):
        raise TrainingError(f"Keras {keras.__version__} was imported.", "Unset TF_USE_LEGACY_KERAS.")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.threading.set_intra_op_parallelism_threads(max(1, usable_cpus() // local_world_size))
    tf.config.threading.set_inter_op_parallelism_threads(2)
    return tf


def strategy(tf: Any, use_gpu: bool) -> Any:
    """Create the strategy over all ranks in TF_CONFIG: NCCL between GPUs, a gRPC ring between CPUs."""
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if use_gpu else kinds.RING
    )
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def precision(wanted: str, use_gpu: bool) -> str:
    """Return Keras's dtype policy: `auto` is bfloat16 where the processor or every GPU supports it natively.

    Elsewhere TensorFlow emulates it at a fraction of the speed of float32.
    """
    if wanted != "auto":
        return wanted
    return "mixed_bfloat16" if (_gpus_have_bfloat16() if use_gpu else _cpu_has_bfloat16()) else "float32"


def _gpus_have_bfloat16() -> bool:
    """Whether every GPU has compute capability 8.0 (Ampere) or higher."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [detail.get("compute_capability", (0, 0)) for detail in details]
    return bool(capabilities) and min(capabilities) >= (8, 0)


def _cpu_has_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the CPU flags of Linux on x86-64 list bfloat16; False where they cannot be read."""
    flags = (
        re.search(r"^flags\s*:(.*)$", cpuinfo.read_text("utf-8"), re.MULTILINE) if cpuinfo.exists() else None
    )
    return bool(flags and {"avx512_bf16", "amx_bf16"} & set(flags[1].split()))


if TYPE_CHECKING:
    from distml.training.optimizer import Backbone
    from distml.training.step import Step


def network(config: Config, manifest: shards.Manifest, precision: str = "float32") -> Any:
    """Build the network of Keras's own layers, its initial weights a function of the seed alone.

    Args:
        config: Of the run.
        manifest: Of the data.
        precision: Keras's dtype policy; what is exported computes in float32 on any machine.
    """
    import keras

    from distml.models import registry

    keras.config.set_dtype_policy(precision)
    options, classes = config.model.builder_options, len(manifest.classes)
    kind = config.task.kind
    return registry.build(config.model.name, manifest.shape, classes, options, config.run.seed, kind)


class Rank:
    """The state of one rank. Final.

    Attributes:
        task: Of the manifest, as it is measured by this configuration.
        history: Epochs completed.
        best: Weights of the best epoch so far, in the order of `Model.get_weights`, where they are kept.

    Args:
        spec: What the driver sent: `config`, `manifest`, `storage`, `run`, `events`, `use_gpu`, and
            `blocks`, references to the training split in order, or None where it is streamed.
    """

    step: Step
    rate: optimizers.Schedule
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
        self.task = self.manifest.task.configured(self.config.evaluate.top_k)
        self.storage = Storage(spec["storage"])
        self.run: tuple[str, ...] = tuple(spec["run"])
        self._use_gpu: bool = spec["use_gpu"]
        self._events, self._blocks = spec["events"], spec["blocks"]
        train = self.config.train
        self.batch = feed.replica_batch_size(train.global_batch_size, self.rank, self.world_size)
        self.steps_per_epoch = self.manifest.rows["train"] // train.global_batch_size
        self.history: list[EpochFinished] = []
        self.best: list[np.ndarray] | None = None

    @property
    def monitor(self) -> str:
        """Name of the metric that chooses the best epoch."""
        return f"val_{self.task.metric(self.config.train.monitor)}"

    def send(self, event: Event) -> None:
        """Send an event to the driver, from rank 0 only."""
        if self.rank == 0:
            self._events.put.remote(event)

    def _open_feed(self) -> feed.Memory | feed.Stream:
        if self._blocks is not None:
            blocks = (ray.get(block) for block in self._blocks)
            rows = self.manifest.rows["train"]
            return feed.Memory(feed.share(blocks, rows, self.rank, self.world_size))
        row_bytes = int(np.prod(self.manifest.shape_of("train")))
        budget = self.config.data.memory_budget_bytes
        largest = feed.replica_batch_size(self.config.train.global_batch_size, 0, self.world_size)
        shard = ray.train.get_dataset_shard("train")
        return feed.Stream(shard, budget, row_bytes, self.batch, largest)

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
            tf = import_tensorflow(self._use_gpu, self._local_world_size)
            imported = time.perf_counter()
            self.step = self._build(strategy(tf, self._use_gpu))
            built = time.perf_counter()
            self.shard, self.validation = reading.result(), validation.result()
        waited = time.perf_counter() - built
        return {"import_s": imported - began, "build_s": built - imported, "wait_data_s": waited}

    def ready(self, times: dict[str, float]) -> None:
        """Send the driver the facts of the training that starts."""
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
        """Build the network of Keras's own layers; see `network`."""
        return network(self.config, self.manifest, precision)

    def _backbone(self, model: Any) -> Backbone | None:
        """What the optimizer does otherwise for the backbone's variables."""
        from distml.models import transform
        from distml.training.optimizer import Backbone

        wanted, cut = self.config.model, transform.split(model)
        if cut is None:
            return None
        first_step = wanted.freeze_epochs * self.steps_per_epoch
        return Backbone(cut.features.trainable_variables, wanted.backbone_learning_rate, first_step)

    def _class_weights(self) -> tuple[float, ...]:
        wanted, manifest = self.config.train.class_weights, self.manifest
        balanced = wanted == "balanced"
        counts = shards.class_counts(self.storage, manifest, "train") if balanced else np.zeros(0, np.int64)
        return class_weights(wanted, manifest.classes, counts)

    def _load_weights(self, model: Any) -> None:
        """Start from the configured weights, which the driver put under the storage root."""
        from distml.models import weights

        source, wanted = pretrained.source(self.config), self.config.model
        if source is None:
            return
        copy = pretrained.cached(self.storage, source)
        if copy is None:
            raise ModelError(
                f"the weights {wanted.weights} are no longer in {self.storage.root}.", "Start again."
            )
        with pretrained.opened(self.storage, copy) as path:
            loaded = weights.load(model, path, str(wanted.weights), wanted.name, wanted.builder_options)
        self.send(WeightsLoaded(str(wanted.weights), copy.sha256, str(loaded)))

    def _build(self, strategy: Any) -> Step:
        from distml.models import transform
        from distml.training.step import Step, StepSpec

        train, seed = self.config.train, self.config.run.seed
        schedule = (train, self.steps_per_epoch, self.config.model.freeze_epochs)
        self.rate = optimizers.schedule(*schedule)  # the user's own may import TensorFlow
        self.precision = precision(train.precision, self._use_gpu)
        with strategy.scope():
            model = self.network(self.precision)
            self._load_weights(model)
            if self.config.model.unfreeze_from:
                transform.freeze_below(model, self.config.model.unfreeze_from)
            transform.fuse(model)
            rates = optimizers.table(*schedule)
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
            self.manifest.train_size,
            self.task,
            train.loss,
        )
        return Step(strategy, model, optimizer, spec)


logger = logging.getLogger(__name__)


def loop(spec: dict[str, Any]) -> None:
    """Train this rank from the newest checkpoint to the end of the run.

    A deterministic error is sent to the driver and ends the loop normally on every rank, so that Ray Train
    does not spend its restarts on it; any other error is raised, and Ray Train restarts the group.

    Args:
        spec: As `Rank` takes it.
    """
    rank = Rank(spec)
    log.configure("worker", rank.rank)
    try:
        _train(rank)
    except (NotFiniteError, DataError, ModelError, CheckpointError) as error:
        logger.error("%s", error)
        rank.send(RunFailed(error.message, error.remedy, type(error).__name__))


def _train(rank: Rank) -> None:
    times = rank.prepare()
    from distml.training import checkpoint, epoch, evaluate

    checkpoint.resume(rank)
    rank.ready(times)
    epoch.Epochs(rank).run()
    evaluate.evaluate_and_export(rank)

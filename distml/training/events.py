"""Typed events that workers send to the driver, their queue, and calling the observers.

Rank 0 and Ray Train's controller put events into the queue, one asynchronous call each; the driver polls
it and calls its observers with every event in order. The driver alone talks to the tracking server and to the
terminal, so neither an outage nor a slow terminal delays the training loop.
"""

from __future__ import annotations

import logging
import threading
import time as clock
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distml.errors import TrainingError
from distml.tasks import Evaluation, Mistake
from distml.training import metrics as catalogue

logger = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between two polls of the queue."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run. Abstract.

    Attributes:
        time: When, in seconds since 1970.
    """

    time: float = field(default_factory=clock.time, kw_only=True)


Observer = Callable[[Event], None]
"""Called in the driver with every event of a run, in order, on one thread at a time."""


@dataclass(frozen=True)
class Started(Event):
    """The worker group is about to train its first step.

    Attributes:
        world_size: Number of workers.
        epoch: Epochs completed before.
        steps_per_epoch: Optimizer steps of an epoch.
        streaming: Whether the training rows are streamed or kept in memory.
        precision: Keras's dtype policy.
        parameters: Weights of the network.
        started_at: When the worker started, in seconds since 1970.
        pid: Of rank 0.
        import_s: Seconds of importing TensorFlow.
        build_s: Seconds of building model and optimizer.
        wait_data_s: Seconds of waiting for data after that.
    """

    world_size: int
    epoch: int
    steps_per_epoch: int
    streaming: bool
    precision: str
    parameters: int
    started_at: float = 0.0
    pid: int = 0
    import_s: float = 0.0
    build_s: float = 0.0
    wait_data_s: float = 0.0


@dataclass(frozen=True)
class WeightsLoaded(Event):
    """The network starts from weights that were trained before.

    Attributes:
        source: As the user wrote it.
        sha256: Of the file.
        summary: What was loaded and what not, by count and name.
    """

    source: str
    sha256: str
    summary: str


@dataclass(frozen=True)
class FeaturesStarted(Event):
    """Rank 0 begins to compute the features that its epochs train on, which takes no step.

    Attributes:
        rows: Training rows of all workers.
        view: Augmented view of the images, counted from 1; None where they are not augmented.
        views: How many of them there are; 0 where images are not augmented.
    """

    rows: int
    view: int | None = None
    views: int = 0


@dataclass(frozen=True)
class StepsDone(Event):
    """Some optimizer steps are done.

    Attributes:
        epoch: Epoch in progress, counted from 1.
        step: Steps done since the start of the run.
        metrics: Values over these steps by name.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        catalogue.check(self.metrics)


@dataclass(frozen=True)
class EpochFinished(Event):
    """An epoch was trained, validated and, where it was due, checkpointed.

    Attributes:
        epoch: Epochs completed.
        step: Steps done since the start of the run.
        metrics: Values of the epoch by name.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]

    def __post_init__(self) -> None:
        catalogue.check(self.metrics)

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary, as checkpoints and `report.json` hold it."""
        return {**self.metrics, "epoch": self.epoch, "step": self.step, "time": self.time}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EpochFinished:
        """Read what `to_json` returned; metrics that only another version of distml has are left out."""
        return cls(values["epoch"], values["step"], catalogue.known(values), time=values["time"])


@dataclass(frozen=True)
class CheckpointSkipped(Event):
    """A checkpoint does not verify, so the run resumes from an older checkpoint.

    Attributes:
        name: Attempt and folder of the checkpoint.
        reason: What is wrong with it.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Resumed(Event):
    """The run continues from a checkpoint.

    Attributes:
        epoch: Epochs completed.
        checkpoint: Attempt and folder of the checkpoint.
        history: Every completed epoch.
    """

    epoch: int
    checkpoint: str
    history: Sequence[EpochFinished]


@dataclass(frozen=True)
class WorkerFailed(Event):
    """A worker raised or died; Ray Train restarts the group while restarts are left.

    Attributes:
        rank: Of the worker.
        cause: Of the failure, in a few words.
    """

    rank: int
    cause: str


@dataclass(frozen=True)
class RunFailed(Event):
    """The run ended with a deterministic error, which a restart would repeat.

    Attributes:
        message: Its sentence.
        remedy: What the user can do.
        error: Name of the exception.
    """

    message: str
    remedy: str
    error: str


@dataclass(frozen=True)
class RunFinished(Event):
    """The model is trained, evaluated and exported.

    Attributes:
        export: Folder of the export, as parts below the storage root.
        evaluation: By held-out split.
        history: Every epoch.
        mistakes: The worst mistakes on the test split, or on the validation split without one.
        evaluate_s: Seconds of evaluating.
        export_s: Seconds of exporting.
        best_epoch: The epoch whose weights were exported where that need not be the last one.
        heat: Of each mistake how much the places of a grid over its picture count, 0 to 1; () where unknown.
        nearest: Of each mistake the training rows with the nearest features; () where unknown.
        formats: Size in bytes of each form of the export and how it compares with the model.
    """

    export: tuple[str, ...]
    evaluation: Mapping[str, Evaluation]
    history: Sequence[EpochFinished]
    mistakes: Sequence[Mistake]
    evaluate_s: float
    export_s: float
    best_epoch: int | None = None
    heat: Sequence[list[list[float]]] = ()
    nearest: Sequence[list[int]] = ()
    formats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for result in self.evaluation.values():
            catalogue.check(result.metrics)

    @property
    def quality(self) -> dict[str, float]:
        """Metrics of each held-out split, by their prefixed names."""
        return {
            f"{catalogue.HELD_OUT[split]}_{name}": value
            for split, result in self.evaluation.items()
            for name, value in result.metrics.items()
        }

    @property
    def own(self) -> dict[str, float]:
        """Metrics of the user's on each held-out split, by their prefixed names."""
        return {
            f"{catalogue.HELD_OUT[split]}_{name}": value
            for split, result in self.evaluation.items()
            for name, value in result.own.items()
        }

    @property
    def steady_samples_per_s(self) -> float:
        """Training rows per second: the median over epochs, the first left out when there are others."""
        speeds = [epoch.metrics["samples_per_s"] for epoch in self.history[1:] or self.history]
        return float(np.median(speeds))

    @property
    def metrics(self) -> dict[str, float]:
        """Everything that is measured once, at the end of a run, by name."""
        values = self.quality | {"steady_samples_per_s": self.steady_samples_per_s}
        catalogue.check(values)
        return values

    @property
    def shown(self) -> str:
        """The split that the display and the report show: `test` where there is a test split."""
        return "test" if "test" in self.evaluation else "validation"

    def to_json(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "evaluation": {split: result.to_json() for split, result in self.evaluation.items()},
            "history": [epoch.to_json() for epoch in self.history],
            "worst": [list(mistake) for mistake in self.mistakes],
            "heat": list(self.heat),
            "nearest": list(self.nearest),
        }


class Outcome:
    """Keeps the events that the end of a run needs. Final; an observer."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self._finished: RunFinished | None = None
        self._failed: RunFailed | None = None

    def __call__(self, event: Event) -> None:
        """Keep the event."""
        match event:
            case Started():
                self.started = event
            case RunFinished():
                self._finished = event
            case RunFailed():
                self._failed = event

    def finished(self, logs: str | None = None) -> RunFinished:
        """Return how a successful run ended.

        Args:
            logs: Folder of the workers' logs, for messages.

        Raises:
            TrainingError: The run failed, or no event reports that it finished.
        """
        if self._failed:
            raise TrainingError(self._failed.message, self._failed.remedy)
        if self._finished is None:
            raise TrainingError("training ended without a result.", f"See the worker logs in {logs}.")
        return self._finished


class EventQueue:
    """Events in the order in which they arrived. Final; used as a Ray actor, in a process of its own."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)

    def read(self, after: int) -> list[Event]:
        """Events from position `after` on."""
        return self._events[after:]


def create_queue() -> Any:
    """Start a queue; returns its actor handle, which may be sent to workers.

    It lives on the driver's node: on a worker's node it would be lost with that node, and with it the end
    of a run that survived.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(EventQueue).remote()


@contextmanager
def observed(queue: Any, observers: Sequence[Observer]) -> Iterator[None]:
    """Hand events to observers until the body ends, then what is left.

    Args:
        queue: Handle of an `EventQueue`.
        observers: Called with each event in this order; an observer's error is logged, and the run continues.
    """
    import ray

    stop = threading.Event()
    seen = 0

    def drain() -> None:
        nonlocal seen
        try:
            for event in ray.get(queue.read.remote(seen)):
                seen += 1
                deliver(event, observers)
        except ray.exceptions.RayError as error:
            logger.debug("the event queue does not respond: %s", error)

    def poll() -> None:
        while not stop.wait(POLL_S):
            drain()

    thread = threading.Thread(target=poll, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        drain()


def deliver(event: Event, observers: Sequence[Observer]) -> None:
    """Call every observer with an event; an observer's error is logged with its traceback."""
    for observer in observers:
        try:
            observer(event)
        except Exception:  # what only shows or records must not end a run
            logger.exception("an observer failed on %s", type(event).__name__)

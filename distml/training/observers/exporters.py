"""Observers that export metrics to Prometheus and TensorBoard (driver).

Gauges go through Ray, to the endpoint that Prometheus scrapes already. Ray adds the prefix `ray_` and drops
a driver's metrics some minutes after the driver has ended.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from typing import Any

from distml.storage import Storage
from distml.training import metrics as catalogue
from distml.training.events import EpochFinished, Event, Resumed, StepsDone

logger = logging.getLogger(__name__)


def _name(name: str) -> str:
    """Name of the gauge of a metric."""
    return catalogue.get(name).gauge or name


def _described() -> dict[str, str]:
    measured = [metric for metric in catalogue.CATALOGUE if metric.when != "result" and not metric.duration]
    trained = {
        _name(metric.name): f"{metric.help} (training, last steps)" if metric.when == "steps" else metric.help
        for metric in measured
        if metric.when == "steps" or not metric.held_out
    }
    validated = {
        f"val_{metric.name}": f"{metric.help} (validation, last epoch)"
        for metric in measured
        if metric.held_out
    }
    parts = ", ".join(name.removesuffix("_s") for name in catalogue.DURATIONS)
    return {
        **trained,
        **validated,
        "epoch": "Epoch in progress.",
        "step_timestamp_seconds": "When the last steps were done, in seconds since 1970.",
        "part_seconds": f"Seconds of the last epoch by part: {parts}.",
    }


GAUGES = _described()
"""Metrics by the name that follows `ray_distml_train_`, and their meaning; all have the label `run`."""


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    labels = ("run", "part") if name == "part_seconds" else ("run",)
    return Gauge(f"distml_train_{name}", description=GAUGES[name], tag_keys=labels)


def values(event: Event) -> dict[str, float]:
    """The gauges that an event sets, by name; part_seconds is left to `parts`."""
    match event:
        case StepsDone():
            trained = {_name(name): value for name, value in event.metrics.items()}
            return {**trained, "epoch": event.epoch, "step_timestamp_seconds": event.time}
        case EpochFinished():
            return {_name(name): value for name, value in event.metrics.items() if _of_epoch(name)}
        case _:
            return {}


def _of_epoch(name: str) -> bool:
    """Whether a value has a gauge of its own; of what is measured by step, the last steps are shown."""
    metric = catalogue.get(name)
    return not metric.duration and (metric.when == "epoch" or name != metric.name)


def parts(event: Event) -> dict[str, float]:
    """Seconds of an epoch by part, empty for other events."""
    if not isinstance(event, EpochFinished):
        return {}
    return {
        name.removesuffix("_s"): event.metrics[name] for name in catalogue.DURATIONS if name in event.metrics
    }


class Gauges:
    """Sets the gauges of a run. Final; an observer.

    Args:
        run: Name of the run, the label of its metrics.
    """

    def __init__(self, run: str) -> None:
        self._run = run

    def __call__(self, event: Event) -> None:
        """Set what an event says."""
        try:
            for name, value in values(event).items():
                _gauge(name).set(value, tags={"run": self._run})
            for part, seconds in parts(event).items():
                _gauge("part_seconds").set(seconds, tags={"run": self._run, "part": part})
        except Exception as error:  # a metric that cannot be set is no reason to stop training
            logger.debug("metrics of %s: %s", self._run, error)


FOLDER = "tensorboard"


class TensorBoard:
    """Writes the metrics of each epoch as TensorBoard scalars. Final; an observer.

    Args:
        storage: The storage root; event files are written there directly when it is a path, and copied
            there after each epoch when it is an object store, which cannot append.
        run: The run's folder.
    """

    def __init__(self, storage: Storage, run: tuple[str, ...]) -> None:
        # TensorFlow's own writer needs the tensorboard package and TensorFlow in the driver.
        from tensorboardX import SummaryWriter

        self._storage, self._parts = storage, (*run, FOLDER)
        self._folder = storage.uri(*self._parts) if storage.local else tempfile.mkdtemp()
        self._writer = SummaryWriter(self._folder)

    def __call__(self, event: Event) -> None:
        """Write one epoch, or those completed before a run was resumed."""
        match event:
            case EpochFinished():
                self._write(event)
            case Resumed():
                for epoch in event.history:
                    self._write(epoch)

    def _write(self, epoch: EpochFinished) -> None:
        for name, value in epoch.metrics.items():
            self._writer.add_scalar(catalogue.record_name(name), value, epoch.epoch, epoch.time)
        self._writer.flush()
        if not self._storage.local:
            self._storage.upload(self._folder, *self._parts)

"""How training goes, in Ray's own metrics, so that Prometheus finds it where it finds Ray's (driver).

Ray adds the prefix `ray_` and takes a driver's metrics away some minutes after the driver.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

Event = dict[str, Any]

GAUGES = {
    "samples_per_s": "Training rows per second over all workers.",
    "loss": "Training loss of the last steps.",
    "accuracy": "Training accuracy of the last steps.",
    "val_accuracy": "Validation accuracy of the last epoch.",
    "epoch": "Epoch in progress.",
    "workers": "Training workers.",
    "step_timestamp_seconds": "When the last steps were done, in seconds since 1970.",
    "part_seconds": "Seconds of the last epoch by part: train, data_wait, evaluate, checkpoint, report.",
}
"""Metrics by the name that follows `ray_distml_train_`, and their meaning; all have the label `run`."""
_PARTS = ("train_s", "data_wait_s", "evaluate_s", "checkpoint_s", "report_s")


@functools.cache
def _gauge(name: str) -> Any:
    from ray.util.metrics import Gauge

    labels = ("run", "part") if name == "part_seconds" else ("run",)
    return Gauge(f"distml_train_{name}", description=GAUGES[name], tag_keys=labels)


def values(event: Event) -> dict[str, float]:
    """The gauges that an event of the board sets; part_seconds is left to `parts`."""
    if event["kind"] == "steps":
        found = {name: event[name] for name in ("samples_per_s", "loss", "accuracy", "epoch")}
        return found | {"step_timestamp_seconds": time.time()}
    if event["kind"] == "epoch":
        return {"val_accuracy": event["val_accuracy"], "workers": event["world_size"]}
    return {}


def parts(event: Event) -> dict[str, float]:
    """Seconds of an epoch by part, empty for other events."""
    if event["kind"] != "epoch":
        return {}
    return {name.removesuffix("_s"): event[name] for name in _PARTS if name in event}


def listener(run: str, also: Callable[[Event], None] | None) -> Callable[[Event], None]:
    """Listen to the board: set the gauges of a run, and hand every event on.

    Args:
        run: Name of the run, the label of its metrics.
        also: Called with every event, first.
    """

    def listen(event: Event) -> None:
        if also:
            also(event)
        try:
            for name, value in values(event).items():
                _gauge(name).set(value, tags={"run": run})
            for part, seconds in parts(event).items():
                _gauge("part_seconds").set(seconds, tags={"run": run, "part": part})
        except Exception as error:  # a metric that cannot be set is no reason to stop training
            logger.debug("metrics of %s: %s", run, error)

    return listen

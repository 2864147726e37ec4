"""The catalogue of training metrics: name, unit, direction and meaning (worker, driver).

MLflow, TensorBoard, Ray's gauges, the display, the figures and the report take what they show from here. A
new metric is one entry, and a value of that name in the worker's `StepsDone` or `EpochFinished`; an event
with a name that is not here is rejected when it is created.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distml.tasks.quality import QUALITY, Metric

HELD_OUT = {"validation": "val", "test": "test"}
"""Prefix of a metric's name by held-out split: `val_loss` is the loss of the validation split."""


CATALOGUE = (
    *QUALITY,
    Metric("learning_rate", "Learning rate of the last step.", when="steps"),
    Metric("samples_per_s", "Training rows per second over all workers.", "rows/s", "higher", "steps"),
    Metric("world_size", "Training workers.", gauge="workers"),
    Metric("rows_read", "Training rows read in the epoch.", "rows"),
    Metric("rows_dropped", "Training rows left out of the epoch.", "rows"),
    Metric("train_s", "Training steps, waiting for data included.", "s"),
    Metric("features_s", "Computing the features that frozen epochs learn from.", "s"),
    Metric("data_wait_s", "Waiting for data.", "s"),
    Metric("evaluate_s", "Validation.", "s"),
    Metric("checkpoint_s", "Writing the checkpoint.", "s"),
    Metric("report_s", "Handing the checkpoint to Ray Train.", "s"),
    Metric(
        "steady_samples_per_s",
        "Median of samples_per_s over the epochs after the first.",
        "rows/s",
        "higher",
        "result",
    ),
)
"""Every metric, in the order in which it is shown."""
_BY_NAME = {metric.name: metric for metric in CATALOGUE}
DURATIONS = tuple(metric.name for metric in CATALOGUE if metric.duration)
"""Names of the parts of an epoch that are timed."""


def best(name: str, values: Sequence[float]) -> int:
    """Position of the best value of a metric, the first of equal ones; NaN is worse than any number.

    Args:
        name: Of a metric with a direction.
        values: At least one.
    """
    sign = 1 if get(name).better == "higher" else -1
    return max(
        range(len(values)), key=lambda at: sign * values[at] if values[at] == values[at] else -math.inf
    )


def names() -> list[str]:
    """Every name that a value may have, prefixes included."""
    prefixed = [f"{prefix}_{m.name}" for m in CATALOGUE if m.held_out for prefix in HELD_OUT.values()]
    return [*_BY_NAME, *prefixed]


def get(name: str) -> Metric:
    """Return the entry of a name, which may have the prefix of a held-out split.

    Raises:
        ValueError: The catalogue has no such metric.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    prefix, _, rest = name.partition("_")
    if prefix in HELD_OUT.values() and rest in _BY_NAME and _BY_NAME[rest].held_out:
        return _BY_NAME[rest]
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"Did you mean {near[0]}?" if near else "Add it to distml/training/metrics.py."
    raise ValueError(f"the catalogue has no metric {name!r}. {hint}")


def check(values: Iterable[str]) -> None:
    """Check that the catalogue has every name.

    Raises:
        ValueError: It lacks one.
    """
    for name in values:
        get(name)


def known(values: Mapping[str, Any]) -> dict[str, float]:
    """The values whose names the catalogue has; for what another version of distml wrote."""
    allowed = set(names())
    return {name: value for name, value in values.items() if name in allowed}


def charted(values: Iterable[str]) -> list[Metric]:
    """The metrics with a chart among the names of an epoch's values, in the order of the catalogue."""
    measured = set(values)
    return [metric for metric in CATALOGUE if metric.title and measured & {metric.name, f"val_{metric.name}"}]


def shown(values: Iterable[str]) -> list[str]:
    """Names of an epoch's values for a line or a row: charted metrics, validation metrics, throughput."""
    measured = set(values)
    plain = [metric.name for metric in charted(measured)]
    order = [*plain, *(f"val_{name}" for name in plain), "samples_per_s"]
    return [name for name in order if name in measured]


def boundary(frozen: int) -> str:
    """What the training curves do after so many frozen epochs.

    Measured on 96 images of 64 px with EfficientNet-Lite0 in batches of 16: with the same weights, the same
    rows have a loss of 0.26 behind the frozen backbone and of 1.35 in the first step that trains it.
    """
    return (
        f"the backbone is trained from epoch {frozen + 1} on: batch normalisation in it then takes the "
        "statistics of each batch, which raises the training loss; compare both phases by validation"
    )


def record_name(name: str) -> str:
    """Name of an epoch's value on the tracking server and in TensorBoard: durations are grouped."""
    return f"time/{name}" if get(name).duration else name

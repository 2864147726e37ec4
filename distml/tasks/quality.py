"""Evaluation metrics with their direction; temperature and thresholds fitted on rows (any process).

Each is a function of all rows. None is averaged over workers: a worker contributes rows, or sums over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
BINS = 15
"""Bins of the expected calibration error, as in Guo et al., "On Calibration of Modern Neural Networks"."""
LEAST = 1e-7
"""Probability a row is taken to have at least, as Keras's cross-entropy does."""
RESAMPLES = 400
"""Resamples of a bootstrapped interval: its ends vary by about a tenth of its width."""


def digits(value: float, sign: str = "") -> str:
    """A value with four decimals, or three digits where these would all be zeros, as of errors in metres.

    Args:
        value: Of a metric, or a difference of two.
        sign: `+` shows that of positive values, too.
    """
    return f"{value:{sign}.3g}" if 0 < abs(value) < _SMALL else f"{value:{sign}.4f}"


_SMALL = 1e-3


@dataclass(frozen=True)
class Metric:
    """A quantity that a run measures.

    Attributes:
        name: Of the training split; `val_` or `test_` before it for a held-out split.
        help: Its meaning in one sentence.
        unit: Unit of a value; a `share` lies between 0 and 1 and is shown in percent.
        better: Which direction is an improvement, None where neither is.
        when: Measured every `train.log_every_steps` and as the epoch's mean, once per epoch, or once at the
            end of the run.
        held_out: Whether it is measured on the held-out splits, too.
        title: Heading of its chart; without a title, a metric is neither charted nor displayed.
        gauge: Its name in Ray's metrics where that differs.
    """

    name: str
    help: str
    unit: Literal["", "nats", "share", "s", "rows", "rows/s"] = ""
    better: Literal["lower", "higher"] | None = None
    when: Literal["steps", "epoch", "result"] = "epoch"
    held_out: bool = False
    title: str = ""
    gauge: str = ""

    @property
    def duration(self) -> bool:
        """Whether it is a part of the time of an epoch."""
        return self.unit == "s"

    def text(self, value: float) -> str:
        """The value as the report shows it."""
        if self.unit == "rows/s":
            return f"{value:,.0f}"
        return f"{100 * value:.2f} %" if self.unit == "share" else digits(value)


def _share(name: str, help: str, title: str = "", steps: bool = False) -> Metric:
    return Metric(name, help, "share", "higher", "steps" if steps else "epoch", held_out=True, title=title)


TOP = (2, 3, 5, 10, 20)
"""What `evaluate.top_k` may be."""
_UNITS = (
    ": of one number in its unit, of several the mean, each divided by its deviation over the training rows."
)
QUALITY = (
    Metric("loss", "Mean loss of a row.", "nats", "lower", "steps", held_out=True, title="Loss"),
    _share("accuracy", "Share of rows classified correctly.", "Accuracy", steps=True),
    _share("macro_f1", "Mean over classes of the harmonic mean of precision and recall.", "Macro-F1"),
    _share("balanced_accuracy", "Mean over classes of the recall."),
    *(_share(f"top_{most}", f"Share of rows whose class is among the {most} most probable.") for most in TOP),
    _share("label_accuracy", "Share of labels that are given or left out correctly.", steps=True),
    _share("exact_match", "Share of rows of which every label is correct."),
    _share("micro_f1", "Harmonic mean of precision and recall over the labels of all rows."),
    Metric(
        "average_precision",
        "Mean over labels of the area under the precision-recall curve.",
        "share",
        "higher",
        "result",
        held_out=True,
    ),
    Metric("ece", "Expected calibration error.", "share", "lower", "result", held_out=True),
    Metric(
        "ece_uncalibrated",
        "Expected calibration error before calibration.",
        "share",
        "lower",
        "result",
        held_out=True,
    ),
    Metric(
        "mae",
        f"Mean absolute error{_UNITS} `val_mae/NAME` is that of each number in its own unit.",
        "",
        "lower",
        "steps",
        held_out=True,
        title="Mean absolute error",
    ),
    Metric("rmse", f"Root of the mean squared error{_UNITS}", "", "lower", held_out=True),
    Metric("r2", "Share of the variance that is explained.", "", "higher", held_out=True),
)
"""Metrics of quality over all tasks, in the order in which they are shown."""
BY_NAME = {metric.name: metric for metric in QUALITY}


def plain(name: str) -> str:
    """A metric's name without the prefix of the validation split."""
    return name.removeprefix("val_")


def higher(name: str) -> bool:
    """Whether a larger value is better; the name may have the prefix of a held-out split."""
    return BY_NAME[plain(name)].better == "higher"


def f1(hits: Array, actual: Array, predicted: Array) -> Floats:
    """F1 of each class from counts, each [K]: 2 hits / (actual + predicted); 0 where both are 0."""
    return np.asarray(2 * hits / np.maximum(1, actual + predicted), np.float64)


def recalls(names: Sequence[str], hits: Array, actual: Array) -> dict[str, float]:
    """Recall by name from counts, each [K]; of names without rows it is not known, and they are left out."""
    return {name: float(h / a) for name, h, a in zip(names, hits, actual, strict=True) if a > 0}


def mean_present(values: Array, actual: Array) -> float:
    """Mean over the classes that have rows."""
    present = actual > 0
    return float(values[present].mean()) if present.any() else 0.0


def calibration(confidences: Array, correct: Array) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error and the bins of a reliability diagram.

    Args:
        confidences: float [N], the probability of each prediction.
        correct: bool [N].

    Returns:
        The error, and for each bin with rows: mean confidence, share correct, rows.
    """
    place = np.minimum((confidences * BINS).astype(int), BINS - 1)
    rows = np.bincount(place, minlength=BINS)
    confidence = np.bincount(place, confidences, BINS) / np.maximum(1, rows)
    accuracy = np.bincount(place, correct.astype(np.float64), BINS) / np.maximum(1, rows)
    error = float(np.sum(rows * np.abs(confidence - accuracy)) / max(1, len(confidences)))
    filled = np.flatnonzero(rows)
    return error, [(float(confidence[at]), float(accuracy[at]), int(rows[at])) for at in filled]


def precision_recall(positive: Array, scores: Array) -> tuple[Floats, Floats, Floats]:
    """The precision-recall curve of a label.

    Args:
        positive: bool [N].
        scores: float [N].

    Returns:
        Precision, recall and score at each distinct score, the highest first; empty without positive rows.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.zeros(0, int)
    if not len(last) or not hits[-1]:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    return hits[last] / (last + 1), hits[last] / hits[-1], ranked[last].astype(np.float64)


def average_precision(positive: Array, scores: Array) -> float | None:
    """Area under the precision-recall curve, None without positive rows."""
    precision, recall, _ = precision_recall(positive, scores)
    return float(np.sum(precision * np.diff(recall, prepend=0.0))) if len(precision) else None


def best_threshold(positive: Array, scores: Array) -> float:
    """The threshold with the best F1, between two neighbouring scores; 0.5 without positive rows."""
    precision, recall, at = precision_recall(positive, scores)
    if not len(at):
        return 0.5
    best = int(np.argmax(precision * recall / np.maximum(LEAST, precision + recall)))
    below = at[best + 1] if best + 1 < len(at) else 0.0
    return float((at[best] + below) / 2)


def temperature(loss: Callable[[float], float]) -> float:
    """The temperature from 0.05 to 20 with the smallest loss, by golden-section search on its logarithm."""
    ratio = (np.sqrt(5) - 1) / 2
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if loss(float(np.exp(left))) < loss(float(np.exp(right))):
            high = right
        else:
            low = left
    return float(np.exp((low + high) / 2))


def interval(
    measure: Callable[[Array], float], rows: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Bootstrapped interval of a quantity.

    Args:
        measure: The quantity on rows given by their positions, int64 [rows].
        rows: To draw from, with replacement.
        seed: Of the draws.
        resamples: How many of them.

    Returns:
        The ends between which 95 % of the resamples lie.
    """
    random = np.random.default_rng(seed)
    values = [measure(random.integers(0, rows, rows)) for _ in range(resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


_Z = 1.96
"""Standard deviations on either side that hold 95 %."""


def wilson(right: Array) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; right is bool [N]."""
    rows, share = len(right), float(np.mean(right))
    centre = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z / (1 + _Z**2 / rows) * (share * (1 - share) / rows + _Z**2 / (4 * rows**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def curve(points: Sequence[Floats], most: int = 100) -> list[tuple[float, ...]]:
    """Points of a curve for a figure, at most so many of them, its ends among them."""
    length = len(points[0])
    at = np.unique(np.linspace(0, max(0, length - 1), min(most, length)).round().astype(int))
    return [tuple(round(float(axis[position]), 5) for axis in points) for position in at]

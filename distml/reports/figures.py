"""Matplotlib figures of a finished run as files of their own, such as its confusion matrix (driver)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from distml.training import metrics as catalogue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FIRST, SECOND = "#1f2933", "#7b8794", "#2166ac", "#d6604d"


def blank(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure, sizes in inches; without a layout the caller places the subplots."""
    # Not pyplot: no global state, no display, half the import time.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Every charted metric of the catalogue by epoch, training and validation.

    Args:
        history: As `report.json` has it: one entry per epoch with `epoch` and the metrics by name.
    """
    charted = catalogue.charted(history[-1])
    figure = blank(4.5 * len(charted), 3.6)
    epochs = [metrics["epoch"] for metrics in history]
    for axes, metric in zip(figure.subplots(1, len(charted), squeeze=False)[0], charted, strict=True):
        for prefix, label, color in (("", "training", FIRST), ("val_", "validation", SECOND)):
            values = [metrics.get(prefix + metric.name, math.nan) for metrics in history]
            axes.plot(epochs, values, color=color, marker="o", markersize=3.5, linewidth=1.6, label=label)
        axes.set_title(metric.title, loc="left", color=INK, fontsize=11)
        axes.set_xlabel("epoch", color=MUTED)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False)
    return figure


def confusion_matrix(confusion: list[list[int]], classes: list[str], title: str) -> Figure:
    """Counts by true class (row) and predicted class (column), shaded by share of the row."""
    counts = np.asarray(confusion)
    size = max(4.0, 0.62 * len(classes) + 1.8)
    figure = blank(size + 0.6, size)
    axes = figure.subplots()
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(classes)), classes, fontsize=8)
    axes.set_xlabel("predicted", color=MUTED)
    axes.set_ylabel("true", color=MUTED)
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    if len(classes) <= 30:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                color = "white" if shares[row, column] > 0.5 else INK
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=color)
    return figure


def worst_mistakes(images: np.ndarray, mistakes: list[list[Any]]) -> Figure:
    """The worst mistakes.

    Args:
        images: uint8 (N, H, W, C), one per mistake.
        mistakes: `[position, true, predicted, loss]` per image, what is true and predicted in words.
    """
    columns = 5
    rows = max(1, -(-len(mistakes) // columns))
    # Constrained, Matplotlib would measure every subplot, which takes a second; these are all alike.
    figure = blank(2.0 * columns, 2.15 * rows, layout=None)
    figure.subplots_adjust(left=0, right=1, bottom=0.02 / rows, top=1 - 0.2 / rows, wspace=0.02, hspace=0.24)
    for axes, image, mistake in zip(np.ravel(figure.subplots(rows, columns)), images, mistakes, strict=False):
        axes.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
        axes.set_title(f"{mistake[1]}\npredicted {mistake[2]}", fontsize=8, color=INK)
    for axes in figure.axes:
        axes.axis("off")
    return figure


def _plain(axes: Any, title: str, across: str, up: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=11)
    axes.set_xlabel(across, color=MUTED)
    axes.set_ylabel(up, color=MUTED)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def precision_recall(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """The precision-recall curve of each class or label.

    Args:
        curves: Precision and recall at falling thresholds, by name.
    """
    figure = blank(6.4, 5.0)
    axes = figure.subplots()
    for name, points in curves.items():
        if points:
            precision, recall = zip(*points, strict=True)
            axes.plot(recall, precision, linewidth=1.2, label=name)
    _plain(axes, "Precision by recall", "recall", "precision")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.05)
    if 0 < len(curves) <= _NAMED:
        axes.legend(frameon=False, fontsize=7)
    return figure


def calibration(bins: Sequence[Sequence[float]], error: float) -> Figure:
    """The share correct by confidence; on the diagonal a probability is what it says.

    Args:
        bins: Mean confidence, share correct and rows.
        error: Expected calibration error.
    """
    figure = blank(4.6, 4.4)
    axes = figure.subplots()
    confidence, correct, rows = np.asarray(bins, float).T
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.scatter(confidence, correct, s=12 + 160 * rows / rows.max(), color=FIRST)
    _plain(axes, f"Calibration, expected error {error:.4f}", "mean confidence", "share correct")
    return figure


def scatter(points: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Predicted by true values of each number."""
    figure = blank(4.4 * len(points), 4.4)
    for axes, (name, pairs) in zip(
        figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True
    ):
        true, predicted = zip(*pairs, strict=True)
        axes.plot([min(true), max(true)], [min(true), max(true)], color=MUTED, linewidth=1)
        axes.scatter(true, predicted, s=8, color=FIRST, alpha=0.6)
        _plain(axes, name, "true", "predicted")
    return figure


_NAMED = 20
"""More curves have no names beside them."""


def draw(folder: Path, report: Mapping[str, Any], classes: list[str], images: np.ndarray) -> list[Path]:
    """Draw a run's figures into a folder as PNG.

    Args:
        folder: Exists.
        report: The content of `report.json`.
        classes: Name of each class.
        images: uint8 (N, H, W, C), one per mistake.

    Returns:
        Paths of the figures.
    """
    evaluation = report["evaluation"]
    split = "test" if "test" in evaluation else "validation"
    shown = evaluation[split]
    drawn = {"learning_curves": learning_curves(report["history"])}
    if shown["confusion"]:
        title = f"{split.capitalize()} split, accuracy {shown['accuracy']:.2%}"
        drawn["confusion_matrix"] = confusion_matrix(shown["confusion"], classes, title)
    if shown["curves"]:
        drawn["precision_recall"] = precision_recall(shown["curves"])
    if shown["reliability"]:
        drawn["calibration"] = calibration(shown["reliability"], shown["ece"])
    if shown["scatter"]:
        drawn["predicted_by_true"] = scatter(shown["scatter"])
    if report["worst"]:
        drawn["worst_mistakes"] = worst_mistakes(images, report["worst"])
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths

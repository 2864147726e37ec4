"""Figures of a finished run (driver)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.training import metrics as catalogue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FIRST, SECOND = "#1f2933", "#7b8794", "#2166ac", "#d6604d"


def blank(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    # Not pyplot: no global state, no display, half the import time.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


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


def worst_mistakes(images: np.ndarray, mistakes: list[list[Any]], classes: list[str]) -> Figure:
    """The most confident mistakes.

    Args:
        images: uint8 (N, H, W, C), one per mistake.
        mistakes: `[position, true class, predicted class, loss]` per image.
        classes: Name of each class.
    """
    columns = 5
    rows = max(1, -(-len(mistakes) // columns))
    figure = blank(2.0 * columns, 2.15 * rows)
    for axes, image, mistake in zip(np.ravel(figure.subplots(rows, columns)), images, mistakes, strict=False):
        axes.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
        true, predicted = classes[mistake[1]], classes[mistake[2]]
        axes.set_title(f"{true}\npredicted {predicted}", fontsize=8, color=INK)
    for axes in figure.axes:
        axes.axis("off")
    return figure


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
    drawn = {
        "learning_curves": learning_curves(report["history"]),
        "confusion_matrix": confusion_matrix(
            evaluation[split]["confusion"],
            classes,
            f"{split.capitalize()} split, accuracy {evaluation[split]['accuracy']:.2%}",
        ),
    }
    if report["worst"]:
        drawn["worst_mistakes"] = worst_mistakes(images, report["worst"], classes)
    paths = []
    for name, figure in drawn.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=110)
    return paths

"""The figure of a drift check (driver)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.monitor.compare import CLASS_MIX, Shift

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _MUTED, _TRAINED, _SERVED, _ALARM = "#1f2933", "#7b8794", "#b8c4d0", "#2166ac", "#d6604d"
_CLASSES = 30  # more names do not fit


def draw(
    shifts: Sequence[Shift], classes: Sequence[str], threshold: float, logged: int, trained: int
) -> Figure:
    """Draw every index beside the threshold, the class mix, and the statistic that moved most.

    Args:
        shifts: The largest first.
        classes: Names by label.
        threshold: Above which an index is drift.
        logged: Rows compared.
        trained: Rows they are compared with.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    left, right = halves
    _indices(left.subplots(), shifts, threshold)
    upper, lower = right.subplots(2, 1)
    _class_mix(upper, next(shift for shift in shifts if shift.name == CLASS_MIX), classes)
    _most_moved(lower, next(shift for shift in shifts if shift.name != CLASS_MIX))
    names = [f"{trained:,} training rows", f"{logged:,} served rows"]
    right.legend(upper.containers, names, frameon=False, fontsize=8, ncols=2, loc="outside lower right")
    return figure


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=8, length=0)


def _indices(axes: Any, shifts: Sequence[Shift], threshold: float) -> None:
    shown = list(shifts)[::-1]
    values = [shift.psi for shift in shown]
    colors = [_ALARM if value > threshold else _SERVED for value in values]
    axes.barh([shift.name for shift in shown], values, color=colors, height=0.7)
    axes.axvline(threshold, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    limit = max(*values, threshold) * 1.18
    axes.set_xlim(0, limit)
    for at, value in enumerate(values):
        axes.text(
            value + limit * 0.012,
            at,
            f"{value:.{2 if value >= 0.1 else 3}f}",
            va="center",
            fontsize=7.5,
            color=_INK,
        )
    axes.set_xlabel(f"population stability index (drift above {threshold:g})", color=_MUTED, fontsize=8)
    _plain(axes, "How far each statistic has moved")


def _pairs(axes: Any, shift: Shift) -> np.ndarray:
    at = np.arange(len(shift.trained))
    axes.bar(at - 0.2, shift.trained, 0.4, color=_TRAINED)
    axes.bar(at + 0.2, shift.served, 0.4, color=_SERVED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return at


def _class_mix(axes: Any, shift: Shift, classes: Sequence[str]) -> None:
    at = _pairs(axes, shift)
    if len(classes) <= _CLASSES:
        axes.set_xticks(at, classes, rotation=30, ha="right")
    _plain(axes, "Class mix: true in training, predicted in serving")


def _most_moved(axes: Any, shift: Shift) -> None:
    at = _pairs(axes, shift)
    names = ["less", *[""] * (len(at) - 2), "more"]
    axes.set_xticks(at, names)
    axes.set_xlabel("tenths of the training rows, and what lies beyond them", color=_MUTED, fontsize=8)
    _plain(axes, f"Moved most: {shift.name}")

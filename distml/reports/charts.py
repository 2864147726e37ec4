"""Geometry of the report's charts, which the template writes as SVG (driver)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 26
_TICKS = 5


@dataclass(frozen=True)
class Point:
    """A point of a chart and its label."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    points: tuple[Point, ...]

    @property
    def path(self) -> str:
        """The `d` of an SVG path."""
        return " ".join(
            f"{'L' if at else 'M'}{point.x:.1f} {point.y:.1f}" for at, point in enumerate(self.points)
        )


@dataclass(frozen=True)
class Chart:
    """Curves over epochs within `WIDTH` by `HEIGHT`."""

    title: str
    lines: tuple[Line, ...]
    across: tuple[Point, ...]
    up: tuple[Point, ...]


def ticks(low: float, high: float, most: int = _TICKS) -> list[float]:
    """Round numbers that span an interval: at most `most` + 2 of them, the outer ones beyond it."""
    span = (high - low) or abs(high) or 1.0
    raw = span / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(at * step, 12) for at in range(first, max(last, first + 1) + 1)]


def _finite(history: Sequence[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Epochs and values that can be drawn."""
    pairs = [(metrics["epoch"], metrics.get(key)) for metrics in history]
    return [(epoch, float(value)) for epoch, value in pairs if value is not None and math.isfinite(value)]


def curve(history: Sequence[dict[str, Any]], key: str, title: str, share: bool = False) -> Chart:
    """Chart a metric of the training and of the validation rows by epoch.

    Args:
        history: One entry per epoch with `epoch`, `key` and `val_` + `key`.
        key: Of the metric.
        title: Above the chart.
        share: Whether values are shown in percent.
    """
    series = {"training": _finite(history, key), "validation": _finite(history, f"val_{key}")}
    values = [value for pairs in series.values() for _, value in pairs] or [0.0, 1.0]
    scale = ticks(min(values), max(values))
    last = max(metrics["epoch"] for metrics in history)
    first = min(metrics["epoch"] for metrics in history)

    def place(epoch: float, value: float, text: str) -> Point:
        along = (epoch - first) / (last - first) if last > first else 0.5
        above = (value - scale[0]) / (scale[-1] - scale[0])
        x = _LEFT + along * (WIDTH - _LEFT - _RIGHT)
        return Point(x, HEIGHT - _BOTTOM - above * (HEIGHT - _TOP - _BOTTOM), text)

    def text(value: float) -> str:
        return f"{value:.2%}" if share else f"{value:.4f}"

    lines = tuple(
        Line(name, tuple(place(epoch, value, f"epoch {epoch}: {text(value)}") for epoch, value in pairs))
        for name, pairs in series.items()
    )
    step = max(1, round((last - first) / 8))
    across = tuple(place(epoch, scale[0], f"{epoch}") for epoch in range(first, last + 1, step))
    digits = max(0, -math.floor(math.log10(scale[1] - scale[0]) + 1e-9) - 2 * share)
    up = tuple(place(first, value, f"{value:.{digits}{'%' if share else 'f'}}") for value in scale)
    return Chart(title, lines, across, up)

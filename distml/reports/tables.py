"""Tables of the report: classes, time, versions (driver)."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_PACKAGES = ("distml", "ray", "tensorflow-cpu", "tensorflow", "keras", "mlflow", "numpy", "pyarrow")


@dataclass(frozen=True)
class Class:
    """Metrics of a class.

    Args:
        name: Of the class.
        rows: Held-out rows of it.
        recall: Share of them that were predicted as this class.
        precision: Share of the rows predicted as this class that belong to it, None without such rows.
        f1: Harmonic mean of precision and recall.
        mistake: The class that it was most often confused with, and how often; empty without mistakes.
    """

    name: str
    rows: int
    recall: float
    precision: float | None
    f1: float
    mistake: str


def classes(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[Class]:
    """Compute the metrics of each class.

    Args:
        confusion: Counts by true class (row) and predicted class (column).
        names: By label.
    """
    counts = np.asarray(confusion)
    described = []
    for label, name in enumerate(names):
        correct, rows = int(counts[label, label]), int(counts[label].sum())
        predicted = int(counts[:, label].sum())
        wrong = counts[label].copy()
        wrong[label] = 0
        worst = int(wrong.argmax())
        mistake = f"{names[worst]} ({wrong[worst] / rows:.1%})" if wrong[worst] else ""
        f1 = 2 * correct / max(1, rows + predicted)
        precision = correct / predicted if predicted else None
        described.append(Class(name, rows, correct / max(1, rows), precision, f1, mistake))
    return described


@dataclass(frozen=True)
class Part:
    """A part of the wall time: its name, its seconds and its share of all of them."""

    name: str
    seconds: float
    share: float


def times(seconds: Mapping[str, float]) -> list[Part]:
    """Return the parts of the wall time, the longest first; parts below 0.05 s are left out."""
    known = {name: value for name, value in seconds.items() if value >= 0.05}
    total = sum(known.values()) or 1.0
    order = sorted(known, key=lambda name: -known[name])
    return [Part(name, known[name], known[name] / total) for name in order]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    installed = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed

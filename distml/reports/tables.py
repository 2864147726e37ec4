"""What the report says in tables: classes, time, versions (driver)."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_PACKAGES = ("distml", "ray", "tensorflow-cpu", "tensorflow", "keras", "mlflow", "numpy", "pyarrow")


@dataclass(frozen=True)
class Class:
    """How one class fared.

    Args:
        name: Of the class.
        rows: Held-out rows of it.
        recall: Share of them that were found.
        precision: Share right of what was called so, None where nothing was.
        f1: Their harmonic mean.
        mistake: What it was most often taken for, and how often; empty where never.
    """

    name: str
    rows: int
    recall: float
    precision: float | None
    f1: float
    mistake: str


def classes(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[Class]:
    """Describe each class.

    Args:
        confusion: Counts by true class (row) and predicted class (column).
        names: By label.
    """
    counts = np.asarray(confusion)
    found = []
    for label, name in enumerate(names):
        right, rows, called = int(counts[label, label]), int(counts[label].sum()), int(counts[:, label].sum())
        wrong = counts[label].copy()
        wrong[label] = 0
        worst = int(wrong.argmax())
        mistake = f"{names[worst]} ({wrong[worst] / rows:.1%})" if wrong[worst] else ""
        f1 = 2 * right / max(1, rows + called)
        precision = right / called if called else None
        found.append(Class(name, rows, right / max(1, rows), precision, f1, mistake))
    return found


@dataclass(frozen=True)
class Part:
    """A part of the wall time: its name, its seconds and its share of all of them."""

    name: str
    seconds: float
    share: float


def times(seconds: Mapping[str, float]) -> list[Part]:
    """Divide the wall time, the longest part first; parts below 0.05 s are left out."""
    known = {name: value for name, value in seconds.items() if value >= 0.05}
    total = sum(known.values()) or 1.0
    order = sorted(known, key=lambda name: -known[name])
    return [Part(name, known[name], known[name] / total) for name in order]


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter to a run."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

"""Regression: a row has one or several numbers (any process).

A network learns them scaled by mean and deviation of the training rows; its export scales them back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import distml.tasks.quality as quality
from distml.errors import DataError
from distml.tasks.task import Array, Evaluation, Mistake, Outputs, Targets, Task

_ALONE = re.compile(r"\D*?([-+]?(?:\d{1,3}(?:[ ,]\d{3})+[.]\d+|\d+(?:[.,]\d+)?))(?![\d., ]*\d)\D*")
"""The only number of a text, with a decimal comma, between thousands or beside its unit: `$0.5`, `1,5 kg`."""
_BINS = 10
_POINTS = 500
"""Rows in the scatter of true and predicted values."""


@dataclass(frozen=True)
class Regression(Task):
    """Numbers. Final.

    Attributes:
        scale: Mean and deviation of each number over the training rows.
        edges: Inner edges of tenths of the training rows, by number, for `mix`.
    """

    kind = "regression"
    output = "values"
    main = "mae"
    curve = "mae"
    metrics = ("mae", "rmse", "r2")
    guards = ("max_latency_ms",)
    losses_allowed = ("mse", "mae", "huber")
    tensors = {"values": "FP32"}  # noqa: RUF012 - a constant
    wide = ("values",)
    headings = ("values",)
    what = "numbers"

    scale: tuple[tuple[float, float], ...] = ()
    edges: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def encode(
        cls, given: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> tuple[Self, dict[str, Targets]]:
        """Take numbers [N] or [N, K] as float32 [N, K].

        Raises:
            DataError: Values that are not finite numbers, or another count of them in a split.
        """
        numbers = {split: _numbers(values, split) for split, values in given.items()}
        size = numbers["train"].shape[1]
        for split, values in numbers.items():
            if values.shape[1] != size:
                raise DataError(f"{split} has {values.shape[1]} numbers a row, train has {size}.")
        if names is None:
            names = ["value"] if size == 1 else [f"value_{at}" for at in range(size)]
        for split, values in numbers.items():
            _require_exact(names, values, split)
        return cls(tuple(names)), {split: values.astype(np.float32) for split, values in numbers.items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Any:
        """The number in each column, as a tuple."""
        numbers = []
        for column, value in values.items():
            try:
                number = float(value)
            except (TypeError, ValueError):
                number = math.nan
            if not math.isfinite(number):
                remedy = "Correct it, or remove the row."
                if (match := _ALONE.fullmatch(str(value))) and not _DATE.search(str(value)):
                    remedy = f"Write {_decimal(match[1])} alone, without a unit or a comma."
                raise DataError(f"has {value!r} as {column}, which is not a number.", remedy)
            numbers.append(number)
        return tuple(numbers)

    def told(self, label: Any) -> Any:
        """The number that is told, or all of them as a list or separated by |."""
        values = label.split("|") if isinstance(label, str) else label
        values = list(values) if isinstance(values, list | tuple) else [values]
        if len(values) != len(self.names):
            raise DataError(
                f"has {label!r}, {len(values)} numbers and not {len(self.names)}.",
                f"Give {', '.join(self.names[:9])}, separated by |.",
            )
        return np.asarray(self.read(dict(zip(self.names, values, strict=True))), np.float32)

    @classmethod
    def named(cls, columns: Sequence[str]) -> Sequence[str] | None:
        """The columns."""
        return tuple(columns)

    def doubts(self, targets: Targets) -> tuple[str, ...]:
        """Numbers that are all the same, and one that stands for what is missing, as -9999 does."""
        told = []
        for name, column in zip(self.names, targets.T, strict=True):
            values, counts = np.unique(column, return_counts=True)
            if len(values) == 1:
                told.append(f"{name} is {values[0]:g} in all {len(column)} training rows.")
            for at, others in ((0, values[1:]), (-1, values[:-1])):
                gap = np.abs(others - values[at]).min(initial=np.inf)
                if len(others) > 2 and counts[at] > 1 and gap > 2 * np.ptp(others):
                    told.append(
                        f"{name} is {values[at]:g} in {counts[at]} of {len(column)} training rows, far from "
                        f"the others ({others[0]:g} to {others[-1]:g}); remove rows whose value is missing."
                    )
        return tuple(told)

    def fitted(self, targets: Targets) -> Self:
        """Take mean, deviation and tenths from the training rows."""
        values = targets.astype(np.float64)
        scale = tuple((float(column.mean()), float(column.std()) or 1.0) for column in values.T)
        tenths = np.linspace(0, 1, _BINS + 1)[1:-1]
        edges = tuple(tuple(np.unique(np.quantile(column, tenths)).tolist()) for column in values.T)
        return replace(self, scale=scale, edges=edges)

    def strata(self, targets: Targets) -> npt.NDArray[np.int32]:
        """The tenth of the rows in which the first number of a row lies."""
        edges = np.unique(np.quantile(targets[:, 0], np.linspace(0, 1, _BINS + 1)[1:-1]))
        return np.searchsorted(edges, targets[:, 0]).astype(np.int32)

    def contradict(self, targets: Targets) -> bool:
        """Whether a number varies by more than half its deviation over the training rows: twins may vary."""
        return bool((np.ptp(targets, axis=0) > 0.5 * self.unit).any())

    def counts(self, targets: Targets) -> npt.NDArray[np.int64]:
        """All rows, for each number."""
        return np.full(len(self.names), len(targets), np.int64)

    @property
    def mix_names(self) -> tuple[str, ...]:
        """A bin for each tenth of each number."""
        return tuple(
            f"{name} {at + 1}"
            for name, edges in zip(self.names, self.edges, strict=True)
            for at in range(len(edges) + 1)
        )

    @property
    def mixes(self) -> dict[str, slice]:
        """Each number on its own: one of many that drifts is not averaged with the others."""
        ends = np.cumsum([0, *(len(edges) + 1 for edges in self.edges)]).tolist()
        return {f"predicted {name}": slice(*ends[at : at + 2]) for at, name in enumerate(self.names)}

    def mix(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Rows by tenth of each number."""
        counts = [
            np.bincount(np.searchsorted(edges, column), minlength=len(edges) + 1)
            for edges, column in zip(self.edges, targets.T, strict=True)
        ]
        return np.concatenate(counts)

    @property
    def _centre(self) -> npt.NDArray[np.float64]:
        return np.asarray([mean for mean, _ in self.scale] or [0.0], np.float64)

    @property
    def unit(self) -> npt.NDArray[np.float64]:
        """Deviation of each number over the training rows."""
        return np.asarray([deviation for _, deviation in self.scale] or [1.0], np.float64)

    def judged_on(self, data: Task) -> Self:
        """See `Task.judged_on`: errors count in the deviations of those data."""
        return replace(self, scale=data.scale) if isinstance(data, Regression) else self

    def activate(self, logits: Array) -> Outputs:
        """The numbers in their own units, float32 [N, K]."""
        return np.asarray(np.asarray(logits, np.float64) * self.unit + self._centre, np.float32)

    def decide(self, outputs: Outputs) -> Targets:
        """The outputs themselves."""
        return outputs

    def row_losses(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Mean squared error of each row, in deviations."""
        scaled = (outputs.astype(np.float64) - targets) / self.unit
        return np.asarray(np.square(scaled).mean(1))

    def agree(self, outputs: Outputs, others: Outputs) -> npt.NDArray[np.bool_]:
        """Whether every number differs by at most a twentieth of its deviation."""
        return np.asarray((np.abs(outputs - others) <= 0.05 * self.unit).all(1))

    def correct(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """1 for no error, 0 from an error of one deviation on."""
        return np.asarray(np.clip(1 - np.abs(outputs - targets) / self.unit, 0, 1).mean(1), np.float64)

    def tally(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Rows; of each number the sums of absolute and squared errors, of values and of their squares."""
        true = (targets.astype(np.float64) - self._centre) / self.unit
        error = (outputs.astype(np.float64) - targets) / self.unit
        sums = [np.abs(error), error**2, true, true**2]
        return np.concatenate([[len(targets)], *(values.sum(0) for values in sums)])

    def tallied(self, tally: npt.NDArray[np.float64]) -> dict[str, float]:
        """Mean absolute error, root mean squared error and explained variance.

        Errors of one number are in its own unit. Of several, whose units differ, each is divided by its
        deviation over the training rows, and each metric is the mean. Of a number that does not vary in these
        rows nothing can be explained: it counts 0, or 1 without an error, as in scikit-learn's `r2_score`.
        """
        rows = max(1.0, float(tally[0]))
        absolute, squared, total, squares = tally[1:].reshape(4, -1)
        variance = squares - total**2 / rows
        varies = variance > quality.LEAST * rows
        explained = 1 - np.where(varies, squared / np.where(varies, variance, 1.0), squared > quality.LEAST)
        unit = self.unit if len(self.names) == 1 else 1.0
        return {
            "mae": float(np.mean(absolute / rows * unit)),
            "rmse": float(np.mean(np.sqrt(squared / rows) * unit)),
            "r2": float(np.mean(explained)),
        }

    def evaluate(self, targets: Targets, outputs: Outputs, losses: Array) -> Evaluation:
        """Errors of each number, and some rows' true and predicted values."""
        table: dict[str, dict[str, float | None]] = {}
        scatter = {}
        rows = np.unique(np.linspace(0, len(targets) - 1, min(_POINTS, len(targets))).astype(int))
        for at, name in enumerate(self.names):
            error = outputs[:, at].astype(np.float64) - targets[:, at]
            table[name] = {
                "mean absolute error": float(np.abs(error).mean()),
                "median absolute error": float(np.median(np.abs(error))),
                "95th percentile": float(np.quantile(np.abs(error), 0.95)),
                "mean error": float(error.mean()),
            }
            pairs = (targets[rows, at].astype(np.float64), outputs[rows, at].astype(np.float64))
            scatter[name] = quality.curve(pairs, _POINTS)
        return Evaluation(
            self.measure(targets, outputs) | {"loss": float(np.mean(losses))},
            {name: float(row["mean absolute error"] or 0.0) for name, row in table.items()},
            table=table,
            scatter=scatter,
            each="mae",
            unit="" if len(self.names) == 1 else "in deviations",
        )

    def mistakes(self, targets: Targets, outputs: Outputs, losses: Array, count: int = 25) -> list[Mistake]:
        """The rows with the largest loss."""
        order = np.argsort(-losses, kind="stable")[:count]
        return [
            Mistake(int(row), self.text(targets[row]), self.text(outputs[row]), float(losses[row]))
            for row in order
        ]

    def text(self, target: Any) -> str:
        """The numbers, in their order."""
        return ", ".join(f"{float(value):.4g}" for value in target)

    def focus(self, outputs: npt.NDArray[np.float32], target: Any = None) -> int:
        """The first number; where numbers are known, the one that is furthest from them in deviations."""
        return 0 if target is None else int((np.abs(outputs - target) / self.unit).argmax())

    def influence(self, values: Array) -> Array:
        """Contributions either way: a number has no direction that is for it."""
        return np.abs(values)

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The numbers, in their order and by name."""
        # By way of the text, so that a number has the same digits in both.
        return [
            {
                "values": row,
                "named": {name: float(str(value)) for name, value in zip(self.names, row, strict=True)},
            }
            for row in outputs
        ]

    def tensor(self, name: str, outputs: Outputs) -> Any:
        """See `Task.tensor`."""
        return outputs

    def logged(self, outputs: Outputs) -> dict[str, Array]:
        """The numbers."""
        return {"values": outputs}

    def columns(self, outputs: Outputs) -> dict[str, tuple[list[Any], Any]]:
        """A column for each number."""
        return {
            name: (outputs[:, at].tolist(), pa.float32()) for at, name in enumerate(map(_column, self.names))
        }

    def described(self, outputs: npt.NDArray[np.float32], top: int) -> dict[str, Any]:
        """The numbers by name."""
        return {"values": dict(zip(self.names, (round(float(value), 6) for value in outputs), strict=True))}

    def shown(self, prediction: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task.shown`."""
        return (", ".join(f"{name} {value:.4g}" for name, value in prediction["values"].items()),)


_DATE = re.compile(r"\d[-/:]\d")


def _decimal(text: str) -> str:
    """A number with a decimal point and nothing between its thousands; both where a comma may be either."""
    if re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text):
        return f"{text.replace(',', '.')} or {text.replace(',', '')}"
    return re.sub(r"[ ,]", "", text) if "." in text else text.replace(",", ".")


def _column(name: str) -> str:
    return f"predicted_{name}"


_MOST_LOST = 0.01
"""Of a deviation, that 32 bits may round away."""


def _require_exact(names: Sequence[str], numbers: npt.NDArray[np.float64], split: str) -> None:
    """Reject numbers that 32 bits cannot tell apart, as points in time in seconds."""
    for name, column in zip(names, numbers.T, strict=True):
        largest = float(np.abs(column).max(initial=0.0))
        if largest > float(np.finfo(np.float32).max):
            raise DataError(
                f"{name} is {largest:g} in a row of {split}, which 32 bits do not hold.",
                "Divide the column by a constant, or take its logarithm.",
            )
        lost = float(np.abs(column.astype(np.float32) - column).max(initial=0.0))
        if lost > _MOST_LOST * float(column.std()) and np.ptp(column):
            raise DataError(
                f"{name} lies around {column.mean():.6g} in {split} and varies by {column.std():.3g}: "
                f"32 bits round it by up to {lost:.3g}.",
                "Subtract a constant from the column, as its smallest value.",
            )


def _numbers(values: Array, split: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.asarray(values.tolist() if values.dtype.kind == "O" else values, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"the {split} targets are not numbers, like {str(values.ravel()[0])!r}.",
            "Check data.label_column.",
        ) from None
    numbers = numbers[:, None] if numbers.ndim == 1 else numbers
    if numbers.ndim != 2:
        raise DataError(f"the {split} targets are {numbers.shape}, not [N] or [N, K].")
    if not np.isfinite(numbers).all():
        raise DataError(f"row {int(np.argmin(np.isfinite(numbers).all(1)))} of {split} has no finite number.")
    return numbers

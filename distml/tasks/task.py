"""`Task`, the interface of all tasks: encoding targets, decoding outputs, evaluation (any process).

Targets are int32 [N] where a row has one class, float32 [N, K] where it has several values. Outputs are
float32 [N, K]: what an exported model returns for images.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

import distml.tasks.quality as quality
from distml.errors import ConfigError, ModelError

Targets = npt.NDArray[Any]
Outputs = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
"""What spreadsheets drop from `007`."""


def is_absent(value: Any) -> bool:
    """Whether a field of labels holds nothing: it is empty, or what pandas writes for missing values."""
    return value is None or value != value or value in ("", "nan", "NaN", [])


class Mistake(NamedTuple):
    """A row of a held-out split that the model predicts wrongly, in words."""

    row: int
    true: str
    predicted: str
    loss: float


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a model on a held-out split.

    Attributes:
        metrics: Values by name, without the split's prefix.
        per_class: By the name of a class, a label or a number: recall, F1 or mean absolute error.
        confusion: Counts by true class (row) and predicted class (column), None where rows have no one class.
        table: What else is known of each class, by its name and the name of the column.
        curves: Precision and recall of each label at falling thresholds.
        reliability: Mean confidence, share correct and rows by bin of confidence.
        scatter: True and predicted values of some rows, by the name of the number.
        each: Name of the metric that `per_class` holds.
        own: Values of `evaluate.metrics`, by the names of the functions.
        unit: Of the main metric where `per_class` has other units, in words.
    """

    metrics: Mapping[str, float]
    per_class: Mapping[str, float]
    confusion: list[list[int]] | None = None
    table: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    curves: Mapping[str, list[tuple[float, ...]]] = field(default_factory=dict)
    reliability: list[tuple[float, float, int]] = field(default_factory=list)
    scatter: Mapping[str, list[tuple[float, ...]]] = field(default_factory=dict)
    each: str = "accuracy"
    own: Mapping[str, float] = field(default_factory=dict)
    unit: str = ""

    @property
    def main(self) -> str:
        """Name of the metric that stands for all: the first besides the loss."""
        return next((name for name in self.metrics if name != "loss"), "loss")

    def to_json(self) -> dict[str, Any]:
        """One dictionary, as `report.json` holds it."""
        told = asdict(self)
        metrics = told.pop("metrics")
        return {**metrics, **told, "main": self.main}


@dataclass(frozen=True)
class Task(ABC):
    """A task and the names of what is predicted. Abstract.

    Attributes:
        names: Of classes, labels or numbers, in the order of the outputs.
    """

    kind: ClassVar[str]
    output: ClassVar[str] = "probabilities"
    """Name of the outputs in an export and in the protocols."""
    main: ClassVar[str]
    """Metric by which models are compared where the user names none."""
    curve: ClassVar[str]
    """Metric that is measured on every training step."""
    metrics: ClassVar[tuple[str, ...]]
    """Metrics of an epoch's validation, sums over rows; they may choose the best epoch."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Metrics that need all rows at once, so that they are known at the end of a run alone."""
    guards: ClassVar[tuple[str, ...]] = ("min_recall", "max_ece", "max_latency_ms")
    """Keys of `promote.guards` that the task can be judged by."""
    losses_allowed: ClassVar[tuple[str, ...]]
    """Losses by name; the first is the default."""
    tensors: ClassVar[Mapping[str, str]]
    """Names and datatypes of what the Open Inference Protocol returns; the first holds the outputs."""
    wide: ClassVar[tuple[str, ...]]
    """Those of them that have a value for each of `names`."""
    headings: ClassVar[tuple[str, ...]]
    """Of the columns in which `distml predict` shows a prediction."""
    scalar: ClassVar[bool] = False
    """Whether a row has one target, so that a column of a source holds it as it is."""
    weighted: ClassVar[Literal["rows", "labels", "nothing"]] = "nothing"
    """What `train.class_weights` multiply in the loss."""
    flags: ClassVar[bool] = False
    """Whether columns of 0 and 1 are labels where a table names no others."""
    what: ClassVar[str]
    """What `names` are, in the plural."""

    names: tuple[str, ...]

    @classmethod
    def metric(cls, wanted: str) -> str:
        """Name of a metric of the task, without the prefix of a split: `auto` is the main one.

        Raises:
            ConfigError: The task has no such metric.
        """
        name = cls.main if wanted == "auto" else quality.plain(wanted)
        if name not in (*cls.metrics, *cls.measured, "loss"):
            known = ", ".join((*cls.metrics, *cls.measured, "loss"))
            raise ConfigError(f"{cls.kind} has no metric {wanted}.", f"Its metrics are {known}.")
        return name

    # What a task is stored as

    def spec(self) -> dict[str, Any]:
        """What describes the task beside its names, as plain values."""
        stored = {each.name for each in fields(self) if each.metadata.get("stored", True)} - {"names"}
        told = {key: value for key, value in asdict(self).items() if key in stored}
        return {"kind": self.kind, **json.loads(json.dumps(told))}

    # Targets

    @classmethod
    @abstractmethod
    def encode(
        cls, given: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> tuple[Self, dict[str, Targets]]:
        """Turn what a source says about its rows into targets.

        Args:
            given: By split, with `train` among them.
            names: Of what is predicted, where the source knows them.

        Raises:
            DataError: Values that the task cannot use.
        """

    @classmethod
    @abstractmethod
    def read(cls, values: Mapping[str, Any]) -> Any:
        """The label of a row of a table, as `encode` takes it.

        Args:
            values: Of the columns that hold labels, by their names.

        Raises:
            DataError: A value is missing or no label; the message follows the name of the row.
        """

    @abstractmethod
    def told(self, label: Any) -> Any:
        """The target of a row whose label was told later, as a text or as `read` gives it.

        Raises:
            DataError: It is none; the message follows the name of the file.
        """

    @classmethod
    def named(cls, columns: Sequence[str]) -> Sequence[str] | None:
        """Names of what is predicted where columns of a table have been read; None where the labels say."""
        return None

    def empty(self, rows: int) -> Targets:
        """Room for the targets of so many rows, float32 [N, K]."""
        return np.empty((rows, len(self.names)), np.float32)

    def doubts(self, targets: Targets) -> tuple[str, ...]:
        """What is implausible about the targets of the training rows, a sentence each."""
        return ()

    def fitted(self, targets: Targets) -> Self:
        """The task with what it takes from the targets of the training rows."""
        return self

    @abstractmethod
    def strata(self, targets: Targets) -> npt.NDArray[np.int32]:
        """A number for each row; splits and samplers keep the shares of equal numbers."""

    @abstractmethod
    def counts(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Rows by name, [K]."""

    @property
    def mix_names(self) -> tuple[str, ...]:
        """Names of the bins of `mix`."""
        return self.names

    @property
    def mixes(self) -> dict[str, slice]:
        """The comparisons that drift makes of the bins of `mix`, by what they are called."""
        return {"class mix": slice(None)}

    def mix(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Histogram of targets or of decisions, to compare training and serving."""
        return self.counts(targets)

    def contradict(self, targets: Targets) -> bool:
        """Whether targets of pictures that show the same cannot all be right."""
        return bool((targets != targets[:1]).any())

    # Outputs

    @abstractmethod
    def activate(self, logits: Array) -> Outputs:
        """Outputs of a network's raw outputs [N, K], as its export computes them."""

    @abstractmethod
    def decide(self, outputs: Outputs) -> Targets:
        """Predictions, in the form of targets."""

    @abstractmethod
    def row_losses(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """The plain loss of each row, [N]."""

    def agree(self, outputs: Outputs, others: Outputs) -> npt.NDArray[np.bool_]:
        """Whether two models predict the same, by row."""
        same = self.decide(outputs) == self.decide(others)
        return np.asarray(same if same.ndim == 1 else same.all(1))

    def correct(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """How right each prediction is, from 0 to 1."""
        return np.asarray(self.decide(outputs) == targets, np.float64)

    @property
    def unit(self) -> npt.NDArray[np.float64]:
        """Size of a difference of outputs that is not small, [K] or []: by it tolerances are measured."""
        return np.ones(())

    def difference(self, outputs: Outputs, others: Outputs) -> float:
        """The largest difference of outputs, in units."""
        return float(np.max(np.abs(outputs - others) / self.unit, initial=0.0))

    def check_outputs(self, outputs: Outputs, what: str) -> None:
        """Check that outputs can be what the task predicts.

        Raises:
            ModelError: They cannot.
        """
        if not np.isfinite(outputs).all():
            raise ModelError(
                f"{what} gives numbers that are not finite for its own example.", "Train it again."
            )

    # Evaluation

    @abstractmethod
    def tally(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Sums over rows from which `tallied` computes metrics; those of parts add up to those of all."""

    @abstractmethod
    def tallied(self, tally: npt.NDArray[np.float64]) -> dict[str, float]:
        """Metrics of summed tallies."""

    def measure(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """Every metric of quality on rows, by name."""
        return {
            "loss": float(np.mean(self.row_losses(targets, outputs))),
            **self.tallied(self.tally(targets, outputs)),
        }

    def value(self, name: str, targets: Targets, outputs: Outputs) -> float:
        """One metric on rows."""
        if name == "loss":
            return float(np.mean(self.row_losses(targets, outputs)))
        if name in self.metrics:
            return self.tallied(self.tally(targets, outputs))[name]
        return self.measure(targets, outputs)[name]

    def interval(self, targets: Targets, outputs: Outputs) -> tuple[float, float]:
        """The 95 % interval of the main metric on rows, by bootstrap."""
        return quality.interval(
            lambda rows: self.value(self.main, targets[rows], outputs[rows]), len(targets)
        )

    def configured(self, top_k: int) -> Self:
        """The task as it is measured by a configuration, see `evaluate.top_k`."""
        return self

    def judged_on(self, data: Task) -> Self:
        """The task as models are compared on data that need not be their training data.

        Args:
            data: The task of their manifest.
        """
        return self

    def recalls(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """Recall by class or label that has rows, {} where there is no such thing."""
        return {}

    @abstractmethod
    def evaluate(self, targets: Targets, outputs: Outputs, losses: Array) -> Evaluation:
        """Summarise predictions on a split; `losses` are those of its rows, [N]."""

    def tuned(self, targets: Targets, logits: Array, calibrate: bool) -> Self:
        """The task with what is chosen on validation rows: temperature and thresholds."""
        return self

    @abstractmethod
    def mistakes(self, targets: Targets, outputs: Outputs, losses: Array, count: int = 25) -> list[Mistake]:
        """The worst mistakes, the largest loss first."""

    @abstractmethod
    def text(self, target: Any) -> str:
        """The target of a row, in words."""

    # Explanations

    @abstractmethod
    def focus(self, outputs: npt.NDArray[np.float32], target: Any = None) -> int:
        """Which output of one image, outputs [K], is explained; `target` where it is known."""

    def influence(self, values: Array) -> Array:
        """What counts of contributions to an output: those for it, see `Regression`."""
        return np.maximum(values, 0)

    # Predictions for people and programs

    @abstractmethod
    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """What the endpoint's own protocol says about each image."""

    @abstractmethod
    def tensor(self, name: str, outputs: Outputs) -> Any:
        """The tensor of that name, see `tensors`: an array, or a list of texts."""

    @abstractmethod
    def logged(self, outputs: Outputs) -> dict[str, Array]:
        """Columns of the log of requests, [N] or [N, K]; the first is what `mix` counts."""

    @abstractmethod
    def columns(self, outputs: Outputs) -> dict[str, tuple[list[Any], Any]]:
        """Columns of a batch prediction: values and Arrow type by name."""

    @abstractmethod
    def described(self, outputs: npt.NDArray[np.float32], top: int) -> dict[str, Any]:
        """What `distml predict` says about an image; outputs are [K]."""

    @abstractmethod
    def shown(self, prediction: Mapping[str, Any]) -> tuple[str, ...]:
        """What `described` returned, as texts for the columns of `headings`."""

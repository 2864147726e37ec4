"""Classification: a row has one class, outputs are probabilities that sum to one (any process)."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import distml.tasks.quality as quality
from distml.errors import ConfigError, DataError, ModelError
from distml.tasks.task import LEADING_ZEROS, Array, Evaluation, Mistake, Outputs, Targets, Task, is_absent

TWO_CLASSES = "Give pictures of at least two, each class in a folder of its own or named in a table."
"""What to do about data of one class."""
_KINDS = 20
"""Classes that may well be called by numbers."""
_FRACTIONS = 5
"""The same, where some are no whole numbers."""
_NUMBER = re.compile(r"[-+]?\d+(?:[.]\d+)?(?:e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Classification(Task):
    """One class of several. Final.

    Attributes:
        temperature: Divides the logits; fitted on validation rows where `evaluate.calibrate` is set.
        top: Of how many classes the most probable ones are counted as near.
    """

    kind = "classification"
    main = "accuracy"
    curve = "accuracy"
    metrics = ("accuracy", "macro_f1", "balanced_accuracy", *(f"top_{most}" for most in quality.TOP))
    measured = ("ece",)
    losses_allowed = ("cross_entropy", "focal")
    tensors = {"probabilities": "FP32", "label": "INT32", "class": "BYTES"}  # noqa: RUF012 - a constant
    wide = ("probabilities",)
    headings = ("class", "probability", "then")
    scalar = True
    weighted = "rows"
    what = "classes"

    temperature: float = 1.0
    top: int = field(default=5, metadata={"stored": False})

    @classmethod
    def encode(
        cls, given: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> tuple[Self, dict[str, Targets]]:
        """Number the labels of all splits by one mapping, int32 [N].

        Whole floats count as integers, true and false as texts. Integers 0 to K-1 keep their number where K
        `names` are given. Otherwise the sorted distinct labels of the training rows, texts or integers,
        become the classes.

        Args:
            given: Labels [N] by split, with `train` among them.
            names: Class names by label.

        Raises:
            DataError: Labels of another type, fewer than two classes, or a label the classes do not have.
        """
        given = {split: _plain(labels) for split, labels in given.items()}
        kinds = "U" if given["train"].dtype.kind == "U" else "iu"
        for split, labels in given.items():
            if labels.ndim != 1 or labels.dtype.kind not in kinds:
                expected = "texts, as in train" if kinds == "U" else "integers"
                remedy = (
                    "Set task.kind to multilabel or regression where a row has several labels or numbers."
                )
                if labels.dtype.kind == "f" and labels.ndim == 1:
                    remedy = "Set task.kind to regression if they are amounts."
                raise DataError(
                    f"the {split} labels are {labels.dtype} {labels.shape}, not {expected}.", remedy
                )
        known = np.unique(given["train"])
        if names is not None:
            known = np.asarray(names) if kinds == "U" else np.arange(len(names))
        classes = tuple(str(name) for name in (known if names is None else names))
        if len(set(classes)) != len(classes) or len(classes) < 2:
            if len(classes) > 1:
                twice = next(name for name in classes if classes.count(name) > 1)
                raise DataError(f"the class {twice} appears twice among the names.", "Give each name once.")
            raise DataError(
                f"there is only one class, {classes[0]}." if classes else "there are no classes.",
                TWO_CLASSES,
            )
        return cls(classes), {split: _number(labels, known, split) for split, labels in given.items()}

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Any:
        """The text of the one column."""
        (column, label), *others = values.items()
        if others:
            raise DataError(
                f"has several labels, in {', '.join(values)}.",
                "Name one column in data.label_column, or set task.kind to multilabel or regression.",
            )
        if isinstance(label, list) and len(label) < 2:
            label = label[0] if label else None
        if isinstance(label, dict):
            raise DataError(f"has {str(label)[:80]} for a label.", "Write its name, a text, in its place.")
        if isinstance(label, list):
            told = f"has several labels, {str(label)[:80]}."
            raise DataError(told, "Give one, or set task.kind to multilabel.")
        if is_absent(label):
            raise DataError(f"has no {column}.", "Fill it in, or remove the row.")
        if isinstance(label, bool):
            return "true" if label else "false"
        return f"{label:.0f}" if isinstance(label, float) and label.is_integer() else str(label)

    def told(self, label: Any) -> Any:
        """The number of a class that is told by its name or its number."""
        text = self.read({"label": label})
        if text in self.names:
            return np.int32(self.names.index(text))
        if text.isdigit() and int(text) < len(self.names):
            return np.int32(text)
        raise DataError(
            f"has the label {text[:80]!r}, which is not a class: {', '.join(self.names[:9])}.",
            "Write the classes as /model names them, or their numbers.",
        )

    def doubts(self, targets: Targets) -> tuple[str, ...]:
        """Many classes that are numbers, which are amounts, and -1 among others, which marks rows without."""
        if not all(_NUMBER.fullmatch(name) for name in self.names):
            return ()
        if (
            "-1" in self.names
            and len(self.names) > 2
            and sum(name.startswith("-") for name in self.names) == 1
        ):
            count = np.count_nonzero(targets == self.names.index("-1"))
            return (
                f"{count} of {len(targets)} training rows have the label -1, which public sets give to rows "
                "without one; remove the rows if it is no class.",
            )
        kinds = _KINDS if all("." not in name for name in self.names) else _FRACTIONS
        if len(self.names) <= max(kinds, len(targets) / 10):
            return ()
        return (
            f"the {len(self.names)} classes of {len(targets)} training rows are numbers, like "
            f"{self.names[0]} and {self.names[-1]}; set task.kind to regression if they are amounts.",
        )

    def empty(self, rows: int) -> Targets:
        """Room for the targets of so many rows, int32 [N]."""
        return np.empty(rows, np.int32)

    def strata(self, targets: Targets) -> npt.NDArray[np.int32]:
        """The class of each row."""
        return np.asarray(targets, np.int32)

    def counts(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Rows of each class."""
        return np.asarray(np.bincount(targets, minlength=len(self.names)), np.int64)

    def activate(self, logits: Array) -> Outputs:
        """Softmax, float32 [N, K]."""
        scaled = np.asarray(logits, np.float64) / self.temperature
        powers = np.exp(scaled - scaled.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)

    def decide(self, outputs: Outputs) -> Targets:
        """The most probable class, int32 [N]."""
        return np.asarray(outputs.argmax(1), np.int32)

    def row_losses(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Cross-entropy of each row."""
        right = outputs[np.arange(len(targets)), targets].astype(np.float64)
        return np.asarray(-np.log(np.clip(right, quality.LEAST, 1.0)))

    def check_outputs(self, outputs: Outputs, what: str) -> None:
        """See `Task.check_outputs`."""
        if (
            not np.isfinite(outputs).all()
            or not np.allclose(outputs.sum(1), 1, atol=1e-3)
            or (outputs < 0).any()
        ):
            raise ModelError(f"{what} gives no probabilities for its own example.", "Train it again.")

    def tally(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Hits, rows and predictions of each class, and rows with their class among the first `top`."""
        size, predicted = len(self.names), self.decide(outputs)
        hits = np.bincount(targets[predicted == targets], minlength=size)
        right = outputs[np.arange(len(targets)), targets]
        near = np.sum((outputs > right[:, None]).sum(1) < self.top)
        actual, given = np.bincount(targets, minlength=size), np.bincount(predicted, minlength=size)
        return np.append(np.concatenate([hits, actual, given]), near).astype(np.float64)

    def tallied(self, tally: npt.NDArray[np.float64]) -> dict[str, float]:
        """Accuracy, macro-F1 and balanced accuracy; top-k accuracy where there are more classes than that."""
        hits, actual, predicted = tally[:-1].reshape(3, -1)
        rows = max(1.0, float(actual.sum()))
        metrics = {
            "accuracy": float(hits.sum() / rows),
            "macro_f1": quality.mean_present(quality.f1(hits, actual, predicted), actual + predicted),
            "balanced_accuracy": quality.mean_present(hits / np.maximum(1, actual), actual),
        }
        return metrics | ({f"top_{self.top}": float(tally[-1] / rows)} if len(hits) > self.top else {})

    def measure(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """See `Task.measure`; with the calibration error."""
        hits = self.decide(outputs) == targets
        return super().measure(targets, outputs) | {"ece": quality.calibration(outputs.max(1), hits)[0]}

    def configured(self, top_k: int) -> Self:
        """See `Task.configured`."""
        return replace(self, top=top_k)

    def interval(self, targets: Targets, outputs: Outputs) -> tuple[float, float]:
        """Wilson's interval of the accuracy, which holds for few rows, too."""
        return quality.wilson(self.decide(outputs) == targets)

    def recalls(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """See `Task.recalls`."""
        hits, actual, _ = self.tally(targets, outputs)[: 3 * len(self.names)].reshape(3, -1)
        return quality.recalls(self.names, hits, actual)

    def evaluate(self, targets: Targets, outputs: Outputs, losses: Array) -> Evaluation:
        """Recall, precision and F1 of each class, the confusion matrix and the calibration."""
        size, predicted = len(self.names), self.decide(outputs)
        confusion = np.zeros((size, size), np.int64)
        np.add.at(confusion, (targets, predicted), 1)
        _, bins = quality.calibration(outputs.max(1), predicted == targets)
        curves = {}
        if size <= _DRAWN:
            for label, name in enumerate(self.names):
                points = quality.precision_recall(targets == label, outputs[:, label])[:2]
                curves[name] = quality.curve(points)
        return Evaluation(
            self.measure(targets, outputs) | {"loss": float(np.mean(losses))},
            quality.recalls(self.names, np.diag(confusion), confusion.sum(1)),
            confusion.tolist(),
            curves=curves,
            reliability=bins,
        )

    def tuned(self, targets: Targets, logits: Array, calibrate: bool) -> Self:
        """Fit the temperature."""
        if not calibrate:
            return self

        def loss(temperature: float) -> float:
            return float(np.mean(_cross_entropy(logits / temperature, targets)))

        return replace(self, temperature=round(quality.temperature(loss), 6))

    def mistakes(self, targets: Targets, outputs: Outputs, losses: Array, count: int = 25) -> list[Mistake]:
        """The most confident mistakes."""
        predicted = self.decide(outputs)
        wrong = np.flatnonzero(targets != predicted)
        order = wrong[np.argsort(-losses[wrong], kind="stable")][:count]
        return [
            Mistake(int(row), self.names[targets[row]], self.names[predicted[row]], float(losses[row]))
            for row in order
        ]

    def text(self, target: Any) -> str:
        """The name of the class."""
        return self.names[int(target)]

    def focus(self, outputs: npt.NDArray[np.float32], target: Any = None) -> int:
        """The class that is predicted."""
        return int(outputs.argmax())

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """Class, label, probability, and the probabilities of all classes."""
        labels, best = outputs.argmax(1).tolist(), outputs.max(1)
        return [
            {
                "class": self.names[label],
                "label": label,
                "probability": best[index],
                "probabilities": outputs[index],
            }
            for index, label in enumerate(labels)
        ]

    def tensor(self, name: str, outputs: Outputs) -> Any:
        """See `Task.tensor`."""
        if name == self.output:
            return outputs
        labels = outputs.argmax(1).astype(np.int32)
        return labels if name == "label" else [self.names[label] for label in labels]

    def logged(self, outputs: Outputs) -> dict[str, Array]:
        """The label, its probability and all probabilities."""
        return {
            "label": outputs.argmax(1).astype(np.int32),
            "probability": outputs.max(1).astype(np.float32),
            "probabilities": outputs,
        }

    def columns(self, outputs: Outputs) -> dict[str, tuple[list[Any], Any]]:
        """Label, class, probability and probabilities."""
        labels = outputs.argmax(1)
        return {
            "label": (labels.tolist(), pa.int32()),
            "class": ([self.names[label] for label in labels], pa.string()),
            "probability": (outputs.max(1).tolist(), pa.float32()),
            # Arrow cannot read nulls of a fixed length back.
            "probabilities": (outputs.tolist(), pa.list_(pa.float32())),
        }

    def described(self, outputs: npt.NDArray[np.float32], top: int) -> dict[str, Any]:
        """The most probable classes."""
        best = ranked(self.names, outputs, top)
        return {**best[0], "top": best}

    def shown(self, prediction: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task.shown`."""
        then = ", ".join(f"{other['class']} {other['probability']:.3f}" for other in prediction["top"][1:])
        return prediction["class"], f"{prediction['probability']:.3f}", then


_DRAWN = 40
"""More classes have no precision-recall curves in the report."""


def ranked(names: Sequence[str], outputs: npt.NDArray[np.float32], top: int) -> list[dict[str, Any]]:
    """The most probable names of one image, outputs [K]."""
    order = np.argsort(-outputs, kind="stable")[:top]
    return [
        {"class": names[label], "label": int(label), "probability": round(float(outputs[label]), 6)}
        for label in order
    ]


def _cross_entropy(logits: Array, targets: Targets) -> npt.NDArray[np.float64]:
    shifted = logits - logits.max(1, keepdims=True)
    norm = np.log(np.exp(shifted).sum(1))
    return np.asarray(norm - shifted[np.arange(len(targets)), targets], np.float64)


def _plain(labels: Array) -> Array:
    """Turn whole floats into integers, truth values and other texts into texts."""
    if labels.dtype.kind == "f" and labels.size and (labels == np.rint(labels)).all():
        return labels.astype(np.int64)
    if labels.dtype.kind == "b":
        return np.where(labels, "true", "false")
    if labels.dtype.kind in "OT" and all(isinstance(label, str) for label in labels.ravel()):
        labels = labels.astype(str)
    if labels.dtype.kind == "U" and not all(map(str.isascii, labels.ravel().tolist())):
        plain = [unicodedata.normalize("NFC", label) for label in labels.ravel().tolist()]
        return np.array(plain, dtype=str).reshape(labels.shape)  # macOS writes names decomposed
    return labels


def spelling(name: str) -> str:
    """Return a name in lower case, without leading zeros and what stands between words."""
    return re.sub(r"[\W_]+", "", LEADING_ZEROS.sub("", name.casefold()))


def _number(labels: Array, known: Array, split: str) -> npt.NDArray[np.int32]:
    order = np.argsort(known)
    numbers = order[np.searchsorted(known, labels, sorter=order).clip(max=len(known) - 1)]
    wrong = known[numbers] != labels
    if wrong.any():
        label = str(labels[wrong][0])
        near = next((str(name) for name in known if spelling(str(name)) == spelling(label)), None)
        raise DataError(
            f"the {split} label {label} is not among the classes" + (f"; {near} is." if near else "."),
            f"Name the classes of {split} as those of the training rows are, or leave {split} out.",
        )
    return np.asarray(numbers, np.int32)


ClassWeights = str | Mapping[str, float] | None


def check_weights(wanted: ClassWeights, classes: Sequence[str]) -> None:
    """Check that the data have every class that is given a weight.

    Raises:
        ConfigError: They lack one.
    """
    for name in wanted if isinstance(wanted, Mapping) else ():
        if name not in classes:
            near = difflib.get_close_matches(name, classes, 1)
            raise ConfigError(
                f"train.class_weights names {name!r}, which is not a class of the data.",
                f"Did you mean {near[0]}?" if near else f"Classes are {', '.join(classes[:20])}.",
            )


def class_weights(
    wanted: ClassWeights, classes: Sequence[str], counts: npt.NDArray[np.int64]
) -> tuple[float, ...]:
    """Return the weight of each class, () where all rows have equal weight.

    Args:
        wanted: `balanced` gives each class the same sum of weights, and all rows a mean weight of one; a
            mapping gives weights by name and one to the rest.
        classes: Names by label.
        counts: Training rows of each class.
    """
    if wanted is None:
        return ()
    if isinstance(wanted, Mapping):
        return tuple(float(wanted.get(name, 1.0)) for name in classes)
    present = np.count_nonzero(counts)
    return tuple(float(counts.sum() / (present * count)) if count else 1.0 for count in counts)

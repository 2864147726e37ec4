"""Multilabel: a row has any number of labels, outputs are a probability for each (any process)."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

import distml.tasks.quality as quality
from distml.errors import DataError, ModelError
from distml.tasks.classification import ranked
from distml.tasks.task import Array, Evaluation, Mistake, Outputs, Targets, Task

_LOG = logging.getLogger(__name__)

NONE = "none"
"""What a row without a label is called."""
_MANY = ("1 label", "2 labels", "3 labels", "4 or more labels")


@dataclass(frozen=True)
class Multilabel(Task):
    """Any number of labels. Final.

    Attributes:
        thresholds: Probability from which a label is given, by label, chosen on validation rows; () is 0.5.
        temperature: Divides the logits; fitted on validation rows where `evaluate.calibrate` is set.
    """

    kind = "multilabel"
    main = "macro_f1"
    curve = "label_accuracy"
    metrics = ("macro_f1", "micro_f1", "label_accuracy", "exact_match")
    measured = ("average_precision", "ece")
    losses_allowed = ("binary_cross_entropy", "focal")
    tensors = {"probabilities": "FP32", "labels": "BOOL"}  # noqa: RUF012 - a constant
    wide = ("probabilities", "labels")
    headings = ("labels", "probabilities")
    flags = True
    weighted = "labels"
    what = "labels"

    thresholds: tuple[float, ...] = ()
    temperature: float = 1.0

    @classmethod
    def encode(
        cls, given: Mapping[str, Array], names: Sequence[str] | None = None
    ) -> tuple[Self, dict[str, Targets]]:
        """Turn lists of labels, or a column of 0 and 1 for each, into float32 [N, K] of 0 and 1.

        Args:
            given: By split, with `train` among them: [N] of lists of texts, or numbers [N, K] of 0 and 1.
            names: Label names in the order of the columns.

        Raises:
            DataError: Other values, no label, or a label that no training row has.
        """
        if given["train"].ndim == 2:
            labels = names or [str(at) for at in range(given["train"].shape[1])]
            return cls(tuple(labels)), {split: _indicators(some, split) for split, some in given.items()}
        lists = _by_words({split: [_texts(row, split) for row in rows] for split, rows in given.items()})
        labels = names or sorted({label for row in lists["train"] for label in row})
        if not labels:
            raise DataError("no training row has a label.", "Check data.label_column.")
        place = {label: at for at, label in enumerate(labels)}
        encoded = {}
        for split, rows in lists.items():
            targets = encoded[split] = np.zeros((len(rows), len(labels)), np.float32)
            for at, row in enumerate(rows):
                for label in row:
                    if label not in place:
                        raise DataError(
                            f"the {split} label {label} is not among the labels of the training rows.",
                            f"Give training rows that have it, or remove it from {split}.",
                        )
                    targets[at, place[label]] = 1
        return cls(tuple(labels)), encoded

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Any:
        """The labels in the one column, or the columns that say yes, as a tuple of texts."""
        if len(values) == 1:
            (value,) = values.values()
            return _split(value)
        return tuple(column for column, value in values.items() if _yes(column, value))

    def told(self, label: Any) -> Any:
        """0 and 1 of the labels that are told as a list, or separated by |, ; or a comma."""
        labels = _split(label)
        if len(labels) == 1 and labels[0] not in self.names and set(labels[0].split()) <= set(self.names):
            labels = tuple(dict.fromkeys(labels[0].split()))
        if unknown := [name for name in labels if name not in (*self.names, NONE)]:
            raise DataError(
                f"has the label {unknown[0][:80]!r}, which is none of {', '.join(self.names[:9])}.",
                f"Separate labels by |; write {NONE} for a row without any.",
            )
        return np.asarray([name in labels for name in self.names], np.float32)

    @classmethod
    def named(cls, columns: Sequence[str]) -> Sequence[str] | None:
        """The columns, where there are several."""
        return tuple(columns) if len(columns) > 1 else None

    def doubts(self, targets: Targets) -> tuple[str, ...]:
        """Labels that no training row has, or all have: nothing can be learnt about them."""
        counts, rows = self.counts(targets), len(targets)
        told = []
        for what, wrong in (("no training row has", counts == 0), ("every training row has", counts == rows)):
            if names := [name for name, is_wrong in zip(self.names, wrong, strict=True) if is_wrong]:
                more = f" and {len(names) - 9} more" if len(names) > 9 else ""
                told.append(f"{what} the label {', '.join(names[:9])}{more}; leave such columns out.")
        return tuple(told)

    def strata(self, targets: Targets) -> npt.NDArray[np.int32]:
        """The rarest label of each row, and a number of their own for rows without any."""
        rarity = np.argsort(np.argsort(targets.sum(0), kind="stable"), kind="stable")
        rank = np.where(targets > 0, rarity[None, :], len(self.names))
        return np.asarray(rank.min(1), np.int32)

    def counts(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Rows with each label."""
        return np.asarray(targets.sum(0), np.int64)

    @property
    def mix_names(self) -> tuple[str, ...]:
        """The labels, what a row without any is called, and numbers of labels."""
        return (*self.names, NONE, *_MANY)

    @property
    def mixes(self) -> dict[str, slice]:
        """Shares of the labels, which stay what they are where rows get twice as many, and how many."""
        labels = len(self.names)
        return {"label mix": slice(labels + 1), "labels per image": slice(labels, None)}

    def mix(self, targets: Targets) -> npt.NDArray[np.int64]:
        """Rows with each label, rows without any, and rows by their number of labels."""
        many = np.minimum((targets > 0).sum(1).astype(int), len(_MANY))
        return np.concatenate([self.counts(targets), np.bincount(many, minlength=len(_MANY) + 1)])

    def activate(self, logits: Array) -> Outputs:
        """Sigmoid, float32 [N, K]."""
        return _sigmoid(np.asarray(logits, np.float64) / self.temperature).astype(np.float32)

    def _at(self) -> npt.NDArray[np.float32]:
        return np.asarray(self.thresholds or [0.5] * len(self.names), np.float32)

    def decide(self, outputs: Outputs) -> Targets:
        """Which labels are given, float32 [N, K] of 0 and 1."""
        return (outputs >= self._at()).astype(np.float32)

    def row_losses(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Mean binary cross-entropy of each row's labels."""
        right = np.where(targets > 0, outputs, 1 - outputs).astype(np.float64)
        return np.asarray(-np.log(np.clip(right, quality.LEAST, 1.0)).mean(1))

    def correct(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Share of the row's labels that are decided correctly."""
        return np.asarray((self.decide(outputs) == targets).mean(1), np.float64)

    def check_outputs(self, outputs: Outputs, what: str) -> None:
        """See `Task.check_outputs`."""
        if not np.isfinite(outputs).all() or (outputs < 0).any() or (outputs > 1).any():
            raise ModelError(f"{what} gives no probabilities for its own example.", "Train it again.")

    def tally(self, targets: Targets, outputs: Outputs) -> npt.NDArray[np.float64]:
        """Hits, rows and predictions of each label; rows, and rows of which every label is correct."""
        decided = self.decide(outputs)
        counts = [(decided * targets).sum(0), targets.sum(0), decided.sum(0)]
        exact = (decided == targets).all(1).sum()
        return np.concatenate([*counts, [len(targets), exact]]).astype(np.float64)

    def tallied(self, tally: npt.NDArray[np.float64]) -> dict[str, float]:
        """F1 over labels and over all decisions, label accuracy and exact matches."""
        hits, actual, predicted = tally[:-2].reshape(3, -1)
        rows, exact = max(1.0, tally[-2]), tally[-1]
        wrong = actual + predicted - 2 * hits
        return {
            "macro_f1": quality.mean_present(quality.f1(hits, actual, predicted), actual + predicted),
            "micro_f1": float(2 * hits.sum() / max(1.0, float((actual + predicted).sum()))),
            "label_accuracy": float(1 - wrong.sum() / (rows * len(hits))),
            "exact_match": float(exact / rows),
        }

    def measure(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """See `Task.measure`; with average precision and the calibration error over all labels."""
        areas = [quality.average_precision(t > 0, o) for t, o in zip(targets.T, outputs.T, strict=True)]
        known = [area for area in areas if area is not None]
        return super().measure(targets, outputs) | {
            "average_precision": float(np.mean(known)) if known else 0.0,
            "ece": quality.calibration(*_confidences(targets, outputs))[0],
        }

    def recalls(self, targets: Targets, outputs: Outputs) -> dict[str, float]:
        """See `Task.recalls`."""
        hits, actual, _ = self.tally(targets, outputs)[: 3 * len(self.names)].reshape(3, -1)
        return quality.recalls(self.names, hits, actual)

    def evaluate(self, targets: Targets, outputs: Outputs, losses: Array) -> Evaluation:
        """F1, precision, recall and average precision of each label, with its curve."""
        decided = self.decide(outputs)
        table: dict[str, dict[str, float | None]] = {}
        curves = {}
        for at, name in enumerate(self.names):
            positive, given = targets[:, at] > 0, decided[:, at] > 0
            hits, actual, predicted = int((positive & given).sum()), int(positive.sum()), int(given.sum())
            table[name] = {
                "rows": actual,
                "recall": hits / actual if actual else None,
                "precision": hits / predicted if predicted else None,
                "F1": float(2 * hits / max(1, actual + predicted)),
                "average precision": quality.average_precision(positive, outputs[:, at]),
                "threshold": float(self._at()[at]),
            }
            curves[name] = quality.curve(quality.precision_recall(positive, outputs[:, at])[:2])
        return Evaluation(
            self.measure(targets, outputs) | {"loss": float(np.mean(losses))},
            {name: float(row["F1"] or 0.0) for name, row in table.items() if row["rows"]},
            table=table,
            curves=curves,
            reliability=quality.calibration(*_confidences(targets, outputs))[1],
            each="f1",
        )

    def tuned(self, targets: Targets, logits: Array, calibrate: bool) -> Self:
        """Fit the temperature, then choose the threshold of each label by its F1."""

        def loss(temperature: float) -> float:
            scaled = logits.astype(np.float64) / temperature
            return float(np.mean(np.logaddexp(0, scaled) - targets * scaled))

        temperature = round(quality.temperature(loss), 6) if calibrate else 1.0
        outputs = replace(self, temperature=temperature).activate(logits)
        thresholds = [quality.best_threshold(t > 0, o) for t, o in zip(targets.T, outputs.T, strict=True)]
        return replace(self, temperature=temperature, thresholds=tuple(round(at, 6) for at in thresholds))

    def mistakes(self, targets: Targets, outputs: Outputs, losses: Array, count: int = 25) -> list[Mistake]:
        """The rows with a wrong label and the largest loss."""
        decided = self.decide(outputs)
        wrong = np.flatnonzero((decided != targets).any(1))
        order = wrong[np.argsort(-losses[wrong], kind="stable")][:count]
        return [
            Mistake(int(row), self.text(targets[row]), self.text(decided[row]), float(losses[row]))
            for row in order
        ]

    def _named(self, decided: Array) -> list[str]:
        return [self.names[at] for at in np.flatnonzero(decided > 0)]

    def text(self, target: Any) -> str:
        """The labels that are given."""
        return ", ".join(self._named(target)) or NONE

    def focus(self, outputs: npt.NDArray[np.float32], target: Any = None) -> int:
        """The most probable label; where labels are known, the one that is furthest from them."""
        return int((outputs if target is None else np.abs(outputs - target)).argmax())

    def predictions(self, outputs: Outputs) -> list[dict[str, Any]]:
        """The labels that are given, and the probabilities of all."""
        decided = self.decide(outputs)
        return [
            {"labels": self._named(decided[at]), "probabilities": outputs[at]} for at in range(len(outputs))
        ]

    def tensor(self, name: str, outputs: Outputs) -> Any:
        """See `Task.tensor`."""
        return outputs if name == self.output else self.decide(outputs) > 0

    def logged(self, outputs: Outputs) -> dict[str, Array]:
        """Which labels are given, and the probabilities."""
        return {"labels": self.decide(outputs), "probabilities": outputs}

    def columns(self, outputs: Outputs) -> dict[str, tuple[list[Any], Any]]:
        """Labels and probabilities."""
        decided = self.decide(outputs)
        return {
            "labels": ([self._named(row) for row in decided], pa.list_(pa.string())),
            "probabilities": (outputs.tolist(), pa.list_(pa.float32())),
        }

    def described(self, outputs: npt.NDArray[np.float32], top: int) -> dict[str, Any]:
        """`labels` above their thresholds, and `top`, the most probable labels and all that are given."""
        labels = self._named(self.decide(outputs[None])[0])
        order = ranked(self.names, outputs, len(self.names))
        listed = [each for at, each in enumerate(order) if at < top or each["class"] in labels]
        return {"labels": labels, "top": listed}

    def shown(self, prediction: Mapping[str, Any]) -> tuple[str, ...]:
        """See `Task.shown`."""
        best = ", ".join(f"{label['class']} {label['probability']:.3f}" for label in prediction["top"])
        return ", ".join(prediction["labels"]) or NONE, best


_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "", "none")


def _yes(column: str, value: Any) -> bool:
    word = str(value).strip().lower()
    if word not in (*_YES, *_NO):
        raise DataError(f"has {value!r} as {column}.", "Give 1 where a row has the label, else 0.")
    return word in _YES


def _split(value: Any) -> tuple[str, ...]:
    """A list; one in JSON or as Python writes it; or texts separated by |, ; or a comma."""
    if isinstance(value, str) and value.strip().startswith("["):
        value = _list(value.strip())
    elif isinstance(value, str) and _PARTS.fullmatch(value.strip()):
        value = _list(f"[{value.strip()[1:-1]}]")
    if isinstance(value, str):
        mark = next((mark for mark in "|;," if mark in value), None)
        if mark is None and " " in value.strip():
            return (_Words(value.strip()),)
        value = value.split(mark or "|")
    if not isinstance(value, list | tuple | type(None)):
        value = [value]
    if odd := [label for label in value or () if isinstance(label, dict | list)]:
        raise DataError(f"has {str(odd[0])[:80]} for a label.", "Write its name, a text, in its place.")
    labels = [str(label).strip() for label in value or ()]
    return tuple(dict.fromkeys(label for label in labels if label))


_PARTS = re.compile(r"""[({]\s*(["']).*\1\s*,?\s*[)}]""", re.DOTALL)
"""A tuple or a set of texts, as Python writes it."""
_SPACED = re.compile(r"""(["'])\s+(?=["'])""")
"""Between the texts of an array, as NumPy writes it."""


class _Words(str):
    """A text with spaces that is alone in its row: one label, or several with spaces between them. Final."""


def _by_words(lists: dict[str, list[list[str]]]) -> dict[str, list[list[str]]]:
    """Take labels with spaces between them apart, where no row separates labels in another way.

    They are several labels where their words are in other texts, too: `haze primary` and `clear primary`, and
    not `big cat` and `dog`.
    """
    rows = [row for some in lists.values() for row in some]
    texts = {label for row in rows for label in row}
    counts = Counter(word for text in texts for word in set(text.split()))
    several = [
        text for text in texts if isinstance(text, _Words) and any(counts[w] > 1 for w in text.split())
    ]
    if not several or any(len(row) > 1 for row in rows):
        return lists
    example = min(several)
    _LOG.warning(
        "labels are separated by spaces: %s is read as %s; write %s| in each row where it is one label",
        example,
        " and ".join(example.split()),
        example,
    )
    return {
        split: [
            list(
                dict.fromkeys(
                    w for text in row for w in (text.split() if isinstance(text, _Words) else [text])
                )
            )
            for row in some
        ]
        for split, some in lists.items()
    }


def _list(text: str) -> list[Any]:
    text = _SPACED.sub(r"\1, ", text)
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list):
            return value
    raise DataError(f"has {text!r}, which is not a list.", "Separate labels by |.")


def _sigmoid(values: Array) -> npt.NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(values / 2)), np.float64)


def _confidences(targets: Targets, outputs: Outputs) -> tuple[Array, Array]:
    """Probability of the more probable decision about every label, and whether it is correct."""
    confidence = np.maximum(outputs, 1 - outputs).ravel()
    return confidence, ((outputs >= 0.5) == (targets > 0)).ravel()


def _indicators(values: Array, split: str) -> npt.NDArray[np.float32]:
    if values.ndim != 2 or values.dtype.kind not in "iufb" or not np.isin(values, (0, 1)).all():
        raise DataError(
            f"the {split} labels are {values.dtype} {values.shape} with other values than 0 and 1.",
            "Give 0 or 1 in a column for each label, or one column of lists.",
        )
    return values.astype(np.float32)


def _texts(row: Any, split: str) -> list[str]:
    if isinstance(row, str) or not isinstance(row, list | tuple | np.ndarray):
        raise DataError(
            f"the {split} label {str(row)!r} is not a list of labels.",
            "Separate the labels of a row by | or ; or give a column for each.",
        )
    return [label if isinstance(label, str) else str(label) for label in row]

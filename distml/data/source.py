"""`Source`, what every data format returns: images and labels by split, unusable rows counted (driver)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from distml.config import DataConfig
from distml.data.image import READABLE, Policy
from distml.data.schema import Images
from distml.errors import ConfigError, DataError
from distml.tasks import Targets, Task

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Origin:
    """Where bytes came from.

    Args:
        name: File or folder.
        uri: Its place.
        sha256: Of the file's content (decompressed, where it was compressed), or, for a folder, of the
            sorted names and sizes in it: hashing every byte twice would double the reading.
    """

    name: str
    uri: str
    sha256: str


@dataclass
class Ledger:
    """What became of every entry of a folder: it is used, or it is here.

    Args:
        entries: Files, links and folders that were not entered.
        reasons: Why an entry was left out, by its name.
    """

    entries: int = 0
    reasons: dict[str, str] = field(default_factory=dict)

    def skip(self, name: str, reason: str) -> None:
        """Leave an entry out."""
        self.reasons[name] = reason

    def names(self, reason: str) -> list[str]:
        """Entries that were left out for a reason."""
        return [name for name, why in self.reasons.items() if why == reason]

    def counts(self) -> dict[str, int]:
        """How many entries were left out, by reason."""
        return dict(sorted(Counter(self.reasons.values()).items()))


@dataclass(frozen=True)
class Fault:
    """A row that cannot be used.

    Args:
        name: Of the picture.
        reason: One sentence.
        remedy: What to do about it.
    """

    name: str
    reason: str
    remedy: str = ""


@dataclass(frozen=True)
class Gathered:
    """Rows that were asked for.

    Args:
        images: uint8 [M, H, W, C] in the order in which they were asked for.
        faults: Why some of them cannot be used, by their place among the M; their pixels mean nothing.
    """

    images: Images
    faults: Mapping[int, Fault] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """The rows of one split.

    Args:
        labels: Targets of the task, [N] or [N, K].
        gather: Takes int64 [M] of row numbers, gives the rows in that order; called with as many rows as may
            be in memory.
        name: What a row is called in messages.
        fitted: Gives the same rows fitted by another policy, None for arrays that are taken as they are.
        only: Takes row numbers and gives what reads those rows and knows no others, to be sent to a task;
            None where rows cannot be read one by one.
    """

    labels: Targets
    gather: Callable[[Indices], Gathered]
    name: Callable[[int], str] = "row {}".format
    fitted: Callable[[Policy], Rows] | None = None
    only: Callable[[Indices], Callable[[], Gathered]] | None = None


@dataclass(frozen=True)
class Source:
    """A data set that can be prepared.

    Args:
        shape: (H, W, C) of every image.
        task: What is predicted, with its names.
        splits: `train`, and `validation` and `test` where the data come divided.
        origins: Where the bytes came from.
        policy: How pictures become images of that shape, None for data that are arrays.
        ledger: What became of every entry of the user's folder, None where there is none.
        faults: Images that are unusable by their header, before anything is decoded.
        fingerprint: Differs where the data changed; None where it is not known.
        scaled: Whether the rows were arrays that the policy only scales.
        notes: What was noticed in the layout, a sentence each; the manifest keeps it among its warnings.
    """

    shape: tuple[int, int, int]
    task: Task
    splits: dict[str, Rows]
    origins: tuple[Origin, ...]
    policy: Policy | None = None
    ledger: Ledger | None = None
    faults: tuple[Fault, ...] = ()
    fingerprint: str | None = None
    scaled: bool = False
    notes: tuple[str, ...] = ()

    @property
    def pictures(self) -> bool:
        """Whether near duplicates are searched: small arrays give too many false matches."""
        return self.policy is not None and not self.scaled

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of what is predicted."""
        return self.task.names


def label_array(labels: Sequence[Any]) -> npt.NDArray[Any]:
    """Labels of rows as an array [N]: of texts where they are texts, else of the objects that they are."""
    if all(isinstance(label, str) for label in labels):
        return np.array(labels, dtype=str)
    array = np.empty(len(labels), object)
    array[:] = labels
    return array


def read_label(task: type[Task], values: Mapping[str, Any], where: str) -> Any:
    """Return what the values of a row say, as `Task.read` does.

    Raises:
        DataError: They say nothing; the row is named by `where`.
    """
    try:
        return task.read(values)
    except DataError as error:
        raise DataError(f"{where} {error.message}", error.remedy) from None


ONE_HOT: tuple[Any, ...] = (0, 1, "0", "1", "0.0", "1.0", "0.", "1.")


def one_hot(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    """Return the columns that together say the class, a 1 in one of them and 0 in the others, or none.

    Only columns of numbers are considered; the others may say anything.
    """
    classes = [name for name in columns if all(row.get(name) in ONE_HOT for row in rows)]
    whole = all(sum(float(row[name]) for name in classes) == 1 for row in rows)
    return classes if len(classes) > 1 and whole else []


def hot(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return which of several columns is 1, of a row that has one."""
    return next(name for name in columns if float(row[name]) == 1)


def of_arrays(images: Images, labels: Targets) -> Rows:
    """Offer arrays in memory: uint8 [N, H, W, C] and targets."""
    return Rows(labels, lambda indices: Gathered(images[indices]))


def with_margin(source: Source, margin: float | Literal["auto"]) -> Policy | None:
    """Return the policy of training rows that keep a margin to crop from, None where they keep none.

    Raises:
        ConfigError: The images are arrays that are taken as they are.
    """
    if margin == "auto" or not margin:
        return None
    if source.policy is None or any(rows.fitted is None for rows in source.splits.values()):
        raise ConfigError(
            f"data.margin = {margin:g}, but the images are arrays of one size with nothing around them.",
            "Leave it out, or set a smaller data.image_size.",
        )
    height, width, depth = source.shape
    larger = (round(height * (1 + margin)), round(width * (1 + margin)), depth)
    return replace(source.policy, shape=larger)


def to_uint8(values: npt.NDArray[Any], where: str) -> Images:
    """Bring pixel values to uint8.

    Integers must lie in 0 to 255 and are taken as they are. Floats must all lie in [0, 1] and are multiplied
    by 255 and rounded. Nothing is guessed: other ranges have more than one meaning.

    Args:
        values: Numbers of any shape.
        where: Named in the error.

    Returns:
        uint8 of the same shape.

    Raises:
        DataError: Another type, or values outside the range of theirs.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "iuf":
        raise DataError(f"{where}: images of {values.dtype} are not numbers.", "Give uint8 0 to 255.")
    top = 255 if values.dtype.kind in "iu" else 1
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if not (low >= 0 and high <= top):  # written so that NaN is rejected, too
        raise DataError(
            f"{where}: {values.dtype} images span {low} to {high}, expected 0 to {top}.",
            "Give uint8 0 to 255, or floats in [0, 1].",
        )
    return np.rint(values * 255.0).astype(np.uint8) if top == 1 else values.astype(np.uint8)


def to_nhwc(values: npt.NDArray[Any], where: str) -> Images:
    """Bring image arrays [N, H, W] or [N, H, W, C] to uint8 [N, H, W, C].

    Raises:
        DataError: Another rank, an empty axis, channels first, or values that `to_uint8` rejects.
    """
    shape = values.shape[1:]
    if len(shape) not in (2, 3) or 0 in shape:
        side = math.isqrt(shape[0]) if len(shape) == 1 else 0
        remedy = f"Reshape them to N x {side} x {side}." if side > 1 and side**2 == shape[0] else ""
        raise DataError(f"{where}: images of shape {shape} are not H x W or H x W x C.", remedy)
    if (
        len(shape) == 3
        and shape[2] > 4
        and shape[0] < shape[1]
        and (shape[0] in (1, 3, 4) or shape[1] == shape[2])
    ):
        raise DataError(f"{where}: images of shape {shape} have their channels first.", "Move them last.")
    pixels = to_uint8(values, where)
    return pixels[..., None] if len(shape) == 2 else pixels


FAULTS_SHOWN = 20
"""Named in a message; the manifest lists all."""
ENOUGH_FAULTS = 100
"""Where `data.on_error` is fail, so many damaged rows are looked for before the run ends."""


def require_usable(faults: Sequence[Fault], looked_at: int, data: DataConfig) -> None:
    """Let a bounded share of unusable rows pass where the configuration says so.

    Raises:
        DataError: It says no, or there are too many.
    """
    if not faults:
        return
    if data.on_error == "fail":
        if len(faults) == 1 and looked_at == 1:
            raise DataError(faults[0].reason, faults[0].remedy)
        raise DataError(
            _listed(faults, f"of {looked_at} that were checked"),
            remedy_of(faults),
        )
    if len(faults) > data.max_error_fraction * looked_at:
        limit = f"more than data.max_error_fraction = {data.max_error_fraction:g} of {looked_at}"
        raise DataError(_listed(faults, limit), remedy_of(faults, "raise data.max_error_fraction"))


def remedy_of(faults: Sequence[Fault], allow: str = "set data.on_error: skip") -> str:
    """Return what to do about unusable rows: the remedy of each where it is the same for all.

    Args:
        faults: Of the rows.
        allow: What lets them pass.
    """
    own, *others = {fault.remedy for fault in faults}
    if others or own in ("", READABLE):
        return f"Repair or remove them, or {allow}."
    return f"{own} Or {allow}."


def require_all_classes(lost: Sequence[str]) -> None:
    """Reject data of which a class has lost every training row.

    Raises:
        DataError: There are such classes.
    """
    if lost:
        raise DataError(
            f"no picture of {', '.join(lost[:FAULTS_SHOWN])} can be used for training.",
            "Repair the pictures, or remove the class.",
        )


def _listed(faults: Sequence[Fault], of: str) -> str:
    if len(faults) == 1:
        return f"{faults[0].reason.rstrip('.')} (1 {of})."
    shown = "".join(f"\n- {fault.reason}" for fault in faults[:FAULTS_SHOWN])
    more = f"\n- and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
    return f"{len(faults)} pictures cannot be used, {of}:{shown}{more}\n"

"""Which rows are learnt from, which choose and which judge: a pure function of labels and seed (driver)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from distml.data.schema import Labels
from distml.data.source import Indices
from distml.errors import DataError

SPLITS = ("train", "validation", "test")
TEST_FRACTION = 1 / 6
"""Share cut off as test where the data come without one."""


@dataclass(frozen=True)
class Part:
    """The rows of one split to be written.

    Args:
        origin: Split of the source they are taken from.
        rows: int64 [N], their numbers there, in the order in which they are written.
    """

    origin: str
    rows: Indices


def plan(labels: Mapping[str, Labels], val_fraction: float, seed: int) -> dict[str, Part]:
    """Divide the rows.

    A test split that is missing is cut from train first, then a missing validation split from what is left;
    both are stratified by class and keep the order of the source. Train is shuffled, so that a reader of any
    stretch of it sees all classes. The same labels, fraction and seed give the same plan.

    Args:
        labels: int32 [N] by split of the source, with `train` among them.
        val_fraction: Share of the training rows cut off as validation.
        seed: Of both cuts and the shuffle.

    Raises:
        DataError: Too few training rows to cut from.
    """
    rest = np.arange(len(labels["train"]), dtype=np.int64)
    parts = {}
    for stream, (split, fraction) in enumerate((("test", TEST_FRACTION), ("validation", val_fraction))):
        if split in labels:
            parts[split] = Part(split, np.arange(len(labels[split]), dtype=np.int64))
            continue
        held = held_out(labels["train"][rest], fraction, np.random.default_rng([seed, stream]))
        parts[split] = Part("train", rest[held])
        rest = np.delete(rest, held)
    shuffled = np.random.default_rng([seed, 2]).permutation(rest)
    return {"train": Part("train", shuffled), "validation": parts["validation"], "test": parts["test"]}


def held_out(labels: Labels, fraction: float, random: np.random.Generator) -> Indices:
    """Choose the same share of every class, as near as whole rows allow; each class keeps a row.

    Args:
        labels: int32 [N].
        fraction: Share to choose.
        random: Chooses which.

    Returns:
        Sorted int64 row numbers, at least one.

    Raises:
        DataError: No class has two rows.
    """
    classes, counts = np.unique(labels, return_counts=True)
    takes = np.minimum(np.rint(counts * fraction).astype(int), counts - 1)
    if not takes.any() and counts.size:
        takes[counts.argmax()] = min(1, counts.max() - 1)
    if not takes.any():
        raise DataError(f"{len(labels)} training rows are too few to hold any out.", "Bring more data.")
    chosen = [
        random.permutation(np.flatnonzero(labels == label))[:take]
        for label, take in zip(classes, takes, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)

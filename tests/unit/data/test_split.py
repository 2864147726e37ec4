from __future__ import annotations

import numpy as np
import pytest

from distml.data.split import held_out, plan
from distml.errors import DataError

LABELS = np.repeat(np.arange(10, dtype=np.int32), 600)


def test_every_row_lands_in_exactly_one_split() -> None:
    parts = plan({"train": LABELS}, 0.0833, 0)
    rows = np.concatenate([part.rows for part in parts.values()])
    assert list(parts) == ["train", "validation", "test"]
    assert {part.origin for part in parts.values()} == {"train"}
    np.testing.assert_array_equal(np.sort(rows), np.arange(6000))
    assert [len(part.rows) for part in parts.values()] == [4580, 420, 1000]


def test_cuts_have_the_same_share_of_every_class() -> None:
    parts = plan({"train": LABELS}, 0.1, 3)
    for split, count in (("test", 100), ("validation", 50)):
        assert (np.bincount(LABELS[parts[split].rows]) == count).all()


def test_given_splits_are_kept_whole_and_in_order() -> None:
    parts = plan({"train": LABELS, "validation": LABELS[:50], "test": LABELS[:70]}, 0.5, 0)
    for split, count in (("validation", 50), ("test", 70)):
        assert parts[split].origin == split
        np.testing.assert_array_equal(parts[split].rows, np.arange(count))
    assert len(parts["train"].rows) == 6000


def test_train_is_mixed_and_the_others_keep_their_order() -> None:
    parts = plan({"train": LABELS}, 0.1, 0)
    for start in range(0, 4000, 500):
        assert set(LABELS[parts["train"].rows[start : start + 100]]) == set(range(10))
    for split in ("validation", "test"):
        assert (np.diff(parts[split].rows) > 0).all()


def test_the_plan_is_a_function_of_the_seed() -> None:
    first, again, other = (plan({"train": LABELS}, 0.1, seed) for seed in (1, 1, 2))
    for split in first:
        np.testing.assert_array_equal(first[split].rows, again[split].rows)
        assert not np.array_equal(first[split].rows, other[split].rows)


def test_small_classes_keep_a_row_and_something_is_held_out() -> None:
    labels = np.array([0, 0, 0, 1, 2], np.int32)
    held = held_out(labels, 0.01, np.random.default_rng(0))
    assert labels[held].tolist() == [0]
    assert set(np.delete(labels, held_out(labels, 0.9, np.random.default_rng(0)))) == {0, 1, 2}


def test_nothing_to_hold_out_is_refused() -> None:
    with pytest.raises(DataError, match="2 training rows are too few"):
        plan({"train": np.array([0, 1], np.int32)}, 0.1, 0)

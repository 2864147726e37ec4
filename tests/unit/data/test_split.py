from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml.data.split import divide, divide_folders, divide_rows, held_out, plan, settled, split_column
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


def test_given_splits_are_kept_unchanged() -> None:
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


@pytest.mark.parametrize(
    ("alone", "held", "warning"), [(1, 15, "without them 1 rows instead of 15"), (9, 9, "9 rows")]
)
def test_groups_that_leave_almost_nothing_are_divided(
    alone: int, held: int, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    labels, groups = np.zeros(90, np.int32), np.zeros(90, np.int64)
    groups[:alone] = np.arange(1, alone + 1)
    assert len(held_out(labels, 1 / 6, np.random.default_rng(0), groups)) == held
    assert warning in caplog.text


def test_nothing_to_hold_out_is_rejected() -> None:
    with pytest.raises(DataError, match="2 training rows are too few"):
        plan({"train": np.array([0, 1], np.int32)}, 0.1, 0)


def tree(*folders: str) -> list[str]:
    return [f"{folder}/{k}.png" for folder in folders for k in range(2)]


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (["cat", "dog"], {"train"}),
        (["train/cat", "train/dog"], {"train"}),
        (["Training/cat", "Testing/cat"], {"train", "test"}),
        (["train/cat", "eval/cat"], {"train", "test"}),
        (["train/cat", "eval/cat", "test/cat"], {"train", "test", "validation"}),
        (["train/cat", "dev/cat"], {"train", "validation"}),
        (["train/cat", "holdout/cat", "val/cat"], {"train", "test", "validation"}),
        (["seg_train/seg_train/cat", "seg_test/seg_test/cat"], {"train", "test"}),
        (["asl_alphabet_train/cat", "asl_alphabet_test/cat"], {"train", "test"}),
        (["set/train/cat", "set/test/cat"], {"train", "test"}),
        (["Train 1/cat", "train-2/cat", "Test/cat"], {"train", "test"}),
        (["set/cat", "set/dog"], {"train"}),
    ],
)
def test_splits_are_recognised_by_common_names(folders: list[str], splits: set[str]) -> None:
    divided = divide_folders(tree(*folders))
    assert set(divided) == splits
    classes = {path.partition("/")[0] for paths in divided.values() for path in paths.values()}
    assert classes <= {"cat", "dog"}
    assert sum(map(len, divided.values())) == 2 * len(folders)


@pytest.mark.parametrize(
    "folders", [["bus", "car", "train"], ["train station", "airport"], ["TestTube", "cat", "dog"]]
)
def test_a_class_may_be_called_like_a_split(folders: list[str]) -> None:
    divided = divide_folders(tree(*folders))
    assert {path.partition("/")[0] for path in divided["train"].values()} == set(folders)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["train/cat", "test/cat", "more/cat"], "more/cat/0.png lies beside test, train and in none"),
        (["cat", "dog", "test"], "cat/0.png lies beside test"),
        (["cat", "dog", "unlabeled"], "unlabeled looks like a part of the data, not a class"),
        (["test/cat", "val/cat"], "there is test, validation, but no train"),
    ],
)
def test_an_ambiguous_split_folder_is_rejected(folders: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        divide_folders(tree(*folders))


def test_images_beside_split_folders_are_reported() -> None:
    with pytest.raises(DataError, match=r"loose.png lies beside test, train"):
        divide_folders([*tree("train/cat", "test/cat"), "loose.png"])


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["a.parquet", "b.parquet"], {"train": 2}),
        (["train-00000-of-2.parquet", "test-0.parquet"], {"train": 1, "test": 1}),
        (["train.parquet", "validation.parquet", "test.parquet"], {"train": 1, "validation": 1, "test": 1}),
        (["data/train-1.parquet", "data/test-1.parquet"], {"train": 1, "test": 1}),
        (["train/x.parquet", "dev/x.parquet"], {"train": 1, "validation": 1}),
        (["testimony.parquet", "trainer.parquet"], {"train": 2}),
    ],
)
def test_tables_are_divided_by_folder_or_name(names: list[str], splits: dict[str, int]) -> None:
    assert {split: len(some) for split, some in divide(names).items()} == splits


def test_any_word_of_a_name_counts_where_several_files_name_splits() -> None:
    names = ["set-train.arrow", "set-test-00000-of-00001.arrow"]
    assert divide(names) == {"train": names[:1], "test": names[1:]}
    assert divide(["my_test.parquet"]) == {"train": ["my_test.parquet"]}
    with pytest.raises(DataError, match=r"more[.]arrow lies beside"):
        divide([*names, "more.arrow"])


def test_several_names_of_one_split_are_put_together(caplog: pytest.LogCaptureFixture) -> None:
    names = ["train-0.parquet", "train-1.parquet", "val-0.parquet", "validation-0.parquet"]
    assert divide(names) == {"train": names[:2], "validation": names[2:]}
    folders = ["train/a/1", "train/b/1", "valid/a/1", "dev/a/1"]
    assert len(divide_folders(folders)["validation"]) == 2
    assert len(divide_rows(["train", "val", "Valid", "Val"], "the column split")["validation"]) == 3
    assert len(divide(names[1:3], {names[1]: "test_seen", names[2]: "train"})["test"]) == 1
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "files: val, validation are put together as validation",
        "folders: dev, valid are put together as validation",
        "the column split: val, valid are put together as validation",
    ]


def test_a_column_of_yes_alone_divides_nothing() -> None:
    columns: dict[str, list[Any]] = {"Is_Valid": ["True", "true"], "is_valid": [1, 0, 1], "split": ["test"]}
    assert split_column(columns, columns.__getitem__) == ("is_valid", ())
    assert split_column(["Is_Valid"], columns.__getitem__) == (None, ())
    assert split_column(["split"], columns.__getitem__) == ("split", ())


def test_columns_that_divide_nothing_are_named() -> None:
    columns: dict[str, list[Any]] = {
        "label": ["cat"],
        "set": [1, 2],
        "Fold": [0, 1],
        "Subset": ["dev", "train"],
    }
    chosen, notes = split_column(columns, columns.__getitem__)
    assert chosen == "Subset"
    assert [note.split(" ")[2] for note in notes] == ["set", "Fold"]
    assert notes[0] == "the column set says no splits, but 1, 2, and is not used."
    assert "write train, validation and test in a column split" in notes[1]


def test_no_split_takes_the_place_of_another() -> None:
    assert settled({"train": ["a"], "eval": ["b"], "test": ["c"]})["validation"] == ["b"]
    with pytest.raises(DataError, match="validation, test and eval: three splits beside train"):
        settled({"train": ["a"], "eval": ["b"], "test": ["c"], "validation": ["d"]})

"""Folders are divided as the people meant who named them."""

from __future__ import annotations

import pytest

from distml.data.layout import divide, divide_folders
from distml.errors import DataError


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
def test_splits_are_known_by_the_names_that_public_sets_use(folders: list[str], splits: set[str]) -> None:
    divided = divide_folders(tree(*folders))
    assert set(divided) == splits
    classes = {path.partition("/")[0] for paths in divided.values() for path in paths.values()}
    assert classes <= {"cat", "dog"}
    assert sum(map(len, divided.values())) == 2 * len(folders)


@pytest.mark.parametrize("folders", [["bus", "car", "train"], ["train station", "airport"]])
def test_a_class_may_be_called_like_a_split(folders: list[str]) -> None:
    divided = divide_folders(tree(*folders))
    assert {path.partition("/")[0] for path in divided["train"].values()} == set(folders)


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["train/cat", "test/cat", "more/cat"], "more/cat/0.png lies beside test, train and in none"),
        (["cat", "dog", "test"], "cat/0.png lies beside test"),
        (["cat", "dog", "unlabeled"], "unlabeled looks like a part of the data that is no class"),
        (["test/cat", "val/cat"], "there is test, validation, but no train"),
    ],
)
def test_what_may_be_a_split_is_asked_about(folders: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        divide_folders(tree(*folders))


def test_loose_pictures_beside_splits_are_named() -> None:
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

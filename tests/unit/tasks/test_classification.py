from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distml.errors import DataError
from distml.tasks.classification import Classification


def test_texts_are_numbered_in_order_of_the_training_labels() -> None:
    task, labels = Classification.encode(
        {"train": np.array(["dog", "cat", "dog"]), "test": np.array(["cat"])}
    )
    assert task.names == ("cat", "dog")
    assert (labels["train"].tolist(), labels["test"].tolist()) == ([1, 0, 1], [0])
    assert labels["test"].dtype == np.int32


def test_integers_keep_their_number_where_names_say_what_they_mean() -> None:
    task, labels = Classification.encode({"train": np.array([2, 0])}, ["a", "b", "c"])
    assert (task.names, labels["train"].tolist()) == (("a", "b", "c"), [2, 0])
    task, labels = Classification.encode({"train": np.array([7, 3, 7])})
    assert (task.names, labels["train"].tolist()) == (("3", "7"), [1, 0, 1])


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ({"train": np.array([0, 3])}, ["a", "b", "c"], "train label 3 is not among"),
        ({"train": np.array([0, -1])}, ["a", "b"], "train label -1 is not among"),
        ({"train": np.array(["a", "b"]), "test": np.array(["z"])}, None, "test label z is not among"),
        ({"train": np.array([0, 0])}, None, "only one class, 0"),
        ({"train": np.array([0, 1])}, ["a", "a"], "class a appears twice"),
        ({"train": np.array([0.5, 1.0])}, None, r"train labels are float64 \(2,\), not integers"),
        ({"train": np.array(["a", "b"]), "test": np.array([0])}, None, "not texts, as in train"),
        ({"train": np.array([[0], [1]])}, None, r"int64 \(2, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(
    given: dict[str, npt.NDArray[Any]], names: list[str] | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        Classification.encode(given, names)


def test_predictions_list_the_most_probable_class_first() -> None:
    probabilities = np.array([0.1, 0.6, 0.3], np.float32)
    task = Classification(("cat", "dog", "bird"))
    assert task.described(probabilities, 2) == {
        "class": "dog",
        "label": 1,
        "probability": 0.6,
        "top": [
            {"class": "dog", "label": 1, "probability": 0.6},
            {"class": "bird", "label": 2, "probability": 0.3},
        ],
    }
    assert len(task.described(probabilities, 9)["top"]) == 3


@pytest.mark.parametrize(
    ("names", "rows", "warned"),
    [
        ([f"{k * 1.5:g}" for k in range(40)], 80, True),
        ([f"{k * 1.5:g}" for k in range(8)], 16, True),
        ([str(k) for k in range(40)], 4000, False),
        ([f"n{k}" for k in range(40)], 80, False),
        ([str(k) for k in range(10)], 20, False),
    ],
)
def test_many_classes_that_are_numbers_give_a_warning(names: list[str], rows: int, warned: bool) -> None:
    doubts = Classification(tuple(names)).doubts(np.arange(rows, dtype=np.int32) % len(names))
    assert any("set task.kind to regression" in doubt for doubt in doubts) is warned


def test_the_label_minus_one_gives_a_warning_beside_classes_from_0_on() -> None:
    targets = np.array([0, 1, 2, 0, 0], np.int32)
    assert "3 of 5 training rows have the label -1" in Classification(("-1", "0", "1")).doubts(targets)[0]
    assert not Classification(("-1", "1")).doubts(targets[:2])

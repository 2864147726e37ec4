from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml import tasks
from distml.data.source import label_array
from distml.errors import DataError
from distml.tasks.multilabel import Multilabel

PETS = Multilabel(("cat", "dog"))


@pytest.mark.parametrize(
    "value",
    ["cat|dog", "cat; dog", "cat,dog", '["cat", "dog"]', "['cat', 'dog']", ["cat", "dog"], "cat|dog|cat"],
)
def test_a_list_of_labels_is_read_in_every_spelling(value: Any) -> None:
    assert Multilabel.read({"labels": value}) == ("cat", "dog")


def test_columns_of_yes_and_no_are_labels_and_an_empty_list_is_none() -> None:
    assert Multilabel.read({"cat": "1", "dog": "false", "bird": 1.0}) == ("cat", "bird")
    assert Multilabel.read({"labels": ""}) == Multilabel.read({"labels": None}) == ()
    assert Multilabel.named(("cat", "dog")) == ("cat", "dog")
    assert Multilabel.named(("labels",)) is None
    with pytest.raises(DataError, match="'perhaps' as dog"):
        Multilabel.read({"cat": "1", "dog": "perhaps"})
    with pytest.raises(DataError, match="is not a list"):
        Multilabel.read({"labels": "[cat"})


def test_lists_and_columns_become_indicators() -> None:
    given = {"train": label_array([("dog", "cat"), ("dog",), ()]), "test": label_array([("cat",)])}
    task, targets = Multilabel.encode(given)
    assert task.names == ("cat", "dog")
    assert targets["train"].tolist() == [[1, 1], [0, 1], [0, 0]]
    assert (targets["test"].tolist(), targets["test"].dtype.name) == ([[1, 0]], "float32")
    _, numbers = Multilabel.encode({"train": np.array([[1, 0], [0, 1]])}, ["a", "b"])
    assert numbers["train"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"train": label_array([()])}, "no training row has a label"),
        ({"train": label_array([("a",)]), "test": label_array([("b",)])}, "label b is not among"),
        ({"train": np.array([[0.5, 1]])}, "other values than 0 and 1"),
        ({"train": np.array(["a"])}, "'a' is not a list of labels"),
    ],
)
def test_labels_that_do_not_fit_are_rejected(given: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Multilabel.encode(given)


def test_labels_that_tell_nothing_are_named() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0]], np.float32)
    assert Multilabel(("all", "none", "some")).doubts(targets) == (
        "no training row has the label none; leave such columns out.",
        "every training row has the label all; leave such columns out.",
    )
    assert Multilabel(("some",)).doubts(targets[:, 2:]) == ()


def test_a_row_counts_to_the_stratum_of_its_rarest_label() -> None:
    targets = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.float32)
    assert PETS.strata(targets).tolist() == [0, 1, 1, 2]
    assert PETS.mix(targets).tolist() == [3, 1, 1, 2, 1, 0, 0]
    assert PETS.mix_names[:4] == ("cat", "dog", "none", "1 label")
    assert len(PETS.mix_names) == 7


def test_thresholds_and_temperature_are_chosen_on_the_given_rows() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((500, 2)) < 0.2).astype(np.float32)
    logits = 4 * (targets - 0.5) + random.normal(0, 1, (500, 2)) - np.array([3.0, 0.0])
    plain = PETS.value("macro_f1", targets, PETS.activate(logits))
    tuned = PETS.tuned(targets, logits, calibrate=False)
    assert tuned.thresholds[0] < 0.35  # outputs of the first label are too low
    assert tuned.value("macro_f1", targets, tuned.activate(logits)) > plain + 0.05
    hotter = PETS.tuned(targets, 3 * logits, calibrate=True)
    assert hotter.temperature == pytest.approx(3 * PETS.tuned(targets, logits, True).temperature, rel=0.01)


def test_sums_of_parts_give_the_metrics_of_all_rows() -> None:
    """F1 does not average: the mean of the parts' values is another number."""
    targets = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    outputs = np.array([[0.9, 0.1], [0.2, 0.6], [0.1, 0.8], [0.7, 0.2]], np.float32)
    parts = [PETS.tally(targets[rows], outputs[rows]) for rows in (slice(0, 1), slice(1, 4))]
    metrics = PETS.tallied(parts[0] + parts[1])
    assert metrics == PETS.tallied(PETS.tally(targets, outputs))
    assert metrics["macro_f1"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert metrics["macro_f1"] != pytest.approx(np.mean([PETS.tallied(part)["macro_f1"] for part in parts]))
    assert (metrics["exact_match"], metrics["label_accuracy"]) == (0.5, 0.625)
    assert metrics["micro_f1"] == pytest.approx(4 / 7)


def test_predictions_name_the_labels_above_their_thresholds() -> None:
    task = tasks.restore(("cat", "dog"), {"kind": "multilabel", "thresholds": [0.5, 0.9]})
    outputs = np.array([[0.6, 0.8], [0.1, 0.95]], np.float32)
    assert [row["labels"] for row in task.predictions(outputs)] == [["cat"], ["dog"]]
    assert task.tensor("labels", outputs).tolist() == [[True, False], [False, True]]
    assert task.columns(outputs)["labels"][0] == [["cat"], ["dog"]]
    assert task.shown(task.described(outputs[0], 1)) == (
        "cat",
        "dog 0.800, cat 0.600",
    )  # what is given is listed
    assert task.logged(outputs)["labels"].tolist() == [[1, 0], [0, 1]]
    targets = np.array([[1, 0], [1, 0]], np.float32)
    (mistake,) = task.mistakes(targets, outputs, np.array([0.1, 2.0]))
    assert mistake == (1, "cat", "dog", 2.0)


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["haze primary", "clear primary water", "cloudy"], ("clear", "cloudy", "haze", "primary", "water")),
        (["big cat", "dog", ""], ("big cat", "dog")),
        (["big cat|dog", "small cat", "dog"], ("big cat", "dog", "small cat")),
        (['["big cat"]', '["small cat"]', "[]"], ("big cat", "small cat")),
        (["['cat' 'dog']", "['cat'\n 'eel']", "['eel']"], ("cat", "dog", "eel")),
        (["{'cat', 'dog'}", "('eel',)", "(other)"], ("(other)", "cat", "dog", "eel")),
    ],
)
def test_labels_with_spaces_are_one_or_several(
    texts: list[str], names: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    lists = np.empty(len(texts), object)
    lists[:] = [Multilabel.read({"labels": text}) for text in texts]
    task, encoded = Multilabel.encode({"train": lists})
    assert task.names == names
    assert ("labels are separated by spaces: clear primary water" in caplog.text) == ("haze" in names)
    if "haze" in names:
        assert encoded["train"].sum(1).tolist() == [2, 3, 1]
        assert task.told("haze primary").sum() == 2

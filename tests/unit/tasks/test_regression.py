from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from distml import tasks
from distml.data.source import label_array
from distml.errors import DataError
from distml.tasks.regression import Regression

TARGETS = np.array([[10.0, 0.0], [20.0, 1.0], [30.0, 2.0], [40.0, 3.0]], np.float32)
SIZES = Regression(("length", "width")).fitted(TARGETS)


def test_numbers_are_read_by_column_and_keep_their_names() -> None:
    assert Regression.read({"length": "1.5", "width": 2}) == (1.5, 2.0)
    assert Regression.named(("length", "width")) == ("length", "width")
    task, encoded = Regression.encode({"train": label_array([(1.0, 2.0), (3.0, 4.0)])}, ["a", "b"])
    assert (task.names, encoded["train"].tolist()) == (("a", "b"), [[1, 2], [3, 4]])
    task, encoded = Regression.encode({"train": np.array([1.0, 2.0])})
    assert (task.names, encoded["train"].shape) == (("value",), (2, 1))


@pytest.mark.parametrize("value", ["", "long", None, "nan", "inf"])
def test_a_target_that_is_not_a_number_is_rejected(value: Any) -> None:
    with pytest.raises(DataError, match="as length, which is not a number"):
        Regression.read({"length": value})


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("1,5", "Write 1.5 alone"),
        ("12 cm", "Write 12 alone"),
        ("-3.25kg", "Write -3.25 alone"),
        ("1,234.5", "Write 1234.5 alone"),
        ("1,234", "Write 1.234 or 1234 alone"),
        ("$0.5", "Write 0.5 alone"),
        ("50%", "Write 50 alone"),
        ("1.234,5", "Correct it"),
        ("2024-05-01", "Correct it"),
        ("10-12 kg", "Correct it"),
        ("tall", "Correct it"),
        (None, "Correct it"),
    ],
)
def test_a_decimal_comma_or_a_unit_gets_the_number_as_it_should_be(value: Any, remedy: str) -> None:
    with pytest.raises(DataError) as caught:
        Regression.read({"length": value})
    assert caught.value.remedy.startswith(remedy)


def test_targets_that_do_not_fit_are_rejected() -> None:
    with pytest.raises(DataError, match="test has 1 numbers a row, train has 2"):
        Regression.encode({"train": TARGETS, "test": TARGETS[:, :1]})
    with pytest.raises(DataError, match="row 1 of train has no finite number"):
        Regression.encode({"train": np.array([1.0, np.nan])})


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([1.7e9, 1.7e9 + 40, 1.7e9 + 90], r"lies around 1.7e\+09 in train and varies by .* round it by"),
        ([1e39, 1.0, 2.0], r"is 1e\+39 in a row of train, which 32 bits do not hold"),
    ],
)
def test_numbers_that_32_bits_do_not_hold_are_rejected(column: list[float], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Regression.encode({"train": np.array(column)}, ["time"])
    task, encoded = Regression.encode({"train": np.array([1e6, 1e6 + 500, 1e6 + 900])}, ["time"])
    assert encoded["train"].dtype == np.float32
    assert task.names == ("time",)


def test_outputs_are_scaled_back_by_the_training_rows() -> None:
    assert np.ravel(SIZES.scale) == pytest.approx([25.0, 11.1803, 1.5, 1.1180], abs=1e-3)
    assert SIZES.activate(np.zeros((1, 2))).tolist() == [[25.0, 1.5]]
    scaled = (TARGETS - [25.0, 1.5]) / SIZES.unit
    np.testing.assert_allclose(SIZES.activate(scaled), TARGETS, rtol=1e-6)
    assert tasks.restore(SIZES.names, json.loads(json.dumps(SIZES.spec()))) == SIZES
    assert Regression(("a",)).fitted(np.ones((3, 1), np.float32)).unit == [1.0]  # a constant has no deviation


def test_errors_of_several_numbers_are_in_deviations_and_add_up_over_parts() -> None:
    outputs = TARGETS + np.array([[2.0, 0.0], [-2.0, 0.0], [4.0, 0.5], [0.0, -0.5]], np.float32)
    parts = [SIZES.tally(TARGETS[rows], outputs[rows]) for rows in (slice(0, 1), slice(1, 4))]
    metrics = SIZES.tallied(parts[0] + parts[1])
    length, width = SIZES.unit
    assert metrics["mae"] == pytest.approx((2.0 / length + 0.25 / width) / 2)
    assert metrics["rmse"] == pytest.approx((np.sqrt(6) / length + np.sqrt(0.125) / width) / 2)
    variances = (1 - 24 / 500, 1 - 0.5 / 5)
    assert metrics["r2"] == pytest.approx(np.mean(variances))
    evaluation = SIZES.evaluate(TARGETS, outputs, np.zeros(4))
    assert evaluation.per_class == pytest.approx({"length": 2.0, "width": 0.25})
    assert evaluation.scatter["length"][0] == (10.0, 12.0)
    assert (evaluation.main, evaluation.confusion) == ("mae", None)


@pytest.mark.parametrize("factors", [(1.0, 1.0), (1e6, 1e-3)])
def test_the_units_of_several_numbers_do_not_change_what_is_compared(factors: tuple[float, float]) -> None:
    scaled = TARGETS * np.asarray(factors, np.float32)
    task = Regression(("length", "width")).fitted(scaled)
    outputs = scaled + task.unit * np.array([0.1, 0.3])
    measured = task.evaluate(scaled, outputs.astype(np.float32), np.zeros(4))
    assert measured.metrics["mae"] == pytest.approx(0.2, rel=1e-3)
    assert measured.metrics["rmse"] == pytest.approx(0.2, rel=1e-3)
    assert measured.per_class["length"] == pytest.approx(0.1 * task.unit[0], rel=1e-3)  # in its own unit
    assert measured.unit == "in deviations"
    single = Regression(("length",)).fitted(scaled[:, :1])
    alone = single.evaluate(scaled[:, :1], outputs[:, :1].astype(np.float32), np.zeros(4))
    assert alone.metrics["mae"] == pytest.approx(0.1 * task.unit[0], rel=1e-3)
    assert not alone.unit


def test_models_of_other_training_rows_are_compared_by_one_scale() -> None:
    outputs = TARGETS + np.array([2.0, 0.5], np.float32)
    wider = SIZES.fitted(TARGETS * 10)
    assert wider.measure(TARGETS, outputs)["mae"] < SIZES.measure(TARGETS, outputs)["mae"] / 5
    assert wider.judged_on(SIZES).measure(TARGETS, outputs) == SIZES.measure(TARGETS, outputs)


def test_tolerances_are_shares_of_the_deviation() -> None:
    moved = TARGETS + np.array([0.5, 0.0], np.float32)
    assert SIZES.difference(TARGETS, moved) == pytest.approx(0.5 / 11.1803, rel=1e-3)
    assert SIZES.agree(TARGETS, moved).all()
    assert not SIZES.agree(TARGETS, TARGETS + np.float32(0.5)).any()  # of the width it is much


def test_of_what_does_not_vary_nothing_is_explained() -> None:
    single = TARGETS[:1]
    assert SIZES.measure(single, single + np.float32(0.5))["r2"] == 0.0
    assert SIZES.measure(single, single)["r2"] == 1.0
    still = np.array([[10.0, 1.0], [20.0, 1.0]], np.float32)
    assert SIZES.measure(still, still + np.array([1.0, 1.0], np.float32))["r2"] == pytest.approx(
        (0.96 + 0) / 2
    )


def test_drift_counts_tenths_of_the_training_rows() -> None:
    values = np.arange(1000, dtype=np.float32)[:, None]
    task = Regression(("x",)).fitted(values)
    assert task.mix(values).tolist() == [100] * 10
    assert task.mix(values + 900)[-1] == 1000
    assert task.mix_names[0] == "x 1"
    assert np.bincount(task.strata(values)).tolist() == [100] * 10


def test_predictions_name_the_numbers() -> None:
    (prediction,) = SIZES.predictions(np.array([[1.5, 2.0]], np.float32))
    assert prediction["named"] == {"length": 1.5, "width": 2.0}
    assert SIZES.columns(TARGETS)["predicted_width"][0] == [0.0, 1.0, 2.0, 3.0]
    assert SIZES.shown(SIZES.described(TARGETS[0], 3)) == ("length 10, width 0",)
    assert SIZES.mistakes(TARGETS, TARGETS, np.array([0, 3.0, 1, 2]), 1)[0].row == 1


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([5.0] * 9, "age is 5 in all 9 training rows"),
        (
            [-9999, -9999, *range(20, 30)],
            r"age is -9999 in 2 of 12 training rows, far from the others \(20 to 29",
        ),
        ([*range(20, 30), 999, 999], "age is 999 in 2 of 12"),
        ([*range(20, 30), 999], None),
        ([0, 0, 0, *range(1, 30)], None),
        ([0, 0, 1, 1], None),
    ],
)
def test_implausible_numbers_give_a_warning(column: list[float], said: str | None) -> None:
    task, targets = Regression.encode({"train": np.array(column, np.float32)[:, None]}, ["age"])
    doubts = task.doubts(targets["train"])
    assert bool(doubts) is (said is not None)
    assert said is None or re.search(said, doubts[0])

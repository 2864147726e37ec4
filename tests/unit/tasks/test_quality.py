from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml.config import Config
from distml.errors import ConfigError
from distml.models import registry
from distml.tasks import check
from distml.tasks import quality as quality
from distml.tasks.classification import Classification


def test_average_precision_is_that_of_the_ranking() -> None:
    positive = np.array([True, False, True, False])
    assert quality.average_precision(positive, np.array([0.9, 0.8, 0.7, 0.1])) == pytest.approx(5 / 6)
    assert quality.average_precision(positive, np.full(4, 0.5)) == pytest.approx(0.5)  # ties are one point
    assert quality.average_precision(np.zeros(4, bool), np.arange(4.0)) is None


def test_the_threshold_lies_between_the_scores_that_it_divides() -> None:
    positive = np.array([False, False, True, True])
    assert quality.best_threshold(positive, np.array([0.1, 0.2, 0.6, 0.9])) == pytest.approx(0.4)
    assert quality.best_threshold(np.zeros(4, bool), np.arange(4.0)) == 0.5


def test_calibration_is_the_mean_gap_between_confidence_and_share_correct() -> None:
    error, bins = quality.calibration(np.array([0.9, 0.9, 0.9, 0.9, 0.5, 0.5]), np.array([1, 1, 1, 0, 1, 0]))
    assert error == pytest.approx(4 / 6 * 0.15)
    assert [rows for *_, rows in bins] == [2, 4]


def test_a_temperature_undoes_overconfidence_and_leaves_the_classes() -> None:
    random = np.random.default_rng(1)
    targets = random.integers(0, 3, 3000).astype(np.int32)
    logits = random.normal(0, 1, (3000, 3)) + 1.5 * np.eye(3)[targets]
    task = Classification(tuple("abc"))
    tuned = task.tuned(targets, 4 * logits, calibrate=True)
    before, after = (variant.measure(targets, variant.activate(4 * logits)) for variant in (task, tuned))
    assert before["ece"] > 0.1
    assert after["ece"] < 0.03
    assert after["accuracy"] == before["accuracy"]
    assert task.tuned(targets, 4 * logits, calibrate=False) == task


def test_metrics_of_unequal_classes_are_not_the_accuracy() -> None:
    """A model that never says the rare class: right for 9 of 10 rows."""
    task = Classification(("common", "rare"))
    targets = np.array([0] * 9 + [1], np.int32)
    outputs = np.tile(np.array([[0.9, 0.1]], np.float32), (10, 1))
    metrics = task.measure(targets, outputs)
    assert (metrics["accuracy"], metrics["balanced_accuracy"]) == (0.9, 0.5)
    assert metrics["macro_f1"] == pytest.approx(18 / 19 / 2)
    assert task.recalls(targets, outputs) == {"common": 1.0, "rare": 0.0}
    assert task.recalls(targets[:9], outputs[:9]) == {"common": 1.0}  # not known, which is not 0
    assert task.evaluate(targets[:9], outputs[:9], np.zeros(9)).per_class == {"common": 1.0}
    parts = task.tally(targets[:4], outputs[:4]) + task.tally(targets[4:], outputs[4:])
    assert task.tallied(parts) == task.tallied(task.tally(targets, outputs))


def test_the_top_five_count_where_there_are_more_classes() -> None:
    task = Classification(tuple("abcdefg"))
    outputs = np.tile(np.linspace(0.3, 0.0, 7, dtype=np.float32), (7, 1))
    metrics = task.measure(np.arange(7, dtype=np.int32), outputs)
    assert metrics["top_5"] == pytest.approx(5 / 7)
    other = task.configured(2)
    assert other.measure(np.arange(7, dtype=np.int32), outputs)["top_2"] == pytest.approx(2 / 7)
    assert other.spec() == task.spec()
    assert "top_5" not in Classification(("a", "b")).measure(np.array([0]), np.array([[1.0, 0.0]]))


def test_an_interval_covers_the_mean_of_what_it_is_drawn_from() -> None:
    values = np.random.default_rng(0).normal(1.0, 1.0, 400)
    low, high = quality.interval(lambda rows: float(values[rows].mean()), 400)
    assert low < values.mean() < high
    assert high - low == pytest.approx(4 / np.sqrt(400), rel=0.2)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"loss": "mse"}}, "train.loss = mse is not a loss of classification"),
        ({"task": {"kind": "regression"}, "train": {"loss": "focal"}}, "not a loss of regression"),
        (
            {"task": {"kind": "regression"}, "train": {"monitor": "val_accuracy"}},
            "has no metric val_accuracy",
        ),
        ({"promote": {"metric": "macro_f2"}}, "has no metric macro_f2"),
        ({"train": {"monitor": "val_ece"}}, "measured only at the end of a run"),
        ({"promote": {"metric": "top_3"}}, "top_3 is not measured: evaluate.top_k = 5"),
        (
            {"task": {"kind": "regression"}, "promote": {"guards": {"max_ece": 0.1}}},
            "promote.guards.max_ece = 0.1, which regression does not have",
        ),
        (
            {"task": {"kind": "regression"}, "evaluate": {"calibrate": True}},
            "regression has no probabilities",
        ),
        ({"task": {"kind": "regression"}, "train": {"class_weights": {"x": 2.0}}}, "has no classes to weigh"),
        ({"task": {"kind": "regression"}, "train": {"label_smoothing": 0.1}}, "numbers cannot be smoothed"),
        ({"task": {"kind": "regression"}, "evaluate": {"top_k": 3}}, "regression has no most probable"),
        (
            {"task": {"kind": "multilabel"}, "train": {"class_weights": "balanced", "loss": "a:b"}},
            "cannot be applied to a:b",
        ),
        ({"evaluate": {"metrics": ["judged:accuracy"]}}, "accuracy is the name of a metric of ours"),
    ],
)
def test_losses_and_metrics_of_another_task_are_rejected(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(Config.resolve(values))


def test_every_task_has_defaults_that_are_its_own() -> None:
    for kind in ("classification", "multilabel", "regression"):
        check(Config.resolve({"task": {"kind": kind}}))


def test_a_loss_of_the_user_is_checked_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"train\.loss"):
        registry.check_run(Config.resolve({"train": {"loss": "tests.drawn:missing"}}))
    registry.check_run(Config.resolve({"train": {"loss": "tests.drawn:bars"}}))
    with pytest.raises(ConfigError, match=r"train\.loss = mse is not a loss"):
        registry.check_run(Config.resolve({"train": {"loss": "mse"}}))

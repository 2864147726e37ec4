"""Weights of classes in the loss: balanced, by name, and what is misspelt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml.config import TrainConfig
from distml.errors import ConfigError
from distml.tasks import classification

CLASSES = ("cat", "dog", "bird")


def weights(wanted: Any, *counts: int) -> tuple[float, ...]:
    section = TrainConfig.model_validate({"class_weights": wanted})
    return classification.class_weights(section.class_weights, CLASSES, np.array(counts, np.int64))


@pytest.mark.parametrize("none", [None, "none"])
def test_without_weights_all_rows_count_alike(none: str | None) -> None:
    assert weights(none, 10, 20, 30) == ()


def test_balanced_gives_each_class_the_same_sum_and_rows_a_mean_of_one() -> None:
    counts = (10, 20, 90)
    balanced = weights("balanced", *counts)
    assert [weight * count for weight, count in zip(balanced, counts, strict=True)] == pytest.approx([40] * 3)


def test_a_class_without_rows_does_not_divide_by_zero() -> None:
    assert weights("balanced", 10, 0, 30) == pytest.approx((2.0, 1.0, 2 / 3))


def test_weights_by_name_leave_the_rest_at_one() -> None:
    assert weights({"dog": 3}) == (1.0, 3.0, 1.0)


def test_a_class_that_the_data_lack_is_named() -> None:
    classification.check_weights({"dog": 3.0}, CLASSES)
    classification.check_weights("balanced", CLASSES)
    classification.check_weights(None, CLASSES)
    with pytest.raises(
        ConfigError, match=r"names 'dgo', which is not a class of the data\. Did you mean dog\?"
    ):
        classification.check_weights({"dgo": 3.0}, CLASSES)
    with pytest.raises(ConfigError, match="Classes are cat, dog, bird"):
        classification.check_weights({"xylophone": 3.0}, CLASSES)


@pytest.mark.parametrize("wrong", ["balance", {"dog": 0}, {"dog": -1.0}, 3])
def test_invalid_class_weights_are_rejected(wrong: Any) -> None:
    with pytest.raises(ValueError, match="class_weights"):
        TrainConfig.model_validate({"class_weights": wrong})

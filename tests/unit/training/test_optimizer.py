"""The learning rate is a function of the step alone, as documented."""

from __future__ import annotations

from typing import Any

import pytest

from distml.config import TrainConfig
from distml.errors import ModelError
from distml.training import optimizer

STEPS = 200


def table(**values: Any) -> list[float]:
    return optimizer.table(TrainConfig.model_validate({"learning_rate": 1e-3, **values}), STEPS)


def test_a_constant_schedule_keeps_the_rate() -> None:
    assert set(table(schedule="constant", epochs=3)) == {1e-3}


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 1e-3), (2, 1e-3), (3, 1e-4), (6, 1e-4), (7, 1e-5), (9, 1e-5)]
)
def test_the_default_schedule_decays(epoch: int, rate: float) -> None:
    rates = table(schedule="piecewise", epochs=10)
    assert rates[epoch * STEPS : (epoch + 1) * STEPS] == pytest.approx([rate] * STEPS)


def test_piecewise_with_boundaries_within_an_epoch() -> None:
    rates = table(
        schedule="piecewise", epochs=1, schedule_options={"boundaries": [0.5], "factors": [1.0, 2.0]}
    )
    assert rates == pytest.approx([1e-3] * 100 + [2e-3] * 100)


def test_one_cycle_warms_up_peaks_and_ends_below_its_start() -> None:
    rates = table(schedule="one_cycle", epochs=5)
    assert rates[0] == pytest.approx(1e-3 / 25)
    assert rates[-1] == pytest.approx(1e-3 / 1000)
    assert rates.index(max(rates)) == 300
    assert max(rates) == pytest.approx(1e-3)
    assert rates[:301] == sorted(rates[:301])
    assert rates[300:] == sorted(rates[300:], reverse=True)


def test_cosine_warms_up_linearly_and_ends_at_zero() -> None:
    rates = table(schedule="cosine", epochs=5)
    first = 1e-3 / 25
    assert rates[0] == pytest.approx(first)
    assert rates[100] == pytest.approx((first + 1e-3) / 2)
    assert rates[STEPS] == pytest.approx(1e-3) == max(rates)
    assert rates[STEPS:] == sorted(rates[STEPS:], reverse=True)
    assert 0 <= rates[-1] < 1e-8
    assert table(schedule="cosine", epochs=2, schedule_options={"warmup_epochs": 0.0})[0] == 1e-3


@pytest.mark.parametrize("name", ["cosine", "one_cycle"])
def test_frozen_epochs_and_the_others_have_a_cycle_each(name: str) -> None:
    train = TrainConfig.model_validate({"learning_rate": 1e-3, "schedule": name, "epochs": 5})
    assert optimizer.table(train, STEPS, frozen=3) == [
        *table(schedule=name, epochs=3),
        *table(schedule=name, epochs=2),
    ]
    assert optimizer.table(train, STEPS, frozen=5) == table(schedule=name, epochs=5)


def test_boundaries_in_epochs_are_those_of_the_run_whatever_is_frozen() -> None:
    train = TrainConfig.model_validate({"learning_rate": 1e-3, "schedule": "piecewise", "epochs": 8})
    assert optimizer.table(train, STEPS, frozen=5) == optimizer.table(train, STEPS)


@pytest.mark.parametrize("name", ["constant", "piecewise", "cosine", "one_cycle"])
def test_the_rate_does_not_depend_on_workers(name: str) -> None:
    alone = table(schedule=name, epochs=3, workers=1)
    assert (
        alone == table(schedule=name, epochs=3, workers=8) == table(schedule=name, epochs=3, workers=[1, 8])
    )
    assert len(alone) == 3 * STEPS
    assert all(rate > 0 or name == "cosine" for rate in alone)


@pytest.mark.parametrize("name", ["constant", "piecewise", "cosine", "one_cycle"])
def test_the_shortest_run_has_a_rate(name: str) -> None:
    train = TrainConfig.model_validate({"learning_rate": 1e-3, "schedule": name, "epochs": 1})
    (rate,) = optimizer.table(train, 1)
    assert 0 < rate <= 1e-3


def halving(step: float, total_steps: int, learning_rate: float, halvings: int = 1) -> float:
    """A schedule as a user writes it."""
    return float(learning_rate * 0.5 ** int(halvings * step / total_steps))


def negative(step: float, total_steps: int, learning_rate: float) -> float:
    """A schedule that goes wrong at its end."""
    return learning_rate if step < total_steps - 1 else -1.0


def test_a_schedule_of_the_users_gives_the_rate_of_each_step() -> None:
    own = {
        "schedule": "tests.unit.training.test_optimizer:halving",
        "schedule_options": {"own": {"halvings": 4}},
        "epochs": 4,
    }
    assert table(**own) == [1e-3 * 0.5**epoch for epoch in range(4) for _ in range(STEPS)]


def test_a_rate_that_is_not_a_number_is_rejected() -> None:
    with pytest.raises(ModelError, match=r"negative returns -1.0 for step \d+ of \d+"):
        table(schedule="tests.unit.training.test_optimizer:negative")

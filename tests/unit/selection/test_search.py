"""A search space is checked value by value before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from distml.config import Config
from distml.errors import ConfigError
from distml.selection import candidates


def resolve(space: dict[str, Any], **options: Any) -> Any:
    return Config.resolve({"sweep": {"search": {"space": space, **options}}})


def test_a_valid_search_space_is_accepted() -> None:
    candidates.check_space(
        resolve(
            {
                "train.learning_rate": {"log_uniform": [1e-4, 1e-1]},
                "train.epochs": {"integers": [2, 9]},
                "train.momentum": {"uniform": [0.5, 0.99]},
                "model.name": {"choice": ["cnn", "resnet"]},
            }
        )
    )


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.learning_rat": {"choice": [1]}}, "sweep.search.space.train.learning_rat: unknown key"),
        ({"model.name": {"choice": ["cnn", "cnm"]}}, "sweep.search.space.model.name: model.name = 'cnm'"),
        ({"train.momentum": {"uniform": [0.5, 1.5]}}, "train.momentum = 1.5"),
        ({"run.name": {"choice": ["a", "b"]}}, "a candidate cannot override run.name"),
    ],
)
def test_an_invalid_value_of_a_search_space_is_named(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        candidates.check_space(resolve(space))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give exactly one of choice"),
        ({"choice": [1], "uniform": [0, 1]}, "give exactly one of choice"),
        ({"choice": []}, "give exactly one of choice"),
        ({"uniform": [1, 1]}, "from a smaller to a larger"),
        ({"log_uniform": [0, 1]}, "sweep.search.space.train.momentum.log_uniform.0"),
    ],
)
def test_values_are_of_one_kind_and_in_order(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"train.momentum": given})
    assert said in str(caught.value)


def test_a_grid_is_finite_and_a_space_is_not_empty() -> None:
    with pytest.raises(ConfigError, match=r"a grid needs a choice for train\.momentum"):
        resolve({"train.momentum": {"uniform": [0, 0.9]}}, method="grid")
    with pytest.raises(ConfigError, match=r"sweep\.search\.space"):
        resolve({})
    with pytest.raises(ConfigError, match="give candidates or search, not both"):
        Config.resolve(
            {"sweep": {"candidates": [{}], "search": {"space": {"train.epochs": {"choice": [1]}}}}}
        )


def test_a_resumed_search_keeps_the_names_of_trials() -> None:
    assert candidates.trial_name("3f2a1_00007") == "trial-007"

"""How many candidates train at the same time."""

from __future__ import annotations

from typing import Any

import pytest

from distml.config import TrainConfig
from distml.selection.candidates import concurrent


@pytest.mark.parametrize(
    ("wanted", "train", "cpus", "gpus", "expected"),
    [
        ("auto", {"workers": 2}, 2, 0, 1),  # a laptop: six TensorFlow processes would crawl
        ("auto", {"workers": 2}, 8, 0, 3),
        ("auto", {"workers": 2}, 64, 0, 3),
        ("auto", {"workers": 1}, 4, 0, 3),
        ("auto", {"workers": [1, 4]}, 8, 0, 1),  # elastic runs want their most
        ("auto", {"workers": 2, "cpus_per_worker": 4}, 20, 0, 2),
        ("auto", {"workers": 1}, 64, 2, 2),  # a GPU each
        ("auto", {"workers": 2}, 64, 2, 1),
        ("auto", {"workers": 1, "device": "cpu"}, 64, 2, 3),
        (2, {"workers": 2}, 2, 0, 2),
        (9, {"workers": 2}, 2, 0, 3),
    ],
)
def test_candidates_run_concurrently_only_with_their_own_cores_or_gpus(
    wanted: Any, train: dict[str, Any], cpus: float, gpus: int, expected: int
) -> None:
    assert concurrent(wanted, [TrainConfig.model_validate(train)] * 3, cpus, gpus) == expected


def test_concurrency_is_limited_by_the_largest_candidate() -> None:
    trains = [TrainConfig(workers=1), TrainConfig(workers=4)]
    assert concurrent("auto", trains, 5) == 1
    assert concurrent("auto", trains, 9) == 2

"""All ranks end with the same weights, and with the loss of one rank on the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.ranks import frozen, launch, steps

pytestmark = [pytest.mark.tensorflow, pytest.mark.timeout(400)]

EVERYTHING: dict[str, Any] = {
    "global_batch_size": 63,  # odd: the first rank takes one row more
    "optimizer": "sgd",
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "ema": 0.9,
    "label_smoothing": 0.1,
    "augment": {"flip": True, "crop_padding": 2, "erase": 6},
}
FROZEN: dict[str, Any] = {
    "global_batch_size": 33,
    "optimizer": "adamw",
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "ema": 0.9,
}
PLAIN = steps("convnet", {"global_batch_size": 64, "optimizer": "adam"})
Results = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def groups() -> dict[int, Results]:
    """What one rank, two and three end with."""
    everything = {model: steps(model, EVERYTHING) for model in ("cnn_batchnorm", "cnn_dropout")}
    backbones = {"frozen": frozen(FROZEN), "16 bits": frozen(FROZEN | {"precision": "mixed_float16"})}
    return launch(
        {
            1: {"plain": PLAIN, "frozen": frozen(FROZEN, ("features",))},
            2: {**everything, "plain": PLAIN, **backbones},
            3: {"uneven": steps("convnet", {"global_batch_size": 64})},
        }
    )


@pytest.fixture(scope="module")
def alone(groups: dict[int, Results]) -> Results:
    return groups[1]


@pytest.fixture(scope="module")
def pair(groups: dict[int, Results]) -> Results:
    return groups[2]


@pytest.mark.parametrize("model", ["cnn_batchnorm", "cnn_dropout"])
def test_two_ranks_end_with_equal_weights_for_every_option(pair: Results, model: str) -> None:
    first, second = pair[model]
    assert first["done"] == second["done"] == 6
    assert first["weights"] == second["weights"]
    assert first["losses"] == second["losses"]
    assert first["total"] == second["total"] == [3.0]


def test_three_ranks_whose_batches_differ_end_with_the_same_weights(groups: dict[int, Results]) -> None:
    ranks = groups[3]["uneven"]
    assert [rank["done"] for rank in ranks] == [6] * 3
    assert len({rank["weights"] for rank in ranks}) == 1


def test_two_ranks_follow_the_loss_of_one_on_the_same_rows(alone: Results, pair: Results) -> None:
    single, double = alone["plain"][0], pair["plain"][0]
    np.testing.assert_allclose(single["losses"], double["losses"], rtol=2e-4)
    assert single["losses"][-1] < single["losses"][0]


def test_a_frozen_backbone_stays_bitwise_equal_and_then_trains_equally_on_all_ranks(
    alone: Results, pair: Results
) -> None:
    first, second = pair["frozen"]
    assert first == second
    for way in first.values():
        assert way["kept"]
        assert way["moved"]
        assert len(way["losses"]) == 8
    # Features that were computed once are learnt from as images are.
    np.testing.assert_allclose(first["features"]["losses"], first["head"]["losses"], rtol=1e-4)
    # Where the backbone is unfrozen, a resumed run continues exactly.
    assert first["resumed"] == first["features"]
    (single,) = alone["frozen"]
    np.testing.assert_allclose(single["features"]["losses"][:4], first["features"]["losses"][:4], rtol=1e-4)


def test_a_backbone_is_frozen_in_16_bits_with_a_loss_scale_too(pair: Results) -> None:
    first, second = pair["16 bits"]
    assert first == second
    assert all(way["kept"] and way["moved"] for way in first.values())
    assert first["resumed"] == first["features"]

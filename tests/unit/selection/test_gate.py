"""The gate as a function of scores."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from distml.config import PromoteConfig
from distml.selection import gate
from distml.selection.gate import Score

ACCURACY = "val_accuracy"


def score(version: int, accuracy: float, loss: float = 0.5) -> Score:
    return Score(version, {"accuracy": accuracy, "loss": loss}, 4998)


@pytest.mark.parametrize(
    ("min_gain", "ours", "theirs", "promoted"),
    [
        (0.0, 0.9000, 0.8999, True),
        (0.0, 0.9000, 0.9000, False),
        (0.0, 0.8999, 0.9000, False),
        (0.005, 0.905, 0.900, True),  # 0.0050000000000000044
        (0.005, 0.805, 0.800, True),  # 0.0049999999999999
        (0.005, 0.9049, 0.900, False),
        (-1.0, 0.9, 0.9, False),  # even a negative gain does not replace a champion by its equal
    ],
)
def test_accuracy_must_rise_by_the_least_gain(
    min_gain: float, ours: float, theirs: float, promoted: bool
) -> None:
    rules = PromoteConfig(min_gain=min_gain)
    assert gate.decide(rules, ACCURACY, score(2, ours), score(1, theirs)).promote is promoted


def test_a_loss_must_fall() -> None:
    rules = PromoteConfig(min_gain=0.1)
    assert gate.decide(rules, "val_loss", score(2, 0.5, 0.2), score(1, 0.9, 0.4)).promote
    assert not gate.decide(rules, "val_loss", score(2, 0.9, 0.35), score(1, 0.5, 0.4)).promote
    assert not gate.decide(rules, "val_loss", score(2, 0.9, 0.5), score(1, 0.5, 0.4)).promote


def test_the_reason_is_one_sentence_with_the_numbers() -> None:
    rules = PromoteConfig(min_gain=0.01)
    kept = gate.decide(rules, ACCURACY, score(5, 0.9034), score(3, 0.9022)).why
    assert kept == (
        "version 5 has val_accuracy 0.9034, 0.0012 better than champion version 3 with 0.9022 on 4,998 "
        "validation rows, but promote.min_gain asks for 0.01."
    )
    worse = gate.decide(rules, ACCURACY, score(5, 0.9), score(3, 0.9022)).why
    assert worse.endswith("0.0022 worse than champion version 3 with 0.9022 on 4,998 validation rows.")
    first = gate.decide(rules, ACCURACY, score(5, 0.9), None)
    assert first == gate.Decision(
        True, "version 5 has val_accuracy 0.9000 on 4,998 validation rows, with no champion to compare with."
    )


def test_the_champion_does_not_challenge_itself() -> None:
    decision = gate.decide(PromoteConfig(), ACCURACY, score(3, 0.9), score(3, 0.9))
    assert not decision.promote
    assert decision.why.endswith("is the champion already.")


def test_the_best_is_the_best_by_the_metric_and_among_equals_the_surer_and_older() -> None:
    field = [score(4, 0.9, 0.3), score(2, 0.9, 0.3), score(3, 0.9, 0.4), score(1, 0.8, 0.1)]
    assert gate.best("val_accuracy", field).version == 2
    assert gate.best("val_loss", field).version == 1


def test_no_test_metric_reaches_the_gate() -> None:
    known = {dataclass.name for dataclass in dataclasses.fields(Score)} | set(
        inspect.signature(gate.decide).parameters
    )
    assert not {name for name in known if "test" in name}
    with pytest.raises(ValueError, match="metric"):
        PromoteConfig.model_validate({"metric": "test_accuracy"})

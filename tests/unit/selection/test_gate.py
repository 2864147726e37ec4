"""The gate as a function of scores."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

from distml.config import PromoteConfig
from distml.errors import ConfigError
from distml.selection import gate
from distml.selection.gate import Score
from distml.selection.score import measure
from distml.tasks.classification import Classification
from distml.tasks.regression import Regression

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
    assert decision.why.endswith("is already the champion.")


def test_ties_are_broken_by_loss_and_then_by_age() -> None:
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


def sampled(version: int, hits: int, rows: int = 400) -> Score:
    """A version that is right for the first rows, with the rows themselves."""
    task, targets = Classification(("cat", "dog")), (np.arange(rows) % 2).astype(np.int32)
    outputs = np.eye(2, dtype=np.float32)[np.where(np.arange(rows) < hits, targets, 1 - targets)]
    return measure(task, outputs, targets, version)


def test_a_gain_within_the_noise_is_reported_and_rejected_where_configured() -> None:
    close = gate.decide(PromoteConfig(), ACCURACY, sampled(2, 361), sampled(1, 360))
    assert close.promote
    assert "the gain is inside the noise (95 % interval +0.0000" in close.why
    kept = gate.decide(PromoteConfig(beyond_noise=True), ACCURACY, sampled(2, 361), sampled(1, 360))
    assert not kept.promote
    assert kept.why.endswith("promote.beyond_noise is set.")
    clear = gate.decide(PromoteConfig(beyond_noise=True), "val_macro_f1", sampled(2, 380), sampled(1, 300))
    assert clear.promote
    assert "outside the noise" in clear.why


@pytest.mark.parametrize(
    ("guards", "said"),
    [
        (
            {"min_recall": {"dog": 0.95}},
            "its recall of dog is 0.9000, promote.guards.min_recall asks for 0.95",
        ),
        ({"min_recall": {"bird": 0.1}}, "its recall of bird is not known, as no validation row has it"),
        ({"max_ece": 0.05}, "its calibration error is 0.1000, promote.guards.max_ece allows 0.05"),
        ({"max_latency_ms": 5}, "its prediction of one image is not known"),
    ],
)
def test_a_guard_rejects_an_otherwise_better_candidate(guards: dict[str, object], said: str) -> None:
    rules = PromoteConfig.model_validate({"guards": guards})
    for champion in (None, sampled(1, 300)):
        decision = gate.decide(rules, ACCURACY, sampled(2, 360), champion)
        assert not decision.promote
        assert said in decision.why
    met = PromoteConfig.model_validate({"guards": {"min_recall": {"dog": 0.9}, "max_ece": 0.1}})
    assert gate.decide(met, ACCURACY, sampled(2, 360), None).promote


def test_a_guard_near_its_limit_reports_the_noise() -> None:
    rules = PromoteConfig.model_validate({"guards": {"min_recall": {"dog": 0.89}}})
    met = gate.decide(rules, ACCURACY, sampled(2, 360), None)
    assert met.promote
    assert "asks for 0.89, which is inside the noise (95 % interval 0.8" in met.why
    strict = rules.model_copy(update={"beyond_noise": True})
    assert not gate.decide(strict, ACCURACY, sampled(2, 360), None).promote
    missed = PromoteConfig.model_validate({"guards": {"min_recall": {"dog": 0.91}}})
    kept = gate.decide(missed, ACCURACY, sampled(2, 360), None)
    assert (kept.promote, "inside the noise" in kept.why) == (False, True)
    clear = PromoteConfig.model_validate({"guards": {"min_recall": {"dog": 0.5}, "max_ece": 0.3}})
    sure = gate.decide(clear.model_copy(update={"beyond_noise": True}), ACCURACY, sampled(2, 360), None)
    assert (sure.promote, "noise" in sure.why) == (True, False)


def test_a_guard_of_an_unknown_class_is_rejected() -> None:
    rules = PromoteConfig.model_validate({"guards": {"min_recall": {"dgo": 0.9}}})
    with pytest.raises(ConfigError, match="dgo, which is none of the classes") as refused:
        gate.check(rules, Classification(("cat", "dog")))
    assert refused.value.remedy == "Did you mean dog?"


@pytest.mark.parametrize("guards", [{"max_ece": 0.1}, {"min_recall": {"length": 0.5}}])
def test_a_guard_that_the_task_does_not_have_is_rejected(guards: dict[str, Any]) -> None:
    rules = PromoteConfig.model_validate({"guards": guards})
    with pytest.raises(ConfigError, match="which regression does not have") as refused:
        gate.check(rules, Regression(("length",)))
    assert refused.value.remedy == "Its guards are max_latency_ms."
    gate.check(PromoteConfig.model_validate({"guards": {"max_latency_ms": 5}}), Regression(("length",)))

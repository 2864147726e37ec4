"""Who becomes champion: a pure function of measured scores (driver)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from distml.config import PromoteConfig

_ROUNDING = 1e-9
"""0.905 - 0.9 is a little more than 0.005, and 0.805 - 0.8 a little less."""


@dataclass(frozen=True)
class Score:
    """What a version reached on the validation rows; test rows are no part of it.

    Attributes:
        version: Number in the registry.
        val_accuracy: Share of rows classified right.
        val_loss: Mean cross-entropy.
        rows: Validation rows.
    """

    version: int
    val_accuracy: float
    val_loss: float
    rows: int


@dataclass(frozen=True)
class Decision:
    """What is to happen, and why.

    Attributes:
        promote: Whether the candidate becomes champion.
        why: One sentence with the numbers.
    """

    promote: bool
    why: str


def gain(metric: str, candidate: Score, other: Score) -> float:
    """How much better a candidate is; negative where it is worse, whichever way the metric points."""
    difference = float(getattr(candidate, metric) - getattr(other, metric))
    return -difference if metric == "val_loss" else difference


def best(metric: str, scores: Iterable[Score]) -> Score:
    """The best of some scores; among equals the one with the smaller loss, then the older version."""

    def rank(score: Score) -> tuple[float, float, int]:
        value = float(getattr(score, metric))
        return (value if metric == "val_loss" else -value, score.val_loss, score.version)

    return min(scores, key=rank)


def decide(rules: PromoteConfig, candidate: Score, champion: Score | None) -> Decision:
    """Decide on the best candidate.

    It must be strictly better than the champion, and by `promote.min_gain` at least.

    Args:
        rules: Metric and least gain.
        candidate: The best of the candidates.
        champion: The incumbent on the same rows; None where there is none or it is to be replaced unseen.
    """
    metric = rules.metric
    reached = f"version {candidate.version} has {metric} {getattr(candidate, metric):.4f}"
    rows = f"on {candidate.rows:,} validation rows"
    if champion is None:
        return Decision(True, f"{reached} {rows}, with no champion to compare with.")
    if champion.version == candidate.version:
        return Decision(False, f"{reached} {rows} and is the champion already.")
    better = gain(metric, candidate, champion)
    than = f"than champion version {champion.version} with {getattr(champion, metric):.4f} {rows}"
    if abs(better) <= _ROUNDING:
        return Decision(False, f"{reached}, no better {than}.")
    if better < 0:
        return Decision(False, f"{reached}, {-better:.4f} worse {than}.")
    if better < rules.min_gain - _ROUNDING:
        return Decision(
            False, f"{reached}, {better:.4f} better {than}, but promote.min_gain asks for {rules.min_gain:g}."
        )
    return Decision(True, f"{reached}, {better:.4f} better {than} (promote.min_gain {rules.min_gain:g}).")

"""Who becomes champion: a pure function of measured scores (driver)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from distml.config import PromoteConfig
from distml.tasks import Outputs, Targets, Task, quality

_ROUNDING = 1e-9
"""0.905 - 0.9 is a little more than 0.005, and 0.805 - 0.8 a little less."""
_VALUES = 200_000_000
"""Outputs that the resamples of an interval may read altogether: some seconds."""


@dataclass(frozen=True)
class Sample:
    """The validation rows and what a version predicts for them.

    Args:
        task: Of the version, with its thresholds.
        targets: [N] or [N, K].
        outputs: float32 [N, K].
    """

    task: Task
    targets: Targets
    outputs: Outputs


@dataclass(frozen=True)
class Score:
    """What a version reached on the validation rows; test rows are no part of it.

    Attributes:
        version: Number in the registry.
        metrics: Values by name, without the split's prefix.
        rows: Validation rows.
        correct: Mean of how right a prediction is, from 0 to 1; the accuracy in classification.
        recall: By class or label, for guards.
        latency_ms: Of a prediction for one image, by the export that is served.
        sample: The rows themselves, from which intervals are drawn; None gives none.
    """

    version: int
    metrics: Mapping[str, float]
    rows: int
    correct: float = 0.0
    recall: Mapping[str, float] = field(default_factory=dict)
    latency_ms: float | None = None
    sample: Sample | None = field(default=None, compare=False, repr=False)


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
    name = quality.plain(metric)
    difference = candidate.metrics[name] - other.metrics[name]
    return difference if quality.higher(name) else -difference


def best(metric: str, scores: Iterable[Score]) -> Score:
    """The best of some scores; among equals the one with the smaller loss, then the older version."""
    name = quality.plain(metric)

    def rank(score: Score) -> tuple[float, float, int]:
        value = score.metrics[name]
        return (-value if quality.higher(name) else value, score.metrics["loss"], score.version)

    return min(scores, key=rank)


def interval(metric: str, candidate: Score, other: Score | None = None) -> tuple[float, float] | None:
    """The 95 % interval of a metric, or of its gain over another version on the same rows; by bootstrap.

    Returns:
        Its ends, None where rows are not known.
    """
    name, samples = quality.plain(metric), [score.sample for score in (candidate, other) if score is not None]
    known = [sample for sample in samples if sample is not None]
    if not known or len(known) < len(samples):
        return None
    sign = 1 if quality.higher(name) or other is None else -1

    def value(sample: Sample, rows: np.ndarray) -> float:
        return sample.task.value(name, sample.targets[rows], sample.outputs[rows])

    def measure(rows: np.ndarray) -> float:
        first, *rest = (value(sample, rows) for sample in known)
        return sign * (first - rest[0]) if rest else first

    resamples = int(np.clip(_VALUES // max(1, known[0].outputs.size), 20, quality.RESAMPLES))
    return quality.interval(measure, len(known[0].targets), resamples=resamples)


def failures(rules: PromoteConfig, score: Score) -> list[str]:
    """Say which guards a version does not meet."""
    guards, failed = rules.guards, []
    for name, least in guards.min_recall.items():
        reached = score.recall.get(name, 0.0)
        if reached < least - _ROUNDING:
            failed.append(
                f"its recall of {name} is {reached:.4f}, promote.guards.min_recall asks for {least:g}"
            )
    ece = score.metrics.get("ece")
    if guards.max_ece is not None and (ece is None or ece > guards.max_ece + _ROUNDING):
        shown = "not known" if ece is None else f"{ece:.4f}"
        failed.append(f"its calibration error is {shown}, promote.guards.max_ece allows {guards.max_ece:g}")
    latency = score.latency_ms
    if guards.max_latency_ms is not None and (latency is None or latency > guards.max_latency_ms):
        shown = "not known" if latency is None else f"{latency:.2f} ms"
        limit = f"promote.guards.max_latency_ms allows {guards.max_latency_ms:g}"
        failed.append(f"a prediction takes {shown}, {limit}")
    return failed


def decide(rules: PromoteConfig, metric: str, candidate: Score, champion: Score | None) -> Decision:
    """Decide on the best candidate.

    It must meet the guards, be strictly better than the champion, by `promote.min_gain` at least, and where
    `promote.beyond_noise` is set, by more than the interval of the gain.

    Args:
        rules: Least gain and guards.
        metric: What is compared, as `val_accuracy`.
        candidate: The best of the candidates.
        champion: The incumbent on the same rows; None where there is none or it is to be replaced unseen.
    """
    reached = f"version {candidate.version} has {metric} {candidate.metrics[quality.plain(metric)]:.4f}"
    rows = f"on {candidate.rows:,} validation rows"
    if failed := failures(rules, candidate):
        return Decision(False, f"{reached} {rows}, but {'; '.join(failed)}.")
    if champion is None:
        return Decision(True, f"{reached} {rows}, with no champion to compare with.")
    if champion.version == candidate.version:
        return Decision(False, f"{reached} {rows} and is the champion already.")
    better = gain(metric, candidate, champion)
    than = (
        f"than champion version {champion.version} with {champion.metrics[quality.plain(metric)]:.4f} {rows}"
    )
    if abs(better) <= _ROUNDING:
        return Decision(False, f"{reached}, no better {than}.")
    if better < 0:
        return Decision(False, f"{reached}, {-better:.4f} worse {than}.")
    if better < rules.min_gain - _ROUNDING:
        return Decision(
            False, f"{reached}, {better:.4f} better {than}, but promote.min_gain asks for {rules.min_gain:g}."
        )
    ends = interval(metric, candidate, champion)
    noisy, noise = _noise(ends)
    if noisy and rules.beyond_noise:
        return Decision(False, f"{reached}, {better:.4f} better {than}{noise}; promote.beyond_noise is set.")
    return Decision(
        True, f"{reached}, {better:.4f} better {than} (promote.min_gain {rules.min_gain:g}){noise}."
    )


def _noise(ends: tuple[float, float] | None) -> tuple[bool, str]:
    """Whether a gain is inside the noise, and that in words."""
    if ends is None:
        return False, ""
    inside = ends[0] <= 0
    where = "inside" if inside else "outside"
    return inside, f"; the gain is {where} the noise (95 % interval {ends[0]:+.4f} to {ends[1]:+.4f})"

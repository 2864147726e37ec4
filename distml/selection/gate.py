"""The promotion rule: decides from measured scores whether a candidate becomes champion (driver)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from distml.config import PromoteConfig
from distml.errors import ConfigError
from distml.tasks import Outputs, Targets, Task, check_guards, quality

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

    return _resampled(known[0], measure)


def _resampled(sample: Sample, measure: Callable[[np.ndarray], float]) -> tuple[float, float]:
    resamples = int(np.clip(_VALUES // max(1, sample.outputs.size), 20, quality.RESAMPLES))
    return quality.interval(measure, len(sample.targets), resamples=resamples)


@dataclass(frozen=True)
class Guard:
    """A limit and what a version reached.

    Attributes:
        what: It is about, in words.
        key: Of the configuration.
        limit: Its value.
        least: Whether the limit is the least value; otherwise it is the largest.
        reached: By the version, None where it is not known.
        ends: 95 % interval of that, None where rows are not known.
        unit: Behind the value.
        unknown: Said where there is no value.
    """

    what: str
    key: str
    limit: float
    least: bool
    reached: float | None
    ends: tuple[float, float] | None = None
    unit: str = ""
    unknown: str = "not known"

    def _meets(self, value: float | None) -> bool:
        if value is None:
            return False
        return value >= self.limit - _ROUNDING if self.least else value <= self.limit + _ROUNDING

    @property
    def met(self) -> bool:
        """Whether the value meets the limit."""
        return self._meets(self.reached)

    @property
    def sure(self) -> bool:
        """Whether every value of the interval is on the side of the limit on which the value is."""
        return self.ends is None or all(self._meets(end) == self.met for end in self.ends)

    @property
    def text(self) -> str:
        """What was reached and what is asked, and where that is inside the noise."""
        shown = self.unknown if self.reached is None else f"{self.reached:.4f}{self.unit}"
        asks = "asks for" if self.least else "allows"
        noise = ""
        if self.ends is not None and not self.sure:
            low, high = self.ends
            noise = f", which is inside the noise (95 % interval {low:.4f} to {high:.4f})"
        return f"its {self.what} is {shown}, promote.guards.{self.key} {asks} {self.limit:g}{noise}"


def guards(rules: PromoteConfig, score: Score) -> list[Guard]:
    """Judge a version by every guard, each with the interval of its value."""
    wanted, sample, judged = rules.guards, score.sample, []

    def ends(value: Callable[[Sample, np.ndarray], float]) -> tuple[float, float] | None:
        return None if sample is None else _resampled(sample, lambda rows: value(sample, rows))

    for name, least in wanted.min_recall.items():
        reached = score.recall.get(name)

        def recall(
            sample: Sample, rows: np.ndarray, name: str = name, all_rows: float = reached or 0
        ) -> float:
            return sample.task.recalls(sample.targets[rows], sample.outputs[rows]).get(name, all_rows)

        between = None if reached is None else ends(recall)
        absent = "not known, as no validation row has it"
        judged.append(Guard(f"recall of {name}", "min_recall", least, True, reached, between, unknown=absent))
    if wanted.max_ece is not None:

        def error(sample: Sample, rows: np.ndarray) -> float:
            return sample.task.measure(sample.targets[rows], sample.outputs[rows])["ece"]

        known = score.metrics.get("ece")
        between = None if known is None else ends(error)
        judged.append(Guard("calibration error", "max_ece", wanted.max_ece, False, known, between))
    if (most := wanted.max_latency_ms) is not None:
        judged.append(
            Guard("prediction of one image", "max_latency_ms", most, False, score.latency_ms, unit=" ms")
        )
    return judged


def check(rules: PromoteConfig, task: Task) -> None:
    """Check that guards name what the task knows.

    Raises:
        ConfigError: One does not.
    """
    check_guards(rules, task)
    for name in rules.guards.min_recall:
        if name not in task.names:
            near = difflib.get_close_matches(name, task.names, 1)
            raise ConfigError(
                f"promote.guards.min_recall names {name}, which is none of the {task.what}.",
                f"Did you mean {near[0]}?" if near else f"They are {', '.join(task.names[:9])}.",
            )


def failures(rules: PromoteConfig, score: Score) -> list[str]:
    """Say which guards a version does not meet, or not beyond the noise where that is asked for."""
    return _failed(rules, guards(rules, score))


def _failed(rules: PromoteConfig, judged: list[Guard]) -> list[str]:
    return [guard.text for guard in judged if not guard.met or (rules.beyond_noise and not guard.sure)]


def decide(rules: PromoteConfig, metric: str, candidate: Score, champion: Score | None) -> Decision:
    """Decide on the best candidate.

    It must meet the guards, be strictly better than the champion, by `promote.min_gain` at least, and where
    `promote.beyond_noise` is set, by more than the interval of the gain, and meet the guards with their whole
    intervals.

    Args:
        rules: Least gain and guards.
        metric: What is compared, as `val_accuracy`.
        candidate: The best of the candidates.
        champion: The incumbent on the same rows; None where there is none or it is to be replaced unseen.
    """

    def valued(score: Score) -> str:
        return quality.digits(score.metrics[quality.plain(metric)])

    reached = f"version {candidate.version} has {metric} {valued(candidate)}"
    rows = f"on {candidate.rows:,} validation rows"
    judged = guards(rules, candidate)
    if failed := _failed(rules, judged):
        return Decision(False, f"{reached} {rows}, but {'; '.join(failed)}.")
    unsure = "".join(f"; {guard.text}" for guard in judged if not guard.sure)
    if champion is None:
        return Decision(True, f"{reached} {rows}, with no champion to compare with{unsure}.")
    if champion.version == candidate.version:
        return Decision(False, f"{reached} {rows} and is already the champion.")
    better = gain(metric, candidate, champion)
    than = f"than champion version {champion.version} with {valued(champion)} {rows}"
    gained = f"{quality.digits(abs(better))} {'better' if better > 0 else 'worse'} {than}"
    if abs(better) <= _ROUNDING:
        return Decision(False, f"{reached}, no better {than}.")
    if better < 0:
        return Decision(False, f"{reached}, {gained}.")
    if better < rules.min_gain - _ROUNDING:
        return Decision(False, f"{reached}, {gained}, but promote.min_gain asks for {rules.min_gain:g}.")
    ends = interval(metric, candidate, champion)
    noisy, noise = _noise(ends)
    if noisy and rules.beyond_noise:
        return Decision(False, f"{reached}, {gained}{noise}; promote.beyond_noise is set.")
    return Decision(True, f"{reached}, {gained} (promote.min_gain {rules.min_gain:g}){noise}{unsure}.")


def _noise(ends: tuple[float, float] | None) -> tuple[bool, str]:
    """Whether a gain is inside the noise, and that in words."""
    if ends is None:
        return False, ""
    inside = ends[0] <= 0
    where = "inside" if inside else "outside"
    low, high = (quality.digits(end, "+") for end in ends)
    return inside, f"; the gain is {where} the noise (95 % interval {low} to {high})"

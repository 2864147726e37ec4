"""One competition: measure the candidates, let the best challenge the champion (driver)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from distml import log
from distml.config import Config
from distml.data import shards
from distml.errors import DistmlError, ModelError, OtherDataError, TrackingError
from distml.selection import field, gate, move
from distml.selection.field import Entrant
from distml.selection.gate import Decision, Score
from distml.selection.score import Judge, trusted
from distml.storage import Storage
from distml.tracking import registry
from distml.tracking.registry import PREVIOUS


@dataclass(frozen=True)
class Outcome:
    """How a competition ended.

    Args:
        decision: Whether the winner became champion, and why.
        winner: The best of the candidates.
        before: The version that was champion before.
        champion: What that version scored on the same rows; None where there was none or it was not measured.
        entrants: All candidates.
        scores: Of each candidate, by version.
        barred: Why a candidate could not win, by version.
        test: The winner on the test rows: told, never used.
    """

    decision: Decision
    winner: Entrant
    before: int | None
    champion: Score | None
    entrants: list[Entrant]
    scores: dict[int, Score]
    barred: dict[int, str]
    test: Score | None


def hold(config: Config, entrants: list[Entrant], dry: bool = False, replace: bool = False) -> Outcome:
    """Let candidates compete, and the best of them challenge the champion.

    Args:
        config: The rules, the data and the registry.
        entrants: The candidates.
        dry: Change nothing.
        replace: Promote even where the champion cannot be measured.

    Raises:
        TrackingError: The registry does not answer, or files are gone; the alias has not moved.
        ModelError: A model must not be trusted, or no candidate may win; the alias has not moved.
    """
    storage = Storage(config.storage.root)
    judge = Judge(config, storage, shards.prepare(config, storage))
    scores, barred = _measure(entrants, judge)
    eligible = [score for version, score in scores.items() if version not in barred]
    if not eligible:
        reasons = "; ".join(f"version {version} {why}" for version, why in barred.items())
        raise ModelError(
            f"no candidate may become champion: {reasons}.",
            "Train on the present data; give models for other data another tracking.registered_model.",
        )
    best = gate.best(config.promote.metric, eligible)
    winner = next(one for one in entrants if one.version.version == best.version)

    def rate(version: int) -> Score | None:
        return _incumbent(config, judge, version, replace)

    decision, before = move.promote(config, storage, best, rate, judge.manifest.digest, dry)
    return Outcome(
        decision,
        winner,
        before,
        rate(before) if before is not None else None,
        entrants,
        scores,
        barred,
        judge.score(winner.version, "test") if judge.manifest.rows.get("test") else None,
    )


def _measure(entrants: list[Entrant], judge: Judge) -> tuple[dict[int, Score], dict[int, str]]:
    """Score every candidate that can be compared, and say why some may not win."""
    scores, barred = {}, {}
    for one in entrants:
        version = one.version.version
        try:
            scores[version] = judge.score(one.version)
        except OtherDataError as error:
            barred[version] = error.message.removeprefix(f"version {version} ").rstrip(".")
            continue
        if why := _barred(one, judge):
            barred[version] = why
    return scores, barred


def _barred(entrant: Entrant, judge: Judge) -> str:
    """Why a candidate may not win. What was trained on another cut of the data may have seen these rows."""
    trained_on = judge.trained_on[entrant.version.version]
    if trained_on != judge.manifest.digest:
        return f"was trained on other data ({trained_on[:12] or 'unknown'}, not {judge.manifest.digest[:12]})"
    return entrant.barred


def _incumbent(config: Config, judge: Judge, version: int, replace: bool) -> Score | None:
    try:
        return judge.score(field.require(config, version))
    except DistmlError as error:
        if replace:
            return None
        raise type(error)(
            f"champion version {version} cannot be compared with: {error.message}",
            "Restore it, roll back, or pass --replace to promote all the same.",
        ) from error


def back(config: Config, version: int | None, dry: bool = False) -> tuple[Decision, int, int | None]:
    """Return to an earlier champion, whatever it scores.

    Args:
        config: The registry.
        version: To return to; None for the previous champion.
        dry: Change nothing.

    Returns:
        The decision, the version returned to, and the one that was champion.

    Raises:
        TrackingError: There is none, its files are gone, or the registry does not answer.
        ModelError: It must not be served; the alias has not moved.
    """
    known = registry.aliases(config)
    target = version if version is not None else known.get(PREVIOUS)
    if target is None:
        raise TrackingError(
            f"{config.tracking.registered_model} has no {PREVIOUS} champion to return to.",
            "Name a version with --version.",
        )
    found = field.require(config, target)
    with tempfile.TemporaryDirectory(prefix="distml-promote-") as folder, log.quietly():
        trusted(config, found, Path(folder))
    decision, before = move.back(config, Storage(config.storage.root), target, dry)
    return decision, target, before

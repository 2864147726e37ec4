"""Promotion: evaluates candidates, lets the best challenge the champion, or rolls back (driver)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import log, tracking
from distml.config import Config
from distml.data import ingestion
from distml.errors import ConfigError, DistmlError, ModelError, OtherDataError, TrackingError
from distml.selection import alias, gate
from distml.selection import record as sweeps
from distml.selection.gate import Decision, Score
from distml.selection.score import Evaluator, trusted
from distml.storage import Storage
from distml.tasks import quality
from distml.tracking import outbox, registry, runs
from distml.tracking.registry import CHAMPION, PREVIOUS, ModelVersion


@dataclass(frozen=True)
class Candidate:
    """A registered version that may be promoted.

    Attributes:
        label: What a person calls it: a candidate, a run, or a version.
        version: In the registry.
        excluded: Why it may not win; "" where it may.
    """

    label: str
    version: ModelVersion
    excluded: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a promotion ended.

    Attributes:
        decision: Whether the winner became champion, and why.
        winner: The best of the candidates.
        before: The version that was champion before.
        champion: What that version scored on the same rows; None where there was none or it was not measured.
        candidates: All candidates.
        scores: Of each candidate, by version.
        excluded: Why a candidate could not win, by version.
        test: The winner on the test rows: reported, never used.
        metric: What they were compared by, as `val_accuracy`.
    """

    decision: Decision
    winner: Candidate
    before: int | None
    champion: Score | None
    candidates: list[Candidate]
    scores: dict[int, Score]
    excluded: dict[int, str]
    test: Score | None
    metric: str


def promote(
    config: Config,
    run: str | None = None,
    version: int | None = None,
    dry: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Evaluate the candidates on the validation rows; the best becomes champion if it beats the present one.

    Args:
        config: The rules, the data and the registry.
        run: Name of a sweep or a run, or an MLflow run id; "*" for every version; `run.name` by default.
        version: This version alone.
        dry: Decide and change nothing.
        replace: Promote even where the champion cannot be evaluated.

    Returns:
        The result line: `decision` (promoted or kept; with `dry` what it would be), `why`, `champion` and
        `previous` (versions after and before), the scores of the best candidate and of all by name.

    Raises:
        DistmlError: The command cannot be carried out; the alias has not moved.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    candidates = gather(config, Storage(config.storage.root), run, version)
    console.print(f"scoring {len(candidates)} candidate{'s' * (len(candidates) > 1)} on the validation rows")
    outcome = challenge(config, candidates, dry, replace)
    show_table(console, outcome.metric, outcome)
    decision, best = outcome.decision, outcome.winner.version
    console.print(_verdict(decision.promote, dry, f"version {best.version} is the {CHAMPION}", decision.why))
    score, name = outcome.scores[best.version], outcome.metric
    plain = quality.plain(name)
    champion = best.version if decision.promote and not dry else outcome.before
    return _result(decision, "promoted", champion, outcome.before, dry) | {
        "model": config.tracking.registered_model,
        "version": best.version,
        "candidate": outcome.winner.label,
        "run_id": best.run_id,
        "metric": name,
        "val_loss": score.metrics["loss"],
        **{f"val_{key}": score.metrics.get(key) for key in ("accuracy", plain)},
        **{f"test_{key}": outcome.test and outcome.test.metrics.get(key) for key in ("accuracy", plain)},
        **{
            f"champion_val_{key}": outcome.champion and outcome.champion.metrics.get(key)
            for key in ("accuracy", plain)
        },
        "val_correct": score.correct,
        "champion_val_correct": outcome.champion and outcome.champion.correct,
        "interval": gate.interval(name, score),
        "candidates": {
            candidate.label: outcome.scores[candidate.version.version].metrics[plain]
            for candidate in candidates
            if candidate.version.version in outcome.scores
        },
    }


def rollback(config: Config, version: int | None = None, dry: bool = False) -> dict[str, Any]:
    """Make an earlier champion the champion again, whatever it scores.

    Args:
        config: The registry.
        version: To return to; None for the version that was champion before, in fact (`alias.former`), else
            the one with the alias `previous`.
        dry: Change nothing.

    Returns:
        The result line, as that of `promote`, with the decision `rolled back`.

    Raises:
        TrackingError: There is no such version, its files are gone, or the registry does not respond.
        ModelError: It must not be served; the alias has not moved.
    """
    target = _former(config) if version is None else version
    with tempfile.TemporaryDirectory(prefix="distml-promote-") as folder, log.quietly():
        trusted(config, require(config, target), Path(folder))
    decision, before = alias.back(config, Storage(config.storage.root), target, dry)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(_verdict(decision.promote, dry, f"version {target} is the {CHAMPION}", decision.why))
    line = _result(decision, "rolled back", before if dry else target, before, dry)
    return line | {"model": config.tracking.registered_model, "version": target}


def _former(config: Config) -> int:
    """The version to roll back to.

    Raises:
        TrackingError: There is none.
    """
    pointed, known = registry.aliases(config), registry.versions(config)
    target = alias.former(config, known, pointed.get(CHAMPION)) or pointed.get(PREVIOUS)
    if target is None or target == pointed.get(CHAMPION):
        raise TrackingError(
            f"{config.tracking.registered_model} has no {PREVIOUS} champion to return to.",
            "Name a version with --version.",
        )
    return target


def _verdict(moved: bool, dry: bool, what: str, why: str) -> str:
    verdict = what if moved else "the champion stays"
    return f"[bold]{'would be: ' * dry}{escape(verdict)}[/bold]: {escape(why)}"


def _result(
    decision: Decision, moved: str, champion: int | None, before: int | None, dry: bool
) -> dict[str, Any]:
    return {
        "decision": moved if decision.promote else "kept",
        "why": decision.why,
        "champion": champion,
        "previous": before,
        "dry_run": dry,
    }


def gather(config: Config, storage: Storage, run: str | None, version: int | None) -> list[Candidate]:
    """Return the candidates for promotion.

    Args:
        config: Names the registry and, by `run.name`, the default sweep or run.
        storage: Where runs and sweeps are recorded.
        run: Name of a sweep or a run, or an MLflow run id; all versions of the registered model where it
            is "*".
        version: This version alone, even when it was rolled back from.

    Raises:
        ConfigError: Both are given, there is no such run, or it is not finished.
        TrackingError: A version is not registered, or the registry does not respond.
    """
    if run is not None and version is not None:
        raise ConfigError("--run and --version both name candidates.", "Give one of them.")
    if version is not None:
        return [Candidate(f"version {version}", require(config, version))]
    if run == "*":
        outbox.deliver(config, config.tracking.wait_s)
        candidates = [
            Candidate(f"version {version.version}", version) for version in registry.versions(config)
        ]
        if not candidates:
            raise TrackingError(
                f"{config.tracking.registered_model} has no versions.",
                "Train a model first, or correct storage.root or tracking.uri.",
            )
    else:
        candidates = _of_name(config, storage, run or config.run.name)
    return [
        Candidate(candidate.label, candidate.version, candidate.version.tags.get(alias.WITHDRAWN, ""))
        for candidate in candidates
    ]


def _of_name(config: Config, storage: Storage, name: str) -> list[Candidate]:
    """The candidates of a sweep, the one run of a name, or the version of an MLflow run id."""
    sweep = sweeps.find(storage, name)
    if sweep is not None:
        trained = [_of_run(config, storage, label, run) for label, run in sweep.runs.items()]
        if candidates := [candidate for candidate in trained if candidate is not None]:
            return candidates
    if only := _of_run(config, storage, name, name):
        return [only]
    if by_id := registry.by_run(config, name):
        return [Candidate(f"run {name[:8]}", by_id)]
    known = sorted({*storage.names(sweeps.FOLDER), *storage.names(runs.FOLDER)})
    state = "is not finished" if name in known else f"does not exist in {storage.root}"
    raise ConfigError(
        f"{'sweep' if sweep else 'run'} {name} {state}.",
        "Train it to its end, name another with --run, or give --run '*' for every registered version.",
    )


def _of_run(config: Config, storage: Storage, label: str, name: str) -> Candidate | None:
    """The version that a finished run registered; None where the run is not finished."""
    record = runs.finished(storage, name)
    if record is None:
        return None
    registered = tracking.register(config, storage, record).version
    if registered is None:
        raise TrackingError(
            f"run {name} is finished, but neither {tracking.uri(config)} nor the spool knows it.",
            "Correct tracking.uri, or train it again with --run.restart true.",
        )
    version = require(config, registered)
    if record.run_id and version.run_id != record.run_id:
        raise TrackingError(
            f"version {version.version} of {version.name} was registered by run {version.run_id}, "
            f"not by {name} ({record.run_id}).",
            "Correct tracking.uri or tracking.registered_model.",
        )
    return Candidate(label, version)


def require(config: Config, version: int) -> ModelVersion:
    """Return a version by its number.

    Raises:
        TrackingError: There is none, or the registry does not respond.
    """
    registered = registry.by_number(config, version)
    if registered is None:
        name = config.tracking.registered_model
        raise TrackingError(f"{name} has no version {version}.", "See `mlflow ui` for those it has.")
    return registered


def challenge(
    config: Config, candidates: list[Candidate], dry: bool = False, replace: bool = False
) -> Outcome:
    """Evaluate the candidates and let the best of them challenge the champion.

    Args:
        config: The rules, the data and the registry.
        candidates: The candidates.
        dry: Change nothing.
        replace: Promote even where the champion cannot be measured.

    Raises:
        TrackingError: The registry does not respond, or files are gone; the alias has not moved.
        ModelError: A model must not be trusted, or no candidate may win; the alias has not moved.
    """
    storage = Storage(config.storage.root)
    evaluator = Evaluator(config, storage, ingestion.prepare(config, storage))
    gate.check(config.promote, evaluator.manifest.task)
    scores, excluded = _evaluate(candidates, evaluator)
    eligible = [score for version, score in scores.items() if version not in excluded]
    if not eligible:
        reasons = "; ".join(f"version {version} {why}" for version, why in excluded.items())
        raise ModelError(
            f"no candidate may become champion: {reasons}.",
            "Train on the present data; give models for other data another tracking.registered_model.",
        )
    metric = f"val_{evaluator.manifest.task.metric(config.promote.metric)}"
    guarded = [score for score in eligible if not gate.failures(config.promote, score)]
    best = gate.best(metric, guarded or eligible)
    winner = next(candidate for candidate in candidates if candidate.version.version == best.version)

    def rate(version: int) -> Score | None:
        return _incumbent(config, evaluator, version, replace)

    decision, before = alias.promote(config, storage, metric, best, rate, evaluator.manifest.digest, dry)
    return Outcome(
        decision,
        winner,
        before,
        rate(before) if before is not None else None,
        candidates,
        scores,
        excluded,
        evaluator.score(winner.version, "test") if evaluator.manifest.rows.get("test") else None,
        metric,
    )


def _evaluate(candidates: list[Candidate], evaluator: Evaluator) -> tuple[dict[int, Score], dict[int, str]]:
    """Score every candidate that can be compared, and say why some may not win."""
    scores, excluded = {}, {}
    for candidate in candidates:
        version = candidate.version.version
        try:
            scores[version] = evaluator.score(candidate.version)
        except OtherDataError as error:
            excluded[version] = error.message.removeprefix(f"version {version} ").rstrip(".")
            continue
        if why := _excluded(candidate, evaluator):
            excluded[version] = why
    return scores, excluded


def _excluded(candidate: Candidate, evaluator: Evaluator) -> str:
    """Why a candidate may not win. What was trained on another cut of the data may have seen these rows."""
    trained_on, present = evaluator.trained_on[candidate.version.version], evaluator.manifest.digest
    if trained_on != present:
        then = ingestion.of_digest(evaluator.storage, trained_on)
        how = f": {then.unlike(evaluator.manifest)}" if then else ""
        return f"was trained on other data ({trained_on[:12] or 'unknown'}, not {present[:12]}{how})"
    return candidate.excluded


def _incumbent(config: Config, evaluator: Evaluator, version: int, replace: bool) -> Score | None:
    try:
        return evaluator.score(require(config, version))
    except DistmlError as error:
        if replace:
            return None
        raise type(error)(
            f"champion version {version} cannot be compared with: {error.message}",
            "Restore it, roll back, or pass --replace to promote all the same.",
        ) from error


def show_table(console: Console, metric: str, outcome: Outcome) -> None:
    """Print the scores, best first, the champion's among them.

    Args:
        console: Where to.
        metric: What they are ordered by.
        outcome: Of the promotion.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("candidate", "left"), ("version", "right"), (metric, "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("val_loss", justify="right")
    table.add_column("")
    labels = {candidate.version.version: candidate.label for candidate in outcome.candidates}
    scores = list(outcome.scores.values())
    if outcome.champion is not None and outcome.champion.version not in labels:
        scores.append(outcome.champion)
    while scores:
        score = gate.best(metric, scores)
        scores.remove(score)
        table.add_row(
            escape(labels.get(score.version, "champion")),
            str(score.version),
            quality.digits(score.metrics[quality.plain(metric)]),
            quality.digits(score.metrics["loss"]),
            escape(_note(score.version, outcome)),
        )
    for candidate in outcome.candidates:
        version = candidate.version.version
        if version not in outcome.scores:
            table.add_row(escape(candidate.label), str(version), "", "", escape(_note(version, outcome)))
    console.print(table)


def _note(version: int, outcome: Outcome) -> str:
    if version in outcome.excluded:
        return outcome.excluded[version]
    if version == outcome.before:
        return "the champion"
    return "the best candidate" if version == outcome.winner.version.version else ""

"""Promote the best candidate, or return to an earlier champion, and say why (driver)."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from distml.config import Config
from distml.selection import contest, field, table
from distml.storage import Storage
from distml.tracking.registry import CHAMPION


def promote(
    config: Config,
    name: str | None = None,
    version: int | None = None,
    dry: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Let candidates compete; the best becomes champion where it passes the gate.

    Args:
        config: The rules, the data and the registry.
        name: Sweep, run or MLflow run id whose models compete; `*` for every version.
        version: This version competes alone.
        dry: Decide and change nothing.
        replace: Promote even where the champion cannot be measured.

    Returns:
        `decision` (promoted or kept; with `dry` what it would be), `why`, `champion` and `previous`, versions
        after and before, and what the best candidate scored. A champion that is kept is no failure.

    Raises:
        DistmlError: It cannot be carried out; the alias has not moved.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    entrants = field.gather(config, Storage(config.storage.root), name, version)
    console.print(f"scoring {len(entrants)} candidate{'s' * (len(entrants) > 1)} on the validation rows")
    outcome = contest.hold(config, entrants, dry, replace)
    table.show(console, config.promote.metric, outcome)
    decision, won = outcome.decision, outcome.winner.version.version
    console.print(_said(decision.promote, dry, f"version {won} is the {CHAMPION}", decision.why))
    score = outcome.scores[won]
    champion = won if decision.promote and not dry else outcome.before
    return _result(decision, "promoted", champion, outcome.before, dry) | {
        "model": config.tracking.registered_model,
        "version": won,
        "candidate": outcome.winner.label,
        "run_id": outcome.winner.version.run_id,
        "val_accuracy": score.val_accuracy,
        "val_loss": score.val_loss,
        "test_accuracy": outcome.test and outcome.test.val_accuracy,
        "champion_val_accuracy": outcome.champion and outcome.champion.val_accuracy,
        "candidates": {
            one.label: found.val_accuracy
            for one in entrants
            if (found := outcome.scores.get(one.version.version))
        },
    }


def rollback(config: Config, version: int | None = None, dry: bool = False) -> dict[str, Any]:
    """Make the previous champion, or a version that is named, the champion without an evaluation.

    Returns:
        `decision` (rolled back or kept), `why`, `champion` and `previous`, as `promote`.

    Raises:
        DistmlError: There is no such version; the alias has not moved.
    """
    decision, target, before = contest.back(config, version, dry)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(_said(decision.promote, dry, f"version {target} is the {CHAMPION}", decision.why))
    result = _result(decision, "rolled back", before if dry else target, before, dry)
    return result | {"model": config.tracking.registered_model, "version": target}


def _said(moved: bool, dry: bool, what: str, why: str) -> str:
    verdict = what if moved else "the champion stays"
    return f"[bold]{'would be: ' * dry}{escape(verdict)}[/bold]: {escape(why)}"


def _result(decision: Any, moved: str, champion: int | None, before: int | None, dry: bool) -> dict[str, Any]:
    return {
        "decision": moved if decision.promote else "kept",
        "why": decision.why,
        "champion": champion,
        "previous": before,
        "dry_run": dry,
    }

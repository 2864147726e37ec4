"""Make the best model the champion, if it is better than the one there is (driver).

python -m distml.promote --config configs/sweep.yaml           the candidates of that sweep compete
python -m distml.promote --run fashion-mnist                   a sweep or run by name; '*': every version
python -m distml.promote --version 7 --dry-run                 what would happen to this one
python -m distml.promote --rollback                            the champion before this one again
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from distml import cli
from distml.config import Config
from distml.errors import ConfigError
from distml.selection import contest, field, table
from distml.storage import Storage
from distml.tracking.registry import CHAMPION


def run(config: Config, own: argparse.Namespace) -> dict[str, Any]:
    """Promote, keep or roll back.

    Returns:
        `decision` (promoted, kept or rolled back; with `dry_run` what it would be), `why`, `champion`
        and `previous`, versions after and before. A champion that is kept is no failure.

    Raises:
        DistmlError: The command cannot be carried out; the alias has not moved.
    """
    if own.rollback:
        return _back(config, own)
    return promote(config, own.run, own.version, own.dry_run, own.replace)


def promote(
    config: Config,
    name: str | None = None,
    version: int | None = None,
    dry: bool = False,
    replace: bool = False,
) -> dict[str, Any]:
    """Let the candidates compete; as `run` with the arguments of the command line.

    Raises:
        DistmlError: As `run`.
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


def _back(config: Config, own: argparse.Namespace) -> dict[str, Any]:
    if own.run is not None or own.replace:
        raise ConfigError("--rollback takes no --run and no --replace.", "Name the version with --version.")
    decision, target, before = contest.back(config, own.version, own.dry_run)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(_said(decision.promote, own.dry_run, f"version {target} is the {CHAMPION}", decision.why))
    champion = before if own.dry_run else target
    found = _result(decision, "rolled back", champion, before, own.dry_run)
    return found | {"model": config.tracking.registered_model, "version": target}


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


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument(
        "--run", metavar="NAME", help="sweep, run or MLflow run id that competes; '*': every version"
    )
    parser.add_argument("--version", type=int, metavar="N", help="this version competes alone")
    parser.add_argument("--dry-run", action="store_true", help="say what would happen and change nothing")
    parser.add_argument(
        "--replace", action="store_true", help="promote even where the champion cannot be measured"
    )
    parser.add_argument(
        "--rollback", action="store_true", help="return to the previous champion, or to --version"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("promote", run, argv, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())

"""What a person sees of a competition (driver, stderr)."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml.selection import gate
from distml.selection.contest import Outcome


def show(console: Console, metric: str, outcome: Outcome) -> None:
    """Print the scores, best first, the champion's among them.

    Args:
        console: Where to.
        metric: What they are ordered by.
        outcome: Of the competition.
    """
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("candidate", "left"), ("version", "right"), ("val_accuracy", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("val_loss", justify="right")
    table.add_column("")
    labels = {one.version.version: one.label for one in outcome.entrants}
    scores = list(outcome.scores.values())
    if outcome.champion is not None and outcome.champion.version not in labels:
        scores.append(outcome.champion)
    while scores:
        score = gate.best(metric, scores)
        scores.remove(score)
        table.add_row(
            escape(labels.get(score.version, "champion")),
            str(score.version),
            f"{score.val_accuracy:.4f}",
            f"{score.val_loss:.4f}",
            escape(_note(score.version, outcome)),
        )
    for one in outcome.entrants:
        if one.version.version not in outcome.scores:
            table.add_row(
                escape(one.label),
                str(one.version.version),
                "",
                "",
                escape(_note(one.version.version, outcome)),
            )
    console.print(table)


def _note(version: int, outcome: Outcome) -> str:
    if version in outcome.barred:
        return outcome.barred[version]
    if version == outcome.before:
        return "the champion"
    return "the best candidate" if version == outcome.winner.version.version else ""

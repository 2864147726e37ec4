"""What a sweep found: the order of its candidates, as a table, a figure and a result line (driver)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One candidate at the end of a sweep.

    Args:
        candidate: Its name.
        run: Name of its run.
        overrides: What it differs in.
        status: finished, failed, or stopped where a scheduler ended it early.
        val_accuracy: What it is compared by; None where it has none.
        test_accuracy: Told, never used.
        version: In the registry.
        run_id: On the tracking server.
        epochs: That it trained.
        wall_s: Seconds that it took.
        error: Why it failed.
    """

    candidate: str
    run: str
    overrides: dict[str, Any] = field(default_factory=dict)
    status: str = "finished"
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    version: int | None = None
    run_id: str | None = None
    epochs: int | None = None
    wall_s: float | None = None
    error: str = ""


def of_result(candidate: str, run: str, overrides: dict[str, Any], result: dict[str, Any]) -> Row:
    """The row of a finished run, from its result line."""
    known = ("val_accuracy", "test_accuracy", "version", "run_id", "epochs", "wall_s")
    found: dict[str, Any] = {key: result.get(key) for key in known}
    return Row(candidate, run, overrides, **found)


def of_line(result: dict[str, Any]) -> dict[str, Row]:
    """The rows of an earlier result line, by candidate."""
    return {row["candidate"]: Row(**row) for row in result["leaderboard"]}


def order(rows: Sequence[Row]) -> list[Row]:
    """Best validation accuracy first, finished ones before others; the order given breaks ties."""
    return sorted(rows, key=lambda row: (row.status != "finished", -(row.val_accuracy or 0.0)))


def result(rows: Sequence[Row], search: bool = False) -> dict[str, Any]:
    """The rows for the result line, best first, and what the best one is at its top level.

    Args:
        rows: Of the candidates.
        search: Whether they were drawn: values that do not work are then a finding, not a failure.
    """
    ordered = order(rows)
    best = ordered[0] if ordered and ordered[0].status == "finished" else None
    failed = not search and any(row.status == "failed" for row in rows)
    known = ("run_id", "version", "val_accuracy", "test_accuracy")
    return {
        "status": "failed" if failed or best is None else "finished",
        "best": best and best.candidate,
        **{key: best and getattr(best, key) for key in known},
        "leaderboard": [dataclasses.asdict(row) for row in ordered],
    }


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table, best first, and below it why candidates failed."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("candidate", overflow="fold")
    for name in ("validation", "test", "epochs", "time", "version"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for at, row in enumerate(order(rows)):
        best = at == 0 and row.status == "finished"
        table.add_row(
            escape(row.candidate),
            "" if row.val_accuracy is None else f"{row.val_accuracy:.4f}",
            "" if row.test_accuracy is None else f"{row.test_accuracy:.4f}",
            str(row.epochs or ""),
            "" if row.wall_s is None else f"{row.wall_s:.0f} s",
            str(row.version or ""),
            "best" if best else "" if row.status == "finished" else row.status,
            style="bold" if best else None,
        )
    console.print()
    console.print(table)
    for row in rows:
        if row.error:
            console.print(f"[red]{escape(row.candidate)} failed: {escape(row.error)}[/red]")
    console.print()

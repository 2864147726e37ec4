"""The leaderboard of a sweep: its candidates in order, as a table, a figure and a result line (driver)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml.reports.figures import FIRST, INK, MUTED, SECOND, blank

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One candidate at the end of a sweep.

    Attributes:
        candidate: Its name.
        run: Name of its run.
        overrides: What it differs in.
        status: finished, failed, or stopped where a scheduler ended it early.
        val_accuracy: What it is compared by; None where it has none.
        test_accuracy: Shown, never used to choose.
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
    values: dict[str, Any] = {key: result.get(key) for key in known}
    return Row(candidate, run, overrides, **values)


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


def draw(folder: Path, rows: list[Row], search: bool = False) -> str:
    """Draw the comparison into a folder as PNG; returns the file's name.

    Args:
        folder: Where to.
        rows: Best first.
        search: Whether the rows are points of a search space.
    """
    name = "parallel_coordinates.png" if search else "leaderboard.png"
    drawn = coordinates(rows) if search else bars(rows)
    drawn.savefig(folder / name, dpi=110)
    return name


def bars(rows: list[Row]) -> Figure:
    """Validation accuracy of each candidate, the best first; a point marks the test accuracy.

    Args:
        rows: Best first.
    """
    known = [row for row in rows if row.val_accuracy is not None]
    figure = blank(8.6, 1.3 + 0.42 * max(1, len(known)))
    axes = figure.subplots()
    values = [row.val_accuracy or 0.0 for row in known]
    colours = [FIRST if at == 0 and row.status == "finished" else "#a9c4dd" for at, row in enumerate(known)]
    axes.barh(range(len(known)), values, color=colours, height=0.62, label="validation accuracy")
    tested = [(row.test_accuracy, at) for at, row in enumerate(known) if row.test_accuracy is not None]
    if tested:
        axes.plot(
            *zip(*tested, strict=True), "o", color=SECOND, markersize=5, label="test accuracy, not used"
        )
    lowest = min([*values, *(value for value, _ in tested)], default=0.0)
    start = max(0.0, math.floor((lowest - 0.02) * 20) / 20)
    axes.set_xlim(start, 1.0)
    for at, row in enumerate(known):
        tested_at = "" if row.test_accuracy is None else f"   (test {row.test_accuracy:.4f})"
        beside = axes.get_yaxis_transform()
        text = f"{row.val_accuracy:.4f}{tested_at}"
        axes.text(1.02, at, text, transform=beside, va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(known)), [row.candidate for row in known], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel(f"accuracy{f' (the axis begins at {start:g})' * (start > 0)}", color=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def coordinates(rows: list[Row]) -> Figure:
    """One line per trial through the values it was given to the validation accuracy it reached.

    Args:
        rows: Best first.
    """
    import matplotlib

    known = [row for row in rows if row.val_accuracy is not None]
    paths = sorted({path for row in known for path in row.overrides})
    figure = blank(2.2 + 1.9 * len(paths), 4.2)
    axes = figure.subplots()
    columns = [_Scale([row.overrides.get(path) for row in known]) for path in paths]
    reached = _Scale([row.val_accuracy for row in known])
    shades = matplotlib.colormaps["viridis"]
    for row in reversed(known):
        points = [scale(row.overrides.get(path)) for scale, path in zip(columns, paths, strict=True)]
        points.append(reached(row.val_accuracy))
        style, width = "-" if row.status == "finished" else ":", 2.6 if row is known[0] else 1.2
        axes.plot(range(len(points)), points, style, color=shades(0.9 * points[-1]), linewidth=width)
    for at, scale in enumerate([*columns, reached]):
        axes.axvline(at, color=MUTED, linewidth=0.8)
        for place, label in scale.ticks():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(at + 0.03, place, label, fontsize=8, color=INK, va="center", bbox=box, zorder=5)
    names = [path.replace("_", "_\n", 1) if len(path) > 18 else path for path in paths]
    axes.set_xticks(range(len(paths) + 1), [*names, "validation accuracy"], fontsize=9)
    axes.set_xlim(-0.1, len(paths) + 0.35)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title("bold: the best trial; dotted: stopped early", loc="left", fontsize=10, color=MUTED)
    return figure


class _Scale:
    """Values of one key on an axis from 0 to 1: by size where they are numbers, else by name. Final."""

    def __init__(self, values: list[Any]) -> None:
        self._numeric = all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in values
        )
        self._names = sorted({str(value) for value in values})
        self._least, self._most = (0.0, 1.0)
        if self._numeric:
            self._least, self._most = float(min(values)), float(max(values))
        self._wide = self._least > 0 and self._most / self._least > 20

    def __call__(self, value: Any) -> float:
        if not self._numeric:
            return (self._names.index(str(value)) + 0.5) / len(self._names)
        first, last, here = (
            math.log(number) if self._wide else float(number) for number in (self._least, self._most, value)
        )
        return 0.5 if last == first else (here - first) / (last - first)

    def ticks(self) -> list[tuple[float, str]]:
        """Where to write what."""
        if not self._numeric:
            return [(self(name), name) for name in self._names]
        return [(self(value), f"{value:.4g}") for value in sorted({self._least, self._most})]

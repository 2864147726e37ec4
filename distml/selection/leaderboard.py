"""The leaderboard of a sweep: candidates ranked, as table, figure and result (driver)."""

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
from distml.tasks import quality

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
        val_accuracy: What it is compared by, where that is the accuracy; None where it has none.
        test_accuracy: The same on the test rows: shown, never used to choose.
        version: In the registry.
        run_id: On the tracking server.
        epochs: That it trained.
        wall_s: Seconds that it took.
        error: Why it failed.
        metric: What it is compared by.
        val: Its value on the validation rows, where that is not the accuracy.
        test: The same on the test rows.
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
    metric: str = "accuracy"
    val: float | None = None
    test: float | None = None

    @property
    def val_score(self) -> float | None:
        """What it is compared by."""
        return self.val_accuracy if self.metric == "accuracy" else self.val

    @property
    def test_score(self) -> float | None:
        """The same on the test rows."""
        return self.test_accuracy if self.metric == "accuracy" else self.test


def of_result(candidate: str, run: str, overrides: dict[str, Any], result: dict[str, Any]) -> Row:
    """The row of a finished run, from its result line."""
    known = ("val_accuracy", "test_accuracy", "version", "run_id", "epochs", "wall_s")
    values: dict[str, Any] = {key: result.get(key) for key in known}
    metric = result.get("metric", "accuracy")
    values |= {"metric": metric, "val": result.get(f"val_{metric}"), "test": result.get(f"test_{metric}")}
    return Row(candidate, run, overrides, **values)


def of_line(result: dict[str, Any]) -> dict[str, Row]:
    """The rows of an earlier result line, by candidate."""
    return {row["candidate"]: Row(**row) for row in result["leaderboard"]}


def order(rows: Sequence[Row]) -> list[Row]:
    """Finished candidates first, best on the validation rows first; the order given breaks ties."""

    def worse(row: Row) -> float:
        if row.val_score is None:
            return math.inf
        return -row.val_score if quality.higher(row.metric) else row.val_score

    return sorted(rows, key=lambda row: (row.status != "finished", worse(row)))


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
        "metric": best and best.metric,
        **({f"val_{best.metric}": best.val_score, f"test_{best.metric}": best.test_score} if best else {}),
        "leaderboard": [dataclasses.asdict(row) for row in ordered],
    }


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print the table, best first, and below it why candidates failed."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("candidate", overflow="fold")
    metric = next((f"_{row.metric}" for row in rows if row.status == "finished"), "")
    for name in (f"val{metric}", f"test{metric}", "epochs", "time", "version"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for at, row in enumerate(order(rows)):
        best = at == 0 and row.status == "finished"
        table.add_row(
            escape(row.candidate),
            "" if row.val_score is None else quality.digits(row.val_score),
            "" if row.test_score is None else quality.digits(row.test_score),
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
    """Validation metric of each candidate, the best first; a point marks that of the test rows.

    Args:
        rows: Best first.
    """
    known = [row for row in rows if row.val_score is not None]
    figure = blank(8.6, 1.3 + 0.42 * max(1, len(known)))
    axes = figure.subplots()
    values = [row.val_score or 0.0 for row in known]
    metric = known[0].metric if known else "accuracy"
    colours = [FIRST if at == 0 and row.status == "finished" else "#a9c4dd" for at, row in enumerate(known)]
    axes.barh(range(len(known)), values, color=colours, height=0.62, label=f"validation {metric}")
    tested = [(row.test_score, at) for at, row in enumerate(known) if row.test_score is not None]
    if tested:
        axes.plot(
            *zip(*tested, strict=True), "o", color=SECOND, markersize=5, label=f"test {metric}, not used"
        )
    lowest = min([*values, *(value for value, _ in tested)], default=0.0)
    start = max(0.0, math.floor((lowest - 0.02) * 20) / 20)
    highest = max([*values, *(value for value, _ in tested)], default=1.0)
    axes.set_xlim(start, 1.0 if quality.BY_NAME[metric].unit == "share" else 1.05 * highest or 1.0)
    for at, row in enumerate(known):
        tested_at = "" if row.test_score is None else f"   (test {quality.digits(row.test_score)})"
        beside = axes.get_yaxis_transform()
        text = f"{quality.digits(values[at])}{tested_at}"
        axes.text(1.02, at, text, transform=beside, va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(known)), [row.candidate for row in known], color=INK)
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric}{f' (the axis begins at {start:g})' * (start > 0)}", color=MUTED)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def coordinates(rows: list[Row]) -> Figure:
    """One line per trial through the values it was given to the validation metric it reached.

    Args:
        rows: Best first.
    """
    import matplotlib

    known = [row for row in rows if row.val_score is not None]
    paths = sorted({path for row in known for path in row.overrides})
    figure = blank(2.2 + 1.9 * len(paths), 4.2)
    axes = figure.subplots()
    columns = [_Scale([row.overrides.get(path) for row in known]) for path in paths]
    reached = _Scale([row.val_score for row in known])
    shades = matplotlib.colormaps["viridis"]
    for row in reversed(known):
        points = [scale(row.overrides.get(path)) for scale, path in zip(columns, paths, strict=True)]
        points.append(reached(row.val_score))
        style, width = "-" if row.status == "finished" else ":", 2.6 if row is known[0] else 1.2
        axes.plot(range(len(points)), points, style, color=shades(0.9 * points[-1]), linewidth=width)
    for at, scale in enumerate([*columns, reached]):
        axes.axvline(at, color=MUTED, linewidth=0.8)
        for place, label in scale.ticks():
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.text(at + 0.03, place, label, fontsize=8, color=INK, va="center", bbox=box, zorder=5)
    names = [path.replace("_", "_\n", 1) if len(path) > 18 else path for path in paths]
    axes.set_xticks(range(len(paths) + 1), [*names, f"validation {known[0].metric}"], fontsize=9)
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

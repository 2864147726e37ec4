"""Compares medians with a bar, prints the table and the result line.

A benchmark is a module that ends in `raise SystemExit(report.main(measure))`, where `measure` returns
`Figure`s. The table goes to standard error; the last line on standard output is one JSON object, or a list
where several figures are measured.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks.harness import BenchmarkError, say
from distml.errors import DistmlError


@dataclass(frozen=True)
class Figure:
    """One comparison with its bar.

    Attributes:
        name: What is compared, with the unit.
        ours: Every measurement of ours.
        peer: Every measurement of the peer, in the order of ours; one number where the peer is a constant.
        bar: What the ratio of the medians, ours over the peer's, must reach.
        sense: Whether the ratio must be at least or at most the bar.
    """

    name: str
    ours: Sequence[float]
    peer: Sequence[float]
    bar: float
    sense: Literal["at least", "at most"] = "at least"

    @property
    def ratio(self) -> float:
        """Median of ours over median of the peer's."""
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def holds(self) -> bool:
        """Whether the ratio meets the bar."""
        return self.ratio >= self.bar if self.sense == "at least" else self.ratio <= self.bar

    def line(self) -> dict[str, Any]:
        """Return the figure as the result line has it, with every measurement beside the medians."""
        return {
            "name": self.name,
            "ours": round(statistics.median(self.ours), 4),
            "peer": round(statistics.median(self.peer), 4),
            "ratio": round(self.ratio, 4),
            "bar": self.bar,
            "holds": self.holds,
            "sense": self.sense,
            "ours_all": [round(value, 4) for value in self.ours],
            "peer_all": [round(value, 4) for value in self.peer],
        }


def pick(results: Iterable[Mapping[str, Any]], key: str) -> list[float]:
    """Return one number of every result."""
    return [float(result[key]) for result in results]


def main(measure: Callable[[], Sequence[Figure]]) -> int:
    """Measure, print the table and the result line; returns the exit code, 1 where a bar is missed."""
    # A shell starts a background job with SIGINT ignored, and what is measured is ended by it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        figures = measure()
    except (BenchmarkError, DistmlError) as error:
        say(str(error))
        return 1
    show(figures)
    lines = [figure.line() for figure in figures]
    print(json.dumps(lines[0] if len(lines) == 1 else lines), flush=True)
    return 0 if all(figure.holds for figure in figures) else 1


def show(figures: Sequence[Figure]) -> None:
    """Print the table to standard error."""
    table = Table(*("what", "ours", "spread", "peer", "spread", "ratio", "bar", "holds"), title=machine())
    for figure in figures:
        medians = [f"{statistics.median(values):,.4g}" for values in (figure.ours, figure.peer)]
        bar = f"{'≥' if figure.sense == 'at least' else '≤'} {figure.bar:g}"
        spreads = [_spread(figure.ours), _spread(figure.peer)]
        row = [medians[0], spreads[0], medians[1], spreads[1], f"{figure.ratio:.3f}", bar]
        table.add_row(figure.name, *row, "yes" if figure.holds else "NO")
    Console(stderr=True, width=None if sys.stderr.isatty() else 140).print(table)


def machine() -> str:
    """Return date, processor, cores and Python: what a figure is worth nothing without."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{time.strftime('%Y-%m-%d')}, {model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _spread(values: Sequence[float]) -> str:
    """Least and greatest of some measurements, for the table."""
    return f"{min(values):,.4g} to {max(values):,.4g}" if len(values) > 1 else ""

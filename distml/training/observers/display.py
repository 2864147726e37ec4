"""Observer that shows progress on the terminal (driver)."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from distml.tasks import Evaluation, quality
from distml.training import metrics as catalogue
from distml.training.events import (
    CheckpointSkipped,
    EpochFinished,
    Event,
    FeaturesStarted,
    Resumed,
    Started,
    StepsDone,
    WeightsLoaded,
    WorkerFailed,
)


class Display:
    """Shows a run's progress. Final.

    Args:
        epochs: Epochs of the run.
        console: Where to write; standard error by default.
        name: Prefix of every line where several runs are shown; there is no live display then.
        frozen: First epochs, which train the head alone.
    """

    def __init__(self, epochs: int, console: Console | None = None, name: str = "", frozen: int = 0) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._name = f"[cyan]{escape(name)}[/cyan] " if name else ""
        self._epochs, self._frozen, self._began = epochs, frozen, time.monotonic()
        self._steps_per_epoch, self._weights = 0, ""
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line, marked with the seconds since the start."""
        # A rich console is locked, so lines and the live display do not interleave.
        self.console.print(f"[dim]{time.monotonic() - self._began:6.1f}s[/dim] {self._name}{text}")

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Started():
                self._started(event)
            case WeightsLoaded():
                self._weights = f"weights {event.source}: {event.summary}"
            case Resumed():
                self._weights = ""  # the checkpoint's are in their place
                self.say(f"resumed after epoch {event.epoch} from {event.checkpoint}")
            case CheckpointSkipped():
                self.say(f"[yellow]checkpoint {event.name} is not used: {event.reason}[/yellow]")
            case WorkerFailed():
                self.say(f"[yellow]worker {event.rank} failed: {event.cause}[/yellow]")
            case FeaturesStarted():
                which = f", view {event.view} of {event.views}" if event.view else ""
                self.say(f"computing the features of {event.rows:,} training rows{which}")
            case StepsDone():
                self._steps_done(event)
            case EpochFinished():
                self.say(f"epoch {event.epoch}/{self._epochs}  {_values(event.metrics)}")
                if event.epoch == self._frozen < self._epochs:
                    self.say(catalogue.boundary(self._frozen))

    def _started(self, event: Started) -> None:
        self._steps_per_epoch = event.steps_per_epoch
        if self._weights:
            self.say(escape(self._weights))
            self._weights = ""
        workers, mode = event.world_size, "streamed" if event.streaming else "in memory"
        precision = "" if event.precision == "float32" else f" in {event.precision}"
        self.say(
            f"training{precision} on {workers} worker{'s' * (workers > 1)}: {event.parameters:,} parameters, "
            f"{self._steps_per_epoch} steps an epoch, shards {mode}"
        )
        # `is_terminal` is also true where only colours are wanted: notebooks set FORCE_COLOR for a pipe.
        live = self.console.is_terminal and self.console.file.isatty()
        if live and self._progress is None and not self._name:
            self._progress = Progress(*_columns(self.console.width), console=self.console, transient=True)
            self._progress.start()
            total = self._epochs * self._steps_per_epoch
            done = event.epoch * self._steps_per_epoch
            self._task = self._progress.add_task("", total=total, completed=done, values="")

    def _steps_done(self, event: StepsDone) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                completed=event.step,
                description=f"epoch {event.epoch}/{self._epochs}",
                values=_values(event.metrics),
            )

    def close(self) -> None:
        """End the live display; printed lines stay."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def summary(
        self, split: str, evaluation: Evaluation, times: Mapping[str, float], facts: Mapping[str, str]
    ) -> None:
        """Print the closing table: the main metric, that of each class, seconds per part of the run, paths.

        Args:
            split: That was evaluated.
            evaluation: Of that split.
            times: Seconds by part of the run.
            facts: Further lines to print, by name.
        """
        self.close()
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(f"{split} {evaluation.main}")
        table.add_column("", justify="right")
        table.add_column("   time", style="")
        table.add_column("", justify="right")
        rows = list(evaluation.per_class.items())
        classes = [(escape(name), _short(value)) for name, value in rows[:_ROWS]]
        if more := len(rows) - len(classes):
            classes.append((f"[dim]and {more} more, in the report[/dim]", ""))
        every = f"all, {evaluation.unit}" if evaluation.unit else "all"
        left = [
            (f"[bold]{every}[/bold]", f"[bold]{quality.digits(evaluation.metrics[evaluation.main])}[/bold]"),
            *classes,
        ]
        right = [(f"   {name}", f"{seconds:.1f} s") for name, seconds in times.items()]
        for row in range(max(len(left), len(right))):
            table.add_row(
                *(left[row] if row < len(left) else ("", "")), *(right[row] if row < len(right) else ("", ""))
            )
        self.console.print()
        self.console.print(table)
        self.console.print()
        for name, value in facts.items():
            self.console.print(f"[bold]{name:<10}[/bold] {escape(value)}")
        sys.stderr.flush()


_WIDE = 120
"""Characters of a line that holds a bar, two metrics and the throughput."""
_BESIDE = 29
"""Characters beside the metrics in the line of a narrower terminal: epoch of epochs, percentage, time."""


def _columns(width: int) -> list[ProgressColumn]:
    """The live line for a terminal of a width; what does not fit is cut from the metrics alone."""
    if width >= _WIDE:
        task = [TextColumn("       {task.description}"), BarColumn(32), MofNCompleteColumn()]
        return [*task, TextColumn("{task.fields[values]}"), TimeRemainingColumn()]
    metrics = Column(no_wrap=True, max_width=max(1, width - _BESIDE), overflow="ellipsis")
    return [
        TextColumn("{task.description}"),
        TaskProgressColumn(),
        TextColumn("{task.fields[values]}", table_column=metrics),
        TimeRemainingColumn(),
    ]


_ROWS = 20
"""Classes in the closing table."""


def _short(value: float) -> str:
    """A value with three decimals, or three digits where these would all be zeros."""
    return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def _values(metrics: Mapping[str, float]) -> str:
    """The metrics that the catalogue shows in a line: four digits each, the throughput last."""
    shown = [name for name in catalogue.shown(metrics) if name != "samples_per_s"]
    return "  ".join(
        [
            *(f"{name} {quality.digits(metrics[name])}" for name in shown),
            f"{metrics['samples_per_s']:,.0f} samples/s",
        ]
    )

"""What the person watching sees: a live display on a terminal, plain lines elsewhere (driver, stderr)."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

Event = dict[str, Any]


class Display:
    """Shows a run's progress. Final.

    Args:
        epochs: Epochs of the run.
        console: Where to write; standard error by default.
        name: Put before every line where several runs are shown; then there is no live display.
    """

    def __init__(self, epochs: int, console: Console | None = None, name: str = "") -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._name = f"[cyan]{escape(name)}[/cyan] " if name else ""
        self._epochs, self._began = epochs, time.monotonic()
        self._steps_per_epoch = 0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def say(self, text: str) -> None:
        """Print one line, marked with the seconds since the start."""
        # A rich console is locked, so lines and the live display do not tear each other.
        self.console.print(f"[dim]{time.monotonic() - self._began:6.1f}s[/dim] {self._name}{text}")

    def __call__(self, event: Event) -> None:
        """Show one event of the board."""
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler:
            handler(event)

    def _on_ready(self, event: Event) -> None:
        self._steps_per_epoch = event["steps_per_epoch"]
        world, mode = event["world_size"], "streamed" if event["streaming"] else "in memory"
        kind = "" if event["precision"] == "float32" else f" in {event['precision']}"
        self.say(
            f"training{kind} on {world} worker{'s' * (world > 1)}: {event['parameters']:,} parameters, "
            f"{self._steps_per_epoch} steps an epoch, shards {mode}"
        )
        # `is_terminal` is also true where only colours are wanted: notebooks set FORCE_COLOR for a pipe.
        live = self.console.is_terminal and self.console.file.isatty()
        if live and self._progress is None and not self._name:
            self._progress = Progress(
                TextColumn("       {task.description}"),
                BarColumn(32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._progress.start()
            total = self._epochs * self._steps_per_epoch
            done = event["epoch"] * self._steps_per_epoch
            self._task = self._progress.add_task("", total=total, completed=done, values="")

    def _on_resumed(self, event: Event) -> None:
        self.say(f"resumed after epoch {event['epoch']} from {event['name']}")

    def _on_skipped(self, event: Event) -> None:
        self.say(f"[yellow]checkpoint {event['name']} is not used: {event['reason']}[/yellow]")

    def _on_failure(self, event: Event) -> None:
        self.say(f"[yellow]worker {event['rank']} failed: {event['cause']}[/yellow]")

    def _on_steps(self, event: Event) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(
                self._task,
                completed=event["step"],
                description=f"epoch {event['epoch']}/{self._epochs}",
                values=f"loss {event['loss']:.4f}  {event['samples_per_s']:,.0f}/s",
            )

    def _on_epoch(self, event: Event) -> None:
        self.say(
            f"epoch {event['epoch']}/{self._epochs}  "
            f"loss {event['loss']:.4f}  accuracy {event['accuracy']:.4f}  "
            f"val_loss {event['val_loss']:.4f}  val_accuracy {event['val_accuracy']:.4f}  "
            f"{event['samples_per_s']:,.0f} samples/s"
        )

    def close(self) -> None:
        """End the live display; the lines stay."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def summary(self, evaluation: dict[str, Any], times: dict[str, float], facts: dict[str, str]) -> None:
        """Print the closing table: accuracy per class, where the time went, where things are."""
        self.close()
        split = "test" if "test" in evaluation else "validation"
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column(f"{split} accuracy")
        table.add_column("", justify="right")
        table.add_column("   time", style="")
        table.add_column("", justify="right")
        classes = [(name, f"{share:.3f}") for name, share in evaluation[split]["per_class"].items()][:20]
        left = [("[bold]all classes[/bold]", f"[bold]{evaluation[split]['accuracy']:.4f}[/bold]"), *classes]
        right = [(f"   {name}", f"{seconds:.1f} s") for name, seconds in times.items()]
        for row in range(max(len(left), len(right))):
            table.add_row(
                *(left[row] if row < len(left) else ("", "")), *(right[row] if row < len(right) else ("", ""))
            )
        self.console.print()
        self.console.print(table)
        self.console.print()
        for name, value in facts.items():
            self.console.print(f"[bold]{name:<10}[/bold] {value}")
        sys.stderr.flush()

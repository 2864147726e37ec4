"""What a person sees of a search while it runs (driver, stderr)."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console
from rich.markup import escape


class Reporter(Callback):
    """One line for every epoch and the end of every trial. Final; used by Ray Tune."""

    def __init__(self, console: Console) -> None:
        self._console, self._began = console, time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; a console cannot be saved."""
        return {}

    def __setstate__(self, _: dict[str, Any]) -> None:
        self.__init__(Console(stderr=True, highlight=False, soft_wrap=True))  # type: ignore[misc]

    def _say(self, trial: Any, text: str) -> None:
        number = int(str(trial.trial_id).rpartition("_")[2])
        mark = f"[dim]{time.monotonic() - self._began:6.1f}s[/dim] [cyan]trial-{number:03d}[/cyan]"
        self._console.print(f"{mark} {text}")

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say what was drawn."""
        self._say(trial, escape(", ".join(f"{path} {value}" for path, value in trial.config.items())))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tell of an epoch."""
        if "val_accuracy" in result:
            self._say(trial, f"epoch {result['epoch']}  val_accuracy {result['val_accuracy']:.4f}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that it failed."""
        self._say(trial, "[red]failed[/red]")

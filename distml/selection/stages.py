"""Stages of a pipeline: each done once for the same inputs, and told (driver).

`pipelines/<run.name>.json` holds, for every stage, the digest of its inputs and its result. A stage whose
inputs are those of the last time, and whose result still holds, is skipped; so a pipeline that was
interrupted, or is simply started again, goes on where something is left to do.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml.storage import Storage

FOLDER = "pipelines"
Result = dict[str, Any]


class Stages:
    """The stages of one pipeline. Final.

    Args:
        name: Of the pipeline.
        storage: Where it is remembered.
        again: Do everything again.
    """

    def __init__(self, name: str, storage: Storage, again: bool = False) -> None:
        self._storage, self._parts = storage, (FOLDER, f"{name}.json")
        self._known: dict[str, Any] = {}
        if not again and storage.exists(*self._parts):
            try:
                self._known = dict(json.loads(storage.read_text(*self._parts)))
            except ValueError:
                self._known = {}  # a lost memory costs time and nothing else
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.done: dict[str, Result] = {}

    def do(
        self,
        name: str,
        inputs: Any,
        work: Callable[[], Result],
        holds: Callable[[Result], bool] | None = None,
    ) -> Result:
        """Do a stage, or take its result from the last time.

        Args:
            name: Of the stage.
            inputs: What its result depends on, as JSON.
            work: Does it.
            holds: Whether an earlier result is still true; without it the stage is done every time.

        Returns:
            Its result.
        """
        began = time.monotonic()
        key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
        known = self._known.get(name, {})
        if holds is not None and known.get("key") == key and holds(known["result"]):
            self._end(name, "skipped", began, known["result"])
            return dict(known["result"])
        self.console.print(f"\n[bold]{name}[/bold]")
        try:
            result = work()
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            self._end(name, "interrupted" if stopped else "failed", began, {})
            raise
        self._known[name] = {"key": key, "result": result}
        self._storage.write_bytes(json.dumps(self._known, indent=1, default=str).encode(), *self._parts)
        self._end(name, "finished", began, result)
        return result

    def _end(self, name: str, status: str, began: float, result: Result) -> None:
        seconds = round(time.monotonic() - began, 2)
        self.done[name] = {"status": status, "seconds": seconds, "result": result}

    def summary(self) -> dict[str, Any]:
        """Status and seconds of every stage that was reached."""
        return {name: {"status": one["status"], "seconds": one["seconds"]} for name, one in self.done.items()}

    def show(self, words: dict[str, Callable[[Result], str]]) -> None:
        """Print a table of the stages that were reached.

        Args:
            words: What to say about the result of a stage.
        """
        table = Table(box=None, header_style="bold", pad_edge=False)
        table.add_column("stage")
        table.add_column("status")
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for name, one in self.done.items():
            colour = {"finished": "green", "skipped": "cyan"}.get(one["status"], "red")
            said = words[name](one["result"]) if one["result"] and name in words else ""
            status = f"[{colour}]{one['status']}[/{colour}]"
            table.add_row(name, status, f"{one['seconds']:.1f} s", escape(said))
        self.console.print()
        self.console.print(table)
        self.console.print()

"""What came of a cell, whether that is well, and the table of all."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.plan import Cell

ANSWERS_S = 60.0
"""Longest time from a new head being ready to the first answer of an endpoint of one pod."""


@dataclass(frozen=True)
class Record:
    """What was measured in a cell.

    Attributes:
        cell: Which.
        date: When it was run.
        recovery_s: Until as many pods of that kind were ready again as before; None: never.
        outage_s: Longest time without an answer.
        requests: Number of requests to the endpoint.
        lost: Those without an answer of 200.
        twice: Epochs that were logged more than once.
        never: Epochs that were not logged.
        versions: Versions that were registered.
        restarts: Containers that were started again, and other pods that were replaced.
        workflow: Its phase in the end, "" where none ran.
        seconds: Of the whole cell.
        error: Why it was not run to its end, "" where it was.
    """

    cell: Cell
    date: str
    recovery_s: float | None = None
    outage_s: float = 0.0
    requests: int = 0
    lost: int = 0
    twice: int = 0
    never: int = 0
    versions: int = 0
    restarts: int = 0
    workflow: str = ""
    seconds: float = 0.0
    error: str = ""

    @property
    def verdict(self) -> str:
        """What is wrong, "healed" where nothing is."""
        wrong = [
            self.error,
            "" if self.error or self.recovery_s is not None else "no new pod became ready",
            f"the workflow is {self.workflow}" if self.workflow not in ("", "Succeeded") else "",
            f"{self.twice} epochs twice" if self.twice else "",
            f"{self.never} epochs never" if self.never else "",
            f"{self.versions} versions instead of 1" if self.workflow and self.versions != 1 else "",
            f"{self.lost} requests lost" if self.lost and not self._is_endpoint else "",
            f"no answer for {self.outage_s:.0f} s" if self._late else "",
        ]
        return "; ".join(filter(None, wrong)) or "healed"

    @property
    def _late(self) -> bool:
        """Whether the endpoint answered later than `ANSWERS_S` after its new pod was ready."""
        return self._is_endpoint and self.outage_s > (self.recovery_s or 0.0) + ANSWERS_S

    @property
    def _is_endpoint(self) -> bool:
        """Whether what was killed is the only pod that answers."""
        return (self.cell.overlay, self.cell.kind) == ("k3d", "endpoint")


def save(path: Path, record: Record) -> None:
    """Append a record to a file."""
    with path.open("a") as stream:
        stream.write(json.dumps(dataclasses.asdict(record)) + "\n")


def load(path: Path) -> dict[Cell, Record]:
    """The last record of every cell in a file; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = (json.loads(line) for line in lines)
    return {(cell := Cell(**each.pop("cell"))): Record(cell, **each) for each in records}


_HEAD = (
    *(
        "pod",
        "fault",
        "moment",
        "date",
        "ready again",
        "requests lost",
        "longest gap",
        "epochs twice / never",
    ),
    *("versions", "restarts", "verdict"),
)


def table(planned: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """The cells in Markdown; one that was not run says so."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for cell in planned:
        if cell.missing:
            continue
        lines.append(f"| {' | '.join(_row(cell, records.get(cell)))} |")
    return "\n".join(lines)


def _row(cell: Cell, record: Record | None) -> list[str]:
    named = [cell.kind, cell.fault, cell.moment]
    if record is None:
        return [*named, *[""] * 7, "not run"]
    epochs = f"{record.twice} / {record.never}" if record.workflow else ""
    asked = f"{record.lost} of {record.requests:,}" if record.requests else ""
    return [
        *named,
        record.date,
        "never" if record.recovery_s is None else f"{record.recovery_s:.0f} s",
        asked,
        f"{record.outage_s:.1f} s" if record.requests else "",
        epochs,
        str(record.versions) if record.workflow else "",
        str(record.restarts),
        record.verdict,
    ]


def matrix(planned: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """The cells in Markdown on few lines: a row for each kind of pod and fault, a column for each moment."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for cell in planned:
        said = "no such pod" if cell.missing else _short(records.get(cell))
        rows.setdefault((cell.kind, cell.fault), {})[cell.moment] = said
    moments = list(dict.fromkeys(moment for row in rows.values() for moment in row))
    lines = [f"| pod | fault | {' | '.join(moments)} |", f"|{'---|' * (2 + len(moments))}"]
    for named, row in rows.items():
        lines.append(f"| {' | '.join([*named, *(row.get(moment, '') for moment in moments)])} |")
    return "\n".join(lines)


def _short(record: Record | None) -> str:
    if record is None:
        return "not run"
    ready = "" if record.recovery_s is None else f", ready again after {record.recovery_s:.0f} s"
    lost = f", {record.lost} of {record.requests:,} lost" if record.requests else ""
    return f"{record.verdict}{ready}{lost}"

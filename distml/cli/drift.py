"""Compare logged requests with the training data and say whether they have drifted apart (driver).

python -m distml drift --config configs/fashion_mnist.yaml
"""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import cli
from distml.config import Config
from distml.data import shards
from distml.errors import DataError
from distml.monitor import chart, compare, reference
from distml.storage import Storage

_FOLDER = "drift"


def run(config: Config) -> dict[str, Any]:
    """Compare, draw and judge.

    Returns:
        `drifted` (None where too few rows are logged), `rows`, `versions`, the largest indices, and the
        places of the figure and of the whole comparison. The status is drifted beyond the threshold, so
        that the exit code is 1.

    Raises:
        DataError: The training data are not prepared, or a file of the log is damaged.
        StorageError: The storage cannot be read or written.
    """
    storage = Storage(config.storage.root)
    manifest = shards.find(config, storage)
    if manifest is None:
        raise DataError(
            f"{storage.uri(shards.folder(config))} holds no prepared data to compare with.",
            "Give the configuration that the model was trained with, or run ingest.",
        )
    ground = reference.of(storage, manifest)
    model = config.tracking.registered_model
    logged = compare.read(storage, model, ground, config.drift.days)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if logged.skipped:
        console.print(f"{logged.skipped} files of other classes, shapes or statistics are left out")
    if len(logged.labels) < config.drift.min_rows:
        return _too_few(console, config, logged)
    shifts = compare.shifts(ground, logged)
    _show(console, shifts, config.drift.threshold)
    return _judged(config, storage, ground, logged, shifts)


def _too_few(console: Console, config: Config, logged: compare.Logged) -> dict[str, Any]:
    rows, needed = len(logged.labels), config.drift.min_rows
    why = f"{rows} rows are logged for {config.tracking.registered_model}, {needed} are needed to judge"
    hint = "" if rows else "; serve with log.enabled true"
    console.print(escape(f"{why}{hint}"))
    return {"drifted": None, "rows": rows, "versions": list(logged.versions), "why": why}


def _show(console: Console, shifts: Sequence[compare.Shift], threshold: float) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("statistic")
    table.add_column("stability index", justify="right")
    table.add_column("by chance", justify="right", style="dim")
    table.add_column("")
    for shift in shifts:
        beyond = shift.psi > threshold
        values = (f"{shift.psi:.3f}", f"{shift.chance:.3f}", "drifted" if beyond else "")
        table.add_row(shift.name, *values, style="red" if beyond else None)
    console.print(table)


def _judged(
    config: Config,
    storage: Storage,
    ground: reference.Reference,
    logged: compare.Logged,
    shifts: Sequence[compare.Shift],
) -> dict[str, Any]:
    threshold = config.drift.threshold
    rows, trained = len(logged.labels), sum(ground.labels)
    beyond = {shift.name: round(shift.psi, 4) for shift in shifts if shift.psi > threshold}
    found = {
        "drifted": bool(beyond),
        "rows": rows,
        "versions": list(logged.versions),
        "threshold": threshold,
        "beyond": beyond,
        "largest": {shifts[0].name: round(shifts[0].psi, 4)},
    }
    stream = io.BytesIO()
    chart.draw(shifts, ground.classes, threshold, rows, trained).savefig(stream, format="png", dpi=110)
    where = f"{_FOLDER}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:4]}"
    whole = found | {"data_digest": ground.digest, "shifts": [asdict(shift) for shift in shifts]}
    storage.write_bytes(stream.getvalue(), where, "drift.png")
    storage.write_bytes(json.dumps(whole, indent=1).encode(), where, "drift.json")
    places = {"figure": storage.uri(where, "drift.png"), "report": storage.uri(where, "drift.json")}
    return found | places | ({"status": "drifted"} if beyond else {})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("drift", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

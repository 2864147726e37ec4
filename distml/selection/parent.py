"""The parent run of a sweep: its record, its run on the tracking server, its figure (driver)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from distml import tracking
from distml.config import Config
from distml.config.load import flatten
from distml.selection import leaderboard
from distml.selection.leaderboard import Row
from distml.selection.record import Sweep
from distml.storage import Storage


class Parent:
    """A sweep on the tracking server. Final.

    Args:
        config: Of the sweep.
        storage: Holds its record.
        sweep: Its record.
    """

    def __init__(self, config: Config, storage: Storage, sweep: Sweep) -> None:
        self._config, self._storage, self._sweep = config, storage, sweep
        self._tracker = tracking.Tracker(config, f"{sweep.name}-sweep-{sweep.generation:03d}", sweep.run_id)
        flat = flatten(config.model_dump(mode="json"))
        params = {path: str(value)[:500] for path, value in flat.items()}
        tags = {"distml.sweep": sweep.name, "distml.config_digest": config.digest()}
        self._tracker.put("open", name=sweep.name, tags=tags, params=params, key=sweep.key)

    @property
    def key(self) -> tuple[str, str]:
        """Name and key by which the runs of the sweep find their parent."""
        return self._sweep.name, self._sweep.key

    @property
    def parts(self) -> tuple[str, ...]:
        """The sweep's folder below the storage root."""
        return self._sweep.parts

    def finish(self, rows: list[Row], search: bool = False) -> dict[str, Any]:
        """Draw the figure, record how the sweep ended and close it.

        Args:
            rows: Of the candidates.
            search: Whether they are points of a search space.

        Returns:
            The result line.
        """
        from distml.selection import figure

        found = leaderboard.result(rows, search)
        self._sweep.runs = {row.candidate: row.run for row in rows}
        parts = (*self._sweep.parts, "figures")
        with tempfile.TemporaryDirectory() as folder:
            name = figure.draw(Path(folder), leaderboard.order(rows), search)
            self._storage.upload(folder, *parts)
        self._tracker.put("artifacts", parts=list(parts), path="figures")
        self._tracker.put("text", file="leaderboard.json", text=json.dumps(found["leaderboard"], indent=1))
        best = {key: found[key] for key in ("val_accuracy", "test_accuracy") if found[key] is not None}
        self._tracker.metrics("best", 0, best)
        self._send("FINISHED" if found["status"] == "finished" else "FAILED")
        self._sweep.result = found | {
            "sweep": self._sweep.name,
            "parent_run_id": self._sweep.run_id,
            "model": self._config.tracking.registered_model,
            "tracking_uri": tracking.uri(self._config),
            "figure": self._storage.uri(*parts, name),
        }
        self._sweep.save(self._storage)
        return self._sweep.result

    def close(self, status: str) -> None:
        """Close a sweep that did not come to its end.

        Args:
            status: FAILED or KILLED, as MLflow says.
        """
        self._send(status)
        self._sweep.save(self._storage)

    def _send(self, status: str) -> None:
        self._tracker.put("close", status=status, tags={})
        self._tracker.close()
        self._sweep.run_id = self._tracker.sender.run_id or self._sweep.run_id
        self._sweep.status = {"FINISHED": "finished", "FAILED": "failed"}.get(status, "running")

"""What a run is handed that belongs to a sweep (driver, trial)."""

from __future__ import annotations

from dataclasses import dataclass

from distml.runtime.cluster import Cluster
from distml.training.events import Observer


@dataclass(frozen=True)
class Child:
    """The place of a run in a sweep.

    Args:
        name: Of the candidate; shown before each of its lines.
        cluster: The connection that the sweep has opened and will close.
        parent: Name and key of the parent run on the tracking server.
        observer: Called with every event of the run.
    """

    name: str
    cluster: Cluster
    parent: tuple[str, str]
    observer: Observer | None = None

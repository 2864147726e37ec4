"""What workers tell the driver while they train: an actor that keeps events in order (its own process).

The driver alone talks to the tracking server and to the terminal, so neither an outage nor a slow
terminal can reach the training loop. Posting is one asynchronous call; the driver polls.
"""

from __future__ import annotations

from typing import Any

import ray

Event = dict[str, Any]


class Board:
    """Events in the order they arrived. Final; used as a Ray actor."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def post(self, event: Event) -> None:
        """Append an event."""
        self._events.append(event)

    def read(self, after: int) -> list[Event]:
        """Events from position `after` on."""
        return self._events[after:]


def create() -> Any:
    """Start a board; returns its actor handle, which may be sent to workers."""
    return ray.remote(num_cpus=0, max_restarts=0)(Board).remote()

"""What workers tell the driver while they train: an actor that keeps events in order (its own process).

The driver alone talks to the tracking server and to the terminal, so neither an outage nor a slow
terminal can reach the training loop. Posting is one asynchronous call; the driver polls.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

Event = dict[str, Any]
POLL_S = 0.5
"""Seconds between two looks at the board."""


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
    """Start a board; returns its actor handle, which may be sent to workers.

    It lives on the driver's node: on a worker's it would go with that node, and take with it the end of a
    run that survived.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Board).remote()


@contextmanager
def listening(handle: Any, listen: Callable[[Event], None]) -> Iterator[None]:
    """Read the board until the body ends, then once more."""
    stop = threading.Event()
    seen = 0

    def drain() -> None:
        nonlocal seen
        for event in ray.get(handle.read.remote(seen)):
            seen += 1
            listen(event)

    def poll() -> None:
        while not stop.wait(POLL_S):
            try:
                drain()
            except ray.exceptions.RayError as error:
                logger.debug("the board does not answer: %s", error)

    thread = threading.Thread(target=poll, name="board", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        try:
            drain()
        except ray.exceptions.RayError as error:
            logger.debug("the board does not answer: %s", error)

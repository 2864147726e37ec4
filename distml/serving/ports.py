"""Ports for servers that are told their port before they open it (driver, tests)."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

_RANGE = range(20_000, 32_768)
"""Above those of Ray's workers (10002-19999), below those that systems give to outgoing connections (Linux
from 32768, macOS from 49152): one of these is taken between being found free and being opened."""
_TRIES = 200


def free(count: int = 1) -> list[int]:
    """Find ports of loopback that nobody has; all differ.

    Raises:
        OSError: There are none.
    """
    found: list[int] = []
    with ExitStack() as stack:  # held together, so that no port comes twice
        for port in random.SystemRandom().sample(_RANGE, _TRIES):
            one = stack.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise OSError(f"{count} free ports of 127.0.0.1 were not found in {_TRIES} tries")

"""Ports of servers that are told their port before they open it (driver, tests)."""

from __future__ import annotations

import random
import re
import socket
from contextlib import ExitStack

from distml.config import ServeConfig
from distml.errors import ResourceError

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


def refusal(host: str, port: int) -> str | None:
    """Why nothing could listen there, in the system's words, or None where something could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:  # of a name that is not known, too
            return error.strerror or str(error)
    return None


def listen(serve: ServeConfig) -> None:
    """Start Ray Serve, which opens the endpoint's port; where it runs already, this changes nothing.

    Raises:
        ResourceError: Somebody took the port after it was found free, or the proxy was lost.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayActorError
    from ray.serve.config import HTTPOptions

    try:
        ray_serve.start(
            proxy_location="EveryNode",
            http_options=HTTPOptions(host=serve.host, port=serve.port, request_timeout_s=None),
            logging_config={"enable_access_log": False},
        )
    except RayActorError as error:
        ray_serve.shutdown()
        raise ResourceError(
            "Ray Serve's proxy was lost while it started.", "Start it again when the machine is less busy."
        ) from error
    except RuntimeError as error:  # what the proxy raised, wrapped
        taken = re.search(r"Failed to bind to address '[^']*'", str(error))
        if taken is None:
            raise
        ray_serve.shutdown()  # its controller would stay behind on a cluster
        raise ResourceError(f"{taken[0]}: it was taken just now.", "Start it again.") from None

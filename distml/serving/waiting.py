"""Waiting until an endpoint answers with the champion (driver)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from distml.config import Config
from distml.errors import ServingError
from distml.serving import client, room

_POLL_S = 0.2


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers.

    Args:
        url: Where.
        model: Name of the registered model.
        version: The champion's number when it was asked.
    """

    url: str
    model: str
    version: int


def _nothing(_: Config, __: int) -> None:
    pass


def champion(
    config: Config,
    url: str,
    wanted: int,
    deadline: float,
    require_hope: Callable[[Config, int], None] = _nothing,
    state: Callable[[], str] = str,
) -> Endpoint:
    """Wait for the champion's first answer; what stood before may answer with its predecessor first.

    Args:
        config: Names the model and its registry.
        url: Of the endpoint.
        wanted: The champion's number; another champion meanwhile takes its place.
        deadline: When to give up, as `time.monotonic` counts.
        require_hope: Raises where waiting for that champion would change nothing.
        state: Says what the endpoint is doing, for the error.

    Raises:
        ServingError: No champion, or no answer of its in time.
        TrackingError: The registry does not answer.
    """
    said = f"{url} does not answer yet."
    while True:
        answering = client.version(url)
        if answering == wanted:
            return Endpoint(url, config.tracking.registered_model, wanted)
        if answering is not None:
            said = f"{url} answers with version {answering}, not with the champion, {wanted}."
            wanted = room.require_champion(config)  # it may have changed meanwhile
        require_hope(config, wanted)
        if time.monotonic() > deadline:
            raise ServingError(said, state() or "Raise serve.start_timeout_s.")
        time.sleep(_POLL_S)


def elsewhere(config: Config) -> Endpoint:
    """Wait for the endpoint at `serve.url`, which somebody else keeps up.

    Raises:
        ServingError: No champion, or no answer of its within `serve.start_timeout_s`.
        TrackingError: The registry does not answer.
    """
    url, deadline = (config.serve.url or "").rstrip("/"), time.monotonic() + config.serve.start_timeout_s
    return champion(config, url, room.require_champion(config), deadline)

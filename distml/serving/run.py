"""The endpoint from its start until it is told to end (driver)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from distml.config import Config
from distml.errors import ConfigError
from distml.runtime import cluster
from distml.serving import deploy, room, terminal
from distml.serving.waiting import Endpoint


def run(config: Config, *, detach: bool = False) -> dict[str, Any]:
    """Start the endpoint and wait for SIGINT or SIGTERM; requests under way are answered before the end.

    Args:
        config: What is served and where.
        detach: Return at once and leave the endpoint running on the cluster in RAY_ADDRESS.

    Returns:
        `url`, `model`, `version` and `served_s`.

    Raises:
        DistmlError: It cannot be started.
    """
    if detach:
        _require_cluster()
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began = time.monotonic()
    room.require_champion(config)
    room.require_followed(config)
    # Ray sets handlers of its own when it starts.
    with cluster.connect(config, variables=deploy.prepare(config)), _signals() as ended:
        endpoint = deploy.start(config)
        _show(console, endpoint, time.monotonic() - began)
        if not detach:
            terminal.follow(console, endpoint.url, ended)
            console.print("ending: requests under way are answered first")
            deploy.stop()
    return {
        "url": endpoint.url,
        "model": endpoint.model,
        "version": endpoint.version,
        "served_s": round(time.monotonic() - began, 1),
    }


def stop(config: Config) -> dict[str, Any]:
    """End the endpoint that runs on the cluster in RAY_ADDRESS.

    Returns:
        `url`, where it answered.

    Raises:
        DistmlError: There is no cluster.
    """
    _require_cluster()
    with cluster.connect(config):
        deploy.stop()
    return {"url": room.url(config.serve)}


def _require_cluster() -> None:
    if cluster.address() is None:
        raise ConfigError(
            "--detach and --stop need a cluster that outlives this command.", "Set RAY_ADDRESS."
        )


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the next one interrupts whatever is going on."""
    ended = threading.Event()
    kinds = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in kinds}

    def end(*_: object) -> None:
        for number in kinds:
            signal.signal(number, _interrupt)
        ended.set()

    for number in kinds:
        signal.signal(number, end)
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _show(console: Console, endpoint: Endpoint, seconds: float) -> None:
    url = endpoint.url
    console.print(
        f"{endpoint.model} version {endpoint.version} answers at [bold]{url}[/bold] after {seconds:.1f} s\n"
        f"page       {url}/\n"
        f"picture    curl -F files=@PICTURE.png {url}/predict/image\n"
        f"described  {url}/openapi.json\n"
        f"metrics    {url}/metrics\n"
        "Ctrl-C ends it; another champion is taken over while it runs."
    )

"""Serve the registry's champion over HTTP until the command is ended (driver).

python -m distml.serve --config configs/fashion_mnist.yaml
python -m distml.serve --config configs/k3d.yaml --detach     leave it running on the cluster in RAY_ADDRESS
python -m distml.serve --config configs/k3d.yaml --stop       end it there
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console

from distml import cli
from distml.config import Config
from distml.errors import ConfigError
from distml.runtime import cluster
from distml.serving import deploy, room
from distml.serving.waiting import Endpoint


def run(config: Config, own: argparse.Namespace) -> dict[str, Any]:
    """Start the endpoint and wait for SIGINT or SIGTERM; requests under way are answered before the end.

    Returns:
        `url`, `model`, `version` and `served_s`.

    Raises:
        DistmlError: It cannot be started.
    """
    if (own.detach or own.stop) and cluster.address() is None:
        raise ConfigError(
            "--detach and --stop need a cluster that outlives this command.", "Set RAY_ADDRESS."
        )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    began = time.monotonic()
    if own.stop:
        with cluster.connect(config):
            deploy.stop()
        return {"url": room.url(config.serve)}
    room.require_champion(config)
    # Ray sets handlers of its own when it starts.
    with cluster.connect(config, variables=deploy.prepare(config)), _signals() as ended:
        endpoint = deploy.start(config)
        _show(console, endpoint, time.monotonic() - began)
        if not own.detach:
            ended.wait()
            console.print("ending: requests under way are answered first")
            deploy.stop()
    return {
        "url": endpoint.url,
        "model": endpoint.model,
        "version": endpoint.version,
        "served_s": round(time.monotonic() - began, 1),
    }


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


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument("--detach", action="store_true", help="leave the endpoint running on the cluster")
    parser.add_argument("--stop", action="store_true", help="end the endpoint that runs on the cluster")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("serve", run, argv, _arguments)


if __name__ == "__main__":
    sys.exit(main())

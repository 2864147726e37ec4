"""The endpoint from its start until it is told to end, and what the terminal is told meanwhile (driver)."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import requests
from rich.console import Console
from rich.markup import escape

from distml.config import Config
from distml.errors import ConfigError
from distml.runtime import cluster
from distml.serving import client, deploy, keys
from distml.serving.deploy import Endpoint

_LOOK_S = 2.0

Described = Mapping[str, Any] | None
"""What `/model` answers, None where nothing does."""


def follow(console: Console, url: str, ended: threading.Event) -> None:
    """Print a line for every change of the endpoint until an event is set."""
    before = _described(url)
    for line in changes(before, before):
        console.print(escape(line))
    while not ended.wait(_LOOK_S):
        now = _described(url)
        for line in changes(before, now):
            console.print(escape(line))
        before = now


def _described(url: str) -> Described:
    try:
        response = requests.get(
            f"{url}/model", timeout=5, headers=keys.sent(own=True), verify=client.verify(url)
        )
        described = response.json()
    except (requests.RequestException, ValueError):
        return None
    return described if response.status_code == 200 and isinstance(described, dict) else None


def changes(before: Described, now: Described) -> list[str]:
    """Say what has changed between two looks; of a look and itself, what is amiss."""
    if now is None or before is None:
        return (
            [] if now is before else ["the endpoint answers again" if now else "the endpoint does not answer"]
        )
    start = now is before
    answers = f"version {now['version']} goes on answering"
    lines = []
    if now["version"] != before["version"]:
        lines.append(f"version {now['version']} of {now['name']} answers now, before it {before['version']}")
    known = [] if start else [(one["version"], one["alias"]) for one in before["refused"]]
    for refusal in now["refused"]:
        if (refusal["version"], refusal["alias"]) not in known:
            what = f"version {refusal['version']} ({refusal['alias']})"
            lines.append(f"{what} is refused: {refusal['reason']} {answers}")
    was, registry = before["registry"], now["registry"]
    if not registry["answers"] and (start or was["answers"]):
        age = (
            "never answered"
            if registry["age_s"] is None
            else f"has not answered for {registry['age_s']:.0f} s"
        )
        lines.append(f"the registry {age}; {answers}")
    if registry["answers"] and not was["answers"]:
        lines.append("the registry answers again")
    for missing in registry["missing"]:
        if start or missing not in was["missing"]:
            lines.append(f"the registry has no {missing} any more; {answers}")
    return lines


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
    deploy.require(config, before_ray=True)
    # Ray sets handlers of its own when it starts.
    with cluster.connect(config, variables=deploy.prepare(config)), _signals() as ended:
        endpoint = deploy.start(config)
        _show(console, endpoint, time.monotonic() - began)
        if not detach:
            follow(console, endpoint.url, ended)
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
    return {"url": deploy.url(config.serve)}


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

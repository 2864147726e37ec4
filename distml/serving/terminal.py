"""What happens to a standing endpoint, said where it was started (driver)."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import requests
from rich.console import Console
from rich.markup import escape

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
        response = requests.get(f"{url}/model", timeout=5)
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

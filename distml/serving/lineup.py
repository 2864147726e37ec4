"""Which versions are to answer: what the watcher finds and replicas load (watcher, replica)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from distml.config import ServeConfig
from distml.serving.service import Refusal
from distml.tracking import champions
from distml.tracking.champions import Version


@dataclass(frozen=True)
class Lineup:
    """What replicas are to load.

    Args:
        number: Grows with every change.
        aliases: The accepted version of each alias.
        versions: Everything to keep loaded, by number.
        metrics: Of each version's run.
        refused: What aliases point at and was not accepted.
    """

    number: int = 0
    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, Version] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()


def aliases(serve: ServeConfig) -> tuple[str, ...]:
    """Return the aliases that matter, the champion first."""
    found = [champions.CHAMPION]
    if serve.canary.percent:
        found.append(serve.canary.alias)
    if serve.shadow:
        found.append(serve.shadow)
    return tuple(dict.fromkeys(found))

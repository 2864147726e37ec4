"""The model set: which versions are to answer, as the watcher orders and replicas load (watcher, replica)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distml.config import ServeConfig
from distml.serving.service import Refusal
from distml.tracking import registry
from distml.tracking.registry import ModelVersion


@dataclass(frozen=True)
class ModelSet:
    """What replicas are to load.

    A set is known by its content, not by a number: a watcher that restarts counts from nothing again, and
    what it says must be compared with what a replica was told by the one before.

    Args:
        aliases: The accepted version of each alias.
        versions: Everything to keep loaded, by number.
        metrics: Of each version's run.
        refused: What aliases point at and was not accepted.
        asked_at: Seconds since 1970 when the registry said so; 0 is never.
        confirmed: Whether the watcher that orders it has heard it from the registry itself; otherwise it is
            what another remembered, good for a replica that has nothing.
    """

    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    asked_at: float = field(default=0.0, compare=False)
    confirmed: bool = True

    @property
    def champion(self) -> ModelVersion | None:
        """The version that answers by default."""
        return self.versions.get(self.aliases.get(registry.CHAMPION, 0))

    @property
    def digest(self) -> str:
        """Stands for the content; empty for a set without a champion, which orders nothing."""
        if self.champion is None:
            return ""
        content = asdict(self) | {"asked_at": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def from_json(values: Mapping[str, Any]) -> ModelSet:
    """Read what `dataclasses.asdict` and JSON made of a set; raises KeyError, TypeError or ValueError."""
    return ModelSet(
        aliases={str(alias): int(number) for alias, number in values["aliases"].items()},
        versions={int(number): ModelVersion(**version) for number, version in values["versions"].items()},
        metrics={int(number): dict(metrics) for number, metrics in values["metrics"].items()},
        asked_at=float(values["asked_at"]),
        confirmed=False,
    )


def aliases(serve: ServeConfig) -> tuple[str, ...]:
    """Return the aliases that matter, the champion first."""
    named = [registry.CHAMPION]
    if serve.canary.percent:
        named.append(serve.canary.alias)
    if serve.shadow:
        named.append(serve.shadow)
    return tuple(dict.fromkeys(named))

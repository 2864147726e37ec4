"""Which configuration keys a resumed run or sweep may change and which it may not (driver)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distml.config import Config
from distml.config.load import flatten

_BINDING = ("task", "data", "model", "train", "run.seed")
_FREE = (
    "data.memory_budget_bytes",
    "data.mirrors",
    "train.checkpoint_every_epochs",
    "train.checkpoints_kept",
    "train.cpus_per_worker",
    "train.device",
    "train.elastic_check_s",
    "train.log_every_steps",
    "train.max_failures",
    "train.max_preemptions",
    "train.stall_timeout_s",
    "train.tensorboard",
    "train.workers",
)


def of(config: Config) -> dict[str, Any]:
    """Return what binds a run, by dotted path."""
    flat = flatten(config.model_dump(mode="json"))
    return {
        path: value
        for path, value in flat.items()
        if path not in _FREE and any(path == bound or path.startswith(bound + ".") for bound in _BINDING)
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between two bindings."""
    return [
        f"{path} was {before.get(path)!r} and is now {now.get(path)!r}"
        for path in sorted(before.keys() | now.keys())
        if before.get(path) != now.get(path)
    ]

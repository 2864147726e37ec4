"""The audit log of promotions: one record per decision, a tag of the version it is about (driver).

A record is never taken away. It is written before the alias moves and completed after, so that two
promoters without a common lock see each other: whoever overwrites another's alias finds that other's
record afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import platform
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from distml.config import Config
from distml.tracking import registry
from distml.tracking.registry import ModelVersion

PREFIX = "distml.promotion."
WITHDRAWN = "distml.withdrawn"
"""Tag of a version that was rolled back from: it does not compete again unless it is named."""

Status = Literal["moving", "promoted", "kept", "overtaken", "rolled back"]


def _who() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container may run under a number without a name
        return f"{getpass.getuser()}@{platform.node()}"
    return platform.node()


@dataclass(frozen=True)
class Record:
    """One decision.

    Args:
        version: The version it is about.
        decision: moving until the alias is seen to have moved; overtaken when a better one came between.
        why: One sentence with the numbers.
        champion: The version that was champion before.
        metric: What was compared.
        value: What the version reached.
        data_digest: Of the data whose validation rows were used.
        key: Unique; sorts by time.
        at: UTC.
        by: User and machine.
    """

    version: int
    decision: Status
    why: str
    champion: int | None = None
    metric: str | None = None
    value: float | None = None
    data_digest: str | None = None
    key: str = field(default_factory=lambda: f"{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:8]}")
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    by: str = field(default_factory=_who)


def write(config: Config, record: Record, **changed: object) -> Record:
    """Write a record, or write it again with something changed.

    Raises:
        TrackingError: The registry does not answer.
    """
    record = dataclasses.replace(record, **changed)  # type: ignore[arg-type]
    text = json.dumps({key: value for key, value in dataclasses.asdict(record).items() if key != "key"})
    registry.tag(config, record.version, PREFIX + record.key, text)
    return record


def read(versions: Iterable[ModelVersion]) -> list[Record]:
    """Return the records beside some versions, oldest first; what is no record is passed over."""
    found = []
    for version in versions:
        for key, text in version.tags.items():
            if key.startswith(PREFIX):
                with contextlib.suppress(ValueError, TypeError):
                    found.append(Record(**json.loads(text), key=key.removeprefix(PREFIX)))
    return sorted(found, key=lambda record: record.key)

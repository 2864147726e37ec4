"""Moves the champion alias, there and back, among concurrent promotions; records decisions (driver).

Promoters that share a storage root which can lock take turns. Where there are no locks, as on some network
mounts, the registry alone decides, and the last write wins. Therefore each promoter first writes
its record, then the alias, and then looks again until the alias names the best of all recorded versions.
Why that suffices: the last write of all was followed by a read that showed nothing better; who wrote a
record after that look has itself looked later, and would have written again had its version been better.
Champions only ever get better on the same rows, so all versions recorded since the last
rollback are candidates.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import platform
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from distml.config import Config
from distml.errors import TrackingError
from distml.selection import gate
from distml.selection.gate import Decision, Score
from distml.storage import Storage
from distml.tasks import quality
from distml.tracking import locate, registry
from distml.tracking.registry import CHAMPION, PREVIOUS, ModelVersion

_LOOKS = 20
_TURNS = "promotions"


def _point(config: Config, version: int) -> None:
    now = registry.aliases(config).get(CHAMPION)
    if now is not None and now != version:
        registry.point(config, PREVIOUS, now)
    registry.point(config, CHAMPION, version)


def promote(
    config: Config,
    storage: Storage,
    metric: str,
    candidate: Score,
    rate: Callable[[int], Score | None],
    data_digest: str,
    dry: bool = False,
) -> tuple[Decision, int | None]:
    """Let a candidate become champion if it is the better one at the moment the alias moves.

    Args:
        config: The rules and the registry.
        storage: Where promoters take turns.
        metric: What is compared, as `val_accuracy`.
        candidate: The best of the candidates; its files have been verified and tried.
        rate: Measures another version on the same rows; None for one that is to be replaced unseen.
        data_digest: Of the data it was measured on.
        dry: Only say what would happen.

    Returns:
        The decision and the version that was champion before.

    Raises:
        TrackingError: The registry does not respond, or others never stop moving the alias.
        ModelError: The champion cannot be measured.
    """
    with storage.lock(_TURNS, config.tracking.registered_model):
        rolled = _rollback(read(registry.versions(config)))
        champion = registry.aliases(config).get(CHAMPION)
        incumbent = None if champion is None else rate(champion)
        decision = gate.decide(config.promote, metric, candidate, incumbent)
        if dry or candidate.version == champion:
            return decision, champion
        record = write(
            config,
            Record(
                candidate.version,
                "moving" if decision.promote else "kept",
                decision.why,
                champion,
                metric,
                candidate.metrics[quality.plain(metric)],
                data_digest,
            ),
        )
        if not decision.promote:
            return decision, champion
        if champion is not None and incumbent is None:
            registry.tag(config, champion, WITHDRAWN, f"was overwritten by version {record.version}")
        won = _settle(config, candidate, record, rolled, rate)
        write(config, record, decision="promoted" if won == record.version else "overtaken")
        if won != record.version:
            decision = Decision(
                False, f"{decision.why[:-1]}, but version {won} is better and was promoted meanwhile."
            )
        return decision, champion


def _rollback(known: list[Record]) -> str:
    """Key of the last rollback, "" where there was none."""
    return max((record.key for record in known if record.decision == "rolled back"), default="")


def _settle(
    config: Config, mine: Score, record: Record, rolled: str, rate: Callable[[int], Score | None]
) -> int:
    """Point the alias at the best version recorded since the last rollback, until that is what it names."""
    for _ in range(_LOOKS):
        now = registry.aliases(config).get(CHAMPION)
        versions = registry.versions(config)
        known = read(versions)
        if _rollback(known) != rolled and now is not None:
            return now  # a person has just said which one
        withdrawn = {version.version for version in versions if WITHDRAWN in version.tags}
        rivals = {other.version for other in known if other.key > rolled and _rivals(other, record)}
        rated = [rate(version) for version in rivals - withdrawn - {mine.version}]
        scores = [score for score in rated if score is not None]
        best = gate.best(record.metric or "", [mine, *scores])
        if now == best.version:
            return best.version
        _point(config, best.version)
    raise TrackingError(
        f"the alias {CHAMPION} of {config.tracking.registered_model} is being moved by other processes.",
        "Promote from one place at a time.",
    )


def _rivals(other: Record, mine: Record) -> bool:
    """Whether a recorded version may be better; if so it is measured again."""
    if (other.metric, other.data_digest) != (mine.metric, mine.data_digest):
        return False
    if other.decision not in ("moving", "promoted") or other.value is None or mine.value is None:
        return False
    if quality.higher(mine.metric or ""):
        return other.value >= mine.value
    return other.value <= mine.value


def back(config: Config, storage: Storage, version: int, dry: bool = False) -> tuple[Decision, int | None]:
    """Make a version champion again whatever it scores, and keep the present one out of later promotions.

    Args:
        config: The registry.
        storage: Where promoters take turns.
        version: To return to; it has been verified and tried.
        dry: Only say what would happen.

    Returns:
        The decision and the version that was champion before.

    Raises:
        TrackingError: The registry does not respond.
    """
    with storage.lock(_TURNS, config.tracking.registered_model):
        now = registry.aliases(config).get(CHAMPION)
        if now == version:
            return Decision(False, f"version {version} is already the champion."), now
        instead = "" if now is None else f" instead of version {now}"
        decision = Decision(True, f"version {version} was made champion{instead} manually.")
        if not dry:
            write(config, Record(version, "rolled back", decision.why, now))
            _point(config, version)
            registry.untag(config, version, WITHDRAWN)
            if now is not None:
                registry.tag(config, now, WITHDRAWN, f"was rolled back to version {version}")
        return decision, now


def former(config: Config, known: Iterable[ModelVersion], now: int | None) -> int | None:
    """Return the version that was champion before the present one, as promotions and endpoints recorded it.

    An alias may be moved manually, and the version it named before may be gone: what counts is which versions
    were champion in fact, are still there and were not rolled back from since.

    Args:
        config: The registry and the storage.
        known: All versions.
        now: The present champion; None where there is none.

    Returns:
        None where nothing is recorded of another champion.
    """
    known = list(known)
    signed = {version.version: version.sha256 for version in known}
    events: list[tuple[float, int, bool]] = [
        (champion.at, champion.version, True)
        for champion in locate.served_champions(config)
        if signed.get(champion.version) == champion.sha256
    ]
    for record in read(known):
        if record.decision in ("promoted", "rolled back"):
            at = int(record.key.partition("-")[0]) / 1000
            if record.champion is not None:
                events.append((at, record.champion, record.decision == "promoted"))
            events.append((at, record.version, True))
    champions: list[int] = []
    for _, version, crowned in sorted(events, key=lambda event: event[0]):
        if version in champions:
            champions.remove(version)
        if crowned:
            champions.append(version)
    return next((version for version in reversed(champions) if version != now and version in signed), None)


PREFIX = "distml.promotion."
WITHDRAWN = "distml.withdrawn"
"""Tag of a version that was rolled back from: it is no candidate again unless it is named."""

Status = Literal["moving", "promoted", "kept", "overtaken", "rolled back"]


def _who() -> str:
    with contextlib.suppress(KeyError, OSError):  # a container may run under a number without a name
        return f"{getpass.getuser()}@{platform.node()}"
    return platform.node()


@dataclass(frozen=True)
class Record:
    """One decision.

    Attributes:
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
        TrackingError: The registry does not respond.
    """
    record = dataclasses.replace(record, **changed)  # type: ignore[arg-type]
    text = json.dumps({key: value for key, value in dataclasses.asdict(record).items() if key != "key"})
    registry.tag(config, record.version, PREFIX + record.key, text)
    return record


def read(versions: Iterable[ModelVersion]) -> list[Record]:
    """Return the records beside some versions, oldest first; what is not a record is skipped."""
    known = []
    for version in versions:
        for key, text in version.tags.items():
            if key.startswith(PREFIX):
                with contextlib.suppress(ValueError, TypeError):
                    known.append(Record(**json.loads(text), key=key.removeprefix(PREFIX)))
    return sorted(known, key=lambda record: record.key)

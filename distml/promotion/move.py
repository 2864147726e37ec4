"""Moving the alias, so that no other promoter's better champion is lost (driver).

Promoters that share a storage root which can lock take turns. Where there are no locks, as in an object
store, the registry alone decides, and it serves whoever writes last. Therefore each promoter first writes
its record, then the alias, and then looks again until the alias names the best of all versions recorded
since it began. The last write of all was followed by such a look that changed nothing, so it named the best.
"""

from __future__ import annotations

from collections.abc import Callable

from distml.champions import CHAMPION, PREVIOUS
from distml.config import Config
from distml.errors import TrackingError
from distml.promotion import gate, records
from distml.promotion.gate import Decision, Score
from distml.promotion.records import Record
from distml.storage import Storage
from distml.tracking import aliases

_LOOKS = 20
_TURNS = "promotions"


def _point(config: Config, version: int) -> None:
    now = aliases.read(config).get(CHAMPION)
    if now is not None and now != version:
        aliases.point(config, PREVIOUS, now)
    aliases.point(config, CHAMPION, version)


def promote(
    config: Config,
    storage: Storage,
    candidate: Score,
    rate: Callable[[int], Score | None],
    data_digest: str,
    dry: bool = False,
) -> tuple[Decision, int | None]:
    """Let a candidate become champion if it is the better one at the moment the alias moves.

    Args:
        config: The rules and the registry.
        storage: Where promoters take turns.
        candidate: The best of the candidates; its files have been verified and tried.
        rate: Measures another version on the same rows; None for one that is to be replaced unseen.
        data_digest: Of the data it was measured on.
        dry: Only say what would happen.

    Returns:
        The decision and the version that was champion before.

    Raises:
        TrackingError: The registry does not answer, or others never stop moving the alias.
        ModelError: The champion cannot be measured.
    """
    with storage.lock(_TURNS, config.tracking.registered_model):
        known = {record.key for record in records.read(aliases.versions(config))}
        champion = aliases.read(config).get(CHAMPION)
        incumbent = None if champion is None else rate(champion)
        decision = gate.decide(config.promote, candidate, incumbent)
        if dry or candidate.version == champion:
            return decision, champion
        record = Record(
            candidate.version,
            "moving" if decision.promote else "kept",
            decision.why,
            champion,
            config.promote.metric,
            getattr(candidate, config.promote.metric),
            data_digest,
        )
        records.write(config, record)
        if decision.promote:
            known.add(record.key)
            won = _settle(config, candidate, champion, known, rate)
            records.write(config, record, decision="promoted" if won == candidate.version else "overtaken")
            if won != candidate.version:
                decision = Decision(
                    False, f"{decision.why[:-1]}, but version {won} is better and came between."
                )
        return decision, champion


def _settle(
    config: Config, mine: Score, before: int | None, known: set[str], rate: Callable[[int], Score | None]
) -> int:
    """Point the alias at the best version recorded since `known`, until that is what it names."""
    for _ in range(_LOOKS):
        now = aliases.read(config).get(CHAMPION)
        fresh = [record for record in records.read(aliases.versions(config)) if record.key not in known]
        if any(record.decision == "rolled back" for record in fresh) and now is not None:
            return now  # a person has just said which one
        others = {record.version for record in fresh if record.decision in ("moving", "promoted")}
        others |= {now} if now is not None and now != before else set()
        scores = [score for version in others - {mine.version} if (score := rate(version)) is not None]
        best = gate.best(config.promote.metric, [mine, *scores])
        if now == best.version:
            return best.version
        _point(config, best.version)
    raise TrackingError(
        f"the alias {CHAMPION} of {config.tracking.registered_model} is moved by others all the time.",
        "Promote from one place at a time.",
    )


def back(config: Config, storage: Storage, version: int, dry: bool = False) -> tuple[Decision, int | None]:
    """Make a version champion again whatever it scores, and keep the present one out of later competitions.

    Args:
        config: The registry.
        storage: Where promoters take turns.
        version: To return to; it has been verified and tried.
        dry: Only say what would happen.

    Returns:
        The decision and the version that was champion before.

    Raises:
        TrackingError: The registry does not answer.
    """
    with storage.lock(_TURNS, config.tracking.registered_model):
        now = aliases.read(config).get(CHAMPION)
        if now == version:
            return Decision(False, f"version {version} is the champion already."), now
        instead = "" if now is None else f" instead of version {now}"
        decision = Decision(True, f"version {version} was made champion{instead} by hand.")
        if not dry:
            records.write(config, Record(version, "rolled back", decision.why, now))
            _point(config, version)
            aliases.untag(config, version, records.WITHDRAWN)
            if now is not None:
                aliases.tag(config, now, records.WITHDRAWN, f"was rolled back to version {version}")
        return decision, now

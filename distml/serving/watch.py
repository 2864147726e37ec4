"""Following the registry: which versions its aliases point at, and which of them can be trusted (watcher).

One process asks the registry and imports MLflow; replicas get its findings as values and the files as bytes,
so that they need neither MLflow nor the registry nor a disk in common.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from distml.config import Config
from distml.errors import DistmlError, ModelError, TrackingError
from distml.serving import digests
from distml.serving.lineup import Lineup, aliases
from distml.serving.service import Refusal
from distml.tracking import champions
from distml.tracking.champions import Version
from distml.training.result import DIGESTS

logger = logging.getLogger(__name__)

_RETRY_S = 30.0
"""Seconds after which a refused version is looked at again: somebody may have restored its files."""


@dataclass
class _Bad:
    """Why and since when a version is refused, and when it was last looked at."""

    reason: str
    since: float
    looked: float


class Watch:
    """Follows the registry; for one thread at a time. Final.

    Args:
        config: Names the registry, the model and what to serve of it.
    """

    def __init__(self, config: Config) -> None:
        self.lineup = Lineup()
        self._config = config
        self._folder = tempfile.TemporaryDirectory(prefix="distml-watch-")
        self._verified: dict[Version, digests.Export] = {}
        self._bad: dict[Version, _Bad] = {}
        self._former: dict[str, Version] = {}
        self._silent = False

    def look(self) -> bool:
        """Ask the registry once; returns whether the line-up changed. An outage changes nothing."""
        try:
            pointed, pinned = self._asked()
        except TrackingError as error:
            if not self._silent:
                logger.warning("%s What is loaded goes on answering.", error)
            self._silent = True
            return False
        if self._silent:
            logger.info("the registry answers again")
        self._silent = False
        return self._settle(pointed, pinned)

    def _asked(self) -> tuple[dict[str, Version], list[Version]]:
        named = {alias: champions.by_alias(self._config, alias) for alias in aliases(self._config.serve)}
        known = self.lineup.versions
        numbers = [(number, known.get(number)) for number in self._config.serve.versions]
        pinned = [found or champions.by_number(self._config, number) for number, found in numbers]
        return {alias: one for alias, one in named.items() if one}, [one for one in pinned if one]

    def _settle(self, pointed: Mapping[str, Version], pinned: list[Version]) -> bool:
        """Accept what can be trusted; an alias whose version cannot be keeps the one it had."""
        before = self.lineup
        chosen: dict[str, Version] = {}
        refused = []
        for alias in aliases(self._config.serve):
            found = pointed.get(alias)
            last = before.versions.get(before.aliases.get(alias, 0))
            bad = self._judge(found, alias) if found else None
            if found and bad:
                refused.append(Refusal(found.version, alias, bad.reason, bad.since))
            elif found:
                chosen[alias] = found
                if last and last != found:
                    self._former[alias] = last
            if alias not in chosen and last and (found or alias == champions.CHAMPION):
                chosen[alias] = last
        return self._change(chosen, [one for one in pinned if not self._judge(one, "version")], refused)

    def _change(self, chosen: Mapping[str, Version], pinned: list[Version], refused: list[Refusal]) -> bool:
        before = self.lineup
        # The last champion stays: requests that name it end well, and a rollback takes no time.
        former = [one for one in [self._former.get(champions.CHAMPION)] if one in self._verified]
        now = replace(
            before,
            aliases={alias: one.version for alias, one in chosen.items()},
            versions={one.version: one for one in (*chosen.values(), *pinned, *former) if one},
            refused=tuple(refused),
        )
        if now == before:
            return False
        self.lineup = replace(now, number=before.number + 1, metrics=self._metrics(now))
        return True

    def _metrics(self, now: Lineup) -> dict[int, Mapping[str, float]]:
        found = {}
        for number, version in now.versions.items():
            try:
                found[number] = self.lineup.metrics.get(number) or champions.metrics(self._config, version)
            except TrackingError:
                found[number] = {}
        return found

    def _judge(self, version: Version, alias: str) -> _Bad | None:
        """Say why a version cannot be trusted, None where it can; the log hears it once."""
        bad = self._bad.get(version)
        if version in self._verified or (bad and time.time() - bad.looked < _RETRY_S):
            return bad
        try:
            self._verified[version] = self._verify(version)
        except DistmlError as error:
            return self._refuse(version, alias, str(error))
        self._bad.pop(version, None)
        return None

    def _verify(self, version: Version) -> digests.Export:
        into = Path(self._folder.name, str(version.version))
        into.mkdir(exist_ok=True)
        export = digests.verify(champions.fetch(self._config, version, into), version.sha256)
        champion = self.lineup.versions.get(self.lineup.aliases.get(champions.CHAMPION, 0))
        expected = self._verified[champion].shape if champion else export.shape
        if export.shape != expected:
            raise ModelError(
                f"it takes images {list(export.shape)}, but clients of this endpoint send {list(expected)}.",
                "Serve it at an endpoint of its own.",
            )
        return export

    def _refuse(self, version: Version, alias: str, reason: str) -> _Bad:
        last, now = self._bad.get(version), time.time()
        if last and last.reason == reason:
            last.looked = now
            return last
        logger.error("%s: version %d of %s is refused: %s", alias, version.version, version.name, reason)
        self._bad[version] = _Bad(reason, now, now)
        return self._bad[version]

    def refuse(self, number: int, reason: str) -> bool:
        """Take back an accepted version that a replica could not load; returns whether that was news."""
        version = self.lineup.versions.get(number)
        if version is None or version in self._bad:
            return False
        bad = self._refuse(version, "a replica", reason)
        before = self.lineup
        held = {alias: before.versions[number] for alias, number in before.aliases.items()}
        back = {alias: self._former.get(alias) if one == version else one for alias, one in held.items()}
        refused = [Refusal(number, alias, reason, bad.since) for alias, one in held.items() if one == version]
        pinned = [one for one in before.versions.values() if one != version]
        return self._change({alias: one for alias, one in back.items() if one}, pinned, refused)

    def files(self, number: int) -> dict[str, bytes]:
        """Return the files of an accepted version by their path in the export.

        Raises:
            ModelError: It is not in the line-up any more, or its files have gone.
        """
        version = self.lineup.versions.get(number)
        export = self._verified.get(version) if version else None
        if export is None:
            raise ModelError(f"version {number} is not to be loaded any more.")
        try:
            listed = json.loads((export.folder / DIGESTS).read_bytes())
            return {name: (export.folder / name).read_bytes() for name in [DIGESTS, *listed]}
        except (OSError, ValueError) as error:
            raise ModelError(f"the files of version {number} cannot be read: {error}.") from None

"""The watcher: polls the followed aliases, bridges registry outages, verifies versions (watcher).

One process asks the registry and imports MLflow; replicas get its findings as values and the files as bytes,
so that they need neither MLflow nor the registry nor a disk in common.

What was served last is kept below the storage root. A watcher that starts while the registry is unreachable,
or is told of no champion, orders that; only a registry that names another version changes what is served.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import shutil
import tempfile
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distml import log
from distml.artifacts import layout
from distml.artifacts.layout import DIGESTS
from distml.config import Config
from distml.data.image import Policy
from distml.errors import DistmlError, ModelError, StorageError, TrackingError
from distml.runtime import compat
from distml.runtime.processes import Death
from distml.serving.metrics import Families
from distml.serving.models import ModelSet, Record, aliases, hosted, marks
from distml.serving.service import Doing, Loss, Refusal, RegistryState, Standing
from distml.tracking import locate, registry
from distml.tracking.registry import ModelVersion

logger = logging.getLogger(__name__)

_RETRY_S = 30.0
"""Seconds after which a rejected version is checked again: its files may have been restored."""


@dataclass
class _Bad:
    """Why and since when a version is rejected, and when it was last checked."""

    reason: str
    since: float
    looked: float
    until: float = math.inf
    """When a version that replicas died of is tried again, in seconds since 1970."""


class Watch:
    """Follows the registry; for one thread at a time. Final.

    Args:
        config: Names the registry, the model and what to serve of it.
        began: When the endpoint was started, in seconds since 1970. A watcher that restarts holds every
            version against the champion that was served since then, though it has not seen it itself.
    """

    def __init__(self, config: Config, began: float = 0.0) -> None:
        self._began = began
        self._leading = config.serve.alias
        self.models = ModelSet(leading=self._leading)
        self.registry = RegistryState()
        self._config = registry.briefly(config)  # it looks again soon
        self._record = Record(config)
        self._kept: str | None = ""
        self._folder = Path(tempfile.mkdtemp(prefix="distml-watch-"))
        self.close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        """Deletes what was fetched."""
        self._verified: dict[ModelVersion, layout.Export] = {}
        self._bad: dict[ModelVersion, _Bad] = {}
        self._misfits: dict[tuple[str, ModelVersion], _Bad] = {}
        self._former: dict[str, ModelVersion] = {}
        self._gone: tuple[str, ...] = ()
        self._silent = self._heard = False
        self._losses: list[Lost] = []
        self._withdrawn: dict[ModelVersion, int] = {}
        self._dropped: set[ModelVersion] = set()

    def vacant(self) -> bool:
        """Return whether the registry has said that there is no champion, and none was ever served."""
        return self._heard and self.models.champion is None and not self.models.refused

    def settled(self) -> bool:
        """Return whether there is nothing that a replica could wait for: no version to load, as far as known.

        The registry said so, every version is refused, or it does not answer and nothing was served before.
        """
        return self.models.champion is None and (self._heard or self._silent)

    def look(self) -> bool:
        """Ask the registry once; returns whether the model set changed. An outage changes nothing."""
        try:
            pointed, pinned = self._asked()
        except TrackingError as error:
            if not self._silent:
                self._say(logging.WARNING, "registry_away", f"{error} Loaded versions stay served.")
            self._silent = True
            return self.models.champion is None and self._recall()
        if self._silent:
            self._say(logging.INFO, "registry_back", "the registry responds again")
        self._silent = False
        self._note(pointed)
        return self._settle(pointed, pinned)

    def _say(self, level: int, name: str, sentence: str, **facts: object) -> None:
        log.event(logger, level, name, sentence, model=self._config.tracking.registered_model, **facts)

    def _note(self, pointed: Mapping[str, ModelVersion]) -> None:
        """Store the registry's answer about the aliases; a missing alias is logged once."""
        missing = tuple(alias for alias in aliases(self._config.serve) if alias not in pointed) + self._gone
        if missing and missing != self.registry.missing:
            name = self._config.tracking.registered_model
            sentence = f"the registry has no {', '.join(missing)} of {name}"
            self._say(logging.WARNING, "missing", sentence, missing=missing)
        if back := [alias for alias in self.registry.missing if alias not in missing]:
            self._say(logging.INFO, "there_again", f"the registry has {', '.join(back)} again", names=back)
        self.registry, self._heard = RegistryState(time.time(), missing), True

    def _recall(self) -> bool:
        """Order what was served last, where nothing better is known; returns whether there is anything."""
        recalled = self._recalled()
        if recalled.champion is None:
            return False
        self._take(recalled)
        logger.warning("version %d is what was served last", recalled.champion.version)
        return True

    def _take(self, models: ModelSet) -> None:
        self.models = replace(models, confirmed=False)
        self.registry = RegistryState(models.asked_at)

    def _recalled(self) -> ModelSet:
        """Return what was served last without the versions whose files are gone."""
        last = self._record.recall()
        usable = {
            number: version
            for number, version in last.versions.items()
            if not self._judge(version, "what was served last")
        }
        named = {alias: number for alias, number in last.aliases.items() if number in usable}
        return replace(last, aliases=named, versions=usable)

    def learn(self, held: ModelSet) -> bool:
        """Take the model set that a replica received from another watcher where it is newer than this one's.

        Returns:
            Whether it was; never once the registry has answered.
        """
        if self._heard or held.champion is None or held.asked_at <= self.models.asked_at:
            return False
        self._take(held)
        return True

    def _asked(self) -> tuple[dict[str, ModelVersion], list[ModelVersion]]:
        named = {alias: registry.by_alias(self._config, alias) for alias in aliases(self._config.serve)}
        known = self.models.versions
        numbers = [(number, known.get(number)) for number in self._config.serve.versions]
        asked = {number: registry.by_number(self._config, number) for number, _ in numbers}
        self._gone = tuple(f"version {number}" for number, version in asked.items() if version is None)
        pinned = [asked[number] or version for number, version in numbers]
        return {alias: target for alias, target in named.items() if target}, [
            target for target in pinned if target
        ]

    def _settle(self, pointed: Mapping[str, ModelVersion], pinned: list[ModelVersion]) -> bool:
        """Accept what can be trusted; an alias whose version cannot be keeps the one it had."""
        before = self.models
        chosen: dict[str, ModelVersion] = {}
        refused = []
        for alias in aliases(self._config.serve):
            version = pointed.get(alias)
            bad = self._judge(version, alias) if version else None
            misfit = self._misfit(version, alias, chosen) if version and not bad else None
            bad = bad or misfit
            if before.champion is None and (bad or version is None):
                before = self._recalled()
            last = before.versions.get(before.aliases.get(alias, 0))
            if version and bad:
                refused.append(Refusal(version.version, alias, bad.reason, bad.since))
            elif version:
                chosen[alias] = version
                if last and last != version:
                    self._former[alias] = last
            if alias not in chosen and last and not misfit and (version or alias == self._leading):
                chosen[alias] = last
        trusted = [version for version in pinned if not self._judge(version, "version")]
        return self._change(chosen, trusted, refused)

    def _misfit(self, version: ModelVersion, alias: str, chosen: Mapping[str, ModelVersion]) -> _Bad | None:
        """Return why a version cannot answer or be compared beside the champion, None where it can.

        A request without a version has its pictures fitted for the champion before a canary is drawn.
        """
        champion, key = chosen.get(self._leading), (alias, version)
        known = (champion in self._verified) and version in self._verified
        if champion is None or not known or alias == self._leading:
            return None
        reason = self._difference(self._verified[version], self._verified[champion], champion.version)
        if reason is None:
            self._misfits.pop(key, None)
            return None
        if key not in self._misfits or self._misfits[key].reason != reason:
            self._misfits[key] = self._rejected(version, alias, reason)
        return self._misfits[key]

    def _difference(self, export: layout.Export, champion: layout.Export, number: int) -> str | None:
        try:  # verified before this champion was
            _require_alike(export, champion, self._config.serve.accept_changed_classes)
        except ModelError as error:
            return str(error)
        own, others = export.pictures, champion.pictures
        if own == others:
            return None
        return (
            f"it takes pictures by {_fitting(own)}, and gets those of version {number}, which takes them by "
            f"{_fitting(others)}. Train it with data.fit and data.background of that version."
        )

    def _change(
        self, chosen: Mapping[str, ModelVersion], pinned: list[ModelVersion], refused: list[Refusal]
    ) -> bool:
        before = self.models
        # The last champion stays: requests that name it end well, and a rollback takes no time.
        former = [version for version in [self._former.get(self._leading)] if version in self._verified]
        now = replace(
            before,
            aliases={alias: version.version for alias, version in chosen.items()},
            versions={kept.version: kept for kept in (*chosen.values(), *pinned, *former) if kept},
            refused=tuple(refused),
            confirmed=self._heard,
            withdrawn=tuple(sorted(version.version for version in self._dropped & self._bad.keys())),
        )
        if now == before:
            return False
        for alias, number in now.aliases.items():
            if (last := self.models.aliases.get(alias)) != number:
                sentence = f"{alias}: version {number} is loaded" + f" after version {last}" * (
                    last is not None
                )
                self._say(logging.INFO, "taken_over", sentence, alias=alias, version=number, before=last)
        self.models = replace(now, asked_at=self.registry.answered_at, metrics=self._metrics(now))
        return True

    def keep(self) -> None:
        """Write the model set down for a watcher that comes later; a storage that fails is tried again."""
        models = self.models
        if not models.confirmed or models.digest in ("", self._kept):
            return
        folders = {version: export.folder for version, export in self._verified.items()}
        try:
            self._record.keep(models, folders)
            if models.champion and self._leading == registry.CHAMPION:
                locate.note_champion(self._config, models.champion)
        except StorageError as error:
            if self._kept is not None:
                logger.warning("the model set cannot be saved: %s", error)
            self._kept = None
            return
        self._kept = models.digest

    def _metrics(self, now: ModelSet) -> dict[int, Mapping[str, float]]:
        measured = {}
        for number, version in now.versions.items():
            try:
                measured[number] = self.models.metrics.get(number) or registry.metrics(self._config, version)
            except TrackingError:
                measured[number] = {}
        return measured

    def _judge(self, version: ModelVersion, alias: str) -> _Bad | None:
        """Return why a version cannot be trusted, None where it can; it is logged once."""
        bad = self._bad.get(version)
        held = self._verified.get(version)
        if bad and bad.until < time.time():
            self._say(logging.WARNING, "tried_again", f"{alias}: version {version.version} is tried again")
            del self._bad[version]
            bad = None
        if held:
            gone = f"{held.folder} is gone, so that no other replica can load it."
            if not (held.folder / DIGESTS).exists():
                return self._refuse(version, alias, gone)
            if bad and bad.reason == gone:
                del self._bad[version]
                bad = None
        if held or (bad and time.time() - bad.looked < _RETRY_S):
            return bad
        try:
            self._verified[version] = self._verify(version)
        except DistmlError as error:
            return self._refuse(version, alias, str(error))
        self._bad.pop(version, None)
        return None

    def _verify(self, version: ModelVersion) -> layout.Export:
        locate.require_signed(version)
        export = self._fetched(version)
        if champion := self._answering(version):
            _require_alike(export, champion, self._config.serve.accept_changed_classes)
        return export

    def _answering(self, version: ModelVersion) -> layout.Export | None:
        """The export that clients have answers of, None where that is not known or is the version itself."""
        champion = self.models.champion
        if champion is None:
            last = self._record.recall()
            champion = None if last.asked_at < self._began else last.champion
        if champion is None or champion == version:
            return None
        if champion in self._verified:
            return self._verified[champion]
        try:  # one that was recalled, or that this watcher has from a replica
            return self._fetched(champion)
        except DistmlError:
            return None  # its files are gone

    def _fetched(self, version: ModelVersion) -> layout.Export:
        into = self._folder / f"{version.version}-{version.sha256}"
        into.mkdir(exist_ok=True)
        if copy := self._record.fetch(version, into):
            try:
                return layout.verify(copy, version.sha256)
            except ModelError as error:  # half a copy; the registry has the whole
                logger.warning("ignoring the copy of version %d: %s", version.version, error)
        return locate.verified(self._config, version, into)

    def _refuse(self, version: ModelVersion, alias: str, reason: str) -> _Bad:
        last = self._bad.get(version)
        if last and last.reason == reason:
            last.looked = time.time()
            return last
        self._bad[version] = self._rejected(version, alias, reason)
        return self._bad[version]

    def _rejected(self, version: ModelVersion, alias: str, reason: str) -> _Bad:
        """Say that a version is rejected from now on."""
        sentence = f"{alias}: version {version.version} of {version.name} is rejected: {reason}"
        self._say(logging.ERROR, "refused", sentence, alias=alias, version=version.version, reason=reason)
        now = time.time()
        return _Bad(reason, now, now)

    def refuse(self, number: int, reason: str) -> bool:
        """Take back an accepted version that a replica could not load; returns whether that was news."""
        version = self.models.versions.get(number)
        if version is None or version in self._bad:
            return False
        bad = self._refuse(version, "a replica", reason)
        before = self.models
        held = {alias: before.versions[number] for alias, number in before.aliases.items()}
        back = {
            alias: self._former.get(alias) if target == version else target for alias, target in held.items()
        }
        refused = [
            Refusal(number, alias, reason, bad.since) for alias, target in held.items() if target == version
        ]
        pinned = [target for target in before.versions.values() if target != version]
        return self._change({alias: target for alias, target in back.items() if target}, pinned, refused)

    def lose(self, lost: Lost, several: bool) -> bool:
        """Take the death of a replica that had a version at work; returns whether the model set changed.

        Args:
            lost: What it did.
            several: Whether other models share its process.
        """
        self._losses.append(lost)
        version = self.models.versions.get(lost.version)
        if version is None or version in self._bad:
            return False
        again = self._withdrawn.get(version, 0)
        least = condemned(self._losses, lost, several, again > 0)
        if not least:
            return False
        did = "loading it" if lost.doing == "loading" else "computing its predictions"
        died = "another replica" if least == 1 else f"{least} replicas in a row"
        self._withdrawn[version] = again + 1
        if lost.doing == "predicting":  # who has loaded it is no danger because others died of loading it
            self._dropped.add(version)
        reason = f"{died} died while {did}: its engine crashed, or memory ran out."
        wait_s = _RETRY_S * 2 ** min(again, _DOUBLED)
        retried = lost.doing == "predicting" or self._is_last(version)
        if retried:
            reason = f"{reason} It is tried again after {wait_s:.0f} s."
        changed = self.refuse(lost.version, reason)
        if retried:
            self._bad[version].until = time.time() + wait_s
        return changed

    def _is_last(self, version: ModelVersion) -> bool:
        """Whether nothing would answer without it: replicas may have died of something else."""
        leads = self.models.aliases.get(self._leading) == version.version
        return leads and self._leading not in self._former

    def losses(self) -> tuple[Loss, ...]:
        """Return the deaths of replicas by version and by what they did."""
        last = {(lost.version, lost.doing): lost.at for lost in self._losses}
        counted = Counter((lost.version, lost.doing) for lost in self._losses)
        return tuple(Loss(*key, replicas=counted[key], at=at) for key, at in last.items())

    def files(self, number: int) -> dict[str, bytes]:
        """Return the files of an accepted version by their path in the export.

        Raises:
            ModelError: It is not in the model set any more, or its files have gone.
        """
        version = self.models.versions.get(number)
        bad = self._judge(version, "a replica") if version else None
        export = self._verified.get(version) if version else None
        if export is None:
            raise ModelError(bad.reason if bad else f"version {number} is not to be loaded any more.")
        try:
            listed = json.loads((export.folder / DIGESTS).read_bytes())
            return {name: (export.folder / name).read_bytes() for name in [DIGESTS, *listed]}
        except (OSError, ValueError) as error:
            raise ModelError(f"the files of version {number} cannot be read: {error}.") from None


@dataclass(frozen=True)
class Lost:
    """The death of a replica that had a version at work, when, and whether no other was."""

    version: int
    doing: Doing
    at: float
    alone: bool = True


_LOADING, _PREDICTING, _IN_A_ROW_S = 2, 3, 90.0
"""Deaths of replicas within so many seconds after which a version is withdrawn."""
_DOUBLED = 6


def condemned(losses: Sequence[Lost], last: Lost, several: bool, before: bool) -> int:
    """Decide whether a version is withdrawn because replicas died with it; how many did, or 0.

    A replica loads rarely, so that a second death while one version is loaded is no chance. Predictions are
    computed most of the time: who kills busy replicas for another reason must not make an endpoint lose its
    only model. So they count where others would fall with it, when no other was computing, in a quick row.

    Args:
        losses: Of the model, with the last.
        last: The last one.
        several: Whether other models share the process.
        before: It was withdrawn before and is on trial.
    """
    if last.doing == "predicting" and not (several and last.alone):
        return 0
    alike = [
        lost
        for lost in losses
        if (lost.version, lost.doing, lost.alone) == (last.version, last.doing, last.alone)
        and last.at - lost.at <= _IN_A_ROW_S
    ]
    needed = 1 if before else _LOADING if last.doing == "loading" else _PREDICTING
    return len(alike) if len(alike) >= needed else 0


def _fitting(policy: Policy) -> str:
    return f"{policy.fit} over {list(policy.background)}"


def _require_alike(export: layout.Export, champion: layout.Export, changed: bool) -> None:
    """Reject a model that clients of this endpoint would misread or could not ask.

    Args:
        export: Of the version that is to be loaded.
        champion: Of the one that answers.
        changed: Whether other classes are accepted.

    Raises:
        ModelError: Another shape, the same classes in another order, or other classes.
    """
    if export.shape != champion.shape:
        raise ModelError(
            f"it takes images {list(export.shape)}, but clients of this endpoint send "
            f"{list(champion.shape)}.",
            "Serve it at an endpoint of its own.",
        )
    if export.task.kind != champion.task.kind:
        raise ModelError(
            f"it is a model of {export.task.kind}, clients of this endpoint expect {champion.task.kind}.",
            "Serve it at an endpoint of its own.",
        )
    if export.classes == champion.classes:
        return
    if sorted(export.classes) == sorted(champion.classes):
        raise ModelError(
            f"it has the classes of the champion in another order ({', '.join(export.classes[:5])}), so that "
            "labels would mean something else.",
            "Train it on the data of the champion.",
        )
    if not changed:
        new = [name for name in export.classes if name not in champion.classes][:5]
        old = [name for name in champion.classes if name not in export.classes][:5]
        difference = "; ".join(
            f"{what} {', '.join(names)}" for what, names in (("new:", new), ("gone:", old)) if names
        )
        raise ModelError(
            f"it has {len(export.classes)} classes, the champion {len(champion.classes)} ({difference}).",
            "Set serve.accept_changed_classes if clients can handle that.",
        )


_SILENT_S = 10.0
"""After which a replica that reports nothing has gone."""
_PATIENCE_S = 20.0
"""Seconds that one call waits for a change at most: shorter than the time limits of Ray's calls."""


_OPEN_S = 30.0


def _open(config: Config) -> None:
    """Import MLflow and open its database in one thread, before those of several models ask at once."""
    if config.serve.models:
        with contextlib.suppress(DistmlError):  # the first look at each model says so
            registry.aliases(registry.briefly(next(iter(hosted(config).values()))))


class _Watched:
    """The watch of one model, whose turn it is, and the event of its next change. Final."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.turn = asyncio.Lock()
        self.news = asyncio.Event()

    def announce(self) -> None:
        self.news.set()
        self.news = asyncio.Event()


class Watcher:
    """Follows the registry on behalf of all replicas, for every model of the endpoint apart. Final.

    Args:
        config: The configuration, as a dictionary.
        began: When the endpoint was started, in seconds since 1970.
    """

    def __init__(self, config: dict[str, Any], began: float = 0.0) -> None:
        log.configure("watcher")
        compat.grpc_on_loopback()
        # its first question imports MLflow
        self._config = Config.model_validate(config)
        self._watched = {name: _Watched(Watch(alone, began)) for name, alone in hosted(self._config).items()}
        self._opening = asyncio.create_task(asyncio.to_thread(_open, self._config))
        self._counted: dict[str, tuple[float, Families]] = {}
        self._looking = [asyncio.create_task(self._follow(name)) for name in self._watched]

    async def _follow(self, name: str) -> None:
        watched = self._watched[name]
        await asyncio.wait([self._opening], timeout=_OPEN_S)
        while True:
            await self._look(watched)
            await asyncio.sleep(self._config.serve.poll_s)

    async def _look(self, watched: _Watched) -> None:
        try:
            async with watched.turn:
                changed = await asyncio.to_thread(watched.watch.look)
            if changed:
                watched.announce()
            async with watched.turn:
                await asyncio.to_thread(watched.watch.keep)
        except Exception:  # whatever it is, the next look may go well
            logger.exception("polling the registry failed")

    async def changes(self, name: str, held: ModelSet) -> ModelSet:
        """Return a model's set, at once where it is not the one held, else when it changes or after a while.

        A set without a champion orders nothing, so it is not sent as long as there is another to wait
        for: a watcher that has just started knows less than its replicas, and learns from them.
        """
        watched = self._watched[name]
        if watched.watch.learn(held):
            watched.announce()
        models = watched.watch.models
        if models.digest in ("", held.digest) and not models.withdraws(held):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(watched.news.wait(), _PATIENCE_S)
        return watched.watch.models

    async def models(self) -> dict[str, ModelSet]:
        """Return the set of each model by its name."""
        return {name: watched.watch.models for name, watched in self._watched.items()}

    async def vacant(self) -> bool:
        """Return whether there is nothing to serve yet, as the registry itself says."""
        return all(watched.watch.vacant() for watched in self._watched.values())

    async def settled(self) -> set[str]:
        """Return the models of which there is nothing to load; see `Watch.settled`."""
        return {name for name, watched in self._watched.items() if watched.watch.settled()}

    async def share(self, replica: str, counted: Families) -> tuple[int, dict[str, Standing]]:
        """Take a replica's metrics; return how many replicas there are and how each model stands."""
        now = time.monotonic()
        self._counted[replica] = (now, counted)
        self._counted = {
            name: counts for name, counts in self._counted.items() if now - counts[0] < _SILENT_S
        }
        standing = {
            name: Standing(watched.watch.registry, watched.watch.models.refused, watched.watch.losses())
            for name, watched in self._watched.items()
        }
        return len(self._counted), standing

    async def counted(self) -> dict[str, Families]:
        """Return what all replicas have counted, by their names."""
        return {name: counts for name, (_, counts) in self._counted.items()}

    async def files(self, name: str, number: int) -> dict[str, bytes]:
        """Return a version's files by their path."""
        watched = self._watched[name]
        async with watched.turn:
            return await asyncio.to_thread(watched.watch.files, number)

    async def refuse(self, name: str, number: int, reason: str) -> None:
        """Take a replica's report that a version cannot be loaded."""
        watched = self._watched[name]
        async with watched.turn:
            if watched.watch.refuse(number, reason):
                watched.announce()

    async def lost(self, death: Death) -> None:
        """Take a replica's report of another that died, and say what that one was doing."""
        working = {
            (name, doing): death.marks[mark]
            for name in self._watched
            for doing, mark in marks(name).items()
            if mark in death.marks
        }
        doings = [f"{doing} version {version} of {name}" for (name, doing), version in working.items()]
        sentence = f"a replica (process {death.pid}) died while {', '.join(doings) or 'it was idle'}"
        log.event(logger, logging.ERROR, "replica_died", sentence, pid=death.pid, marks=death.marks)
        for (name, doing), version in working.items():
            watched, at = self._watched[name], time.time()
            async with watched.turn:
                if watched.watch.lose(
                    Lost(version, doing, at, len(working) == 1), several=len(self._watched) > 1
                ):
                    watched.announce()

    async def __del__(self) -> None:
        """Leave no files behind; Ray Serve calls this by its name before it ends the process."""
        for looking in self._looking:
            looking.cancel()
        for watched in self._watched.values():
            watched.watch.close()

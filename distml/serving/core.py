"""The models of one replica: which are loaded, which answers, and how requests reach them (replica)."""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distml.config import ServeConfig
from distml.data.schema import Images
from distml.errors import ModelError, NotReadyError, OverloadedError, TimedOutError, UnknownVersionError
from distml.serving.batching import Batcher, Function
from distml.serving.metrics import Metrics
from distml.serving.service import Probabilities, Refusal, RegistryState, Served, Usage
from distml.serving.shadow import Shadow

Hear = Callable[[str | None, Served, Images, Probabilities, float], None]
"""Takes an answer without keeping anybody waiting."""


def age_s(state: RegistryState) -> float:
    """Return the seconds since the registry answered; not a number where it never did."""
    return time.time() - state.answered_at if state.answered_at else float("nan")


def _count(usage: Usage, images: int, seconds: float) -> None:
    usage.requests += 1
    usage.images += images
    usage.seconds += seconds
    usage.last_at = time.time()


@dataclass(frozen=True)
class Loaded:
    """A version and the function that answers for it."""

    served: Served
    function: Function


class Core:
    """Implements `Service` over loaded models; knows neither Ray nor the registry. Final.

    Every change of the models replaces one dictionary, so that a request sees the old or the new ones.

    Args:
        serve: The section of the configuration.
        metrics: Where batches and comparisons are counted; none makes new ones.
        hear: Is told every answer: the request's identity, the version, its images and probabilities, and the
            seconds it took.
    """

    def __init__(self, serve: ServeConfig, metrics: Metrics | None = None, hear: Hear | None = None) -> None:
        self._serve, self._hear = serve, hear
        self.metrics = Metrics() if metrics is None else metrics
        self._loaded: Mapping[int, Loaded] = {}
        self._aliases: Mapping[str, int] = {}
        self._refused: tuple[Refusal, ...] = ()
        self._batcher = Batcher(serve.max_batch_size, serve.max_queued_images, self.metrics)
        self._shadow = Shadow(self._batcher, self.metrics)
        self._usage: dict[int, Usage] = collections.defaultdict(Usage)
        self.draining = False
        self.state = RegistryState()
        self._gauge()

    def _gauge(self) -> None:
        metrics = self.metrics
        metrics.champion.set_function(lambda: self._aliases.get("champion", 0))
        metrics.refused.set_function(lambda: len(self._refused))
        metrics.missing.set_function(lambda: len(self.state.missing))
        metrics.registry_age.set_function(lambda: age_s(self.state))

    def swap(
        self, loaded: Mapping[int, Loaded], aliases: Mapping[str, int], refused: tuple[Refusal, ...] = ()
    ) -> None:
        """Answer with these versions from the next request on; requests under way end with theirs."""
        self._loaded, self._aliases, self._refused = dict(loaded), dict(aliases), refused

    def ready(self) -> bool:
        """Return whether the champion answers."""
        return "champion" in self._aliases and not self.draining

    def busy_s(self) -> float:
        """Return for how long the model has been computing the present batch, 0 when it rests."""
        return self._batcher.busy_s

    def served(self) -> list[Served]:
        """Return the loaded versions, the champion first, then by number, newest first."""
        champion = self._aliases.get("champion")
        order = sorted(self._loaded, key=lambda version: (version != champion, -version))
        return [self._loaded[version].served for version in order]

    def refused(self) -> list[Refusal]:
        """Return what aliases point at and was refused."""
        return list(self._refused)

    def aliases(self) -> Mapping[str, int]:
        """Return the loaded version of each alias, the champion first."""
        return {
            alias: self._aliases[alias] for alias in sorted(self._aliases, key=lambda one: one != "champion")
        }

    def usage(self, version: int) -> Usage:
        """Return what a version has been asked."""
        usage = self._usage[version]
        usage.calls = self._batcher.calls[version]
        return usage

    def registry(self) -> RegistryState:
        """Return what the watcher last said of the registry."""
        return self.state

    def _choose(self, version: int | None) -> Loaded:
        if version is None:
            version = self._aliases.get("champion")
            canary = self._serve.canary
            if canary.percent and random.random() * 100 < canary.percent:
                version = self._aliases.get(canary.alias, version)
            if version is None:
                raise NotReadyError("no model has been loaded yet.", "Ask again.")
        found = self._loaded.get(version)
        if found is None:
            loaded = ", ".join(map(str, sorted(self._loaded))) or "none"
            raise UnknownVersionError(f"version {version} is not loaded; loaded: {loaded}.")
        return found

    async def classify(
        self, images: Images, version: int | None = None, request: str | None = None
    ) -> tuple[Probabilities, Served]:
        """See `Service.classify`."""
        chosen = self._choose(version)
        if images.ndim != 4 or images.shape[1:] != chosen.served.shape or not len(images):
            expected, found = ["N", *chosen.served.shape], list(images.shape)
            raise ModelError(f"the model takes images {expected}, not {found}.".replace("'", ""))
        began, limit_s = time.perf_counter(), self._serve.request_timeout_s
        usage = self._usage[chosen.served.version]
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._batcher.submit(images, chosen.function, chosen.served.version)
        except TimeoutError:
            usage.failed += 1
            raise TimedOutError(f"no answer within {limit_s:g} s.", "Ask again, with fewer images.") from None
        except OverloadedError:
            usage.failed += 1
            raise
        seconds = time.perf_counter() - began
        _count(usage, len(images), seconds)
        if self._hear:
            self._hear(request, chosen.served, images, answer, seconds)
        if version is None and self._serve.shadow:
            self._compare(images, answer, chosen)
        return answer, chosen.served

    def _compare(self, images: Images, answer: Probabilities, chosen: Loaded) -> None:
        other = self._loaded.get(self._aliases.get(self._serve.shadow or "", 0))
        if other is not None and other is not chosen:
            self._shadow.compare(images, answer, other.served, other.function)

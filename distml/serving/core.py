"""The models of one replica: which are loaded, which answers, and how requests reach them (replica)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass

from distml.config import ServeConfig
from distml.data.schema import Images
from distml.errors import ModelError, NotReadyError, TimedOutError, UnknownVersionError
from distml.serving.batching import Batcher, Function
from distml.serving.service import Probabilities, Refusal, Served


@dataclass(frozen=True)
class Loaded:
    """A version and the function that answers for it."""

    served: Served
    function: Function


class Core:
    """Implements `Service` over loaded models; knows neither Ray nor the registry. Final.

    Every change of the models replaces one dictionary, so that a request sees the old or the new ones.
    """

    def __init__(self, serve: ServeConfig) -> None:
        self._serve = serve
        self._loaded: Mapping[int, Loaded] = {}
        self._aliases: Mapping[str, int] = {}
        self._refused: tuple[Refusal, ...] = ()
        self._batcher = Batcher(serve.max_batch_size, serve.max_queued_images)
        self.draining = False

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

    async def classify(self, images: Images, version: int | None = None) -> tuple[Probabilities, Served]:
        """See `Service.classify`."""
        chosen = self._choose(version)
        if images.ndim != 4 or images.shape[1:] != chosen.served.shape or not len(images):
            expected, found = ["N", *chosen.served.shape], list(images.shape)
            raise ModelError(f"the model takes images {expected}, not {found}.".replace("'", ""))
        limit_s = self._serve.request_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                return await self._batcher.submit(images, chosen.function), chosen.served
        except TimeoutError:
            raise TimedOutError(f"no answer within {limit_s:g} s.", "Ask again, with fewer images.") from None

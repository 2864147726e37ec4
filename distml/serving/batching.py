"""The inference core of a replica: batches requests, runs the requested version and a shadow (replica).

One thread computes. While it does, requests queue; when it is free it takes all that is waiting, up to a
limit. So an idle server answers at once and a busy one fills its batches by itself: there is no interval
to tune.
"""

from __future__ import annotations

import asyncio
import collections
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from distml.config import ServeConfig
from distml.data.schema import Images
from distml.errors import ModelError, NotReadyError, OverloadedError, TimedOutError, UnknownVersionError
from distml.serving.metrics import Metrics
from distml.serving.service import Loss, Refusal, RegistryState, Served, Standing, Usage
from distml.tasks import Outputs

logger = logging.getLogger(__name__)

Function = Callable[[Images], Outputs]
"""uint8 [N, H, W, C] to float32 [N, classes]."""
Mark = Callable[[int], None]


def _unmarked(_: int) -> None:
    pass


@dataclass(slots=True)
class _Waiting:
    images: Images
    function: Function
    version: int
    answer: asyncio.Future[Outputs]


class Batcher:
    """Computes answers in one thread, many requests at a time. Final.

    Args:
        most: Images per call of a function.
        limit: Images that may wait; more are rejected.
        metrics: Records batch sizes and queue length.
        mark: Called with the version whose function computes next, and with 0 after it.
    """

    def __init__(self, most: int, limit: int, metrics: Metrics, mark: Mark = _unmarked) -> None:
        self._most, self._limit, self._metrics, self._mark = most, limit, metrics, mark
        metrics.waiting.set_function(lambda: self._images)
        self._queue: collections.deque[_Waiting] = collections.deque()
        self.calls: collections.Counter[int] = collections.Counter()
        """Of a function, by the version that was said with it."""
        self._images = 0
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "inference")
        self._since: float | None = None

    @property
    def queued(self) -> bool:
        """Whether a request waits for the present batch to end."""
        return bool(self._queue)

    @property
    def busy_s(self) -> float:
        """Seconds for which the present batch has been computed, 0 when nothing is."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    async def submit(self, images: Images, function: Function, version: int = 0) -> Outputs:
        """Compute `function(images)`, in one call with others of the same function where some wait.

        Raises:
            OverloadedError: More images wait than allowed.
        """
        if self._images and self._images + len(images) > self._limit:
            raise OverloadedError(f"{self._images} images are waiting, and {self._limit} may.", "Retry.")
        waiting = _Waiting(images, function, version, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._images += len(images)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await waiting.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                self._since = time.monotonic()
                self._mark(batch[0].version)
                try:
                    await loop.run_in_executor(self._thread, _compute, batch)
                finally:
                    self._mark(0)
                    size = sum(len(waiting.images) for waiting in batch)
                    self._images -= size
                    self.calls[batch[0].version] += 1
                    self._metrics.batch.observe(size)
        finally:
            self._running = self._since = None

    def _take(self) -> list[_Waiting]:
        """Take from the queue's head what can be computed in one call; at least one request."""
        batch: list[_Waiting] = []
        size = 0
        while self._queue and (not batch or size + len(self._queue[0].images) <= self._most):
            if self._queue[0].answer.done():  # its client has left or its time is over
                self._images -= len(self._queue.popleft().images)
                continue
            if batch and self._queue[0].function is not batch[0].function:
                break
            size += len(self._queue[0].images)
            batch.append(self._queue.popleft())
        return batch


def _compute(batch: list[_Waiting]) -> None:
    loop = batch[0].answer.get_loop()
    images = batch[0].images if len(batch) == 1 else np.concatenate([waiting.images for waiting in batch])
    try:
        answers = batch[0].function(images)
    except Exception as error:  # whatever the engine raises belongs to those who asked
        loop.call_soon_threadsafe(_fail, batch, error)
    else:
        loop.call_soon_threadsafe(_answer, batch, answers)


def _answer(batch: list[_Waiting], answers: Outputs) -> None:
    at = 0
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_result(answers[at : at + len(waiting.images)])
        at += len(waiting.images)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)


class Shadow:
    """Compares in idle time: one request at a time, none while requests wait. Final.

    Args:
        batcher: Computes, in turn with what is answered.
        metrics: Records agreement and skipped requests.
    """

    def __init__(self, batcher: Batcher, metrics: Metrics) -> None:
        self._batcher, self._metrics = batcher, metrics
        self._task: asyncio.Task[None] | None = None

    def compare(self, images: Images, answer: Outputs, shadow: Served, function: Function) -> None:
        """Compare an answer with the shadow's some time later, or skip it; returns at once.

        Args:
            images: uint8 [N, H, W, C].
            answer: float32 [N, classes], what the client gets.
            shadow: The version to ask.
            function: Computes for it.
        """
        if self._task is not None or self._batcher.queued or images.shape[1:] != shadow.shape:
            self._count(shadow, "skipped", len(images))
            return
        self._task = asyncio.create_task(self._ask(images, answer, shadow, function))

    async def _ask(self, images: Images, answer: Outputs, shadow: Served, function: Function) -> None:
        try:
            other = await self._batcher.submit(images, function, shadow.version)
            same = int(np.sum(shadow.task.agree(other, answer)))
            for outcome, count in (("same", same), ("other", len(images) - same)):
                self._count(shadow, outcome, count)
            self._metrics.apart.observe(shadow.task.difference(other, answer))
        except Exception as error:  # the client has its answer
            self._count(shadow, "failed", len(images))
            logger.warning("shadow, version %d: %s", shadow.version, error)
        finally:
            self._task = None

    def _count(self, shadow: Served, outcome: str, images: int) -> None:
        if images:
            self._metrics.shadowed.labels(str(shadow.version), outcome).inc(images)


Hear = Callable[[str | None, Served, Images, Outputs, float], None]
"""Takes a response for comparison without blocking."""


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

    Every change of the models replaces one dictionary, so that a request sees either the old or the new set.

    Args:
        serve: The section of the configuration.
        metrics: Where batches and comparisons are counted; without it a new registry.
        hear: Called with every answer: the request's identity, the version, images and probabilities, and the
            seconds it took.
        mark: As for `Batcher`.
    """

    def __init__(
        self,
        serve: ServeConfig,
        metrics: Metrics | None = None,
        hear: Hear | None = None,
        mark: Mark = _unmarked,
    ) -> None:
        self._serve, self._hear = serve, hear
        self.metrics = Metrics() if metrics is None else metrics
        self._loaded: Mapping[int, Loaded] = {}
        self._aliases: Mapping[str, int] = {}
        self._refused: tuple[Refusal, ...] = ()
        self._losses: tuple[Loss, ...] = ()
        self._batcher = Batcher(serve.max_batch_size, serve.max_queued_images, self.metrics, mark)
        self._shadow = Shadow(self._batcher, self.metrics)
        self._usage: dict[int, Usage] = collections.defaultdict(Usage)
        self.draining = False
        self.state = RegistryState()
        self._first: int | None = None
        self._gauge()

    def _gauge(self) -> None:
        metrics = self.metrics
        metrics.champion.set_function(lambda: self._first or 0)
        metrics.refused.set_function(lambda: len(self._refused))
        metrics.losses.set_function(lambda: sum(loss.replicas for loss in self._losses))
        metrics.missing.set_function(lambda: len(self.state.missing))
        metrics.registry_age.set_function(lambda: age_s(self.state))

    def swap(
        self, loaded: Mapping[int, Loaded], aliases: Mapping[str, int], refused: tuple[Refusal, ...] = ()
    ) -> None:
        """Answer with these versions from the next request on; requests under way end with theirs."""
        self._loaded, self._aliases, self._refused = dict(loaded), dict(aliases), refused
        self._first = aliases.get(self._serve.alias)

    def learn(self, standing: Standing) -> None:
        """Take what the watcher says of the registry, and what is refused where no version is loaded."""
        if standing.registry.answered_at > self.state.answered_at:
            self.state = standing.registry
        self._losses = standing.losses
        if not self._loaded:
            self._refused = standing.refused

    def ready(self) -> bool:
        """Return whether the champion is served."""
        return self._first is not None and not self.draining

    def busy_s(self) -> float:
        """Return for how long the model has been computing the present batch, 0 when it rests."""
        return self._batcher.busy_s

    def served(self) -> list[Served]:
        """Return the loaded versions, the champion first, then by number, newest first."""
        order = sorted(self._loaded, key=lambda version: (version != self._first, -version))
        return [self._loaded[version].served for version in order]

    def refused(self) -> list[Refusal]:
        """Return what aliases point at and was rejected."""
        return list(self._refused)

    def losses(self) -> list[Loss]:
        """Return what replicas did with this model when they died."""
        return list(self._losses)

    def aliases(self) -> Mapping[str, int]:
        """Return the loaded version of each alias, the champion first."""
        return {alias: self._aliases[alias] for alias in sorted(self._aliases, key=self._serve.alias.__ne__)}

    def most_images(self) -> int:
        """Return `serve.max_queued_images` of this model."""
        return self._serve.max_queued_images

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
            version = self._first
            canary = self._serve.canary
            if canary.percent and random.random() * 100 < canary.percent:
                version = self._aliases.get(canary.alias, version)
            if version is None:
                raise NotReadyError("no model has been loaded yet.", "Retry.")
        served = self._loaded.get(version)
        if served is None:
            loaded = ", ".join(map(str, sorted(self._loaded))) or "none"
            raise UnknownVersionError(f"version {version} is not loaded; loaded: {loaded}.")
        return served

    async def classify(
        self,
        images: Images,
        version: int | None = None,
        request: str | None = None,
        heard: bool = True,
    ) -> tuple[Outputs, Served]:
        """See `Service.classify`."""
        chosen = self._choose(version)
        if images.ndim != 4 or images.shape[1:] != chosen.served.shape or not len(images):
            expected, actual = ["N", *chosen.served.shape], list(images.shape)
            raise ModelError(f"the model takes images {expected}, not {actual}.".replace("'", ""))
        began, limit_s = time.perf_counter(), self._serve.request_timeout_s
        usage = self._usage[chosen.served.version]
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._batcher.submit(images, chosen.function, chosen.served.version)
        except TimeoutError:
            usage.failed += 1
            raise TimedOutError(f"no response within {limit_s:g} s.", "Retry, with fewer images.") from None
        except OverloadedError:
            usage.failed += 1
            raise
        seconds = time.perf_counter() - began
        _count(usage, len(images), seconds)
        if not heard:
            return answer, chosen.served
        if self._hear:
            self._hear(request, chosen.served, images, answer, seconds)
        if version is None and self._serve.shadow:
            self._compare(images, answer, chosen)
        return answer, chosen.served

    def _compare(self, images: Images, answer: Outputs, chosen: Loaded) -> None:
        other = self._loaded.get(self._aliases.get(self._serve.shadow or "", 0))
        if other is not None and other is not chosen:
            self._shadow.compare(images, answer, other.served, other.function)

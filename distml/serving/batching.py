"""Batches of what waits, without waiting for a batch (replica).

One thread computes. While it does, requests queue; when it is free it takes all that is waiting, up to a
limit. So an idle server answers at once and a busy one fills its batches by itself: there is no interval
to tune.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from distml.data.schema import Images
from distml.errors import OverloadedError
from distml.serving.metrics import Metrics
from distml.serving.service import Probabilities

Function = Callable[[Images], Probabilities]
"""uint8 [N, H, W, C] to float32 [N, classes]."""


@dataclass(slots=True)
class _Waiting:
    images: Images
    function: Function
    version: int
    answer: asyncio.Future[Probabilities]


class Batcher:
    """Computes answers in one thread, many requests at a time. Final.

    Args:
        most: Images per call of a function.
        limit: Images that may wait; more are refused.
        metrics: Hears of batches and of what waits.
    """

    def __init__(self, most: int, limit: int, metrics: Metrics) -> None:
        self._most, self._limit, self._metrics = most, limit, metrics
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

    async def submit(self, images: Images, function: Function, version: int = 0) -> Probabilities:
        """Compute `function(images)`, in one call with others of the same function where some wait.

        Raises:
            OverloadedError: More images wait than allowed.
        """
        if self._images and self._images + len(images) > self._limit:
            raise OverloadedError(f"{self._images} images are waiting, and {self._limit} may.", "Ask again.")
        one = _Waiting(images, function, version, asyncio.get_running_loop().create_future())
        self._queue.append(one)
        self._images += len(images)
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await one.answer

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while batch := self._take():
                self._since = time.monotonic()
                try:
                    await loop.run_in_executor(self._thread, _compute, batch)
                finally:
                    size = sum(len(one.images) for one in batch)
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
    images = batch[0].images if len(batch) == 1 else np.concatenate([one.images for one in batch])
    try:
        answers = batch[0].function(images)
    except Exception as error:  # whatever the engine raises belongs to those who asked
        loop.call_soon_threadsafe(_fail, batch, error)
    else:
        loop.call_soon_threadsafe(_answer, batch, answers)


def _answer(batch: list[_Waiting], answers: Probabilities) -> None:
    at = 0
    for one in batch:
        if not one.answer.done():
            one.answer.set_result(answers[at : at + len(one.images)])
        at += len(one.images)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(error)

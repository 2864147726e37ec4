"""Asking another version what the champion was asked, comparing, and using nothing of it (replica)."""

from __future__ import annotations

import asyncio
import logging

import numpy as np

from distml.data.schema import Images
from distml.serving.batching import Batcher, Function
from distml.serving.metrics import Metrics
from distml.serving.service import Probabilities, Served

logger = logging.getLogger(__name__)


class Shadow:
    """Compares in the time that is left: one request at a time, none while somebody waits. Final.

    Args:
        batcher: Computes, in turn with what is answered.
        metrics: Hears of agreement and of what was skipped.
    """

    def __init__(self, batcher: Batcher, metrics: Metrics) -> None:
        self._batcher, self._metrics = batcher, metrics
        self._task: asyncio.Task[None] | None = None

    def compare(self, images: Images, answer: Probabilities, shadow: Served, function: Function) -> None:
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

    async def _ask(self, images: Images, answer: Probabilities, shadow: Served, function: Function) -> None:
        try:
            other = await self._batcher.submit(images, function)
            same = int(np.sum(other.argmax(1) == answer.argmax(1)))
            for outcome, count in (("same", same), ("other", len(images) - same)):
                self._count(shadow, outcome, count)
            self._metrics.apart.observe(float(np.abs(other - answer).max()))
        except Exception as error:  # the client has its answer
            self._count(shadow, "failed", len(images))
            logger.warning("shadow, version %d: %s", shadow.version, error)
        finally:
            self._task = None

    def _count(self, shadow: Served, outcome: str, images: int) -> None:
        if images:
            self._metrics.shadowed.labels(str(shadow.version), outcome).inc(images)

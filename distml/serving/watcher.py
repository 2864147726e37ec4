"""The Ray Serve deployment that follows the registry, once for all replicas (watcher)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

from distml import log
from distml.config import Config
from distml.serving.metrics import Families
from distml.serving.models import ModelSet
from distml.serving.service import RegistryState

logger = logging.getLogger(__name__)

_SILENT_S = 10.0
"""After which a replica that reports nothing has gone."""
_PATIENCE_S = 20.0
"""Longest wait for news in one call: shorter than any time limit on the way."""


class Watcher:
    """Follows the registry on behalf of all replicas. Final.

    Args:
        config: The configuration, as a dictionary.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        log.configure("watcher")
        from distml.serving.watch import Watch  # its first question imports MLflow

        self._config = Config.model_validate(config)
        self._watch = Watch(self._config)
        self._turn = asyncio.Lock()
        self._counted: dict[str, tuple[float, Families]] = {}
        self._news = asyncio.Event()
        self._looking = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            try:
                async with self._turn:
                    changed = await asyncio.to_thread(self._watch.look)
                if changed:
                    self._announce()
                async with self._turn:
                    await asyncio.to_thread(self._watch.keep)
            except Exception:  # whatever it is, the next look may go well
                logger.exception("looking at the registry failed")
            await asyncio.sleep(self._config.serve.poll_s)

    def _announce(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def changes(self, held: ModelSet) -> ModelSet:
        """Return the model set, at once where it is not the one held, else when it changes or after a while.

        A set without a champion orders nothing, so nobody is told of one as long as there is another to wait
        for: a watcher that has just started knows less than its replicas, and learns from them.
        """
        if self._watch.learn(held):
            self._announce()
        if self._watch.models.digest in ("", held.digest):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), _PATIENCE_S)
        return self._watch.models

    async def models(self) -> ModelSet:
        """Return the model set."""
        return self._watch.models

    async def vacant(self) -> bool:
        """Return whether there is nothing to serve yet, as the registry itself says."""
        return self._watch.vacant()

    async def share(self, replica: str, counted: Families) -> tuple[dict[str, Families], RegistryState]:
        """Take a replica's metrics; return those of the others, and what is known of the registry."""
        now = time.monotonic()
        self._counted[replica] = (now, counted)
        self._counted = {name: one for name, one in self._counted.items() if now - one[0] < _SILENT_S}
        others = {name: one for name, (_, one) in self._counted.items() if name != replica}
        return others, self._watch.registry

    async def files(self, number: int) -> dict[str, bytes]:
        """Return a version's files by their path."""
        async with self._turn:
            return await asyncio.to_thread(self._watch.files, number)

    async def refuse(self, number: int, reason: str) -> None:
        """Hear from a replica that a version cannot be loaded."""
        async with self._turn:
            if self._watch.refuse(number, reason):
                self._announce()

    async def __del__(self) -> None:
        """Leave no files behind; Ray Serve calls this by its name before it ends the process."""
        self._looking.cancel()
        self._watch.close()

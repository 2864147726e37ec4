"""The outbox of a run: operations in order, sent by one thread, spooled when they cannot be (driver)."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import threading
import time
import uuid
from typing import Any

from distml.config import Config
from distml.errors import TrackingError
from distml.storage import Storage
from distml.tracking.machine import Watch
from distml.tracking.sender import Operation, Sender
from distml.tracking.server import cause, is_outage, uri

logger = logging.getLogger(__name__)

SPOOL = "tracking-spool"
RETRY_S = (0.5, 1.0, 2.0, 4.0, 5.0)
"""Pauses between tries to reach the server; the last one repeats."""


class Tracker:
    """The outbox of one run and the thread that empties it. Final.

    Args:
        config: The run's configuration.
        name: Names the spool file.
        run_id: An existing MLflow run to go on with.
    """

    def __init__(self, config: Config, name: str, run_id: str | None = None) -> None:
        self._config, self._name = config, name
        self._storage = Storage(config.storage.root)
        self.sender = Sender(config, run_id)
        self._box: queue.Queue[Operation | None] = queue.Queue()
        self._unsent: list[Operation] = []
        self._give_up = threading.Event()
        self._outage_since: float | None = None
        self._watch: Watch | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, do: str, **values: Any) -> None:
        """Add an operation; returns at once."""
        self._box.put({"do": do, **values})

    def metrics(self, guard: str, step: int, values: dict[str, float], time_s: float | None = None) -> None:
        """Add metrics of one step, logged once even when a restarted worker sends them again."""
        time_ms = int((time_s or time.time()) * 1000)
        finite = {key: float(value) for key, value in values.items()}
        self.put("metrics", guard=guard, step=step, time_ms=time_ms, values=finite)

    def watch(self, since: float) -> None:
        """Add what this machine does from now on, until the run is closed."""
        self._watch = Watch(lambda step, values: self.metrics("system", step, values), since)

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # whatever is wrong is said when the first operation is sent
            _ = self.sender.client  # importing MLflow takes seconds; here it overlaps the start of Ray
        while (operation := self._box.get()) is not None:
            if self.failure is None and self._deliver(operation):
                continue
            self._unsent.append(operation)

    def _deliver(self, operation: Operation) -> bool:
        """Send one operation, waiting out an outage; False when it has to be spooled."""
        tries = 0
        while True:
            try:
                self.sender.send(operation)
            except Exception as error:  # the one broad catch: tracking must not end a training run
                if not is_outage(error):
                    logger.warning("tracking failed (%s): %s", operation["do"], cause(error))
                    self.failure = error
                    return False
                if self._outage_since is None:
                    self._outage_since = time.time()
                    logger.warning("tracking server away, recording for later: %s", cause(error))
                if self._give_up.wait(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                    self.failure = error
                    return False
                tries += 1
            else:
                if self._outage_since is not None:
                    logger.info("tracking server back after %.0f s", time.time() - self._outage_since)
                    self._outage_since = None
                return True

    def close(self, patience_s: float = 30.0) -> bool:
        """Send what is left, then stop; spool what cannot be sent.

        Args:
            patience_s: How long to wait for a server that is away before spooling.

        Returns:
            Whether everything is on record.
        """
        if self._watch:
            self._watch.close()
        self._box.put(None)
        deadline = time.time() + patience_s
        while self._thread.is_alive() and (self._outage_since is None or time.time() < deadline):
            self._thread.join(0.05)
        self._give_up.set()
        self._thread.join()
        if self._unsent:
            lines = [
                json.dumps({"config": self._config.model_dump(mode="json"), "run_id": self.sender.run_id})
            ]
            lines += [json.dumps(operation) for operation in self._unsent]
            spool = f"{self._name}-{uuid.uuid4().hex[:8]}.jsonl"
            self._storage.write_bytes("\n".join(lines).encode(), SPOOL, spool)
            logger.warning("tracking is incomplete; `distml sync` sends the rest when the server is back")
        return not self._unsent


def sync(config: Config) -> dict[str, Any]:
    """Send what earlier runs spooled, oldest first.

    Returns:
        `sent` and `left`, numbers of runs.

    Raises:
        TrackingError: The server does not answer.
    """
    storage = Storage(config.storage.root)
    names = [name for name in storage.names(SPOOL) if name.endswith(".jsonl")]
    sent = 0
    for name in names:
        header, *operations = (json.loads(line) for line in storage.read_text(SPOOL, name).splitlines())
        sender = Sender(Config.model_validate(header["config"]), header["run_id"])
        try:
            if sender.run_id:
                sender.resume_metrics()
            for operation in operations:
                sender.send(operation)
        except Exception as error:
            raise TrackingError(
                f"{name} could not be sent to {uri(sender.config)}: {cause(error)}.",
                "Try again when the server is back; nothing is lost.",
            ) from error
        storage.delete(SPOOL, name)
        sent += 1
    return {"sent": sent, "left": 0}

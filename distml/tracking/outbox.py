"""The outbox of a run: operations in order, sent by one thread, spooled when they cannot be (driver).

`spool` sends later what is spooled here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import psutil

from distml.config import Config
from distml.errors import DistmlError
from distml.storage import Storage
from distml.tracking.operations import LogMetrics, Operation
from distml.tracking.sender import Sender
from distml.tracking.server import cause, failure, is_outage, retrying
from distml.tracking.spool import FOLDER, deliver, new_name

INTERVAL_S = 10.0
"""Seconds between samples, MLflow's own default."""


class Watch:
    """Samples processor, memory, disk, network and, where there is one, GPU until it is closed. Final.

    MLflow's monitors are used without its monitor thread, which would call the server itself and so bring
    an outage into the training process; here samples go through the outbox like everything else.

    Args:
        put: Called with the step, whole seconds since `since`, and the values by metric name.
        since: Start of the run, seconds since 1970: steps go on ascending when the run is resumed.
        interval_s: Seconds between samples.
    """

    def __init__(
        self, put: Callable[[int, dict[str, float]], None], since: float, interval_s: float = INTERVAL_S
    ) -> None:
        self._put, self._since, self._interval_s = put, since, interval_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            psutil.cpu_percent()  # the first reading of a processor's use is the use since never: 0
            self._closed.wait(self._interval_s)  # MLflow is being imported meanwhile
            self._sample()
        except Exception:  # whatever a machine's counters raise, the run goes on without them
            logger.exception("the machine is no longer watched")

    def _sample(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            monitors.append(GPUMonitor())
        except (ImportError, RuntimeError):
            logger.debug("no GPU is watched")
        last = -1
        while True:
            ended, step = self._closed.is_set(), int(time.time() - self._since)
            if step > last:
                self._put(step, _values(monitors))
                last = step
            if ended:  # its end is the only sample of a short run
                return
            self._closed.wait(self._interval_s)

    def close(self) -> None:
        """Take no more samples."""
        self._closed.set()
        self._thread.join()


def _values(monitors: Iterable[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics = monitor.aggregate_metrics()
        values |= {f"system/{name}": float(value) for name, value in metrics.items()}
        monitor.clear_metrics()
    return values


if TYPE_CHECKING:
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0
"""Between two tries while a run goes on: the curves of a run are looked at while it trains."""
_PATIENCE_S = 30.0
"""How long the end of a run waits for a server that is away before it spools: a sweep's next run is due."""


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

    def put(self, operation: Operation) -> None:
        """Add an operation; returns at once."""
        self._box.put(operation)

    def metrics(self, guard: str, step: int, values: dict[str, float], time_s: float | None = None) -> None:
        """Add metrics of one step, logged once even when a restarted worker sends them again."""
        time_ms = int((time_s or time.time()) * 1000)
        finite = {key: float(value) for key, value in values.items()}
        self.put(LogMetrics(guard, step, time_ms, finite))

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
        tries = retrying(math.inf, _LONGEST_PAUSE_S, self._note_outage, self._give_up)
        try:
            tries(self.sender.send, operation)
        except Exception as error:  # the one broad catch: tracking must not end a training run
            if not is_outage(error):
                logger.warning("tracking failed (%s): %s", operation.kind, cause(error))
            self.failure = error
            return False
        if self._outage_since is not None:
            logger.info("tracking server back after %.0f s", time.time() - self._outage_since)
            self._outage_since = None
        return True

    def _note_outage(self, state: RetryCallState) -> None:
        error = failure(state)
        if self._outage_since is None and error is not None and is_outage(error):
            self._outage_since = time.time()
            logger.warning("tracking server away, recording for later: %s", cause(error))

    def close(self, patience_s: float = _PATIENCE_S) -> bool:
        """Send what is left and what earlier runs have spooled, then stop; spool what cannot be sent.

        Args:
            patience_s: How long to wait for a server that is away before spooling.

        Returns:
            Whether everything of this run is on record.
        """
        if self._watch:
            self._watch.close()
        self._box.put(None)
        deadline = time.time() + min(patience_s, self._config.tracking.wait_s)
        while self._thread.is_alive() and (self._outage_since is None or time.time() < deadline):
            self._thread.join(0.05)
        self._give_up.set()
        self._thread.join()
        if self._unsent:
            self._spool()
            return False
        try:
            deliver(self._config)
        except DistmlError as error:
            logger.warning("what earlier runs spooled is not sent: %s", error)
        return True

    def _spool(self) -> None:
        header = {"config": self._config.model_dump(mode="json"), "run_id": self.sender.run_id}
        lines = [json.dumps(line) for line in (header, *(left.to_json() for left in self._unsent))]
        self._storage.write_bytes("\n".join(lines).encode(), FOLDER, new_name(self._name))
        logger.warning("tracking is incomplete; the next command that meets the server sends the rest")

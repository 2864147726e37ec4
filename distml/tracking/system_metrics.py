"""What the driver's machine does while a run trains, under the names of MLflow's system metrics (driver)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

logger = logging.getLogger(__name__)

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

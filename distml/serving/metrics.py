"""Prometheus metrics of the endpoint (replica).

Several replicas share one port, so a scrape reaches any of them. Where `PROMETHEUS_MULTIPROC_DIR` names a
folder that the replicas of a machine share, each answers for all of them; without it each for itself.
"""

from __future__ import annotations

import os
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from distml.serving.exchange import Answer

KIND = b"text/plain; version=0.0.4; charset=utf-8"
SHARED = "PROMETHEUS_MULTIPROC_DIR"

_GONE = 499
"""Counted where a client left before its answer; nothing is sent then."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Metrics:
    """The metrics of one replica. Final."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "distml_requests",
            "Requests answered.",
            ["route", "method", "status", "version"],
            registry=registry,
        )
        self._seconds = Histogram(
            "distml_request_seconds",
            "Time from the headers of a request to its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._images = Histogram(
            "distml_request_images", "Images per request.", buckets=_IMAGES, registry=registry
        )
        self.batch = Histogram(
            "distml_batch_images",
            "Images computed in one call of the model.",
            buckets=_IMAGES,
            registry=registry,
        )
        self.running = Gauge(
            "distml_requests_running",
            "Requests that have not been answered yet.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        # Finding a labelled child takes longer than counting.
        self._counter = lru_cache(1024)(self._requests.labels)
        self._timer = lru_cache(256)(self._seconds.labels)

    def answered(self, route: str, method: str, answer: Answer | None, seconds: float) -> None:
        """Count one answer.

        Args:
            route: Template of the path, never the path itself, which clients choose.
            method: HTTP method.
            answer: What was sent, None where the client left before.
            seconds: Since the headers arrived.
        """
        status, version = (_GONE, None) if answer is None else (answer.status_code, answer.version)
        self._counter(route, method, str(status), "" if version is None else str(version)).inc()
        self._timer(route).observe(seconds)
        if answer is not None and answer.images:
            self._images.observe(answer.images)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's text format."""
        registry = self._registry
        if os.environ.get(SHARED):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

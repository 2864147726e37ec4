"""Prometheus metrics of the endpoint (replica).

Several replicas share one port, so a scrape reaches any of them. Each therefore tells the watcher what it has
counted, every few seconds, and the one that is asked exports all: every sample carries its replica's name, so
that rates do not depend on the replica asked, and a replica that has ended drops out. What a scrape costs is
in proportion to the replicas; if each sent its counts to all others, it would be to their square.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from distml.serving.exchange import Answer

KIND = b"text/plain; version=0.0.4; charset=utf-8"

Families = Sequence[Metric]
"""What one replica has counted; pickles."""
Ask = Callable[[], Awaitable[Mapping[str, Families]]]
"""Tells what replicas have counted, by their names."""
_ASKED_S = 2.0

_OF_NO_MODEL = (
    "distml_requests",
    "distml_request_seconds",
    "distml_requests_running",
    "distml_log_rows",
    "distml_key_requests",
    "distml_unauthorized_requests",
    "distml_certificate_expiry_timestamp_seconds",
)
_GONE = 499
"""Counted where a client left before its answer; nothing is sent then."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
_DIFFERENCES = (1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Metrics:
    """The metrics of one replica, or of one model in it. Final.

    Args:
        replica: Its name, the label of every sample; without one there is no such label.
        model: Name of the model, likewise; empty where several are counted apart.
        parts: The metrics of those, exported together with these, which then count what concerns no model.
    """

    def __init__(self, replica: str = "", model: str = "", parts: Sequence[Metrics] = ()) -> None:
        self._replica, self._model, self._parts = replica, model, parts
        self._ask: Ask | None = None
        self._others: Mapping[str, Families] = {}
        self.replicas = 1
        """How many replicas answer, as far as this one has heard."""
        self._registry = registry = CollectorRegistry()
        kept: dict[str, Any] = {"registry": registry}
        self._requests = Counter(
            "distml_requests", "Requests answered.", ["route", "method", "status", "version"], **kept
        )
        sentence = "Time from the headers of a request to its response."
        self._seconds = Histogram("distml_request_seconds", sentence, ["route"], buckets=_SECONDS, **kept)
        self._images = Histogram("distml_request_images", "Images per request.", buckets=_IMAGES, **kept)
        self.running = Gauge("distml_requests_running", "Requests in progress.", **kept)
        sentence = "Images computed in one call of the model."
        self.batch = Histogram("distml_batch_images", sentence, buckets=_IMAGES, **kept)
        sentence = "Images that wait for the model or are being computed."
        self.waiting = Gauge("distml_images_waiting", sentence, **kept)
        sentence = "Images for the shadow by outcome: same or another class, skipped, failed."
        self.shadowed = Counter("distml_shadow_images", sentence, ["version", "outcome"], **kept)
        sentence = "Largest difference between an output of the shadow and of the response."
        self.apart = Histogram("distml_shadow_difference", sentence, buckets=_DIFFERENCES, **kept)
        sentence = "Rows of the request log by outcome."
        self.logged = Gauge("distml_log_rows", sentence, ["outcome"], **kept)
        sentence = "Images that are probably not what the client intended, by reason."
        self.doubted = Counter("distml_implausible_images", sentence, ["code"], **kept)
        sentence = "Requests by the name of their API key: accepted, or beyond its rate."
        keyed = Counter("distml_key_requests", sentence, ["key", "outcome"], **kept)
        sentence = "Requests without a valid API key, by what was wrong with it."
        self.unauthorized = Counter("distml_unauthorized_requests", sentence, ["reason"], **kept)
        # Finding a labelled child takes longer than counting.
        self._counter = lru_cache(1024)(self._requests.labels)
        self.keyed = lru_cache(1024)(keyed.labels)
        self._timer = lru_cache(256)(self._seconds.labels)
        self._add_state()

    def _add_state(self) -> None:
        """Add what describes the replica's state rather than its requests."""
        sentence = "Version of the champion that is loaded, 0 for none."
        self.champion = Gauge("distml_champion_version", sentence, registry=self._registry)
        sentence = "Versions that an alias points at and that were rejected."
        self.refused = Gauge("distml_refused_versions", sentence, registry=self._registry)
        sentence = "Aliases and versions that are followed and that the registry does not have."
        self.missing = Gauge("distml_missing_versions", sentence, registry=self._registry)
        sentence = "Replicas that died while they loaded this model or computed its predictions."
        self.losses = Gauge("distml_replica_losses", sentence, registry=self._registry)
        sentence = "Time since the registry answered the watcher."
        self.registry_age = Gauge("distml_registry_age_seconds", sentence, registry=self._registry)
        sentence = "When the certificate ends, as a Unix time; NaN without one."
        self.certificate = Gauge(
            "distml_certificate_expiry_timestamp_seconds", sentence, registry=self._registry
        )
        self.certificate.set(math.nan)
        sentence = "Time since this replica last answered a request of an image or a model."
        last = Gauge("distml_replica_last_answer_age_seconds", sentence, registry=self._registry)
        last.set_function(lambda: time.time() - self._answered_at if self._answered_at else math.nan)
        self._answered_at = 0.0

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
        if version is not None:
            self._answered_at = time.time()
        if answer is not None and answer.images:
            self._images.observe(answer.images)

    def families(self) -> Families:
        """Return what this replica has counted."""
        own = list(self._registry.collect())
        if self._parts:  # a gauge without its model, as of the champion, would say that there is none
            own = [family for family in own if family.name in _OF_NO_MODEL]
        labelled = [_labelled(family, "model", self._model) for family in own]
        return [*labelled, *(family for part in self._parts for family in part.families())]

    def ask_others(self, ask: Ask) -> None:
        """Say who knows what all replicas have counted; it is asked at each scrape."""
        self._ask = ask

    async def text(self) -> bytes:
        """Return the metrics of all replicas in Prometheus's text format.

        While it is not known what the others have counted, it is what was known last.
        """
        if self._ask:
            with contextlib.suppress(Exception):  # the watcher restarts
                self._others = await asyncio.wait_for(self._ask(), _ASKED_S)
        registry = CollectorRegistry()
        registry.register(_Merged({**self._others, self._replica: self.families()}))
        return generate_latest(registry)


class _Merged(Collector):
    """The samples of several replicas, each with its name. Final."""

    def __init__(self, counted: Mapping[str, Families]) -> None:
        self._counted = counted

    def collect(self) -> Iterator[Metric]:
        by_name: dict[str, Metric] = {}
        for replica, families in self._counted.items():
            for family in families:
                merged = Metric(family.name, family.documentation, family.type)
                merged = by_name.setdefault(family.name, merged)
                merged.samples += _labelled(family, "replica", replica).samples
        yield from by_name.values()


def _labelled(family: Metric, label: str, value: str) -> Metric:
    """The samples of a family with a label more, where it has a value."""
    if not value:
        return family
    labelled = Metric(family.name, family.documentation, family.type)
    labelled.samples = [sample._replace(labels={**sample.labels, label: value}) for sample in family.samples]
    return labelled

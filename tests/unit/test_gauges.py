"""What of the board's events becomes a metric, and that it is one Ray exports."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
import requests

from distml import gauges
from distml.serving import ports

STEPS = {"kind": "steps", "epoch": 2, "step": 9, "loss": 0.5, "accuracy": 0.8, "samples_per_s": 1e4}
EPOCH = {"kind": "epoch", "val_accuracy": 0.9, "world_size": 3, "train_s": 2.0, "data_wait_s": 0.1}


def test_every_gauge_is_set_by_some_event() -> None:
    names = gauges.values(STEPS).keys() | gauges.values(EPOCH).keys() | {"part_seconds"}
    assert names == gauges.GAUGES.keys()
    assert gauges.values({"kind": "ready"}) == gauges.parts(STEPS) == {}
    assert gauges.parts(EPOCH) == {"train": 2.0, "data_wait": 0.1}


def test_events_are_handed_on_whatever_happens_to_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError(name)

    monkeypatch.setattr(gauges, "_gauge", broken)
    heard: list[dict[str, Any]] = []
    gauges.listener("a", heard.append)(STEPS)
    assert heard == [STEPS]


@pytest.mark.ray
def test_ray_exports_them_with_the_run_as_label() -> None:
    import ray

    gauges._gauge.cache_clear()
    ray.init(address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=ports.free()[0])
    try:
        listen = gauges.listener("night", None)
        url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
        until = time.monotonic() + 60
        while not re.search(r'ray_distml_train_part_seconds\{[^}]*part="train"', text := _get(url)):
            listen(STEPS)
            listen(EPOCH)
            assert time.monotonic() < until, text[-2000:]
            time.sleep(0.5)
        assert re.search(r'ray_distml_train_loss\{[^}]*run="night"[^}]*\} 0\.5', text)
    finally:
        ray.shutdown()
        gauges._gauge.cache_clear()


def _get(url: str) -> str:
    try:
        return requests.get(url, timeout=5).text
    except requests.RequestException:
        return ""

"""Ray exports what training reports, under the names that the dashboard and the alerts ask for."""

from __future__ import annotations

import re
import time

import pytest
import requests

from distml.serving import ingress
from distml.training.observers import exporters
from tests.unit.training.observers.test_exporters import EPOCH, STEPS


@pytest.mark.ray
def test_ray_exports_gauges_labelled_by_run() -> None:
    import ray

    exporters._gauge.cache_clear()
    ray.init(
        address="local", num_cpus=1, include_dashboard=False, _metrics_export_port=ingress.free_ports()[0]
    )
    try:
        observer = exporters.Gauges("night")
        url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
        until = time.monotonic() + 60
        while not re.search(r'ray_distml_train_part_seconds\{[^}]*part="train"', text := _get(url)):
            observer(STEPS)
            observer(EPOCH)
            assert time.monotonic() < until, text[-2000:]
            time.sleep(0.5)
        assert re.search(r'ray_distml_train_loss\{[^}]*run="night"[^}]*\} 0\.5', text)
    finally:
        ray.shutdown()
        exporters._gauge.cache_clear()


def _get(url: str) -> str:
    try:
        return requests.get(url, timeout=5).text
    except requests.RequestException:
        return ""

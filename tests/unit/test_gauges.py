"""What of the board's events becomes a metric, and that it is one Ray exports."""

from __future__ import annotations

from typing import Any

import pytest

from distml.training.observers import gauges

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

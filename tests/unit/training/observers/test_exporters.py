"""Which gauges an event sets."""

from __future__ import annotations

from typing import Any

import pytest

from distml import tasks
from distml.training import events
from distml.training.events import EpochFinished, Event, Started, StepsDone
from distml.training.observers import exporters

TRAINED = {"loss": 0.5, "learning_rate": 1e-3, "samples_per_s": 1e4} | dict.fromkeys(
    ("accuracy", "label_accuracy", "mae"), 0.8
)
STEPS = StepsDone(2, 9, TRAINED)
MEASURED = [name for task in tasks.KINDS.values() for name in task.metrics]
VALIDATED = {"world_size": 3, "rows_read": 90, "rows_dropped": 10} | {
    f"val_{name}": 0.9 for name in ("loss", *MEASURED)
}
EPOCH = EpochFinished(2, 9, TRAINED | VALIDATED | {"train_s": 2.0, "data_wait_s": 0.1})
STARTED = Started(2, 0, 10, False, "float32", 1000)


def test_every_gauge_is_set_by_some_event() -> None:
    names = exporters.values(STEPS).keys() | exporters.values(EPOCH).keys() | {"part_seconds"}
    assert names == exporters.GAUGES.keys()
    assert exporters.values(STARTED) == exporters.parts(STEPS) == {}
    assert exporters.parts(EPOCH) == {"train": 2.0, "data_wait": 0.1}


def test_averages_of_an_epoch_do_not_replace_the_last_steps() -> None:
    assert not exporters.values(EPOCH).keys() & TRAINED.keys()
    assert exporters.values(EPOCH)["workers"] == 3


def test_a_gauge_that_fails_does_not_stop_other_observers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise RuntimeError(name)

    monkeypatch.setattr(exporters, "_gauge", broken)
    received: list[Event] = []
    events.deliver(STEPS, [exporters.Gauges("a"), received.append])
    assert received == [STEPS]

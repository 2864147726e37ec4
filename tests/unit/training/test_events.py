"""Events are typed, survive the way to the driver, and what is misspelt is rejected instead of ignored."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from distml.errors import TrainingError
from distml.tasks import Evaluation, Mistake
from distml.training import events
from distml.training.events import (
    CheckpointSkipped,
    EpochFinished,
    Event,
    FeaturesStarted,
    Outcome,
    Resumed,
    RunFailed,
    RunFinished,
    Started,
    StepsDone,
    WeightsLoaded,
    WorkerFailed,
)

EPOCH = EpochFinished(1, 10, {"loss": 0.5, "val_accuracy": 0.8, "samples_per_s": 100.0, "train_s": 1.0})
FINISHED = RunFinished(
    export=("runs", "a", "export"),
    evaluation={"validation": Evaluation({"accuracy": 0.5}, {"cat": 0.5}, [[1]])},
    history=[EPOCH],
    mistakes=[Mistake(3, "cat", "dog", 2.5)],
    evaluate_s=1.0,
    export_s=2.0,
)
EVENTS: list[Event] = [
    Started(2, 0, 10, False, "float32", 1000),
    StepsDone(1, 5, {"loss": 1.0}),
    EPOCH,
    CheckpointSkipped("attempt-001/epoch-00001", "it has no manifest"),
    Resumed(1, "attempt-001/epoch-00001", [EPOCH]),
    WorkerFailed(1, "the worker process died"),
    RunFailed("the loss became nan.", "Lower it.", "NotFiniteError"),
    FINISHED,
    WeightsLoaded("imagenet", "abc", "245 of 247 arrays loaded"),
    FeaturesStarted(1200, 1, 2),
]


def test_every_kind_of_event_is_tested() -> None:
    assert {type(event) for event in EVENTS} == set(Event.__subclasses__())


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_arrives_as_it_was_sent(event: Event) -> None:
    queue = events.EventQueue()
    queue.put(EVENTS[0])
    queue.put(pickle.loads(pickle.dumps(event)))
    assert queue.read(1) == [event]
    assert event.time > 1.7e9


@pytest.mark.parametrize("name", ["val_acuracy", "kind", "val_learning_rate", "test_rows_read", ""])
def test_a_metric_that_is_misspelt_is_rejected_where_the_event_is_made(name: str) -> None:
    with pytest.raises(ValueError, match=f"no metric '{name}'"):
        StepsDone(1, 5, {"loss": 1.0, name: 0.5})
    with pytest.raises(ValueError, match=f"no metric '{name}'"):
        EpochFinished(1, 10, {"loss": 1.0, name: 0.5})
    with pytest.raises(ValueError, match="Did you mean accuracy"):
        replace(FINISHED, evaluation={"test": Evaluation({"acuracy": 0.5}, {}, [])})


MISSPELT = """
from distml.training.events import Event, EpochFinished, StepsDone, EpochFinnished
StepsDone(1, 5, metric={"loss": 1.0})
def observer(event: Event) -> None:
    match event:
        case EpochFinished():
            print(event.epoch_number)
"""


def test_an_event_that_is_misspelt_is_a_type_error(tmp_path: Path) -> None:
    (tmp_path / "misspelt.py").write_text(MISSPELT)
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml")]
    # What the events import is not followed: reading all of NumPy and pydantic takes mypy 10 s.
    command += ["--follow-imports=skip", "--cache-dir", str(tmp_path / "cache")]
    command += [str(tmp_path / "misspelt.py"), str(root / "distml" / "training" / "events.py")]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    for mistake in ("EpochFinnished", '"metric" for "StepsDone"', '"epoch_number"'):
        assert mistake in ran.stdout, ran.stdout + ran.stderr


def test_an_epoch_is_stored_flat_and_read_back() -> None:
    stored = json.loads(json.dumps(EPOCH.to_json()))
    assert stored == {**EPOCH.metrics, "epoch": 1, "step": 10, "time": EPOCH.time}
    assert EpochFinished.from_json(stored) == EPOCH
    assert EpochFinished.from_json(stored | {"of_a_later_version": 1.0}) == EPOCH


def test_an_observer_that_fails_is_logged_and_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def broken(event: Event) -> None:
        raise OSError("the disk is full")

    received: list[Event] = []
    with caplog.at_level(logging.ERROR):
        events.deliver(EPOCH, [broken, received.append])
    assert received == [EPOCH]
    assert "EpochFinished" in caplog.text
    assert "the disk is full" in caplog.text


def test_the_outcome_is_the_last_event_or_its_error() -> None:
    outcome = Outcome()
    with pytest.raises(TrainingError, match="without a result"):
        outcome.finished("/logs")
    for event in (event for event in EVENTS if not isinstance(event, RunFailed)):
        outcome(event)
    assert outcome.finished() == FINISHED
    assert outcome.started == EVENTS[0]
    outcome(EVENTS[6])
    with pytest.raises(TrainingError, match=r"the loss became nan\. Lower it"):
        outcome.finished()


def test_the_test_split_is_shown_where_there_is_one() -> None:
    assert FINISHED.shown == "validation"
    both = {**FINISHED.evaluation, "test": FINISHED.evaluation["validation"]}
    assert replace(FINISHED, evaluation=both).shown == "test"
    assert FINISHED.to_json()["worst"] == [[3, "cat", "dog", 2.5]]


def test_the_process_of_the_queue_does_not_import_the_configuration() -> None:
    # Its schema takes half a CPU-second on slow machines, before the first step.
    tried = "import sys, distml.training.events; sys.exit('distml.config' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", tried], check=False).returncode == 0

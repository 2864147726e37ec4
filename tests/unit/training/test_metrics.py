"""One entry of the catalogue reaches everything that shows or records metrics."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from distml.reports import figures
from distml.storage import Storage
from distml.tasks import Evaluation
from distml.tasks.quality import Metric
from distml.training import metrics
from distml.training.events import EpochFinished, Event, Resumed, RunFinished, StepsDone
from distml.training.metrics import CATALOGUE
from distml.training.observers import exporters
from distml.training.observers.display import Display
from distml.training.observers.exporters import TensorBoard
from distml.training.observers.tracker import RunTracker
from tests.reports import history, rendered

F1 = Metric("f1", "Mean F1 of the classes.", "share", "higher", "steps", held_out=True, title="F1")


class Tracker:
    """Keeps the recorded operations."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, int, dict[str, float]]] = []

    def metrics(self, guard: str, step: int, values: dict[str, float], _: float) -> None:
        self.recorded.append((guard, step, dict(values)))


@pytest.fixture
def with_f1(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue with an additional entry."""
    monkeypatch.setattr(metrics, "CATALOGUE", (*CATALOGUE, F1))
    monkeypatch.setattr(metrics, "_BY_NAME", {metric.name: metric for metric in metrics.CATALOGUE})
    monkeypatch.setattr(exporters, "GAUGES", exporters._described())


def values(**more: float) -> dict[str, float]:
    return {"loss": 0.5, "val_loss": 0.6, "samples_per_s": 100.0, "train_s": 2.0, **more}


def test_metric_names_are_unique_and_described() -> None:
    assert len(set(metrics.names())) == len(metrics.names())
    for metric in CATALOGUE:
        assert metric.help.endswith(".")
        assert (
            metric.duration == metric.name.endswith("_s") and metric.unit != "rows/s"
        ) or "per_s" in metric.name
        assert not metric.title or metric.better


@pytest.mark.usefixtures("with_f1")
def test_a_new_metric_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = EpochFinished(1, 10, values(f1=0.3, val_f1=0.25))
    stream, tracker, written = io.StringIO(), Tracker(), {}
    board = TensorBoard(Storage(str(tmp_path)), ("run",))
    monkeypatch.setattr(board._writer, "add_scalar", lambda name, value, *_: written.update({name: value}))
    for observe in (Display(2, Console(file=stream)), RunTracker(tracker), board):  # type: ignore[arg-type]
        observe(StepsDone(1, 5, {"loss": 0.7, "f1": 0.2, "samples_per_s": 9.0}))
        observe(epoch)
    assert "f1 0.3000  val_loss 0.6000  val_f1 0.2500" in stream.getvalue()
    steps, epochs = tracker.recorded
    assert steps == ("step/loss", 5, {"step/loss": 0.7, "step/f1": 0.2, "step/samples_per_s": 9.0})
    assert epochs[2]["val_f1"] == written["val_f1"] == 0.25
    assert epochs[2]["time/train_s"] == written["time/train_s"] == 2.0
    assert exporters.values(StepsDone(1, 5, {"f1": 0.2}))["f1"] == 0.2
    assert exporters.values(epoch) == {"val_loss": 0.6, "val_f1": 0.25}
    assert {"f1", "val_f1"} <= exporters.GAUGES.keys()
    evaluation = {"test": Evaluation({"f1": 0.2}, {}, [])}
    finished = RunFinished((), evaluation, [epoch], [], 0.0, 0.0)
    assert finished.metrics == {"test_f1": 0.2, "steady_samples_per_s": 100.0}


@pytest.mark.usefixtures("with_f1")
def test_a_new_metric_has_a_chart_and_a_column_in_the_report() -> None:
    with_it = [epoch | {"f1": 0.3, "val_f1": 0.25} for epoch in history(2)]
    text, plain = rendered(history=with_it), rendered(history=history(2))
    chart = '<svg viewBox="0 0 460 240"'
    assert text.count(chart) == plain.count(chart) + 1
    assert "validation f1" in text
    assert [axes.get_title(loc="left") for axes in figures.learning_curves(with_it).axes] == [
        "Loss",
        "Accuracy",
        "F1",
    ]
    assert len(figures.learning_curves(history(2)).axes) == 2


def test_a_resumed_run_records_the_epochs_before(tmp_path: Path) -> None:
    tracker: Any = Tracker()
    epochs = [EpochFinished(number, 10 * number, values()) for number in (1, 2)]
    event: Event = Resumed(2, "attempt-001/epoch-00002", epochs)
    RunTracker(tracker)(event)
    assert [(guard, step) for guard, step, _ in tracker.recorded] == [("loss", 1), ("loss", 2)]


@pytest.mark.parametrize(
    ("name", "values", "position"),
    [
        ("val_accuracy", [0.5, 0.7, 0.7, 0.6], 1),
        ("val_loss", [0.5, 0.7, 0.3], 2),
        ("val_loss", [float("nan"), 0.7], 1),
        ("val_accuracy", [0.5], 0),
    ],
)
def test_the_best_value_is_the_first_of_equal_ones_and_never_nan(
    name: str, values: list[float], position: int
) -> None:
    assert metrics.best(name, values) == position


def test_subplots_of_worst_mistakes_stand_where_they_are_put() -> None:
    images = np.zeros((7, 8, 8, 1), np.uint8)
    figure = figures.worst_mistakes(images, [[position, "a", "b", 1.0] for position in range(7)])
    assert [axes.get_title() for axes in figure.axes[:8]] == ["a\npredicted b"] * 7 + [""]
    # With a layout of its own a figure warns and ignores where the subplots are put.
    assert figure.axes[0].get_position(original=True).x0 == 0.0

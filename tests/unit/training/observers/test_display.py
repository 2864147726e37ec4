"""A live display on a terminal alone; colours wherever they are wanted."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from distml.tasks import Evaluation
from distml.training.events import (
    EpochFinished,
    FeaturesStarted,
    Resumed,
    Started,
    StepsDone,
    WeightsLoaded,
)
from distml.training.observers.display import Display

STARTED = Started(
    world_size=2, epoch=0, steps_per_epoch=10, streaming=False, precision="float32", parameters=1000
)

HIDE_CURSOR = "\x1b[?25l"


class Terminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "live"), [(io.StringIO(), False), (Terminal(), True)])
def test_only_a_terminal_gets_a_live_display(stream: io.StringIO, live: bool) -> None:
    display = Display(2, Console(file=stream, force_terminal=True, highlight=False))  # as by FORCE_COLOR
    display(STARTED)
    display.close()
    shown = stream.getvalue()
    assert "1,000 parameters" in shown
    assert (HIDE_CURSOR in shown) == live


@pytest.mark.parametrize("width", [60, 80, 140])
def test_a_narrow_terminal_shows_the_share_and_the_time_that_is_left(width: int) -> None:
    stream = Terminal()
    display = Display(2, Console(file=stream, force_terminal=True, highlight=False, width=width))
    display(STARTED)
    metrics = {"loss": 0.5, "accuracy": 0.75, "samples_per_s": 12345.0}
    display(StepsDone(epoch=1, step=10, metrics=metrics))
    display.close()
    live = Text.from_ansi(stream.getvalue()).plain
    assert "epoch 1/2" in live
    assert ("10/20" if width == 140 else " 50%") in live
    assert "-:--:--" in live
    assert ("12,345 samples/s" in live) == (width >= 80)


def test_the_end_of_the_frozen_epochs_explains_the_jump_of_the_loss() -> None:
    stream = io.StringIO()
    display = Display(3, Console(file=stream, soft_wrap=True, width=80), frozen=2)
    for epoch in (1, 2, 3):
        display(EpochFinished(epoch, 10 * epoch, {"loss": 1.0, "val_loss": 1.0, "samples_per_s": 10.0}))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert "the backbone is trained from epoch 3 on" in lines[2]
    Display(2, Console(file=stream), frozen=2)(EpochFinished(2, 20, {"samples_per_s": 10.0}))
    assert "is trained from epoch" not in stream.getvalue().splitlines()[-1]  # no phase follows


def test_computing_features_is_reported_before_the_steps() -> None:
    stream = io.StringIO()
    display = Display(2, Console(file=stream, soft_wrap=True))
    display(FeaturesStarted(10_400))
    display(FeaturesStarted(10_400, view=1, views=4))
    first, second = stream.getvalue().splitlines()
    assert first.endswith("computing the features of 10,400 training rows")
    assert second.endswith("computing the features of 10,400 training rows, view 1 of 4")


@pytest.mark.parametrize("resumed", [False, True])
def test_the_line_about_weights_is_left_out_of_a_resumed_run(resumed: bool) -> None:
    stream = io.StringIO()
    display = Display(2, Console(file=stream, soft_wrap=True))
    display(WeightsLoaded("imagenet", "0" * 64, "2 start from random weights"))
    if resumed:
        display(Resumed(1, "attempt-001/epoch-00001", []))
    display(STARTED)
    assert ("weights imagenet: 2 start from random weights" in stream.getvalue()) is not resumed
    assert ("resumed after epoch 1" in stream.getvalue()) is resumed


def test_errors_of_numbers_are_shown_by_their_digits_and_units() -> None:
    stream = io.StringIO()
    display = Display(1, Console(file=stream, soft_wrap=True, width=80))
    display(EpochFinished(1, 10, {"mae": 0.000123, "val_mae": 12.5, "samples_per_s": 10.0}))
    evaluation = Evaluation({"mae": 0.25}, {"[bold]length": 0.000123, "width": 12.5}, unit="in deviations")
    display.summary("test", evaluation, {}, {})
    shown = stream.getvalue()
    assert "mae 0.000123  val_mae 12.5000" in shown
    assert [line.split() for line in shown.splitlines()[3:6]] == [
        ["all,", "in", "deviations", "0.2500"],
        ["[bold]length", "0.000123"],
        ["width", "12.500"],
    ]


def test_more_classes_than_the_table_has_are_counted() -> None:
    stream = io.StringIO()
    shares = {f"class {at}": 0.5 for at in range(23)}
    Display(1, Console(file=stream, soft_wrap=True)).summary(
        "test", Evaluation({"accuracy": 0.5}, shares), {}, {}
    )
    assert "class 19" in stream.getvalue()
    assert "and 3 more, in the report" in stream.getvalue()


def test_facts_are_displayed_verbatim() -> None:
    stream = io.StringIO()
    display = Display(2, Console(file=stream, soft_wrap=True, width=80))
    next_one = f"python -m distml.predict IMAGE --storage.root '{'x' * 90} [bold] #1'"
    evaluation = Evaluation({"accuracy": 1.0}, {"cat": 1.0})
    display.summary("test", evaluation, {}, {"next": next_one})
    assert stream.getvalue().splitlines()[-1] == f"{'next':<10} {next_one}"

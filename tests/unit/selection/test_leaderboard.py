"""The best candidate is the best on validation rows, whatever it does on test rows."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from distml.config import Config
from distml.selection import leaderboard, sweep
from distml.selection.leaderboard import Row

ROWS = [
    Row("worse", "s-worse", val_accuracy=0.90, test_accuracy=0.99, version=1, run_id="a"),
    Row("better", "s-better", val_accuracy=0.91, test_accuracy=0.80, version=2, run_id="b"),
    Row("broken", "s-broken", status="failed", error="out of memory"),
]


def test_the_test_split_never_selects() -> None:
    actual = leaderboard.result(ROWS[:2])
    assert (actual["status"], actual["best"], actual["version"], actual["run_id"]) == (
        "finished",
        "better",
        2,
        "b",
    )
    assert [row["candidate"] for row in actual["leaderboard"]] == ["better", "worse"]


def test_a_failed_candidate_is_reported_and_fails_the_sweep() -> None:
    actual = leaderboard.result(ROWS)
    assert (actual["status"], actual["best"]) == ("failed", "better")
    assert actual["leaderboard"][-1]["error"] == "out of memory"
    assert leaderboard.result(ROWS[2:])["best"] is None
    assert leaderboard.result(ROWS, search=True)["status"] == "finished"
    assert leaderboard.result(ROWS[2:], search=True)["status"] == "failed"


def test_a_candidate_stopped_early_never_wins() -> None:
    stopped = Row("early", "s-early", status="stopped", val_accuracy=0.99)
    assert leaderboard.result([*ROWS[:2], stopped])["best"] == "better"
    assert leaderboard.result([*ROWS[:2], stopped])["status"] == "finished"


@pytest.mark.parametrize(("metric", "best"), [("macro_f1", "high"), ("mae", "low"), ("rmse", "low")])
def test_candidates_are_ordered_by_the_metric_of_their_task(metric: str, best: str, tmp_path: Path) -> None:
    rows = [
        leaderboard.of_result(
            name, name, {}, {"status": "finished", "metric": metric, f"val_{metric}": value}
        )
        for name, value in (("low", 0.25), ("high", 0.75))
    ]
    assert leaderboard.result(rows)["best"] == best
    assert leaderboard.result(rows)[f"val_{metric}"] == {"low": 0.25, "high": 0.75}[best]
    assert (tmp_path / leaderboard.draw(tmp_path, leaderboard.order(rows))).exists()
    console = Console(record=True, width=200, file=io.StringIO())
    leaderboard.show(console, rows)
    heading = console.export_text().split("\n")[1].split()
    assert heading[:3] == ["candidate", f"val_{metric}", f"test_{metric}"]


def test_the_table_names_the_best_first_and_the_cause_of_a_failure() -> None:
    console = Console(record=True, width=80)
    leaderboard.show(console, ROWS)
    lines = [line for line in console.export_text().splitlines() if line.strip()]
    assert lines[1].split()[0] == "better"
    assert lines[1].rstrip().endswith("best")
    assert lines[-1] == "broken failed: out of memory"


def test_the_figures_can_be_drawn(tmp_path: Path) -> None:
    assert (tmp_path / leaderboard.draw(tmp_path, leaderboard.order(ROWS))).stat().st_size > 5000
    points = [
        Row("t1", "t1", {"train.learning_rate": 1e-4, "model.name": "cnn"}, val_accuracy=0.8),
        Row("t2", "t2", {"train.learning_rate": 1e-1, "model.name": "resnet"}, "stopped", val_accuracy=0.9),
    ]
    drawn = leaderboard.draw(tmp_path, points, search=True)
    assert drawn == "parallel_coordinates.png"
    assert (tmp_path / drawn).stat().st_size > 5000
    leaderboard.draw(tmp_path, ROWS[2:])  # nothing to show is no crash


def test_the_next_command_can_be_pasted_into_a_shell() -> None:
    console = Console(record=True, soft_wrap=True, width=80)
    root = "my [bold] data #1"
    config = Config.resolve({"run": {"name": "search"}, "storage": {"root": root}})
    sweep._shown(console, config, {row.candidate: row for row in ROWS}, {"figure": "f.png"}, 0.0)
    [line] = [line for line in console.export_text().splitlines() if line.startswith("next")]
    assert shlex.split(line, comments=True)[-4:] == ["--run", "search", "--storage.root", root]

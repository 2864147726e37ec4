"""Sweeps and pipelines that are stopped in the middle go on where they were."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.runner import Training

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(900)]

SWEEP = [
    "--data.name=pets",
    "--data.format=tests.registered:squares",
    "--train.workers=1",
    "--train.epochs=4",
    "--train.global_batch_size=32",
    "--model.options={filters: [4, 4], dense: 8}",
    "--sweep.candidates=[{name: a, train.learning_rate: 0.01}, {name: b, train.learning_rate: 0.02}]",
]


@pytest.mark.slow
def test_a_killed_sweep_resumes_with_the_unfinished_candidates(tmp_path: Path) -> None:
    root = tmp_path / "storage"
    with Training(root, "two", *SWEEP) as first:
        first.wait_for("b epoch 2/4")
        first.kill_all()
    with Training(root, "two", *SWEEP) as second:
        code, result = second.finish()
    assert code == 0, second.lines
    assert second.said("finished before: a") == 1
    assert second.said("a epoch") == 0
    assert second.said("b resumed after epoch") == 1
    assert second.said("b epoch 1/4") == 0
    assert {row["candidate"] for row in result["leaderboard"]} == {"a", "b"}


def test_a_failed_candidate_does_not_stop_the_others(tmp_path: Path) -> None:
    root = tmp_path / "storage"
    bad = "--sweep.candidates=[{name: bad, train.optimizer: sgd, train.learning_rate: 1.0e+38}, {name: a}]"
    with Training(root, "two", *SWEEP[:-1], bad) as training:
        code, result = training.finish()
    assert (code, result["status"], result["best"]) == (1, "failed", "a")
    rows = {row["candidate"]: row for row in result["leaderboard"]}
    assert rows["a"]["status"] == "finished"
    assert rows["bad"]["status"] == "failed"
    assert rows["bad"]["version"] is None
    assert "the loss became" in rows["bad"]["error"]
    assert training.said("bad failed:") == 1


def test_sigterm_closes_the_record_and_is_reported(tmp_path: Path) -> None:
    root = tmp_path / "storage"
    with Training(root, "two", *SWEEP) as training:
        training.wait_for("a epoch 1/4")
        training.process.send_signal(signal.SIGTERM)
        code, result = training.finish(60)
    assert (code, result["status"]) == (130, "interrupted")
    record = json.loads((root / "runs" / "two-a" / "001" / "run.json").read_text())
    assert record["status"] == "running"
    sweep = json.loads((root / "sweeps" / "two" / "001" / "sweep.json").read_text())
    assert sweep["status"] == "running"

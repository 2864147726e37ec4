"""A sweep end to end: candidates side by side in one Ray, one parent, a leaderboard; then for nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.mlflow_server import new_database
from tests.registered import NAME
from tests.runner import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(400)]

CANDIDATES = "[{name: convnet, model.options: {filters: [4, 4], dense: 8}}, {model.name: cnn_dropout}]"


def command(root: Path, *flags: str) -> tuple[int, dict[str, Any], str]:
    fixed = {
        "storage.root": root,
        "run.name": "both",
        "data.name": NAME,
        "data.format": "tests.registered:squares",
        "data.val_fraction": 0.25,
        "train.workers": 1,
        "train.epochs": 2,
        "train.global_batch_size": 64,
        "export.formats": "[keras]",
        "tracking.registered_model": NAME,
        "sweep.candidates": CANDIDATES,
        "sweep.concurrent": 2,
    }
    done = subprocess.run(
        [sys.executable, "-m", "distml.train", *(f"--{key}={value}" for key, value in fixed.items()), *flags],
        cwd=root.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=380,
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    root = tmp_path_factory.mktemp("sweep") / "storage"
    new_database(root)
    code, result, err = command(root)
    assert code == 0, err
    return root, result, err


def test_every_candidate_is_a_finished_run_of_its_own(swept: tuple[Path, dict[str, Any], str]) -> None:
    root, result, err = swept
    assert (result["status"], {row["candidate"] for row in result["leaderboard"]}) == (
        "finished",
        {"convnet", "cnn_dropout"},
    )
    for name in ("convnet", "cnn_dropout"):
        record = json.loads((root / "runs" / f"both-{name}" / "001" / "run.json").read_text())
        assert record["status"] == "finished"
        assert record["binding"]["model.name"] == name
        assert list((root / "runs" / f"both-{name}" / "001").glob("attempt-001/epoch-00002-*/manifest.json"))
    assert "2 to train, 2 at a time" in err
    assert "Traceback" not in err


def test_the_result_line_is_that_of_the_best_on_validation_rows(
    swept: tuple[Path, dict[str, Any], str],
) -> None:
    _, result, err = swept
    best = max(result["leaderboard"], key=lambda row: row["val_accuracy"])
    assert result["val_accuracy"] == best["val_accuracy"]
    assert (result["version"], result["run_id"]) == (
        next(
            (row["version"], row["run_id"])
            for row in result["leaderboard"]
            if row["candidate"] == result["best"]
        )
    )
    assert Path(result["figure"]).stat().st_size > 5000
    assert "best" in err


def test_the_tracking_server_has_one_parent_with_both(swept: tuple[Path, dict[str, Any], str]) -> None:
    from mlflow import MlflowClient

    root, result, _ = swept
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    parent = client.get_run(result["parent_run_id"])
    assert (parent.info.run_name, parent.info.status) == ("both", "FINISHED")
    assert parent.data.metrics["val_accuracy"] == result["val_accuracy"]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"figures", "leaderboard.json"}
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert {run.info.run_id for run in children} == {row["run_id"] for row in result["leaderboard"]}
    assert {(run.info.run_name, run.data.params["model.name"]) for run in children} == {
        ("both-convnet", "convnet"),
        ("both-cnn_dropout", "cnn_dropout"),
    }


def test_repeating_a_finished_sweep_reports_it_without_training(
    swept: tuple[Path, dict[str, Any], str],
) -> None:
    root, result, _ = swept
    code, again, err = command(root)
    assert code == 0
    assert again | {"wall_s": 0} == result | {"wall_s": 0}
    assert "finished before: convnet, cnn_dropout" in err
    assert "dashboard" not in err


def test_another_recipe_under_the_same_name_is_rejected(swept: tuple[Path, dict[str, Any], str]) -> None:
    code, result, _ = command(swept[0], "--train.learning_rate=0.5")
    assert code == 2
    assert "train.learning_rate was 0.001 and is now 0.5" in result["error"]

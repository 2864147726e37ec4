"""The whole in one command, and the same command again: from nothing to an endpoint that answers right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distml.config import Config
from distml.serving import ingress
from tests.endpoint import Endpoint, serving
from tests.mlflow_server import new_database
from tests.registered import NAME, Registry
from tests.runner import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(500)]

STAGES = ["ingest", "train", "promote", "serve", "smoke"]


def words(root: Path, **flags: Any) -> list[str]:
    fixed = {
        "storage.root": root,
        "run.name": "whole",
        "data.name": NAME,
        "data.format": "tests.registered:squares",
        "data.val_fraction": 0.25,
        "model.options": "{filters: [4, 4], dense: 8}",
        "train.workers": 1,
        "train.epochs": 4,
        "train.global_batch_size": 32,
        "train.learning_rate": 0.01,
        "export.formats": "[litert]",  # what the endpoint reads
        "tracking.registered_model": NAME,
        "serve.port": ingress.free_ports()[0],
        "serve.replicas.max": 1,
        "serve.start_timeout_s": 240,  # a busy machine takes longer than the 60 s of the default
    }
    given = fixed | {key.replace("__", "."): value for key, value in flags.items()}
    return [sys.executable, "-m", "distml.pipeline", *(f"--{key}={value}" for key, value in given.items())]


def command(root: Path, **flags: Any) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        words(root, **flags),
        cwd=root.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    root = tmp_path_factory.mktemp("pipeline") / "storage"
    new_database(root)
    code, result, err = command(root)
    assert code == 0, err
    return root, result, err


def test_every_stage_runs_and_is_reported(whole: tuple[Path, dict[str, Any], str]) -> None:
    _, result, err = whole
    assert result["status"] == "finished"
    assert [(name, stage["status"]) for name, stage in result["stages"].items()] == [
        (name, "finished") for name in STAGES
    ]
    assert (result["decision"], result["champion"], result["model"]) == ("promoted", 1, NAME)
    assert result["smoke_accuracy"] > 0.8
    assert result["smoke_accuracy"] == pytest.approx(result["val_accuracy"], abs=0.02)
    assert result["champion_test_accuracy"] == result["test_accuracy"] > 0.8
    assert "python -m distml.serve" in err
    assert "Traceback" not in err
    assert "(raylet)" not in err


def test_the_endpoint_of_a_local_ray_ends_with_the_command(whole: tuple[Path, dict[str, Any], str]) -> None:
    _, result, _ = whole
    assert result["serving"] is False
    port = int(result["endpoint"].rpartition(":")[2])
    listening = [
        connection.laddr for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"
    ]
    assert port not in {address.port for address in listening if address}


@pytest.fixture(scope="module")
def standing(whole: tuple[Path, dict[str, Any], str]) -> Iterator[Endpoint]:
    """An endpoint of the same registry that no pipeline has started."""
    named = {"storage": {"root": str(whole[0])}, "tracking": {"registered_model": NAME}}
    with serving(Registry(Config.resolve(named), None), "--serve.replicas.max=1") as endpoint:
        yield endpoint


def test_repeating_skips_finished_stages_and_checks_an_external_endpoint(
    whole: tuple[Path, dict[str, Any], str], standing: Endpoint
) -> None:
    root, before, _ = whole
    for status in ("finished", "skipped"):
        code, result, err = command(root, serve__url=standing.url, serve__port=8000)
        assert code == 0, err
        stages = {name: stage["status"] for name, stage in result["stages"].items()}
        skipped = dict.fromkeys(("ingest", "train", "promote"), "skipped")
        assert stages == skipped | {"serve": status, "smoke": "finished"}
        assert (result["endpoint"], result["serving"]) == (standing.url, True)
        for key in ("run_id", "champion", "val_accuracy", "test_accuracy", "champion_test_accuracy", "why"):
            assert result[key] == before[key]
        assert "epoch" not in err
        assert "Ray" not in err  # neither training nor serving needed one


def test_a_moved_champion_is_checked_again(
    whole: tuple[Path, dict[str, Any], str], standing: Endpoint
) -> None:
    from mlflow import MlflowClient

    root, _, _ = whole
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    client.delete_registered_model_alias(NAME, "champion")
    code, result, err = command(root, serve__url=standing.url, serve__port=8000)
    assert code == 0, err
    stages = {name: result["stages"][name]["status"] for name in STAGES}
    again = {"promote": "finished", "smoke": "finished"}
    assert stages == dict.fromkeys(("ingest", "train", "serve"), "skipped") | again
    assert int(client.get_model_version_by_alias(NAME, "champion").version) == 1


def test_an_endpoint_that_is_gone_ends_the_pipeline(
    whole: tuple[Path, dict[str, Any], str],
) -> None:
    gone = f"http://127.0.0.1:{ingress.free_ports()[0]}"
    code, result, _ = command(whole[0], serve__url=gone, serve__start_timeout_s=1)
    assert code == 1
    assert result["error"].startswith(f"{gone} does not respond yet.")


def test_a_lost_registry_is_filled_again(whole: tuple[Path, dict[str, Any], str]) -> None:
    # the last one here: the storage remembers the other registry from then on
    root, before, _ = whole
    other = f"sqlite:///{root.parent}/other.db"
    code, result, err = command(root, tracking__uri=other)
    assert code == 0, err
    assert {name: result["stages"][name]["status"] for name in STAGES} == dict.fromkeys(
        STAGES, "finished"
    ) | {"ingest": "skipped"}
    assert f"version 1 of {NAME} is not in this registry: training again" in err
    assert result["run_id"] != before["run_id"]
    assert (result["decision"], result["champion"]) == ("promoted", 1)

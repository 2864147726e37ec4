"""The tracking server goes away: a real `mlflow server`, really killed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from distml.serving import ingress
from tests.mlflow_server import TrackingServer
from tests.runner import STEPS_PER_EPOCH, Training, assert_logged_once

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.timeout(600)]


SQUARES = [  # an epoch takes a second
    "--data.name=pets",
    "--data.format=tests.registered:squares",
    "--data.val_fraction=0.25",
    "--model.options={filters: [4, 4], dense: 8}",
    "--train.workers=1",
    "--train.epochs=3",
    "--train.global_batch_size=32",
    "--train.learning_rate=0.01",
    "--tracking.registered_model=pets",
]


def p95(seconds: list[float]) -> float:
    return float(np.percentile(seconds, 95))


def test_a_required_server_that_is_down_ends_the_command_before_any_worker(tmp_path: Path) -> None:
    began = time.monotonic()
    flags = [f"--tracking.uri=http://127.0.0.1:{ingress.free_ports()[0]}", "--tracking.required=true"]
    with Training(tmp_path / "storage", "down", *flags) as run:
        code, result = run.finish(60)
    assert time.monotonic() - began <= 30
    assert (code, result["kind"]) == (1, "TrackingError")
    assert "tracking.required" in result["error"]
    assert run.said("Ray started") == 0
    assert not (tmp_path / "storage" / "runs").exists()


@pytest.mark.slow
def test_an_outage_delays_the_record_and_not_the_training(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    server, epochs = TrackingServer(tmp_path), 12
    try:
        slow = ["--model.options={filters: [96, 192]}", "--train.log_every_steps=5"]  # an epoch takes 8 s
        slow.append(f"--train.epochs={epochs}")
        with Training(tmp_path / "storage", "outage", f"--tracking.uri={server.uri}", *slow) as run:
            run.wait_for(f"epoch 1/{epochs}")
            server.kill()
            left = time.time()
            time.sleep(60)
            assert run.process.poll() is None
            back = time.time()
            server.start()  # takes a core of this machine for seconds, which a server elsewhere would not
            started = time.time()
            code, result = run.finish()
        assert (code, result["steps"], result["tracking_complete"]) == (0, epochs * STEPS_PER_EPOCH, True)
        assert run.said("tracking server unreachable") == 1
        client = MlflowClient(server.uri, server.uri)
        steps = {
            key: [metric.step for metric in client.get_metric_history(result["run_id"], key)]
            for key in ("loss", "step/loss")
        }
        assert_logged_once(steps, epochs=epochs)
        speeds = client.get_metric_history(result["run_id"], "step/samples_per_s")
        during = [256 / speed.value for speed in speeds if left < speed.timestamp / 1000 < back]
        otherwise = [256 / speed.value for speed in speeds if not left < speed.timestamp / 1000 < started]
        assert p95(during) <= 1.5 * p95(otherwise[1:])  # the first step is traced, too
        assert client.get_run(result["run_id"]).info.status == "FINISHED"
        assert client.get_model_version(result["model"], str(result["version"])).run_id == result["run_id"]
    finally:
        server.kill()


@pytest.mark.slow
def test_sync_sends_the_record_of_a_run_whose_server_stayed_unreachable(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    server = TrackingServer(tmp_path)
    server.kill()
    flags = [f"--tracking.uri={server.uri}", "--train.epochs=1", "--tracking.wait_s=5"]
    with Training(tmp_path / "storage", "later", *flags) as run:
        code, result = run.finish()
    assert (code, result["status"], result["tracking_complete"]) == (0, "finished", False)
    server.start()
    try:
        sync = [sys.executable, "-m", "distml", "sync", f"--storage.root={tmp_path / 'storage'}"]
        done = subprocess.run(sync, capture_output=True, text=True, check=True, timeout=120)
        assert json.loads(done.stdout.splitlines()[-1])["sent"] == 1
        client = MlflowClient(server.uri, server.uri)
        versions = client.search_model_versions(f"name = '{result['model']}'")
        assert len(versions) == 1
        actual = client.get_run(versions[0].run_id)
        assert actual.info.status == "FINISHED"
        assert actual.data.metrics["test_accuracy"] == pytest.approx(result["test_accuracy"])
        again = subprocess.run(sync, capture_output=True, text=True, check=True, timeout=120)
        assert json.loads(again.stdout.splitlines()[-1])["sent"] == 0
    finally:
        server.kill()


@pytest.mark.slow
def test_a_pipeline_finishes_after_its_tracking_server_died_and_returned(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    server, root = TrackingServer(tmp_path), tmp_path / "storage"
    flags = [*SQUARES, f"--tracking.uri={server.uri}", "--tracking.wait_s=120"]
    flags += [f"--serve.port={ingress.free_ports()[0]}", "--serve.replicas.max=1", "--export.formats=auto"]
    try:
        with Training(root, "heals", *flags, verb="pipeline") as run:
            run.wait_for("epoch 2/3")
            server.kill()
            run.wait_for("tracking is incomplete", 120)
            run.wait_for("unreachable, waiting up to 120 s")
            time.sleep(5)
            assert run.process.poll() is None
            server.start()
            code, result = run.finish()
        assert (code, result["status"], result["decision"], result["champion"]) == (
            0,
            "finished",
            "promoted",
            1,
        )
        client = MlflowClient(server.uri, server.uri)
        [version] = client.search_model_versions("name = 'pets'")
        actual = client.get_run(version.run_id)
        assert (actual.info.run_id, actual.info.status) == (result["run_id"], "FINISHED")
        assert [metric.step for metric in client.get_metric_history(actual.info.run_id, "loss")] == [1, 2, 3]
        assert not list((root / "tracking-spool").glob("*.jsonl"))
        record = json.loads((root / "runs" / "heals" / "001" / "run.json").read_text())
        assert (record["result"]["version"], record["attempts"]) == (int(version.version), 1)
    finally:
        server.kill()


@pytest.mark.slow
def test_an_unregistered_run_is_registered_by_train_and_by_promote(tmp_path: Path) -> None:
    server, root = TrackingServer(tmp_path), tmp_path / "storage"
    server.kill()
    flags = [*SQUARES, f"--tracking.uri={server.uri}", "--train.epochs=1"]
    for name in ("first", "second"):
        with Training(root, name, *flags, "--tracking.wait_s=1") as run:
            code, result = run.finish()
        assert (code, result["version"], result["tracking_complete"]) == (0, None, False)
    began = time.monotonic()
    with Training(root, "first", *flags, "--tracking.wait_s=10") as run:
        code, result = run.finish()
    assert time.monotonic() - began >= 10
    assert (code, result["kind"]) == (1, "TrackingError")
    assert "run first is trained but not registered: the tracking server" in result["error"]
    assert f"{server.uri} has been unreachable for 10 s" in result["error"]
    assert run.said("tracking server") == 2  # once that it is away, once at the end
    with Training(root, "second", *flags, "--tracking.wait_s=120", verb="promote") as run:
        run.wait_for("unreachable, waiting up to 120 s")
        server.start()
        try:
            code, result = run.finish()
            assert (code, result["decision"], result["candidate"]) == (0, "promoted", "second"), run.lines
            with Training(root, "first", *flags) as run:
                code, result = run.finish()
            assert (code, result["status"], result["tracking_complete"]) == (0, "finished", True), run.lines
            assert run.said("epoch 1/1") == 0
            with Training(root, "first", *flags) as run:
                code, again = run.finish()
            assert (code, again["kind"]) == (2, "ConfigError")
            assert f"finished already (model version {result['version']}," in again["error"]
        finally:
            server.kill()


@pytest.mark.slow
def test_repeating_a_sweep_registers_the_missing_versions(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    server, root = TrackingServer(tmp_path), tmp_path / "storage"
    server.kill()
    candidates = "[{name: a, train.learning_rate: 0.01}, {name: b, train.learning_rate: 0.02}]"
    flags = [*SQUARES, f"--tracking.uri={server.uri}", "--train.epochs=1", f"--sweep.candidates={candidates}"]
    with Training(root, "both", *flags, "--tracking.wait_s=1") as run:
        code, result = run.finish()
    assert (code, result["status"], result["parent_run_id"]) == (0, "finished", None)
    assert [row["version"] for row in result["leaderboard"]] == [None, None]
    server.start()
    try:
        with Training(root, "both", *flags) as run:
            code, again = run.finish()
        assert code == 0, run.lines
        assert run.said("epoch 1/1") == 0
        assert {row["version"] for row in again["leaderboard"]} == {1, 2}
        assert again["version"] == next(
            row["version"] for row in again["leaderboard"] if row["candidate"] == again["best"]
        )
        client = MlflowClient(server.uri, server.uri)
        parent = client.get_run(again["parent_run_id"])
        assert (parent.info.run_name, parent.info.status) == ("both", "FINISHED")
        with Training(root, "both", *flags) as run:
            code, third = run.finish()
        assert (code, third | {"wall_s": 0}) == (0, again | {"wall_s": 0})
    finally:
        server.kill()

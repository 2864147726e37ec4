"""Faults while training: real processes, really killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.runner import SMALL, STEPS_PER_EPOCH, Training, assert_logged_once, recorded

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One storage root for the module: the data are ingested once, each test has a run of its own."""
    return tmp_path_factory.mktemp("training") / "storage"


def epochs_said(run: Training) -> list[int]:
    return [int(line.split("epoch ")[1].split("/")[0]) for line in run.lines if "s epoch " in line]


def versions(root: Path, run_id: str) -> int:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    return len(client.search_model_versions(f"run_id = '{run_id}'"))


def test_a_killed_worker_loses_at_most_its_epoch(root: Path) -> None:
    with Training(root, "worker-killed") as run:
        run.wait_for("epoch 2/4")
        run.workers()[-1].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        run.wait_for("resumed after epoch 2")
        assert time.monotonic() - killed <= 60
        code, result = run.finish()
    assert (code, result["status"], result["steps"]) == (0, "finished", 4 * STEPS_PER_EPOCH)
    assert epochs_said(run) == [1, 2, 3, 4]
    tracked, steps = recorded(root, "worker-killed")
    assert tracked.info.status == "FINISHED"
    assert_logged_once(steps)
    assert run.said("failed: the worker process died") == 1


def test_ctrl_c_closes_the_record(root: Path) -> None:
    name = "interrupted"
    with Training(root, name, "--train.workers=1") as run:
        run.wait_for("epoch 1/4")
        run.process.send_signal(signal.SIGINT)
        code, result = run.finish(60)
    assert (code, result["status"]) == (130, "interrupted")
    assert run.said("interrupted; the same command resumes it.") == 1
    assert run.said("Traceback") == 0
    assert recorded(root, name)[0].info.status == "KILLED"
    record = json.loads((root / "runs" / name / "001" / "run.json").read_text())
    assert record["status"] == "running"


@pytest.mark.slow
def test_killed_driver_and_head_resume_under_the_same_name(root: Path) -> None:
    with Training(root, "driver-killed") as run:
        run.wait_for("epoch 2/4")
        run.kill_all()
    with Training(root, "driver-killed") as run:
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert epochs_said(run) == [3, 4]
    tracked, steps = recorded(root, "driver-killed")
    assert tracked.info.run_id == result["run_id"]
    assert_logged_once(steps)


@pytest.mark.slow
def test_killed_driver_alone_leaves_nothing_running(root: Path) -> None:
    with Training(root, "driver-alone") as run:
        run.wait_for("epoch 1/4")
        children = run.processes()
        run.process.kill()
        run.process.wait(10)
        # The agents of a raylet that is gone look for it once a minute (ray 2.60): 65 s were measured.
        _, alive = psutil.wait_procs(children, timeout=90)
        left = [process.cmdline() for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert left == []


@pytest.mark.slow
def test_a_worker_that_always_fails_is_tried_three_times(root: Path) -> None:
    (root.parent / "dying.py").write_text(
        "import os, pathlib\n"
        "from distml.models.cnn import convnet\n"
        "def build(shape, classes):\n"
        "    if 'TF_CONFIG' not in os.environ:\n"  # it is tried before
        "        return convnet(shape, classes)\n"
        "    with open(pathlib.Path(__file__).with_name('attempts'), 'a') as stream:\n"
        "        stream.write('x')\n"
        "    os._exit(7)\n"
    )
    with Training(root, "always-fails", "--model.name=dying:build", "--train.workers=1") as run:
        code, result = run.finish()
    assert (code, result["status"]) == (1, "failed")
    assert (root.parent / "attempts").read_text() == "xxx"
    tracked, _ = recorded(root, "always-fails")
    assert tracked.info.status == "FAILED"
    assert versions(root, tracked.info.run_id) == 0


def test_not_a_number_fails_at_once_and_registers_nothing(root: Path) -> None:
    flags = ["--train.optimizer=sgd", "--train.learning_rate=1e38", "--train.schedule=constant"]
    with Training(root, "nan", *flags) as run:
        code, result = run.finish()
    assert (code, result["status"]) == (1, "failed")
    step = int(result["error"].split("at step ")[1].split()[0])
    assert step <= 3
    assert run.said("failed: ") == 0  # no restart was spent on it
    tracked, steps = recorded(root, "nan")
    assert tracked.info.status == "FAILED"
    assert steps["loss"] == []
    assert versions(root, tracked.info.run_id) == 0


@pytest.mark.slow
def test_a_half_written_checkpoint_is_skipped(root: Path) -> None:
    big = ["--model.options={dense: 2048}"]  # 40 MB of state: its upload can be caught halfway
    with Training(root, "half-written", *big) as run:
        run.wait_for("epoch 2/4")
        attempt = root / "runs" / "half-written" / "001" / "attempt-001"
        deadline = time.monotonic() + 120
        while not (actual := list(attempt.glob("epoch-00003-*"))):
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        run.kill_all()
    torn = actual[0]
    if (torn / "manifest.json").exists() and (torn / "arrays.npz").exists():
        # The copy won the race: tear it as a killed one would be.
        os.truncate(torn / "arrays.npz", (torn / "arrays.npz").stat().st_size // 2)
    with Training(root, "half-written", *big) as run:
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert run.said(f"{torn.name} is not used") == 1
    assert run.said("resumed after epoch 2") == 1
    fresh = next((root / "runs" / "half-written" / "001" / "attempt-002").glob("epoch-00003-*"))
    assert sorted(path.name for path in fresh.iterdir()) == ["arrays.npz", "manifest.json", "state.json"]
    assert_logged_once(recorded(root, "half-written")[1])


@pytest.mark.slow
def test_truncated_snapshot_and_checkpoint_fall_back_to_the_newest_valid(root: Path) -> None:
    with Training(root, "snapshot") as run:
        run.wait_for("epoch 3/4")
        time.sleep(1.0)
        run.kill_all()
    attempt = root / "runs" / "snapshot" / "001" / "attempt-001"
    snapshot = attempt / "checkpoint_manager_snapshot.json"
    os.truncate(snapshot, snapshot.stat().st_size // 2)
    for newest in attempt.glob("epoch-0000[34]-*"):
        with open(newest / "arrays.npz", "r+b") as stream:
            stream.seek(5000)
            stream.write(bytes(1000))
    with Training(root, "snapshot") as run:
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert run.said("resumed after epoch 2") == 1
    assert run.said("is not used: arrays.npz has SHA-256") >= 1


@pytest.fixture(scope="module")
def undisturbed(root: Path) -> dict[str, Any]:
    """The result of a run nothing happened to."""
    with Training(root, "undisturbed") as run:
        code, result = run.finish()
    assert code == 0
    return result


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_world_size_may_change(root: Path, undisturbed: dict[str, Any], before: int, after: int) -> None:
    name = f"from-{before}-to-{after}"
    with Training(root, name, f"--train.workers={before}") as run:
        run.wait_for("epoch 2/4")
        time.sleep(1.0)
        run.kill_all()
    with Training(root, name, f"--train.workers={after}") as run:
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert epochs_said(run) in ([3, 4], [4])  # epoch 3 may have been saved before the blow
    assert abs(result["test_accuracy"] - undisturbed["test_accuracy"]) <= 0.010


def test_a_frozen_worker_is_detected_and_replaced(root: Path) -> None:
    with Training(root, "frozen", "--train.stall_timeout_s=20") as run:
        run.wait_for("epoch 2/4")
        run.workers()[-1].send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        run.wait_for("failed: ")
        assert time.monotonic() - frozen <= 120
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert_logged_once(recorded(root, "frozen")[1])


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--train.device=gpu"], "GPU"), (["--train.workers=99"], "CPU")],
)
def test_impossible_request_names_the_resource(root: Path, flags: list[str], named: str) -> None:
    began = time.monotonic()
    with Training(root, f"impossible-{named}", *flags) as run:
        code, result = run.finish(120)
    assert time.monotonic() - began <= 120
    assert code == 1
    assert result["kind"] == "ResourceError"
    assert named in result["error"]


def test_the_small_training_set_has_the_expected_steps(root: Path) -> None:
    """The figure the tests count steps with is the manifest's."""
    manifests = list((root / "data").glob("*/manifest.json"))
    assert len(manifests) == 1
    assert json.loads(manifests[0].read_text())["rows"]["train"] // 256 == STEPS_PER_EPOCH
    assert SMALL


@pytest.mark.slow
def test_running_out_of_memory_is_reported_and_retried(root: Path) -> None:
    (root.parent / "hungry.py").write_text(
        "import os, pathlib, threading, time\n"
        "from distml.models.cnn import convnet\n"
        "HERE = pathlib.Path(__file__).parent\n"
        "def eat():\n"
        "    while True:\n"
        "        try:\n"
        "            os.rename(HERE / 'eat', HERE / 'eaten')\n"  # one worker alone finds it
        "        except OSError:\n"
        "            time.sleep(0.05)\n"
        "            continue\n"
        "        meals = []\n"
        "        while len(meals) < 160:\n"
        "            meals.append(bytearray(os.urandom(1) * 100_000_000))\n"
        "            time.sleep(0.05)\n"
        "def build(shape, classes):\n"
        "    threading.Thread(target=eat, daemon=True).start()\n"
        "    return convnet(shape, classes)\n"
    )
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 9_000_000_000) / memory.total
    if limit > 0.95:
        pytest.skip("less than 10 GB of memory are free, too little to run out of it on purpose")
    env = {"RAY_memory_usage_threshold": f"{limit:.2f}", "RAY_memory_monitor_refresh_ms": "100"}
    with Training(root, "hungry", "--model.name=hungry:build", env=env) as run:
        run.wait_for("epoch 2/4")
        (root.parent / "eat").touch()
        run.wait_for("failed: ")
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert run.said("OOM") >= 1
    assert run.said("resumed after epoch") == 1
    assert_logged_once(recorded(root, "hungry")[1])

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from distml import tracking
from distml.config import Config
from distml.errors import TrackingError
from distml.storage import Storage
from distml.tracking import outbox, runs, server
from distml.tracking.operations import CloseRun, OpenRun
from distml.tracking.outbox import Watch
from tests.mlflow_server import new_database


def test_samples_are_taken_until_it_is_closed_and_steps_ascend() -> None:
    taken: list[tuple[int, dict[str, float]]] = []
    watch = Watch(lambda step, values: taken.append((step, values)), time.time() - 3600, interval_s=0.05)
    deadline = time.monotonic() + 60
    while len(taken) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watch.close()
    count = len(taken)
    steps = [step for step, _ in taken]
    assert steps == sorted(steps)
    assert 3600 <= steps[0] < 3700
    assert {"system/cpu_utilization_percentage", "system/network_receive_megabytes"} <= taken[-1][1].keys()
    time.sleep(0.2)
    assert len(taken) == count


def test_a_short_run_has_a_final_sample_and_no_step_twice() -> None:
    taken: list[int] = []
    Watch(lambda step, _: taken.append(step), time.time(), interval_s=60).close()
    assert len(taken) == 1
    watch = Watch(lambda step, _: taken.append(step), time.time() - 100, interval_s=0.02)
    time.sleep(1.5)
    watch.close()
    assert taken == sorted(set(taken))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with a new database: making one takes seconds."""
    root = tmp_path_factory.mktemp("spool") / "root"
    new_database(root)
    return root


@pytest.fixture
def config(empty: Path, tmp_path: Path) -> Config:
    shutil.copytree(empty, tmp_path / "root")
    return configure(tmp_path / "root")


def configure(root: Path, uri: str | None = None) -> Config:
    return Config.resolve({"storage": {"root": str(root)}, "tracking": {"wait_s": 1, "uri": uri}})


def put(config: Config, name: str, *operations: dict[str, Any], run_id: str | None = None) -> None:
    """Write a spool file."""
    lines = [{"config": config.model_dump(mode="json"), "run_id": run_id}, *operations]
    text = "\n".join(json.dumps(line) for line in lines)
    Storage(config.storage.root).write_bytes(text.encode(), outbox.FOLDER, f"{name}.jsonl")


def opened(key: str, **values: Any) -> dict[str, Any]:
    return {"do": "open", "name": key, "tags": {}, "params": {}, "key": key} | values


def ended(status: str, **values: Any) -> dict[str, Any]:
    return {"do": "close", "status": status, "tags": {}} | values


def left(config: Config) -> list[str]:
    return Storage(config.storage.root).names(outbox.FOLDER)


def test_rejected_operations_stay_spooled_without_blocking_others(config: Config) -> None:
    put(config, "a-001-0", {"do": "text", "file": "../out", "text": "x"}, run_id="0" * 32)
    put(config, "b-001-0", opened("b"), ended("FINISHED"))
    Storage(config.storage.root).write_bytes(b"{", outbox.FOLDER, "c-001-0.jsonl")
    delivery = outbox.deliver(config)
    assert (delivery.sent, list(delivery.left)) == (1, ["a-001-0.jsonl", "c-001-0.jsonl"])
    assert not delivery.away
    assert [name for name in left(config) if name != "rejected.json"] == ["a-001-0.jsonl", "c-001-0.jsonl"]
    assert outbox.rejected(Storage(config.storage.root)) == delivery.left
    assert tracking.find(config, "b")
    with pytest.raises(
        TrackingError, match=r"2 of 2 spooled runs could not be sent; a-001-0\.jsonl: "
    ) as caught:
        tracking.sync(config)
    assert "server is back" not in caught.value.remedy  # it is there


def test_runs_of_a_deleted_experiment_wait_until_it_is_restored(config: Config) -> None:
    client = tracking.client(config)
    number = client.create_experiment(config.tracking.experiment)
    client.delete_experiment(number)
    put(config, "a-001-0", opened("a"), ended("FINISHED"))
    with pytest.raises(TrackingError, match=rf"is deleted\. Restore it .*--experiment-id {number}\)"):
        tracking.sync(config)
    with pytest.raises(TrackingError, match="is deleted"):
        tracking.require_experiment(config)
    client.restore_experiment(number)
    tracking.require_experiment(config)
    storage = Storage(config.storage.root)
    assert "is deleted" in outbox.rejected(storage)["a-001-0.jsonl"]
    assert tracking.sync(config) == {"sent": 1, "left": 0}
    assert outbox.rejected(storage) == {}


def test_operations_for_another_server_are_left_to_sync(config: Config) -> None:
    other = configure(Path(config.storage.root), f"sqlite:///{config.storage.root}/other.db")
    put(other, "a-001-0", opened("a"), ended("FINISHED"))
    assert outbox.deliver(config) == outbox.Delivery()
    assert left(config)
    assert tracking.sync(config) == {"sent": 1, "left": 0}
    assert (tracking.find(config, "a"), left(config)) == (None, [])
    assert tracking.find(other, "a")


def test_an_unreachable_server_is_waited_for_once(config: Config) -> None:
    gone = configure(Path(config.storage.root), "http://127.0.0.1:9")
    put(gone, "a-001-0", opened("a"))
    put(gone, "b-001-0", opened("b"))
    began = time.monotonic()
    delivery = outbox.deliver(gone, wait_s=1)
    assert (delivery.sent, len(delivery.left), delivery.away) == (0, 2, True)
    assert outbox.rejected(Storage(gone.storage.root)) == {}, "it did not say anything of them"
    assert time.monotonic() - began < 25  # the client of MLflow tries three times itself
    assert len(left(config)) == 2


def test_a_moved_storage_root_is_sent_with_its_new_path(config: Config, tmp_path: Path) -> None:
    put(config, "a-001-0", opened("a"), ended("FINISHED"))
    shutil.move(config.storage.root, tmp_path / "moved")
    moved = configure(tmp_path / "moved")
    assert outbox.deliver(moved).sent == 1
    assert tracking.find(moved, "a")
    assert not Path(config.storage.root).exists()


def test_new_runs_of_a_root_that_was_moved_write_there(config: Config, tmp_path: Path) -> None:
    """MLflow's experiments and runs have absolute places; those of other roots are left alone."""
    put(config, "a-001-0", opened("a"), ended("FINISHED"))
    assert outbox.deliver(config).sent == 1
    tracking.client(config).create_experiment("elsewhere", artifact_location="file:///other/place")
    for how, name in ((shutil.move, "moved"), (shutil.copytree, "it's a copy")):
        last, config = config, configure(tmp_path / name)
        how(last.storage.root, config.storage.root)
        put(config, f"{name[0]}-001-0", opened(name[0]), ended("FINISHED"))
        assert outbox.deliver(config).sent == 1
        client, root = tracking.client(config), Path(config.storage.root).as_uri()
        for run in ("a", name[0]):
            number = str(tracking.find(config, run))
            assert client.get_run(number).info.artifact_uri.startswith(f"{root}/mlflow-artifacts/")
        assert client.get_experiment_by_name("elsewhere").artifact_location == "file:///other/place"
        assert server.relocate(config) == 0
    assert not Path(tmp_path / "root").exists()


def test_an_attempt_that_failed_does_not_undo_the_end_of_the_next(config: Config) -> None:
    then = int(time.time() * 1000) - 60_000
    put(config, "a-001-0", opened("a", at=then), ended("FAILED", at=then + 1000))
    tracker = tracking.Tracker(config, "a-001")
    tracker.put(OpenRun("a", {}, {}, "a"))
    tracker.put(CloseRun("FINISHED"))
    assert tracker.close()
    assert left(config) == []  # the run that ended has sent it
    run = tracking.client(config).get_run(str(tracking.find(config, "a"))).info
    assert run.status == "FINISHED"
    assert run.end_time > then + 30_000


def test_a_run_ended_when_it_ended_and_not_when_that_was_sent(config: Config) -> None:
    then = int(time.time() * 1000) + 60_000  # after the run was made, which is now
    put(config, "a-001-0", opened("a", at=then - 1), ended("KILLED", at=then))
    outbox.deliver(config)
    run = tracking.client(config).get_run(str(tracking.find(config, "a"))).info
    assert (run.status, run.end_time) == ("KILLED", then)


def finished(config: Config) -> runs.Run:
    storage = Storage(config.storage.root)
    run, _ = runs.begin(config, storage)
    run.status = "finished"
    run.result = {"run_id": None, "version": None, "tracking_complete": False}
    run.save(storage)
    return run


def test_a_run_that_others_have_sent_is_completed_from_the_registry(config: Config) -> None:
    run, storage = finished(config), Storage(config.storage.root)
    client = tracking.client(config)
    experiment = client.create_experiment(config.tracking.experiment)
    created = client.create_run(experiment, tags={"distml.key": run.key}).info.run_id
    client.create_registered_model(config.tracking.registered_model)
    client.create_model_version(config.tracking.registered_model, config.storage.root, created)
    tracking.register(config, storage, run)
    known = runs.finished(storage, config.run.name)
    assert known is not None
    assert (known.run_id, int(known.result["version"])) == (created, 1)
    assert (known.result["run_id"], known.result["tracking_complete"]) == (created, True)


def test_operations_of_an_unknown_run_stay_spooled(config: Config) -> None:
    run = finished(config)
    put(config, "other-001-0", {"do": "text", "file": "../out", "text": "x"}, run_id="0" * 32)
    assert tracking.register(config, Storage(config.storage.root), run).result["version"] is None


def test_a_rejected_record_of_a_run_is_reported_with_the_reason(config: Config) -> None:
    run = finished(config)
    put(config, f"{run.name}-001-0", {"do": "text", "file": "../out", "text": "x"}, run_id="0" * 32)
    with pytest.raises(TrackingError, match=r"is trained but not registered: .* rejects what was recorded"):
        tracking.register(config, Storage(config.storage.root), run)


def test_waiting_for_an_unreachable_server_ends(config: Config) -> None:
    gone = configure(Path(config.storage.root), "http://127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9 has been unreachable for 1 s") as caught:
        tracking.register(gone, Storage(config.storage.root), finished(gone))
    assert "the same command registers it" in caught.value.remedy


def test_a_non_blocking_sync_leaves_a_locked_spool_alone(config: Config) -> None:
    put(config, "a-001-0", opened("a"), ended("FINISHED"))
    with Storage(config.storage.root).lock(outbox.FOLDER):
        assert outbox.deliver(config) == outbox.Delivery()
    assert outbox.deliver(config).sent == 1


def test_spool_files_of_a_run_sort_by_age() -> None:
    names = []
    for _ in range(4):
        names.append(outbox.new_name("a-001"))
        time.sleep(0.002)
    assert names == sorted(names)

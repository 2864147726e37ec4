"""A run of an existing name resumes, is rejected, or restarts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distml.config import Config, load
from distml.errors import ConfigError, StorageError
from distml.selection import record
from distml.selection.record import Sweep
from distml.storage import Storage
from distml.tracking import runs


@pytest.fixture
def storage(storage_root: Path) -> Storage:
    return Storage(str(storage_root))


def config(**flat: Any) -> Config:
    return Config.resolve(
        load.nest({"run.name": "mine", **{k.replace("__", "."): v for k, v in flat.items()}})
    )


def finish(run: runs.Run, storage: Storage, **result: Any) -> None:
    run.status, run.result = "finished", {"version": 3, "val_accuracy": 0.91237, **result}
    run.save(storage)


def test_a_new_run_is_recorded_first(storage: Storage) -> None:
    run, resumed = runs.begin(config(), storage)
    assert not resumed
    assert (run.generation, run.attempts, run.status) == (1, 1, "running")
    assert (run.paths.folder, run.paths.attempt[-1]) == (("runs", "mine", "001"), "attempt-001")
    assert json.loads(storage.read_text(*run.paths.folder, "run.json"))["key"] == run.key


@pytest.mark.parametrize("status", ["running", "failed"])
def test_an_unfinished_run_resumes_under_its_key(storage: Storage, status: str) -> None:
    first, _ = runs.begin(config(), storage)
    first.status, first.run_id = status, "abc"
    first.save(storage)
    again, resumed = runs.begin(config(), storage)
    assert resumed
    assert (again.key, again.run_id, again.generation) == (first.key, "abc", 1)
    assert (again.attempts, again.status) == (2, "running")


def test_a_finished_run_is_rejected_with_its_result(storage: Storage) -> None:
    run, _ = runs.begin(config(), storage)
    finish(run, storage)
    with pytest.raises(ConfigError, match=r"\(model version 3, val_accuracy 0\.9124\)") as caught:
        runs.begin(config(), storage)
    assert "--run.restart true" in caught.value.remedy


def test_a_finished_run_without_metrics_is_rejected(storage: Storage) -> None:
    run, _ = runs.begin(config(), storage)
    finish(run, storage, version=None, val_accuracy=None)
    with pytest.raises(ConfigError, match=r"is finished already \(model version not registered\)"):
        runs.begin(config(), storage)


def test_restarting_keeps_the_old_generation(storage: Storage) -> None:
    first, _ = runs.begin(config(), storage)
    finish(first, storage)
    second, resumed = runs.begin(config(run__restart=True), storage)
    assert not resumed
    assert (second.generation, second.attempts) == (2, 1)
    assert second.key != first.key
    again, resumed = runs.begin(config(), storage)
    assert resumed
    assert (again.generation, again.attempts) == (2, 2)
    assert storage.exists(*first.paths.folder, "run.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.epochs", 9),
        ("train.learning_rate", 0.5),
        ("train.global_batch_size", 64),
        ("model.name", "cnn"),
        ("model.options", {"dense": 8}),
        ("data.val_fraction", 0.2),
        ("run.seed", 7),
    ],
)
def test_binding_keys_cannot_change_in_a_resumed_run(storage: Storage, path: str, value: Any) -> None:
    runs.begin(config(), storage)
    with pytest.raises(ConfigError, match="cannot resume with another configuration") as caught:
        runs.begin(config(**{path.replace(".", "__"): value}), storage)
    assert f"{path.split('.options')[0]}" in caught.value.message
    assert repr(value).strip("{}").split(": ")[-1] in caught.value.message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("train.workers", 1),
        ("train.workers", [1, 4]),
        ("train.device", "cpu"),
        ("train.max_failures", 9),
        ("data.mirrors", []),
        ("serve.port", 9000),
        ("tracking.experiment", "other"),
        ("storage.root", "elsewhere"),
    ],
)
def test_free_keys_may_change_in_a_resumed_run(storage: Storage, path: str, value: Any) -> None:
    runs.begin(config(), storage)
    _, resumed = runs.begin(config(**{path.replace(".", "__"): value}), storage)
    assert resumed


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "mine"}', '{"foo": 1}'])
def test_a_damaged_record_is_named_and_can_be_restarted(storage: Storage, content: str) -> None:
    run, _ = runs.begin(config(), storage)
    storage.write_bytes(content.encode(), *run.paths.folder, "run.json")
    with pytest.raises(StorageError, match=r"run\.json is damaged") as caught:
        runs.begin(config(), storage)
    assert "--run.restart true" in caught.value.remedy
    assert runs.begin(config(run__restart=True), storage)[0].generation == 2


def test_the_newest_finished_generation_is_used_before_an_unfinished_one(storage: Storage) -> None:
    assert runs.finished(storage, "mine") is None
    first, _ = runs.begin(config(), storage)
    assert runs.finished(storage, "mine") is None
    where = storage.uri(*first.paths.folder, "export-1a2b")
    finish(first, storage, artifacts=where)
    runs.begin(config(run__restart=True), storage)
    actual = runs.finished(storage, "mine")
    assert actual is not None
    assert actual.generation == 1
    assert storage.uri(*actual.paths.export) == where


def test_an_export_is_located_after_the_storage_moved() -> None:
    for artifacts in ("/old/runs/mine/001/export-1a", "s3://b/p/runs/mine/001/export-1a?region=x/y"):
        run = runs.Run("mine", 1, "key", result={"artifacts": artifacts})
        assert run.paths.export == ("runs", "mine", "001", "export-1a")


def test_a_link_out_of_the_storage_is_rejected_and_nothing_is_written_there(
    storage: Storage, storage_root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (storage_root / "runs").mkdir()
    (storage_root / "runs" / "mine").symlink_to(outside)
    with pytest.raises(StorageError, match="points outside of"):
        runs.begin(config(), storage)
    assert not list(outside.iterdir())


def test_a_version_is_a_number_in_records_of_earlier_releases_too(storage: Storage) -> None:
    run, _ = runs.begin(config(), storage)
    finish(run, storage, version="3")
    known = runs.finished(storage, "mine")
    assert known is not None
    assert (known.version, known.result["version"]) == (3, 3)
    row = {"candidate": "a", "run": "mine", "version": "3"}
    Sweep("mine", 1, "key", result={"version": "3", "leaderboard": [row]}).save(storage)
    sweep = record.find(storage, "mine")
    assert sweep is not None
    assert sweep.result == {"version": 3, "leaderboard": [row | {"version": 3}]}

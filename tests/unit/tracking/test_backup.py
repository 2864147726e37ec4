"""Backups: what they hold, what they leave out, and that a restored root is the one that was backed up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from distml import cli, tracking
from distml.config import Config
from distml.errors import StorageError, TrackingError
from distml.storage import Storage
from distml.tracking import backup, database, locate, registry, runs
from tests.mlflow_server import new_database

DIGEST = "0" * 64


def configuration(root: Path, **run: Any) -> Config:
    return Config.resolve({"storage": {"root": str(root)}, "run": {"name": "pets", **run}})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one finished run, its registered version as champion, and an unfinished run."""
    root = tmp_path_factory.mktemp("backup") / "old root"
    new_database(root)
    config = configuration(root)
    client = tracking.client(config)
    client.create_experiment("own", artifact_location=(root / "mlflow-artifacts").as_uri())
    created = client.create_run("1", tags={"note": "grüße"})
    client.log_metric(created.info.run_id, "loss", float("nan"), step=3)
    (root / "mlflow-artifacts" / "report.html").parent.mkdir(exist_ok=True)
    (root / "mlflow-artifacts" / "report.html").write_text("report")
    record, _ = runs.begin(config, Storage(str(root)))
    folder = root / "runs" / "pets" / "001" / "export"
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(b"weights" * 1000)
    client.create_registered_model("model")
    client.create_model_version("model", folder.as_uri(), created.info.run_id, tags={"sha256": DIGEST})
    client.set_registered_model_alias("model", "champion", "1")
    record.status, record.run_id, record.result = "finished", created.info.run_id, {"version": 1}
    record.save(Storage(str(root)))
    (root / "runs" / "pets" / "001" / "attempt-001").mkdir()
    (root / "runs" / "pets" / "001" / "attempt-001" / "checkpoint").write_bytes(b"large")
    return root


def call(capsys: pytest.CaptureFixture[str], verb: str, *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(verb, list(words))
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return code, result


def named(root: Path) -> list[str]:
    return ["--storage.root", str(root), "--tracking.registered_model", "model"]


@pytest.fixture(scope="module")
def place(original: Path) -> Path:
    """A backup of it."""
    to = original.parent / "backups"
    backup.backup(configuration(original), str(to))
    return to


@pytest.mark.usefixtures("plain_logging")
def test_a_restored_root_has_the_same_champion_runs_and_files(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, root = tmp_path / "backups", tmp_path / "new"
    code, saved = call(capsys, "backup", str(to), *named(original))
    assert (code, saved["champions"], saved["elsewhere"]) == (0, {"model": 1}, [])
    away = original.with_name("away")
    original.rename(away)  # what is restored must not depend on it
    try:
        code, restored = call(capsys, "restore", str(to), *named(root))
        assert (code, restored["files"], restored["champions"]) == (0, saved["files"], saved["champions"])
        config = Config.resolve(
            {
                "storage": {"root": str(root)},
                "tracking": {"registered_model": "model"},
                "run": {"name": "pets"},
            }
        )
        champion = registry.by_alias(config)
        assert champion is not None
        assert (champion.version, champion.sha256) == (1, DIGEST)
        files = locate.fetch(config, champion, tmp_path)
        assert files == root / "runs" / "pets" / "001" / "export"
        assert (files / "model").read_bytes() == b"weights" * 1000
        record = runs.finished(Storage(str(root)), "pets")
        assert record is not None
        run = tracking.client(config).get_run(str(record.run_id))
        assert run.data.tags["note"] == "grüße"
        assert run.info.artifact_uri.startswith((root / "mlflow-artifacts").as_uri())
        (metric,) = tracking.client(config).get_metric_history(str(record.run_id), "loss")
        assert (metric.step, str(metric.value)) == (3, "nan")
        assert (root / "mlflow-artifacts" / "report.html").read_text() == "report"
        assert not list(root.rglob("checkpoint"))
        (root / "mlflow-artifacts" / "report.html").unlink()
        code, again = call(capsys, "restore", str(to), *named(root))
        assert code == 1
        assert not (root / "mlflow-artifacts" / "report.html").exists()
        assert "the database holds 1 runs, 1 registered_models already" in again["error"]
    finally:
        away.rename(original)


def test_unchanged_files_are_not_copied_again(
    original: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    chunks = Storage.read_chunks

    def spied(self: Storage, *parts: str) -> Any:
        read.append(parts[-1])
        return chunks(self, *parts)

    monkeypatch.setattr(Storage, "read_chunks", spied)
    before = {path.name for path in (place / "objects").rglob("*") if path.is_file()}
    again = backup.backup(configuration(original), str(place))
    assert set(read) == {"database.jsonl.gz"}
    assert again["files"] == 3
    assert len(before) == 4


def test_the_newest_backups_are_kept_with_their_objects(original: Path, tmp_path: Path) -> None:
    extra = original / "mlflow-artifacts" / "extra"
    extra.write_text("only in the first")
    backup.backup(configuration(original), str(tmp_path))
    extra.unlink()
    for _ in range(2):
        backup.backup(configuration(original), str(tmp_path), keep=2)
    kept = backup.names(Storage(str(tmp_path)))
    assert len(kept) == 2
    contents = [path.read_bytes() for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert b"only in the first" not in contents
    assert b"report" in contents


def test_a_backup_that_cannot_be_finished_has_no_manifest(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise TrackingError("the database cannot be dumped: gone.")

    monkeypatch.setattr(database, "dump", fails)
    with pytest.raises(TrackingError):
        backup.backup(configuration(original), str(tmp_path))
    assert not backup.names(Storage(str(tmp_path)))


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_damaged_object_is_named_and_no_row_is_restored(place: Path, tmp_path: Path, damage: str) -> None:
    copy, root = tmp_path / "backups", tmp_path / "new"
    new_database(root)
    shutil.copytree(place, copy)
    (model,) = (
        path for path in (copy / "objects").rglob("*") if path.is_file() and path.stat().st_size == 7000
    )
    if damage == "changed":
        model.write_bytes(b"w" * 7000)
    else:
        model.unlink()
    with pytest.raises(StorageError, match=model.name):
        backup.restore(configuration(root), str(copy))
    assert not list(root.rglob("model"))
    assert damage == "changed" or not list(
        root.rglob("run.json")
    )  # what is gone is known before the first write
    database.require_empty(database.location(configuration(root)))
    shutil.copytree(place, copy, dirs_exist_ok=True)
    assert backup.restore(configuration(root), str(copy))["champions"] == {"model": 1}  # repeating it resumes


def test_restoring_into_a_used_root_changes_nothing(place: Path, tmp_path: Path) -> None:
    record = tmp_path / "runs" / "pets" / "001" / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    with pytest.raises(StorageError, match="exists with other content"):
        backup.restore(configuration(tmp_path), str(place))
    assert record.read_text() == "{}"


@pytest.mark.usefixtures("plain_logging")
@pytest.mark.parametrize(
    ("verb", "words", "code", "said"),
    [
        ("backup", ["{root}/inside"], 2, "lies below the storage root"),
        ("backup", ["{place}/x", "--tracking.uri", "http://127.0.0.1:9"], 2, "MLFLOW_BACKEND_STORE_URI"),
        ("restore", ["{place}/none"], 2, "holds no backup."),
        ("restore", ["{place}", "--at", "2020"], 2, "holds no backup 2020. It holds 20"),
        ("backup", ["{place}/x", "--storage.root", "{place}/empty"], 1, "there is no database"),
    ],
)
def test_an_unusable_argument_is_an_error_message(
    original: Path, place: Path, verb: str, words: list[str], code: int, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = [word.format(root=original, place=place) for word in words]
    result = call(capsys, verb, *given[:1], *named(original), *given[1:])
    assert result[0] == code
    assert said in result[1]["error"]


def test_a_damaged_manifest_is_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "b")
    for path in (tmp_path / "b" / "manifests").iterdir():
        path.write_text('{"schema": 99}')
    with pytest.raises(StorageError, match="schema 99, expected 1"):
        backup.restore(configuration(tmp_path / "new"), str(tmp_path / "b"))


@pytest.mark.parametrize(
    ("root", "uri", "there"),
    [
        ("/old", "file:///old/mlflow-artifacts/1", "file:///new/mlflow-artifacts/1"),
        ("/old", "/old/exports/1", "/new/exports/1"),
        ("/old", "/older/exports/1", "/older/exports/1"),
        ("/old", "mlflow-artifacts:/1/a/artifacts", "file:///new/mlflow-artifacts/1/a/artifacts"),
        ("/old", "mlflow-artifacts://mlflow:5000/1/a", "file:///new/mlflow-artifacts/1/a"),
        ("s3://old/x", "s3://old/x/runs/a", "file:///new/runs/a"),
        ("/old", "models:/m-1", "models:/m-1"),
    ],
)
def test_paths_of_artifacts_follow_the_root(root: str, uri: str, there: str) -> None:
    assert backup.mover(root, configuration(Path("/new")))(uri) == there

"""The storage root is written from here and seen by a worker, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distml.checks import places
from distml.config import Config


def test_a_root_is_written_here_and_answered_from_another_process(
    storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "WORKER_TIMEOUT_S", 60.0)  # a busy machine takes longer to start a process
    (storage_root / "kept").touch()
    driver, worker = places.storage(str(storage_root))
    assert (driver.name, driver.status) == ("storage", "ok")
    assert (worker.name, worker.status) == ("storage from a worker", "ok")
    assert str(storage_root) in driver.detail
    assert os.listdir(storage_root) == ["kept"]


def test_checking_does_not_create_the_storage_root(tmp_path: Path) -> None:
    checks = places.storage(str(tmp_path / "new"), places.echo)
    assert [check.status for check in checks] == ["ok", "ok"]
    assert not list(tmp_path.iterdir())


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (check,) = places.storage(str(tmp_path / "file" / "root"))
    assert check.status == "problem"
    assert str(tmp_path / "file" / "root") in check.detail


def test_a_root_of_an_unknown_kind_is_named() -> None:
    (check,) = places.storage("ftp://host/place")
    assert (check.name, check.status) == ("storage", "problem")


def test_a_worker_with_another_disk_is_detected(storage_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"

    def ask(root: str, name: str) -> str:
        return places.echo(str(other), name)

    other.mkdir()
    checks = places.storage(str(storage_root), ask, "node b")
    assert checks[1].status == "problem"
    assert "node b:" in checks[1].detail
    assert "is not there" in checks[1].detail
    assert "shared mount" in checks[1].remedy


def test_a_worker_that_reads_other_content_is_detected(storage_root: Path) -> None:
    def ask(root: str, name: str) -> str:
        places.echo(root, name)
        return "something else"

    assert places.storage(str(storage_root), ask)[1].status == "problem"


def test_a_worker_that_cannot_write_is_detected(storage_root: Path) -> None:
    def ask(root: str, name: str) -> str:
        return (Path(root) / name).read_text()

    checks = places.storage(str(storage_root), ask)
    assert (checks[1].status, "sees a different folder" in checks[1].detail) == ("problem", True)


@pytest.mark.parametrize("answer", ["! no answer: timed out", "something else"])
def test_a_worker_that_does_not_answer_is_a_problem(storage_root: Path, answer: str) -> None:
    checks = places.storage(str(storage_root), lambda root, name: answer)
    assert checks[1].status == "problem"
    assert not list(storage_root.iterdir())


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:6379", ("127.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("local", None),
        ("host:port", None),
    ],
)
def test_the_host_of_an_address_is_classified(address: str, place: tuple[str, int] | None) -> None:
    assert places.endpoint(address) == place


def test_an_address_without_server_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    (check,) = places.cluster_checks(Config())
    assert check.status == "problem"
    assert check.detail == f"no Ray cluster responds at RAY_ADDRESS = 127.0.0.1:{port}: Connection refused"
    assert "unset it" in check.remedy


def tracked(**tracking: Any) -> Config:
    return Config.model_validate({"tracking": tracking})


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE experiments (name)")
    connection.close()
    return path


def test_a_database_is_opened_written_and_left_as_it_was(database: Path) -> None:
    before = hashlib.sha256(database.read_bytes()).digest()
    check = places.tracking_check(tracked(uri=f"sqlite:///{database}"))
    assert (check.status, str(database) in check.detail) == ("ok", True)
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]


def test_a_locked_database_is_a_warning(database: Path) -> None:
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert places.database(database).status == "warning"
    writer.close()


def test_a_file_that_is_no_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else, long enough to be looked at" * 100)
    check = places.database(tmp_path / "mlflow.db")
    assert (check.status, "is not a database" in check.detail) == ("problem", True)


def test_a_database_that_is_not_there_could_be_made(tmp_path: Path) -> None:
    check = places.tracking_check(Config.model_validate({"storage": {"root": str(tmp_path / "new")}}))
    assert check.status == "ok"
    assert "will be made" in check.detail
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_database_is_a_problem() -> None:
    assert places.database(Path("/proc/sys/mlflow.db")).status == "problem"


@pytest.mark.parametrize(
    ("uri", "root", "status", "said"),
    [
        ("./mlruns", ".", "problem", "is a folder"),
        ("file:///mlruns", ".", "problem", "is a folder"),
        ("postgresql://user:secret@host/db", ".", "warning", "kind postgresql"),
        (None, "s3://bucket/place", "problem", "tracking.uri is not set"),
    ],
)
def test_unknown_tracking_uris_are_checked_by_scheme(
    uri: str | None, root: str, status: str, said: str
) -> None:
    check = places.tracking_check(
        Config.model_validate({"tracking": {"uri": uri}, "storage": {"root": root}})
    )
    assert check.status == status
    assert said in check.detail
    assert "secret" not in f"{check.detail}{check.remedy}"


@contextmanager
def answering(
    status: int, text: str, asked: list[tuple[str, str | None]], stage: str = "active"
) -> Iterator[str]:
    """A server on this machine that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self) -> None:
            content = json.dumps({"experiment": {"experiment_id": "4", "lifecycle_stage": stage}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "expected", "said"),
    [
        (200, '{"experiments": [{"name": "Default"}]}', "ok", "http://127.0.0.1"),
        (200, "{}", "ok", ""),
        (200, "<html>welcome</html>", "problem", "is not an MLflow server: HTTP 200 <html>"),
        (
            403,
            "Invalid Host header - possible DNS rebinding attack detected",
            "problem",
            "rejects the host name",
        ),
        (403, "Permission denied", "problem", "rejects this user (HTTP 403)"),
        (401, "You are not authenticated.", "problem", "rejects this user (HTTP 401)"),
        (404, "not here", "problem", "is not an MLflow server: HTTP 404 not here"),
        (500, "{}", "problem", "HTTP 500"),
    ],
)
def test_a_server_is_judged_by_its_answer(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, expected: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    asked: list[tuple[str, str | None]] = []
    with answering(status, text, asked) as uri:
        check = places.tracking_check(tracked(uri=uri))
    assert check.status == expected
    assert said in check.detail
    assert asked == [("/api/2.0/mlflow/experiments/search", "Bearer t0ken")]
    if "Host" in text:
        host = uri.removeprefix("http://")
        assert f"--allowed-hosts 127.0.0.1,{host}" in check.remedy


def test_a_deleted_experiment_is_a_problem_with_a_remedy(database: Path) -> None:
    with answering(200, "{}", [], stage="deleted") as uri:
        check = places.tracking_check(tracked(uri=uri, experiment="x"))
    assert (check.status, check.detail) == ("problem", f"{uri}: experiment x is deleted.")
    assert "mlflow experiments restore --experiment-id 4" in check.remedy
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE experiments ADD COLUMN experiment_id")
        connection.execute("ALTER TABLE experiments ADD COLUMN lifecycle_stage")
        connection.execute("INSERT INTO experiments VALUES ('x', 9, 'deleted')")
    connection.close()
    check = places.tracking_check(tracked(uri=f"sqlite:///{database}", experiment="x"))
    assert check.status == "problem"
    assert "--experiment-id 9" in check.remedy
    assert places.tracking_check(tracked(uri=f"sqlite:///{database}", experiment="y")).status == "ok"


def test_a_tracking_uri_of_the_environment_is_reported_as_such(
    monkeypatch: pytest.MonkeyPatch, database: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    assert places.tracking_check(Config.load()).detail == f"sqlite:///{database} (from MLFLOW_TRACKING_URI)"


@pytest.mark.parametrize(("required", "status"), [(True, "problem"), (False, "warning")])
def test_an_unreachable_server_is_a_problem_only_where_required(required: bool, status: str) -> None:
    check = places.tracking_check(tracked(uri="http://127.0.0.1:9", required=required))
    assert check.status == status
    assert check.detail == "http://127.0.0.1:9 does not respond: Connection refused"
    assert check.remedy

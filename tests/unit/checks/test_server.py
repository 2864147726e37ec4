"""Whether runs can be recorded, asked of real databases and of servers that answer as MLflow does."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distml.checks import server
from distml.config import Config


def config(**tracking: Any) -> Config:
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
    check = server.check(config(uri=f"sqlite:///{database}"))
    assert (check.status, str(database) in check.detail) == ("ok", True)
    assert hashlib.sha256(database.read_bytes()).digest() == before
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]


def test_a_locked_database_is_a_warning(database: Path) -> None:
    writer = sqlite3.connect(database, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    assert server.sqlite(database).status == "warning"
    writer.close()


def test_a_file_that_is_no_database_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else, long enough to be looked at" * 100)
    check = server.sqlite(tmp_path / "mlflow.db")
    assert (check.status, "is not a database" in check.detail) == ("problem", True)


def test_a_database_that_is_not_there_could_be_made(tmp_path: Path) -> None:
    check = server.check(Config.model_validate({"storage": {"root": str(tmp_path / "new")}}))
    assert check.status == "ok"
    assert "will be made" in check.detail
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_a_folder_that_takes_no_database_is_a_problem() -> None:
    assert server.sqlite(Path("/proc/sys/mlflow.db")).status == "problem"


@pytest.mark.parametrize(
    ("uri", "root", "status", "said"),
    [
        ("./mlruns", ".", "problem", "is a folder"),
        ("file:///mlruns", ".", "problem", "is a folder"),
        ("postgresql://user:secret@host/db", ".", "warning", "kind postgresql"),
        (None, "s3://bucket/place", "problem", "tracking.uri is not set"),
    ],
)
def test_other_places_are_judged_by_their_name(uri: str | None, root: str, status: str, said: str) -> None:
    check = server.check(Config.model_validate({"tracking": {"uri": uri}, "storage": {"root": root}}))
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
            found = json.dumps({"experiment": {"experiment_id": "4", "lifecycle_stage": stage}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            self.wfile.write(found)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


@pytest.mark.parametrize(
    ("status", "text", "expected", "said"),
    [
        (200, '{"experiments": [{"name": "Default"}]}', "ok", "http://127.0.0.1"),
        (200, "{}", "ok", ""),
        (200, "<html>welcome</html>", "problem", "is no MLflow server: HTTP 200 <html>"),
        (
            403,
            "Invalid Host header - possible DNS rebinding attack detected",
            "problem",
            "refuses the host name",
        ),
        (403, "Permission denied", "problem", "refuses this user (HTTP 403)"),
        (401, "You are not authenticated.", "problem", "refuses this user (HTTP 401)"),
        (404, "not here", "problem", "is no MLflow server: HTTP 404 not here"),
        (500, "{}", "problem", "HTTP 500"),
    ],
)
def test_a_server_is_judged_by_its_answer(
    monkeypatch: pytest.MonkeyPatch, status: int, text: str, expected: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    asked: list[tuple[str, str | None]] = []
    with answering(status, text, asked) as uri:
        check = server.check(config(uri=uri))
    assert check.status == expected
    assert said in check.detail
    assert asked == [("/api/2.0/mlflow/experiments/search", "Bearer t0ken")]
    if "Host" in text:
        host = uri.removeprefix("http://")
        assert f"--allowed-hosts 127.0.0.1,{host}" in check.remedy


def test_a_deleted_experiment_is_a_problem_that_can_be_undone(database: Path) -> None:
    with answering(200, "{}", [], stage="deleted") as uri:
        check = server.check(config(uri=uri, experiment="x"))
    assert (check.status, check.detail) == ("problem", f"{uri}: experiment x is deleted.")
    assert "mlflow experiments restore --experiment-id 4" in check.remedy
    with sqlite3.connect(database) as connection:
        connection.execute("ALTER TABLE experiments ADD COLUMN experiment_id")
        connection.execute("ALTER TABLE experiments ADD COLUMN lifecycle_stage")
        connection.execute("INSERT INTO experiments VALUES ('x', 9, 'deleted')")
    connection.close()
    check = server.check(config(uri=f"sqlite:///{database}", experiment="x"))
    assert check.status == "problem"
    assert "--experiment-id 9" in check.remedy
    assert server.check(config(uri=f"sqlite:///{database}", experiment="y")).status == "ok"


def test_an_address_of_the_shell_is_said_to_be(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    assert server.check(Config.load()).detail == f"sqlite:///{database} (from MLFLOW_TRACKING_URI)"


@pytest.mark.parametrize(("required", "status"), [(True, "problem"), (False, "warning")])
def test_a_server_that_is_away_stops_only_who_requires_it(required: bool, status: str) -> None:
    check = server.check(config(uri="http://127.0.0.1:9", required=required))
    assert check.status == status
    assert check.detail == "http://127.0.0.1:9 does not answer: Connection refused"
    assert check.remedy

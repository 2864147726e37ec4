"""Where runs are recorded, and what cannot be recorded to."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from distml.config import Config
from distml.errors import TrackingError
from distml.tracking import server


def location(root: str, uri: str | None) -> str | None:
    return server.artifact_location(Config.resolve({"storage": {"root": root}, "tracking": {"uri": uri}}))


def test_the_artifact_root_follows_root_database_or_server(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    assert location(str(tmp_path), None) == f"file://{tmp_path}/mlflow-artifacts"
    assert location(str(tmp_path), database) == f"file://{tmp_path}/mlflow-artifacts"
    assert location("s3://bucket/root", database) == f"file://{tmp_path}/mlflow-artifacts"
    assert location("s3://bucket/root", "http://mlflow:5000") is None


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Recognising an outage imports MLflow, which takes seconds."""
    server.is_outage(ValueError())


def config(wait_s: float) -> Config:
    return Config.resolve({"tracking": {"uri": "http://127.0.0.1:9", "wait_s": wait_s}})


def failing(times: int, error: Exception) -> tuple[Callable[[], str], list[float]]:
    """A call that fails so many times, and when it was made."""
    calls: list[float] = []

    def call() -> str:
        calls.append(time.monotonic())
        if len(calls) <= times:
            raise error
        return "answer"

    return call, calls


AWAY = requests.ConnectionError("connection refused")


def test_an_outage_is_waited_out_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    call, calls = failing(3, AWAY)
    with caplog.at_level(logging.INFO, "distml"):
        assert server.patiently(config(30), call) == "answer"
    assert len(calls) == 4
    assert all(later - earlier >= 0.25 for earlier, later in itertools.pairwise(calls))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "tracking server http://127.0.0.1:9 unreachable, waiting up to 30 s: connection refused"
    assert said[1].startswith("tracking server back after ")
    assert len(said) == 2


def test_the_last_try_is_at_the_end_of_the_time() -> None:
    call, calls = failing(10**6, AWAY)
    with pytest.raises(requests.ConnectionError, match="refused"):
        server.patiently(config(1.5), call)
    assert 1.5 <= calls[-1] - calls[0] < 10  # a busy machine takes its time between two tries
    assert len(calls) <= 7


def test_without_time_it_is_tried_once() -> None:
    call, calls = failing(10**6, AWAY)
    with pytest.raises(requests.ConnectionError):
        server.patiently(config(300), call, wait_s=0)
    assert len(calls) == 1


@pytest.mark.parametrize("error", [ValueError("mistake"), FileNotFoundError("gone"), PermissionError("no")])
def test_permanent_errors_are_not_retried(error: Exception) -> None:
    call, calls = failing(10**6, error)
    with pytest.raises(type(error)):
        server.patiently(config(300), call)
    assert len(calls) == 1


def test_a_write_conflict_is_retried_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    call, calls = failing(2, RuntimeError("(sqlite3.IntegrityError) UNIQUE constraint failed"))
    assert server.patiently(config(0), call) == "answer"
    call, calls = failing(10**6, RuntimeError("(sqlite3.IntegrityError) FOREIGN KEY constraint failed"))
    with pytest.raises(RuntimeError):
        server.patiently(config(300), call)
    assert len(calls) == 6


def test_pauses_grow_up_to_a_longest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr("time.sleep", paused.append)
    call, _ = failing(40, AWAY)
    server.retrying(10**6, longest_s=5.0)(call)
    assert max(paused) <= 5.0
    assert min(paused) >= 0.25
    assert sum(paused[:4]) < 4.0 < sum(paused[-10:])


def test_giving_up_ends_the_pause() -> None:
    given_up = threading.Event()
    call, calls = failing(10**6, AWAY)
    noted: list[Any] = []

    def note(state: Any) -> None:
        noted.append(server.failure(state))
        given_up.set()

    began = time.monotonic()
    with pytest.raises(requests.ConnectionError):
        server.retrying(float("inf"), 60.0, note, given_up)(call)
    assert time.monotonic() - began < 5
    assert noted == [AWAY]
    assert len(calls) <= 2


@pytest.mark.parametrize("uri", ["./mlruns", "file:///mlruns", "mlruns"])
def test_a_folder_as_tracking_uri_is_rejected_naming_the_variable(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    with pytest.raises(TrackingError, match="is a folder, which MLflow"):
        server.uri(Config.resolve({"tracking": {"uri": uri}}))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError, match=r"\(from MLFLOW_TRACKING_URI\) is a folder"):
        server.uri(Config.load())


def test_the_environment_sets_the_tracking_uri_where_none_is_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert server.uri(Config.load()) == "http://mlflow.example:5000"
    assert server.uri(Config.load(tracking={"uri": "http://mine"})) == "http://mine"
    assert server.uri(Config.load(**{"tracking.uri": None})).startswith("sqlite:///")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert server.uri(Config.load()).startswith("sqlite:///")


def test_a_deleted_experiment_is_rejected_before_anything_is_spent(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    config = Config.resolve({"tracking": {"uri": f"sqlite:///{database}", "experiment": "x"}})
    server.require_experiment(config)
    assert not database.exists()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE experiments (experiment_id, name, lifecycle_stage)")
        connection.execute("INSERT INTO experiments VALUES (7, 'x', 'active')")
    server.require_experiment(config)
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE experiments SET lifecycle_stage = 'deleted'")
    with pytest.raises(TrackingError, match=r"experiment x is deleted\. Restore it .*--experiment-id 7\)"):
        server.require_experiment(config)


def test_credentials_are_sent_as_mlflow_does(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server.login() == {"headers": {}}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "/ca.pem")
    assert server.login() == {"headers": {"Authorization": "Bearer t"}, "verify": "/ca.pem"}
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert server.login()["verify"] is False

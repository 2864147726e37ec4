"""The storage root is written from here and seen by a worker, and nothing is left behind."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from distml.checks import places
from distml.config import Config


def test_a_root_is_written_here_and_answered_from_another_process(storage_root: Path) -> None:
    (storage_root / "kept").touch()
    driver, worker = places.storage(str(storage_root))
    assert (driver.name, driver.status) == ("storage", "ok")
    assert (worker.name, worker.status) == ("storage from a worker", "ok")
    assert str(storage_root) in driver.detail
    assert os.listdir(storage_root) == ["kept"]


def test_a_root_that_was_not_there_is_not_there_afterwards(tmp_path: Path) -> None:
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


def test_a_worker_with_another_disk_of_that_name_is_found_out(storage_root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"

    def ask(root: str, name: str) -> str:
        return places.echo(str(other), name)

    other.mkdir()
    checks = places.storage(str(storage_root), ask, "node b")
    assert checks[1].status == "problem"
    assert "node b:" in checks[1].detail
    assert "is not there" in checks[1].detail
    assert "shared mount" in checks[1].remedy


def test_a_worker_that_reads_something_else_is_found_out(storage_root: Path) -> None:
    def ask(root: str, name: str) -> str:
        places.echo(root, name)
        return "something else"

    assert places.storage(str(storage_root), ask)[1].status == "problem"


def test_a_worker_that_cannot_write_is_found_out(storage_root: Path) -> None:
    def ask(root: str, name: str) -> str:
        return (Path(root) / name).read_text()

    checks = places.storage(str(storage_root), ask)
    assert (checks[1].status, "sees another place" in checks[1].detail) == ("problem", True)


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
def test_where_an_address_points(address: str, place: tuple[str, int] | None) -> None:
    assert places.endpoint(address) == place


def test_an_address_where_nothing_answers_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    (check,) = places.cluster_checks(Config())
    assert check.status == "problem"
    assert check.detail == f"no Ray answers at RAY_ADDRESS = 127.0.0.1:{port}: Connection refused"
    assert "unset it" in check.remedy

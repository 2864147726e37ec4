"""Addresses of Ray, before Ray is asked."""

from __future__ import annotations

import socket

import pytest

from distml.checks import remote
from distml.config import Config


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
    assert remote.endpoint(address) == place


def test_an_address_where_nothing_answers_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    (check,) = remote.checks(Config())
    assert check.status == "problem"
    assert check.detail == f"no Ray answers at RAY_ADDRESS = 127.0.0.1:{port}: Connection refused"
    assert "unset it" in check.remedy

"""Ports that nobody has, that no outgoing connection takes, and what is said of one that is taken."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from distml.config import ServeConfig
from distml.errors import ResourceError
from distml.serving import ports


def test_ports_differ_and_can_be_opened() -> None:
    found = ports.free(6)
    assert len(set(found)) == 6
    for port in found:
        with socket.socket() as one:
            one.bind(("127.0.0.1", port))


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        taken = one.getsockname()[1]
        monkeypatch.setattr(ports, "_RANGE", range(taken, taken + 1))
        monkeypatch.setattr(ports, "_TRIES", 1)
        with pytest.raises(OSError, match="not found"):
            ports.free()
    assert ports.free() == [taken]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_listened_on_is_refused(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert ports.refusal(host, port) == os.strerror(errno.EADDRINUSE)
    assert ports.refusal(host, port) is None


def test_a_host_that_is_not_ours_is_refused() -> None:
    assert ports.refusal("192.0.2.1", 8000) == os.strerror(errno.EADDRNOTAVAIL)


BOUND = "Failed to bind to address '127.0.0.1:8000'."  # as Ray 2.60's proxy says it


@pytest.fixture
def shut(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What `serve.shutdown` was called for."""
    from ray import serve

    calls: list[bool] = []
    monkeypatch.setattr(serve, "shutdown", lambda: calls.append(True))
    return calls


def _failing(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from ray import serve

    def start(**_: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(serve, "start", start)


def test_a_port_taken_meanwhile_is_named_and_nothing_stays(
    monkeypatch: pytest.MonkeyPatch, shut: list[bool]
) -> None:
    _failing(monkeypatch, BOUND)
    with pytest.raises(ResourceError, match=r"'127\.0\.0\.1:8000': it was taken"):
        ports.listen(ServeConfig())
    assert shut == [True]


def test_a_proxy_lost_at_its_start_is_no_traceback(monkeypatch: pytest.MonkeyPatch, shut: list[bool]) -> None:
    from ray import serve
    from ray.exceptions import RayActorError

    def start(**_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr(serve, "start", start)
    with pytest.raises(ResourceError, match="was lost while it started"):
        ports.listen(ServeConfig())
    assert shut == [True]


def test_another_failure_of_ray_serve_is_not_called_a_port(
    monkeypatch: pytest.MonkeyPatch, shut: list[bool]
) -> None:
    _failing(monkeypatch, "something else")
    with pytest.raises(RuntimeError, match="something else"):
        ports.listen(ServeConfig())
    assert shut == []

"""Ports that nobody has, and that no outgoing connection takes."""

from __future__ import annotations

import socket

import pytest

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

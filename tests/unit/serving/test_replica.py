"""The health port reports whether a replica's event loop runs, independently of queued requests."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import requests

from distml.serving import haproxy
from distml.serving.replica import HIGHEST, LOWEST, Health


@pytest.fixture
def requests_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port that this process listens at as a replica does; the one for health is free."""
    for port in range(20_000, 21_000):
        with socket.socket() as taken, socket.socket() as free:
            try:
                taken.bind(("127.0.0.1", port))
                free.bind(("127.0.0.1", port + haproxy.HEALTH_PORT_OFFSET))
            except OSError:
                continue
            free.close()
            taken.listen()
            monkeypatch.setenv(LOWEST, str(port))
            monkeypatch.setenv(HIGHEST, str(port))
            yield port
            return
    pytest.fail("no two ports are free")


async def _status(port: int) -> int:
    return await asyncio.to_thread(_asked, port)


def _asked(port: int) -> int:
    deadline = time.monotonic() + 10
    while True:
        try:
            url = f"http://127.0.0.1:{port + haproxy.HEALTH_PORT_OFFSET}/-/healthz"
            return requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_blocked_event_loop_is_unhealthy(requests_port: int) -> None:
    async def replica() -> tuple[int, int]:
        state = Health("127.0.0.1", limit_s=1.0)
        state.start()
        running = await _status(requests_port)
        asked = asyncio.get_running_loop().run_in_executor(None, _asked_later, requests_port, 1.3)
        time.sleep(1.6)
        return running, await asked

    assert asyncio.run(replica()) == (200, 503)


def _asked_later(port: int, seconds: float) -> int:
    time.sleep(seconds)
    return _asked(port)


def test_a_port_of_health_that_is_taken_is_an_error(requests_port: int) -> None:
    async def replica() -> str:
        state = Health("127.0.0.1", limit_s=1.0)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", requests_port + haproxy.HEALTH_PORT_OFFSET))
            taken.listen()
            state.start()
            while not state.error:
                await asyncio.sleep(0.01)
        return state.error

    port = requests_port + haproxy.HEALTH_PORT_OFFSET
    assert asyncio.run(replica()) == (
        f"port {port}, at which HAProxy asks for health, is not free: Address already in use"
    )

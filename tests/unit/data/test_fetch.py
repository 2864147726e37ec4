from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from distml.data import fetch
from distml.data.fetch import UnavailableError
from distml.errors import DataError
from tests.mirror import Mirror, serving

CONTENT = bytes(range(256)) * 4000
LIMIT = 2 * len(CONTENT)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serving(Mirror({"file": CONTENT})) as running:
        yield running


def get(mirror: Mirror, name: str = "file", limit: int = LIMIT) -> bytes:
    return fetch.Mirror(mirror.url, fetch.Patience()).get(name, limit)


def test_a_file_is_fetched_with_one_request(mirror: Mirror) -> None:
    assert get(mirror) == CONTENT
    assert mirror.gets == [("file", "")]


def test_a_broken_transfer_goes_on_where_it_stopped(mirror: Mirror) -> None:
    mirror.drops["file"] = 2
    assert get(mirror) == CONTENT
    half, more = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert mirror.gets == [("file", ""), ("file", f"bytes={half}-"), ("file", f"bytes={more}-")]


def test_a_server_without_ranges_starts_again(mirror: Mirror) -> None:
    mirror.drops["file"] = 1
    mirror.ranges = False
    assert get(mirror) == CONTENT


def test_three_tries_are_all(mirror: Mirror) -> None:
    mirror.drops["file"] = 3
    with pytest.raises(UnavailableError, match=r"file: the connection closed with .* bytes to come, 3 tries"):
        get(mirror)
    assert len(mirror.gets) == 3


def test_a_busy_server_is_asked_again(mirror: Mirror) -> None:
    mirror.errors["file"] = [503, 429]
    assert get(mirror) == CONTENT


def test_a_missing_file_is_asked_for_once(mirror: Mirror) -> None:
    with pytest.raises(UnavailableError, match="HTTP 404"):
        get(mirror, "other")
    assert len(mirror.gets) == 1


def test_more_bytes_than_the_limit_are_refused(mirror: Mirror) -> None:
    with pytest.raises(DataError, match="more than 1,000 bytes came"):
        get(mirror, limit=1000)


def test_only_http_is_spoken() -> None:
    with pytest.raises(UnavailableError, match="not an http or https URL"):
        fetch.Mirror("file:///etc", fetch.Patience()).get("passwd", LIMIT)


def test_a_closed_port_and_an_unknown_host_are_given_up_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun = time.monotonic()
    for base in (f"http://127.0.0.1:{port}", "http://host.invalid"):
        with pytest.raises(UnavailableError):
            fetch.Mirror(base, fetch.Patience()).get("file", LIMIT)
    assert time.monotonic() - begun < 3


def test_silence_uses_up_a_patience_that_all_mirrors_share() -> None:
    patience = fetch.Patience(left_s=1.0)
    begun = time.monotonic()
    with contextlib.ExitStack() as until:
        for _ in range(5):
            server = until.enter_context(socket.create_server(("127.0.0.1", 0)))  # connects, never answers
            silent = fetch.Mirror(f"http://127.0.0.1:{server.getsockname()[1]}", patience)
            with pytest.raises(UnavailableError, match=r"no answer|without an answer|timed out"):
                silent.get("file", LIMIT)
    assert time.monotonic() - begun < 2


def test_the_time_for_a_dead_network_is_bounded() -> None:
    """Each of the public mirrors may be silent; the reader waits half a second longer than the socket."""
    assert fetch.PATIENCE_S + 3 * 0.5 <= 10

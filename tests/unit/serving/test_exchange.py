"""Bodies are read within their limits, whatever a client does."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from starlette.requests import ClientDisconnect, Request

from distml.config import ServeConfig
from distml.serving import exchange
from distml.serving.exchange import Answer, Limits, RejectedError
from tests import malformed, serving

CONFIG = ServeConfig(max_body_bytes=100_000, read_timeout_s=0.5)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core(), CONFIG) as url:
        yield url


def request(*messages: Any, **headers: str) -> Request:
    """A request whose body arrives in these messages."""
    queue = iter(messages)

    async def receive() -> Any:
        return next(queue)

    raw = [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw}, receive)


def part(data: bytes, more: bool = True) -> dict[str, Any]:
    """A piece of a body."""
    return {"type": "http.request", "body": data, "more_body": more}


def read(*messages: Any, limit: int = 10, **headers: str) -> bytes:
    """The body of such a request."""
    return asyncio.run(exchange.body(request(*messages, **headers), Limits(limit, 5)))


def test_chunks_of_a_body_are_joined() -> None:
    assert read(part(b"abc", False)) == b"abc"
    assert read(part(b"abc"), part(b""), part(b"de"), part(b"f", False)) == b"abcdef"


def test_a_declared_length_is_rejected_before_a_byte_is_read() -> None:
    with pytest.raises(RejectedError) as caught:
        read(content_length="11")  # `next` of no messages would raise
    assert (caught.value.status, caught.value.sentence[:32]) == (413, "the body is larger than 10 bytes")


def test_an_undeclared_length_is_rejected_at_the_first_byte_too_many() -> None:
    assert read(part(b"x" * 10, False)) == b"x" * 10
    with pytest.raises(RejectedError) as caught:
        read(part(b"x" * 5), part(b"x" * 6))
    assert caught.value.status == 413


def test_a_disconnected_client_is_no_server_error() -> None:
    with pytest.raises(ClientDisconnect):
        read(part(b"x"), {"type": "http.disconnect"})


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("Deflate", zlib.compress)])
def test_compressed_bodies_are_unpacked_up_to_the_limit(encoding: str, pack: Any) -> None:
    assert read(part(pack(b"0" * 1000), False), limit=1000, content_encoding=encoding) == b"0" * 1000
    with pytest.raises(RejectedError) as caught:
        read(part(pack(b"0" * 1001), False), limit=1000, content_encoding=encoding)
    assert caught.value.status == 413
    with pytest.raises(RejectedError, match="not one complete"):
        read(part(pack(b"0") + b"more", False), limit=1000, content_encoding=encoding)


def test_members_of_gzip_are_one_body_and_deflate_may_have_no_header() -> None:
    body = b"0" * 600
    members = gzip.compress(body) + gzip.compress(body[:400])
    assert read(part(members, False), limit=1000, content_encoding="gzip") == b"0" * 1000
    with pytest.raises(RejectedError) as caught:
        read(part(members, False), limit=999, content_encoding="gzip")
    assert caught.value.status == 413
    bare = zlib.compress(body)[2:-4]
    assert read(part(bare, False), limit=600, content_encoding="deflate") == body
    with pytest.raises(RejectedError, match="not gzip data"):
        read(part(bare, False), limit=600, content_encoding="gzip")


def test_large_answers_are_compressed() -> None:
    long = b"0123456789" * 1000
    for accepted, named, unpack in (
        ("gzip, deflate", b"gzip", gzip.decompress),
        ("br;q=1, deflate", b"deflate", zlib.decompress),
    ):
        made = exchange.compress(request(accept_encoding=accepted), Answer(long))
        assert unpack(bytes(made.body)) == long
        headers = dict(made.raw_headers)
        assert (headers[b"content-encoding"], headers[b"vary"]) == (named, b"accept-encoding")
        assert int(headers[b"content-length"]) == len(made.body) < len(long)
    for asked, body in ((request(accept_encoding="gzip"), b"short"), (request(), long)):
        plain = exchange.compress(asked, Answer(body))
        assert plain.body == body
        assert b"content-encoding" not in dict(plain.raw_headers)


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip;q=0", None),
        ("gzip; Q=0.000, deflate", b"deflate"),
        ("gzip;q=0.2, deflate;q=0.8", b"deflate"),
        ("gzip;q=0.5, deflate;q=0.5", b"gzip"),
        ("GZIP", b"gzip"),
        ("*", b"gzip"),
        ("gzip;q=0, *", b"deflate"),
        ("*;q=0, gzip", b"gzip"),
        ("*;q=0", None),
        ("identity, gzip;q=0.5", None),
        ("identity;q=0, gzip;q=0.5", b"gzip"),
        ("gzip;q=high", None),
        ("gzip;q=-1", None),
        ("gzip;q=nan", None),
        ("br, zstd", None),
        ("", None),
        (";,;q=1", None),
    ],
)
def test_the_weights_of_encodings_are_respected(accepted: str, encoding: bytes | None) -> None:
    long = b"0123456789" * 1000
    headers = dict(exchange.compress(request(accept_encoding=accepted), Answer(long)).raw_headers)
    assert headers.get(b"content-encoding") == encoding
    assert (headers[b"content-length"] == b"%d" % len(long)) is (encoding is None)


@pytest.mark.parametrize("headers", [{}, {"accept_encoding": "br"}, {"accept_encoding": "gzip"}])
def test_large_answers_vary_by_accept_encoding(headers: dict[str, str]) -> None:
    sent = exchange.compress(request(**headers), Answer(b"0123456789" * 1000)).raw_headers
    assert sent.count((b"vary", b"accept-encoding")) == 1
    short = exchange.compress(request(**headers), Answer(b"short")).raw_headers
    assert b"vary" not in dict(short)


def test_the_connection_survives_a_rejected_body(url: str) -> None:
    with requests.Session() as session:
        for _ in range(2):
            assert session.post(f"{url}/predict", bytes(200_000)).status_code == 413
            assert session.post(f"{url}/predict", iter([bytes(60_000)] * 2)).status_code == 413
            good = session.post(f"{url}/predict", malformed.single(malformed.IMAGE))
            assert good.status_code == 200, good.text


def test_a_body_that_stops_arriving_is_answered_and_closed(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stalled:
        stalled.sendall(b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{")
        started, answer = time.monotonic(), b""
        while data := stalled.recv(4096):
            answer += data
        assert time.monotonic() - started < 5
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body did not arrive within 0.5 seconds" in answer


def sent_slowly(url: str, parts: list[bytes], pause_s: float, length: int) -> tuple[bytes, float]:
    """Send a body in parts, the last of them at once; returns the answer and the seconds it took."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        started = time.monotonic()
        head = f"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n"
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_s)
        return connection.recv(4096), time.monotonic() - started


def test_a_large_body_on_a_slow_line_has_the_time_that_its_bytes_take(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "_SLOWEST_BYTES_PER_S", 1000)
    body = malformed.single(malformed.IMAGE).ljust(2000)
    parts = [body[at : at + 100] for at in range(0, len(body), 100)]
    answer, took_s = sent_slowly(url, parts, 0.05, len(body))  # 2000 bytes a second
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert took_s > 2 * CONFIG.read_timeout_s
    answer, took_s = sent_slowly(url, [body[:1900]], 0.0, len(body))  # has 1.9 s more, and stops
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert took_s < 1.5
    answer, took_s = sent_slowly(url, [b" "] * 3, 0.2, len(body))  # five bytes a second
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert took_s < 1.5


def test_no_body_takes_longer_than_some_limits(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_SLOWEST_BYTES_PER_S", 1)
    monkeypatch.setattr(exchange, "_LONGEST", 2)
    answer, took_s = sent_slowly(url, [b" "] * 10, 0.1, 99)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 1.9 * CONFIG.read_timeout_s < took_s < 3


def test_many_large_bodies_that_arrive_at_once_are_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_ARRIVING_BYTES", 8)
    with pytest.raises(RejectedError, match="too many large requests are arriving") as caught:
        read(part(b"abcde"), part(b"fghi"), part(b"", False))
    assert caught.value.status == 429
    assert dict(caught.value.headers)[b"retry-after"] == b"1"
    for _ in range(3):  # what was rejected or has arrived is not counted any more
        assert read(part(b"abcd"), part(b"efgh", False)) == b"abcdefgh"


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": [{"b": 1}, {"b": 1, "b": 1}]}',
        '{"a": [1, {"b": 1, "b": 1}]}',
        '{"a": [[{"b": 1, "b": 1}]]}',
        '{"a": ":", "\\u0061": 1}',
        '{"a:": ":::", "b": {"c": 1, "c": 1}}',
    ],
)
def test_a_duplicate_key_is_rejected_at_any_depth(text: str) -> None:
    with pytest.raises(RejectedError, match="appears twice in one object"):
        exchange.parse_json(text.encode())


@pytest.mark.parametrize(
    ("text", "members", "booleans"),
    [
        ('{"a": {"a": {"a": 1}}}', {"a": {"a": {"a": 1}}}, False),
        ('{"a": "x: y", "b": ":"}', {"a": "x: y", "b": ":"}, False),
        ('{"a": [{"b": 1}, {"b": 1}]}', {"a": [{"b": 1}, {"b": 1}]}, False),
        ('{"a": [true]}', {"a": [True]}, True),
        ('{"a": "false"}', {"a": "false"}, True),
    ],
)
def test_valid_json_is_parsed(text: str, members: object, booleans: bool) -> None:
    document = exchange.parse_json(memoryview(text.encode()))
    assert (document.members, document.booleans) == (members, booleans)


def test_deep_nesting_is_rejected_by_both_parsers() -> None:
    deep = '{"x:": ' + "[" * 900 + "]" * 900 + "}"
    assert exchange.parse_json(deep.encode()).members
    for depth in (1_100, 100_000):
        with pytest.raises(RejectedError, match="nested too deeply"):
            exchange.parse_json(('{"x:": ' + "[" * depth + "]" * depth + "}").encode())


def test_json_types_have_names() -> None:
    values: list[object] = [True, 1, 1.5, "", [], {}, None]
    named = [exchange.json_type(value) for value in values]
    assert named == ["a boolean", "a number", "a number", "a string", "an array", "an object", "null"]


def test_more_numbers_than_can_be_parsed_in_time_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MAX_VALUES", 3)
    assert exchange.parse_json(b'{"a": [1, 2, 3, 4]}').members == {"a": [1, 2, 3, 4]}
    assert exchange.parse_json(b'\xef\xbb\xbf{"a": 1}').members == {"a": 1}  # a byte order mark
    with pytest.raises(RejectedError, match="more than 3 numbers; send fewer images") as caught:
        exchange.parse_json(b'{"a": [1, 2, 3, 4, 5]}')
    assert caught.value.status == 413

"""HAProxy itself, with the corrected configuration, before replicas that answer, hang and go."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from distml.config import ServeConfig
from distml.errors import ResourceError
from distml.runtime import environment
from distml.serving import haproxy, ingress, replica

PROGRAM = haproxy.program()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs HAProxy")

# What Ray 2.60 writes for an application, without what is off here.
FRONT = """global
    maxconn 200
defaults
    mode http
    option log-health-checks
    timeout connect 5s
    timeout client 3600s
    timeout server {server_s}s
    option httplog
    option abortonclose
    option redispatch 1
    retry-on conn-failure empty-response response-timeout
    errorfile 503 /does/not/exist/500.http
    balance leastconn
frontend http_frontend
    bind *:{port}
    acl healthcheck path -i /-/healthz
{healthy}    http-request return status 503 content-type text/plain string "Unavailable" if healthcheck
"""
HEALTHY = """    acl server_up nbsrv(http-distml) ge 1
    http-request return status 200 content-type text/plain string "success" if healthcheck server_up
"""
BACK = """    acl is_http-distml path_beg /
    use_backend http-distml if is_http-distml
    default_backend default_backend
"""
UNKNOWN = """backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
"""
SERVERS = """backend http-distml
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 1 rise 2 inter 1s check
"""
REPLICA = """
import http.client
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

http.client._MAXHEADERS = 1000
pauses, offset = [float(sys.argv[1])], int(sys.argv[2])

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/-/healthz" and pauses:
            time.sleep(pauses.pop())
        self.send_response(200)
        answer = self.headers.get(self.path[1:] or "x-request-id", "none").encode()
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
    do_POST = do_GET
    def log_message(self, *args):
        pass

while True:
    port = random.randrange(20_000, 30_000)
    try:
        requests = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        health = ThreadingHTTPServer(("127.0.0.1", port + offset), Handler)
        break
    except OSError:  # one of the two is taken
        continue
threading.Thread(target=health.serve_forever, daemon=True).start()
print(port, flush=True)
requests.serve_forever()
"""


class Ingress:
    """HAProxy before so many replicas, whose first health check takes so long."""

    def __init__(self, folder: Path, replicas: int, first_check_s: float = 0.0) -> None:
        words = [sys.executable, "-c", REPLICA, str(first_check_s), str(haproxy.HEALTH_PORT_OFFSET)]
        self.replicas = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(replicas)]
        back = [int(replica.stdout.readline()) for replica in self.replicas if replica.stdout]
        self.port, fallback = ingress.free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        text = FRONT.format(port=self.port, server_s=20, healthy=HEALTHY if replicas else "") + (
            BACK if replicas else "    default_backend default_backend\n"
        )
        text += UNKNOWN + (SERVERS if replicas else "")
        for port in back:
            text += f"    server r{port} 127.0.0.1:{port} check observe layer4 error-limit 3"
            text += " on-error mark-down\n"
        if replicas:  # Ray's Python proxy, which is not here
            text += f"    server fallback 127.0.0.1:{fallback} check backup\n"
        path = folder / "haproxy.cfg"
        path.write_text(haproxy.corrected(text, "127.0.0.1", "2", f"abns@distml-test-{self.port}"))
        assert PROGRAM
        self.proxy = subprocess.Popen([PROGRAM, "-db", "-f", str(path)])
        try:
            self._await(200 if replicas else 503)
        except BaseException:
            self.end()
            raise

    def _await(self, status: int) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                if requests.get(self.url, timeout=5).status_code == status:
                    return
            except requests.RequestException:
                pass
            assert time.monotonic() < deadline
            assert self.proxy.poll() is None
            time.sleep(0.1)

    def talk(self, raw: bytes, shut: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and return status, headers and body of what comes back."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            connection.settimeout(10)
            connection.sendall(raw)
            if shut:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while b"\r\n\r\n" not in received and (part := connection.recv(65536)):
                received += part
        head, _, body = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body

    def end(self) -> None:
        for process in (self.proxy, *self.replicas):
            process.kill()
            process.communicate(timeout=10)


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Ingress]:
    ingress = Ingress(tmp_path, 0)
    yield ingress
    ingress.end()


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Ingress]:
    ingress = Ingress(tmp_path, 1)
    yield ingress
    ingress.end()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Ingress]:
    ingress = Ingress(tmp_path, 2)
    yield ingress
    ingress.end()


def assert_unavailable(response: requests.Response) -> None:
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]


@pytest.mark.parametrize("path", ["/", "/v2/health/ready", "/v1/models/pets", "/-/healthz", "/it's"])
def test_without_an_application_every_path_is_503(empty: Ingress, path: str) -> None:
    assert_unavailable(requests.get(f"{empty.url}{path}", timeout=5))


UPGRADE = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /predict HTTP/1.1\r\nHost: x\r\n" + UPGRADE + b"Sec-WebSocket-Version: 13\r\n\r\n", 400),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{", 408),
    ],
    ids=["WebSocket", "half a body"],
)
def test_what_haproxy_answers_by_itself_is_json(single: Ingress, raw: bytes, status: int) -> None:
    answered, headers, body = single.talk(raw)
    assert (answered, headers["content-type"]) == (status, "application/json")
    assert list(json.loads(body)) == ["error"]


def test_many_headers_are_accepted(single: Ingress) -> None:
    lines = b"".join(b"X%d: y\r\n" % number for number in range(150))
    assert single.talk(b"GET /readyz HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")[0] == 200


def test_an_upgrade_to_http_2_is_ignored(single: Ingress) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    assert single.talk(raw + b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n")[0] == 200


def test_replicas_do_not_see_an_offer_to_upgrade(single: Ingress) -> None:
    """Java's client offers HTTP/2 with every request; uvicorn would then drop its body."""
    raw = b"POST /upgrade HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    raw += b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: 2\r\n\r\n{}"
    status, _, body = single.talk(raw)
    assert (status, body) == (200, b"none")


def test_a_valid_request_id_is_kept(single: Ingress) -> None:
    for given, kept in (("order-7/a:b", "order-7/a:b"), ("x" * 201, "none"), ("a b", "none")):
        assert requests.get(single.url, headers={"x-request-id": given}, timeout=5).text == kept
    for raw in (b"X-Request-ID: \xff\xfe\r\n", b"X-Request-ID: a\r\nX-Request-ID: b\r\n"):
        assert single.talk(b"GET / HTTP/1.1\r\nHost: x\r\n" + raw + b"\r\n")[2] == b"none"


def test_a_half_closed_connection_is_answered(single: Ingress) -> None:
    raw = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n[]"
    assert single.talk(raw, shut=True)[0] == 200


def test_a_replica_that_hangs_is_bypassed_within_the_time_limit(pair: Ingress) -> None:
    os.kill(pair.replicas[0].pid, signal.SIGSTOP)
    seconds = []
    for _ in range(8):
        began = time.monotonic()
        assert requests.post(pair.url, data=b"[]", timeout=20).status_code == 200
        seconds.append(time.monotonic() - began)
    assert max(seconds) < 5
    assert seconds[-1] < 1


def test_when_the_only_replica_hangs_clients_get_504_in_time(single: Ingress) -> None:
    os.kill(single.replicas[0].pid, signal.SIGSTOP)
    began = time.monotonic()
    assert_unavailable(requests.post(single.url, data=b"[]", timeout=20))
    assert time.monotonic() - began < 5
    assert_unavailable(requests.get(f"{single.url}/-/healthz", timeout=5))
    os.kill(single.replicas[0].pid, signal.SIGCONT)
    single._await(200)
    assert requests.get(f"{single.url}/-/healthz", timeout=5).status_code == 200


def test_a_new_replica_whose_first_check_is_slow_costs_no_request(tmp_path: Path) -> None:
    ingress = Ingress(tmp_path, 1, first_check_s=2)
    try:
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:
            assert requests.post(ingress.url, data=b"[]", timeout=5).status_code == 200
            time.sleep(0.05)
    finally:
        ingress.end()


def test_ports_differ_and_can_be_opened() -> None:
    ports = ingress.free_ports(6)
    assert len(set(ports)) == 6
    for port in ports:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", port))


def test_no_port_of_a_replica_is_given_out() -> None:
    lowest = {variable.name: variable.value for variable in environment.HAPROXY.variables}[replica.LOWEST]
    assert max(ingress._RANGE) < int(lowest)


def test_a_taken_port_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        taken = listener.getsockname()[1]
        monkeypatch.setattr(ingress, "_RANGE", range(taken, taken + 1))
        monkeypatch.setattr(ingress, "_TRIES", 1)
        with pytest.raises(OSError, match="not found"):
            ingress.free_ports()
    assert ingress.free_ports() == [taken]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_listened_on_is_rejected(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
        assert ingress.port_refusal(host, port) == os.strerror(errno.EADDRINUSE)
    assert ingress.port_refusal(host, port) is None


def test_a_host_of_another_machine_is_rejected() -> None:
    assert ingress.port_refusal("192.0.2.1", 8000) == os.strerror(errno.EADDRNOTAVAIL)


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


def test_a_port_taken_during_the_start_is_named_and_nothing_keeps_running(
    monkeypatch: pytest.MonkeyPatch, shut: list[bool]
) -> None:
    _failing(monkeypatch, BOUND)
    with pytest.raises(ResourceError, match=r"'127\.0\.0\.1:8000': it was taken"):
        ingress.listen(ServeConfig())
    assert shut == [True]


def test_a_proxy_that_fails_to_start_is_an_error_message(
    monkeypatch: pytest.MonkeyPatch, shut: list[bool]
) -> None:
    from ray import serve
    from ray.exceptions import RayActorError

    def start(**_: Any) -> None:
        raise RayActorError

    monkeypatch.setattr(serve, "start", start)
    with pytest.raises(ResourceError, match="was lost while it started"):
        ingress.listen(ServeConfig())
    assert shut == [True]


def test_other_failures_of_ray_serve_do_not_blame_the_port(
    monkeypatch: pytest.MonkeyPatch, shut: list[bool]
) -> None:
    _failing(monkeypatch, "something else")
    with pytest.raises(RuntimeError, match="something else"):
        ingress.listen(ServeConfig())
    assert shut == []


@pytest.mark.parametrize(("local", "inner"), [(True, "127.0.0.1"), (False, "192.0.2.7")])
def test_replicas_behind_haproxy_of_this_machine_stay_on_loopback(
    monkeypatch: pytest.MonkeyPatch, local: bool, inner: str
) -> None:
    monkeypatch.setattr(ingress, "uses_haproxy", lambda serve: True)
    values = ingress.variables(ServeConfig(host="192.0.2.7"), local)
    assert (values[haproxy.HOST], values[haproxy.REPLICAS]) == ("192.0.2.7", inner)
    assert ("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH" in values) == local


def test_the_sockets_of_haproxy_have_a_short_path_whatever_the_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(ingress, "uses_haproxy", lambda serve: True)
    values = ingress.variables(ServeConfig(), local=True)
    folder = values["RAY_SERVE_HAPROXY_SERVER_STATE_BASE"]
    assert len(f"{folder}/{'0' * 56}/admin.sock.12345678.bak") <= 107

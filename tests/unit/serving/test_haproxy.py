"""What Ray writes for HAProxy is kept to the host that was asked for."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography import x509

from distml.config import Config, ServeConfig, TlsConfig
from distml.errors import ConfigError, ServingError
from distml.serving import client, deploy, haproxy, ingress
from tests import certificates

# The lines that matter of what Ray 2.60 writes.
WRITTEN = """defaults
    mode http
    log global
    option httplog
frontend http_frontend
    bind *:8000
    log 127.0.0.1:514 local0
backend http-distml
    server one 127.0.0.1:30000 check
    server two 10.0.0.7:30000 check
listen stats
  bind :8404
"""


def test_a_head_without_replicas_is_not_healthy() -> None:
    rule = '    http-request return status 200 content-type text/plain string "success" if healthcheck\n'
    front = WRITTEN[: WRITTEN.index("backend ")] + rule
    assert "status 200 content-type" not in haproxy.corrected(front, "127.0.0.1", "10", "abns@x")
    backends = WRITTEN[WRITTEN.index("backend ") :]
    assert rule in haproxy.corrected(front + backends, "127.0.0.1", "10", "abns@x")


def test_replicas_are_kept_where_the_configuration_names_none() -> None:
    servers = WRITTEN[WRITTEN.index("    server one") : WRITTEN.index("listen stats")]
    fallback = "    server last 10.0.0.1:8500 check backup\n"
    none = WRITTEN.replace(servers, fallback)
    same, known = haproxy.kept(WRITTEN, {})
    assert same == WRITTEN
    filled, still = haproxy.kept(none, known)
    assert filled == WRITTEN.replace(servers, fallback + servers)
    assert still == known
    corrected = haproxy.corrected(filled, "127.0.0.1", "10", "abns@x")
    assert "server one 127.0.0.1:30000 check port 31001" in corrected
    fewer = WRITTEN.replace("    server one 127.0.0.1:30000 check\n", "")
    assert haproxy.kept(fewer, known)[0] == fewer
    assert haproxy.kept(none, {}) == (none, {"http-distml": ()})
    gone = WRITTEN[: WRITTEN.index("backend ")]
    assert haproxy.kept(gone, known) == (gone, {})


@pytest.mark.parametrize(
    ("host", "here"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("10.0.0.5", "10.0.0.5"), ("0.0.0.0", "127.0.0.1")],
)
def test_ports_and_replicas_of_this_machine_use_the_configured_host(host: str, here: str) -> None:
    lines = [line.strip() for line in haproxy.corrected(WRITTEN, host, "10", "abns@x").splitlines()]
    assert [line for line in lines if line.startswith("bind")] == [
        f"bind {host}:8000",
        f"bind {host}:8404",
        "bind abns@x",
    ]
    assert [line for line in lines if line.startswith("server")] == [
        "server nobody abns@x backup",
        f"server one {here}:30000 check port 31001",
        "server two 10.0.0.7:30000 check port 31001",
    ]


def test_only_what_clients_ask_is_at_the_host_where_replicas_have_their_own() -> None:
    grpc = "frontend grpc_frontend\n    # over cleartext\n    bind 127.0.0.1:8001 proto h2\n"
    text = WRITTEN.replace("bind *:8000", "bind 127.0.0.1:8000") + grpc
    lines = haproxy.corrected(text, "::", "10", "abns@x", replicas_host="127.0.0.1").splitlines()
    assert [line.split()[1] for line in lines if line.strip().startswith("bind")] == [
        ":::8000",
        ":::8001",
        "127.0.0.1:8404",
        "abns@x",
    ]
    assert "    server one 127.0.0.1:30000 check port 31001" in lines


def test_a_request_has_a_time_limit_and_no_access_log() -> None:
    text = haproxy.corrected(WRITTEN, "127.0.0.1", "7.5", "abns@x")
    assert "timeout http-request 7.5s" in text
    assert "httplog" not in text
    assert ":514" not in text
    assert "del-header x-request-timeout-seconds" in text


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[int]:
    """The port of an HAProxy with certificate number 1, started as Ray starts it, without a replica."""
    certificates.write(tmp_path, 1)
    port = ingress.free_ports()[0]
    configuration = f"""global
    stats socket {tmp_path}/admin.sock mode 666 level admin expose-fd listeners
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 5s
frontend http_frontend
    bind *:{port}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path not found."
"""
    (tmp_path / "haproxy.cfg").write_text(configuration)
    variables = {
        haproxy.PROGRAM: haproxy.program() or "",
        haproxy.HOST: "127.0.0.1",
        haproxy.PATIENCE: "5",
        haproxy.CERTIFICATE: str(tmp_path / "cert.pem"),
        haproxy.KEY: str(tmp_path / "key.pem"),
    }
    words = [sys.executable, str(haproxy.GUARD), "-db", "-f", str(tmp_path / "haproxy.cfg")]
    with subprocess.Popen(words, env=os.environ | variables) as process:
        yield port
        children = psutil.Process(process.pid).children()
        process.kill()
        assert psutil.wait_procs(children, 10)[1] == []  # what follows the certificate ends with HAProxy


def _connected(port: int, context: ssl.SSLContext) -> tuple[http.client.HTTPSConnection, int]:
    """A connection that has been answered once, and the serial number of its certificate."""
    deadline = time.monotonic() + 15
    while True:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
        try:
            connection.connect()
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert _status(connection) == 503
    shown = connection.sock.getpeercert(binary_form=True)
    assert shown
    return connection, x509.load_der_x509_certificate(shown).serial_number


def _serial(port: int, context: ssl.SSLContext) -> int:
    connection, serial = _connected(port, context)
    connection.close()
    return serial


def _status(connection: http.client.HTTPSConnection) -> int:
    connection.request("GET", "/")
    response = connection.getresponse()
    assert json.loads(response.read())["error"]
    return response.status


@pytest.mark.skipif(haproxy.program() is None, reason="there is no HAProxy here")
def test_a_renewed_certificate_is_loaded_without_losing_connections(tls: int, tmp_path: Path) -> None:
    context = ssl._create_unverified_context()
    before, serial = _connected(tls, context)
    assert serial == 1
    assert (tmp_path / "certificate.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "admin.sock").stat().st_mode & 0o777 == 0o600
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("DEFAULT@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", tls), 5) as plain, pytest.raises(ssl.SSLError):
        old.wrap_socket(plain)
    (tmp_path / "cert.pem").write_text("half of it")
    time.sleep(haproxy._LOOK_S + 0.5)
    assert _serial(tls, context) == 1  # what cannot be used changes nothing
    certificates.write(tmp_path, 2)
    deadline = time.monotonic() + 15
    while (renewed := _serial(tls, context)) == 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert renewed == 2
    assert _status(before) == 503  # over the connection from before
    before.close()
    assert "ssl-min-ver TLSv1.2" in (tmp_path / "haproxy.cfg").read_text()
    while x509.load_pem_x509_certificate((tmp_path / "certificate.pem").read_bytes()).serial_number == 1:
        assert time.monotonic() < deadline  # it is there for the next HAProxy, too
        time.sleep(0.1)


@pytest.mark.skipif(haproxy.program() is None, reason="there is no HAProxy here")
def test_methods_that_no_replica_knows_are_answered_in_json(tls: int) -> None:
    connection, _ = _connected(tls, ssl._create_unverified_context())
    for method, url, status in (
        ("PURGE", "/", 501),
        ("BREW", "/predict", 501),
        ("OPTIONS", "*", 204),
        ("GET", "*", 400),
    ):
        connection.request(method, url)
        response = connection.getresponse()
        body = response.read()
        assert response.status == status
        if status == 501:
            assert json.loads(body) == {"error": haproxy._METHOD}
        elif status == 400:
            assert json.loads(body) == {"error": haproxy._WHOLE}
        else:
            assert response.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    connection.close()


def test_an_unusable_certificate_fails_the_start(tmp_path: Path) -> None:
    certificates.write(tmp_path, 1)
    files = TlsConfig(certificate=str(tmp_path / "cert.pem"), key=str(tmp_path / "key.pem"))
    ingress.require_certificate(files)
    (tmp_path / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match=r"others can read or change the key, its mode is 0644.*chmod 600"):
        ingress.require_certificate(files)
    certificate = (tmp_path / "cert.pem").read_bytes()
    certificates.write(tmp_path, 2)
    (tmp_path / "cert.pem").write_bytes(certificate)
    with pytest.raises(ConfigError, match="do not belong together"):
        ingress.require_certificate(files)
    (tmp_path / "cert.pem").unlink()
    with pytest.raises(ConfigError, match="No such file"):
        ingress.require_certificate(files)
    with pytest.raises(ConfigError, match="certificate and key belong together"):
        Config.resolve({"serve": {"tls": {"certificate": "cert.pem"}}})


def test_tls_without_haproxy_is_rejected_and_urls_use_https() -> None:
    serve = ServeConfig.model_validate({"proxy": "ray", "tls": {"certificate": "c.pem", "key": "k.pem"}})
    with pytest.raises(ServingError, match=r"serve\.tls needs HAProxy"):
        ingress.variables(serve, local=True)
    assert deploy.url(serve) == "https://127.0.0.1:8000"
    assert client.verify("https://api.example.com") is client.verify("http://127.0.0.1:1") is True
    assert client.verify("https://127.0.0.1:1") is client.verify("https://[::1]:1") is False


GRPC = """frontend grpc_frontend
    bind 0.0.0.0:9000 proto h2
backend grpc-distml
    option tcp-check
    tcp-check connect
    tcp-check send-binary 00
    default-server fall 1 inter 1s check
    server one 127.0.0.1:40000 proto h2 check observe layer4 error-limit 3 on-error mark-down
    server two 10.0.0.7:40000 proto h2 check observe layer4 error-limit 3 on-error mark-down
    server fallback 127.0.0.1:9001 proto h2 check backup
"""


def test_calls_of_grpc_are_requests_like_others() -> None:
    text = haproxy.corrected(WRITTEN + GRPC, "127.0.0.1", "10", "abns@x")
    served = text[text.index("frontend http_frontend") : text.index("backend http-distml")]
    assert [line.strip() for line in served.splitlines() if line.strip().startswith("bind")] == [
        "bind 127.0.0.1:8000",
        "bind 127.0.0.1:9000 proto h2",
    ]
    assert "grpc_frontend" not in text
    assert "grpc-distml" not in text
    assert "40000" not in text
    assert "tcp-check" not in text
    assert "listen stats" in text


def test_grpc_uses_tls_where_http_does() -> None:
    text = haproxy.corrected(WRITTEN + GRPC, "127.0.0.1", "10", "abns@x", Path("/tls/bundle.pem"))
    binds = [line.strip() for line in text.splitlines() if line.strip().startswith("bind")]
    assert binds[0].endswith("ssl crt /tls/bundle.pem ssl-min-ver TLSv1.2 alpn http/1.1")
    assert any(line.endswith("9000 ssl crt /tls/bundle.pem ssl-min-ver TLSv1.2 alpn h2") for line in binds)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing elsewhere tells a process of its parent's end")
def test_a_process_ends_with_its_parent_however_that_ends() -> None:
    child = (
        "import signal, time; from distml.serving.haproxy import end_with_parent as end; end(signal.SIGKILL)"
    )
    child += "; print('bound', flush=True); time.sleep(60)"
    parent = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    parent += "; print(p.pid, flush=True); p.wait()"
    words = [sys.executable, "-c", parent, child]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        pid = int(next(line for line in (first, second) if line.strip().isdigit()))
        bound = psutil.Process(pid)
        process.kill()
        process.wait()
        bound.wait(10)

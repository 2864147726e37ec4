"""An HTTP mirror on this machine with settable faults, which records its requests."""

from __future__ import annotations

import hashlib
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Mirror:
    """What a server offers and how it fails.

    Args:
        files: Content by name.
        drops: How often a name is still cut off half-way through what was asked for.
        errors: Status codes still answered for a name, first one first.
        ranges: Whether a range is honoured; else the whole file comes.
        gets: Every request, as (name, Range header or "").
        heads: Names that HEAD was asked for.
        etag: Whether the server names a version of its files.
        head: Status that HEAD is answered with where the server knows GET alone, else 0.
        tls: Files of the certificate and its key, for https.
    """

    files: dict[str, bytes]
    drops: dict[str, int] = field(default_factory=dict)
    errors: dict[str, list[int]] = field(default_factory=dict)
    ranges: bool = True
    gets: list[tuple[str, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    url: str = ""
    etag: bool = True
    head: int = 0
    tls: tuple[Path, Path] | None = None


@contextmanager
def serving(mirror: Mirror) -> Iterator[Mirror]:
    """Serve on a free port of the loopback interface until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            asked = self.headers.get("Range", "")
            mirror.gets.append((name, asked))
            if mirror.errors.get(name):
                self.send_error(mirror.errors[name].pop(0))
            elif name not in mirror.files:
                self.send_error(404)
            else:
                self._send(name, asked)

        def do_HEAD(self) -> None:
            mirror.heads.append(self.path)
            name = self.path.rpartition("/")[2]
            self.send_response(mirror.head or (200 if name in mirror.files else 404))
            if name in mirror.files and not mirror.head:
                self._describe(name)
                self.send_header("Content-Length", str(len(mirror.files[name])))
            self.end_headers()

        def _describe(self, name: str) -> None:
            if mirror.etag:
                self.send_header("ETag", hashlib.sha256(mirror.files[name]).hexdigest())

        def _send(self, name: str, asked: str) -> None:
            content = mirror.files[name]
            begin, _, end = asked.removeprefix("bytes=").partition("-") if mirror.ranges else ("", "", "")
            first, last = int(begin or 0), int(end or len(content) - 1)
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self._describe(name)
            rest = content[first : last + 1]
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            if mirror.drops.get(name, 0):
                mirror.drops[name] -= 1
                rest = rest[: len(rest) // 2]
                self.close_connection = True
            self.wfile.write(rest)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    if mirror.tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*mirror.tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        mirror.url = f"https://localhost:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A replica's health for HAProxy, told by a thread of its own on a port of its own (replica).

HAProxy asks every replica each second and takes one that stays silent out of rotation. Asked at the port of
the requests, the question waits behind them: a replica in overload, which answers 429 in time to its clients,
missed its check, and all its requests were lost. Here only a process that is stopped, or whose event loop
has stood for longer than a request may take, is silent or says 503.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil

from distml.serving.haproxy import HEALTH_PORT_OFFSET

logger = logging.getLogger(__name__)

LOWEST, HIGHEST = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT", "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"
"""Environment variables: that range."""
_BEAT_S, _LOOK_S, _CHECK_S = 0.5, 0.1, 2.0


class _Server(ThreadingHTTPServer):
    """A server whose answer depends on an event loop. Final."""

    daemon_threads = True

    def __init__(self, host: str, port: int, health: Health) -> None:
        self.health = health
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a health check of %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Answers each check and closes the connection. Final."""

    server: _Server
    timeout = _CHECK_S

    def do_GET(self) -> None:
        self.send_response(200 if self.server.health.alive() else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


class Health:
    """Tells HAProxy whether the event loop of this replica runs. Final.

    Args:
        host: Address to listen at.
        limit_s: How long the loop may stand, in seconds, before the replica counts as hanging.
    """

    def __init__(self, host: str, limit_s: float) -> None:
        self._host, self._limit_s = host, limit_s
        self._beat_at = time.monotonic()
        self._error = ""

    def start(self) -> None:
        """Begin, from within the event loop; the port is known when Ray has bound that of the requests."""
        self._beat(asyncio.get_running_loop())
        threading.Thread(target=self._serve, name="health", daemon=True).start()

    def alive(self) -> bool:
        """Whether the event loop ran within the limit."""
        return time.monotonic() - self._beat_at <= self._limit_s

    @property
    def error(self) -> str:
        """Why nobody can ask at the port, in a sentence; empty where all is well."""
        return self._error

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._beat_at = time.monotonic()
        loop.call_later(_BEAT_S, self._beat, loop)

    def _serve(self) -> None:
        while not (port := listening()):
            time.sleep(_LOOK_S)
        try:
            with _Server(self._host, port + HEALTH_PORT_OFFSET, self) as server:
                server.serve_forever()
        except OSError as error:
            reason = error.strerror or str(error)
            self._error = (
                f"port {port + HEALTH_PORT_OFFSET}, at which HAProxy asks for health, is not free: {reason}"
            )
            logger.error("%s", self._error)


def listening() -> int | None:
    """Return the port at which this process takes requests; None where Ray has bound none yet."""
    lowest, highest = int(os.environ[LOWEST]), int(os.environ[HIGHEST])
    for connection in psutil.Process().net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and lowest <= connection.laddr.port <= highest:
            return int(connection.laddr.port)
    return None

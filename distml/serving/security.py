"""Who may ask: the names an endpoint answers to, and the origins of pages that may ask it (replica).

A page of a stranger reaches an endpoint on loopback in two ways. It posts to it: browsers send forms and
plain text without asking first. Or its own name is made to point at 127.0.0.1 (DNS rebinding): then it is of
the same origin as the endpoint, and reads. The first shows in `Origin` and `Sec-Fetch-Site`, the second in
`Host`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send

from distml.config import ServeConfig
from distml.serving.exchange import Header, RejectedError, options

_PROBES = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
"""Balancers and monitors ask these by whatever name they know."""
_SAFE = ("GET", "HEAD", "OPTIONS")
_ANY = "*"
_ALLOWED: list[Header] = [
    (b"access-control-allow-methods", b"GET, POST"),
    (
        b"access-control-allow-headers",
        b"content-type, content-encoding, authorization, x-api-key, x-request-id, "
        b"inference-header-content-length",
    ),
    (b"access-control-max-age", b"600"),
]
_EXPOSED: Header = (
    b"access-control-expose-headers",
    b"x-model-version, x-request-id, x-input-warnings, inference-header-content-length, retry-after",
)


class Guard:
    """Decides from a request's headers alone. Final.

    Args:
        serve: The section of the configuration.
    """

    def __init__(self, serve: ServeConfig) -> None:
        self._hosts = frozenset(host.lower().rstrip(".") for host in serve.allowed_hosts)
        self._open = not self._hosts and not _loopback(serve.host)
        self._bound = serve.host.lower()
        self._origins = frozenset(serve.cors_origins)
        self.shares = bool(self._origins)
        """Whether any other origin may read."""
        self._known = lru_cache(256)(self._knows)

    def reject(self, scope: Scope) -> RejectedError | None:
        """Return why a request is not taken, None where it is.

        A request from another origin that may cost or change something is taken only from
        `serve.cors_origins`; one that only reads is answered, and the browser withholds the answer.
        """
        host, origin, site = _headers(scope)
        if host and not self._open and scope["path"] not in _PROBES and not self._known(host):
            name = repr(host[:80])
            return RejectedError(
                421, f"this endpoint does not answer to the name {name}; serve.allowed_hosts lists its names"
            )
        if scope["method"] in _SAFE or self.allows(origin):
            return None
        foreign = _authority(origin) != _plain(host) if origin else site in ("cross-site", "same-site")
        if foreign:
            where = f"of {origin[:80]!r}" if origin else "of another site"
            return RejectedError(
                403, f"requests from pages {where} are not taken; serve.cors_origins lists those that may ask"
            )
        return None

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may ask and read."""
        return bool(origin) and (origin in self._origins or _ANY in self._origins)

    async def shared(self, app: Any, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer a request from an origin that may read; returns False where the origin is none of those."""
        origin = _headers(scope)[1]
        if not self.allows(origin):
            return False
        own: list[Header] = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"vary", b"origin"),
            _EXPOSED,
        ]

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *own]
            await send(message)

        if scope["method"] == "OPTIONS":
            preflight = options("GET, POST")
            preflight.raw_headers += _ALLOWED
            await preflight(scope, receive, told)
        else:
            await app(scope, receive, told)
        return True

    def _knows(self, host: str) -> bool:
        name = _name(host)
        if _address(name) or _loopback(name) or name in self._hosts or name == self._bound:
            return True
        return _ANY in self._hosts or any(name.endswith(one[1:]) for one in self._hosts if one[:2] == "*.")


def _headers(scope: Scope) -> tuple[str, str, str]:
    """Return `Host`, `Origin` and `Sec-Fetch-Site`, empty where they are not sent."""
    host = origin = site = b""
    pairs: Sequence[Header] = scope["headers"]
    for key, value in pairs:
        if key == b"host":
            host = value
        elif key == b"origin":
            origin = value
        elif key == b"sec-fetch-site":
            site = value
    return host.decode("latin-1"), origin.decode("latin-1"), site.decode("latin-1")


def _name(host: str) -> str:
    """The name in `Host`, without its port."""
    host = host.lower()
    name = host.partition("]")[0].lstrip("[") if host.startswith("[") else host.rpartition(":")[0] or host
    return name.rstrip(".")


def _plain(host: str) -> str:
    """`Host` without the port that its scheme implies."""
    return host.lower().removesuffix(":80").removesuffix(":443")


def _authority(origin: str) -> str:
    """Where a page came from, in the form of `Host`; of `null` nothing that equals one."""
    return _plain(urlsplit(origin).netloc) or "null"


def _address(name: str) -> bool:
    """Whether it is no name: nobody can make an address point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _address(name) and ipaddress.ip_address(name).is_loopback

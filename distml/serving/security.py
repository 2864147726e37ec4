"""Access control: allowed hosts, CORS origins, API keys and rate limits (replica).

A page of another origin reaches an endpoint on loopback in two ways. It posts to it: browsers send forms and
plain text without asking first. Or its own name is made to point at 127.0.0.1 (DNS rebinding): then it is of
the same origin as the endpoint, and reads. The first shows in `Origin` and `Sec-Fetch-Site`, the second in
`Host`.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send

from distml.config import AuthConfig, ServeConfig
from distml.errors import ConfigError
from distml.serving import keys
from distml.serving.exchange import Header, RejectedError, options
from distml.serving.metrics import Metrics

logger = logging.getLogger(__name__)

_PROBES = frozenset(("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"))
"""Balancers and monitors ask these by whatever name they know."""
_OPEN = frozenset(("/healthz", "/readyz", "/", "/index.html", "/page.css", "/page.js"))
"""Probes, and the page, which asks its user for a key; everything else needs one."""
_LOOK_S = 1.0
_SETTLED_S = 0.3
"""A file that changed less than this ago may be half written."""
_BURST_S = 2.0
"""Seconds' worth of requests that a key may save up."""
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
        self._probes = _PROBES | _of_models(serve)
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
        if host and not self._open and scope["path"] not in self._probes and not self._known(host):
            name = repr(host[:80])
            return RejectedError(
                421, f"{name} is not a name of this endpoint; serve.allowed_hosts lists its names"
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
        return _ANY in self._hosts or any(
            name.endswith(pattern[1:]) for pattern in self._hosts if pattern[:2] == "*."
        )


def _of_models(serve: ServeConfig) -> frozenset[str]:
    """The probes of several models."""
    return frozenset(f"/models/{model.called}/readyz" for model in serve.models)


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
    try:
        return _plain(urlsplit(origin).netloc) or "null"
    except ValueError:  # half an IPv6 address
        return "null"


def _address(name: str) -> bool:
    """Whether it is an address and not a name, which DNS could point elsewhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _address(name) and ipaddress.ip_address(name).is_loopback


@dataclass(slots=True)
class _Bucket:
    """How many requests a key has left, and since when."""

    left: float
    since: float


class KeyCheck:
    """Decides by a request's key whether it is taken. Final.

    Args:
        auth: The section of the configuration, with a keys file.
        metrics: Where requests are counted by the name of their key.
        serve: Names the models whose probes need no key.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, auth: AuthConfig, metrics: Metrics, serve: ServeConfig | None = None) -> None:
        self._open = _OPEN | (_of_models(serve) if serve else frozenset())
        assert auth.keys_file is not None
        self._path, self._rate, self._metrics = auth.keys_file, auth.requests_per_s, metrics
        self._buckets: dict[str, _Bucket] = {}
        self._looked, self._stamp, self._said = time.monotonic(), self._stat(), ""
        own = keys.internal()
        self._own = keys.Key(keys.INTERNAL, keys.digest(own.encode())) if own else None
        self._keys: Mapping[bytes, keys.Key] = {}
        self._take(keys.read(self._path))

    def _take(self, valid: tuple[keys.Key, ...]) -> None:
        if not valid:
            logger.warning("%s holds no key: every request is rejected", self._path)
        known = {key.digest: key for key in valid}
        self._keys = known | ({self._own.digest: self._own} if self._own else {})

    def _stat(self) -> tuple[int, int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode

    def look(self) -> None:
        """Reload the file where it has changed; an invalid file changes nothing and is logged."""
        stamp = self._stat()
        if stamp == self._stamp or (stamp and abs(time.time() - stamp[0] / 1e9) < _SETTLED_S):
            return
        try:
            self._take(keys.read(self._path))
        except ConfigError as error:
            if str(error) != self._said:
                logger.error("%s The previous keys stay valid.", error)
            self._said = str(error)
            return
        self._stamp, self._said = stamp, ""
        logger.info("reloaded the keys of %s", ", ".join(sorted({k.name for k in self._keys.values()})))

    def reject(self, scope: Scope) -> RejectedError | None:
        """Return why a request is not taken, None where it is."""
        if scope["path"] in self._open or scope["method"] == "OPTIONS":
            return None
        now = time.monotonic()
        if now - self._looked >= _LOOK_S:
            self._looked = now
            self.look()
        given = _given(scope["headers"])
        if not given:
            return self._refuse(
                "missing", "this endpoint needs a key; send Authorization: Bearer KEY or X-API-Key"
            )
        digest = keys.digest(given)
        key = self._keys.get(digest)  # by a hash: the duration reveals nothing of a key
        if key is None or not hmac.compare_digest(key.digest, digest):
            return self._refuse("unknown", "the key that was sent is not known here")
        if key.expires is not None and time.time() >= key.expires:
            return self._refuse("expired", f"the key of {key.name} has expired")
        if self._rate and key is not self._own and not self._has_turn(key.name, now):
            self._metrics.keyed(key.name, "limited").inc()
            sentence = f"{key.name} sends more than {self._rate:g} requests a second; retry later"
            return RejectedError(429, sentence, (b"retry-after", b"1"))
        self._metrics.keyed(key.name, "taken").inc()
        return None

    def _refuse(self, reason: str, sentence: str) -> RejectedError:
        self._metrics.unauthorized.labels(reason).inc()
        return RejectedError(401, sentence, (b"www-authenticate", b'Bearer realm="distml"'))

    def _has_turn(self, name: str, now: float) -> bool:
        """Take one request from what a name has left; replicas share its rate evenly."""
        assert self._rate is not None
        rate = self._rate / self._metrics.replicas
        most = max(1.0, rate * _BURST_S)
        bucket = self._buckets.setdefault(name, _Bucket(most, now))
        bucket.left = min(most, bucket.left + (now - bucket.since) * rate)
        bucket.since = now
        if bucket.left < 1:
            return False
        bucket.left -= 1
        return True


def _given(headers: list[Header]) -> bytes:
    """Return the key of a request, empty where none is sent."""
    other = b""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return bytes(value[7:]).strip()
        if name == b"x-api-key":
            other = bytes(value).strip()
    return other

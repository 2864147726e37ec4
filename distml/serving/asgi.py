"""`Application`, the ASGI app: middleware of every request, and fast routes beside FastAPI (replica).

FastAPI reads bodies, validates and serialises by pydantic; for a body of a few hundred numbers that costs
more than the model. These routes call their function with the request and send what it returns; their
description in OpenAPI is unaffected.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from distml.errors import (
    ModelError,
    NotReadyError,
    OverloadedError,
    ServingError,
    TimedOutError,
    UnknownVersionError,
)
from distml.serving.exchange import Answer, Header, RejectedError, options, reject
from distml.serving.metrics import Metrics
from distml.serving.security import Guard, KeyCheck

log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Answer]]
Calls = Callable[[Scope, Receive, Send, RejectedError | None], Awaitable[None]]
"""Answers the calls of another protocol over HTTP; the last argument says why one is not taken."""

_STATUS: dict[type[Exception], int] = {
    OverloadedError: 429,
    NotReadyError: 503,
    TimedOutError: 504,
    UnknownVersionError: 404,
    ModelError: 400,  # images of another shape than that of the version that came to answer
}
_KNOWN_PATHS = 1024
CALL = b"application/grpc"
"""What the content type of a call of gRPC begins with."""


class Route(APIRoute):
    """A route whose endpoint takes the request and returns an `Answer`. Final."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **described: Any) -> None:
        super().__init__(path, endpoint, **described)
        # A colon begins TensorFlow Serving's verb, so no name holds one.
        self.path_regex = re.compile(self.path_regex.pattern.replace("[^/]+", "[^/:]+"))
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        metrics: Metrics = scope["metrics"]
        metrics.running.inc()
        answer = None
        try:
            answer = await attempt(self.endpoint, Request(scope, receive))
            await answer(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            metrics.running.dec()
            metrics.answered(self.path, scope["method"], answer, time.perf_counter() - started)


async def attempt(endpoint: Endpoint, request: Request) -> Answer:
    """Call an endpoint; whatever it raises becomes an answer with one sentence."""
    try:
        return await endpoint(request)
    except ClientDisconnect:
        raise
    except Exception as error:
        return reject(rejection(error, f"{request.method} {request.url.path}"))


def rejection(error: Exception, what: str) -> RejectedError:
    """Return the rejection that a client gets for an error; an unexpected error is logged in full.

    Args:
        error: Raised while a request was answered.
        what: The request, for the log.
    """
    if isinstance(error, RejectedError):
        return error
    if not isinstance(error, ServingError | ModelError):
        log.error("%s failed", what, exc_info=error)
        return RejectedError(500, "the endpoint failed; its log says why")
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 500)
    retry = getattr(error, "retry_after_s", None)
    headers: list[Header] = [] if retry is None else [(b"retry-after", b"%d" % retry)]
    return RejectedError(status, str(error), *headers)


class Application(FastAPI):
    """FastAPI whose `Route`s are looked up in a table and called directly.

    Our routes handle their errors themselves, so the layers that FastAPI and Starlette put around every
    request do nothing for them but cost as much as parsing an image.
    """

    def __init__(
        self,
        metrics: Metrics,
        guard: Guard,
        keys: KeyCheck | None,
        of_models: Mapping[str, Metrics] | None = None,
        calls: Mapping[str, Calls] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._calls = calls or {}
        self.metrics = metrics
        self._of_models = of_models or {}
        self._first = next(iter(self._of_models.values()), metrics)
        self._guard, self._keys = guard, keys
        self._find = lru_cache(_KNOWN_PATHS)(self._match)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, reject it by its headers, or hand it to FastAPI."""
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        if (calls := self._calls.get(scope["path"])) is not None:
            return await calls(scope, receive, send, self._guard.reject(scope))
        if rejection := self._guard.reject(scope):
            return await self._reject(rejection, scope, receive, send)
        if self._guard.shares and await self._guard.shared(self._answer, scope, receive, send):
            return None
        return await self._answer(scope, receive, send)

    async def _reject(self, rejection: RejectedError, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_call(scope):
            return await self._call(scope, receive, send, rejection)
        answer = reject(rejection)
        self.metrics.answered("rejected by headers", scope["method"], answer, 0.0)
        return await answer(scope, receive, send)

    def _is_call(self, scope: Scope) -> bool:
        if not self._calls or scope["method"] != "POST":
            return False
        return any(key == b"content-type" and value.startswith(CALL) for key, value in scope["headers"])

    async def _call(
        self, scope: Scope, receive: Receive, send: Send, rejection: RejectedError | None
    ) -> None:
        await next(iter(self._calls.values()))(scope, receive, send, rejection)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._keys and (rejection := self._keys.reject(scope)):
            return await self._reject(rejection, scope, receive, send)
        match = self._find(scope["method"], scope["path"])
        if isinstance(match, Answer):
            return await match(scope, receive, send)
        if match is not None:
            scope["app"], scope["path_params"], scope["metrics"] = self, match[1], match[2]
            return await match[0].app(scope, receive, send)
        if self._is_call(scope):
            return await self._call(scope, receive, send, None)
        # Parts of the page are not worth their errors, which Starlette writes as plain text (RFC 9110, 14.2).
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"range"]
        return await super().__call__(scope, receive, send)

    def _match(self, method: str, path: str) -> tuple[Route, dict[str, Any], Metrics] | Answer | None:
        """Find our route for a request; an answer where the path takes other methods only.

        HEAD is answered as GET is (RFC 9110, 9.1), without the body; OPTIONS says what a path takes.
        """
        wanted = "GET" if method == "HEAD" else method
        plain = path.rstrip("/") or "/"  # clients that join paths leave a slash at the end
        scope = {"type": "http", "method": wanted, "path": plain, "root_path": ""}
        taken: set[str] = set()
        for route in self.router.routes:
            if isinstance(route, Route):
                match, child = route.matches(scope)
                if match is Match.FULL:
                    parameters = dict(child["path_params"])
                    return route, parameters, self._counting(route, parameters)
                if match is Match.PARTIAL:
                    taken |= route.methods or set()
        if not taken:
            return None
        allowed = ", ".join(sorted(taken | {"OPTIONS"} | ({"HEAD"} if "GET" in taken else set())))
        if method == "OPTIONS":
            return options(allowed)
        sentence = f"{path[:200]} takes {', '.join(sorted(taken))}, not {method[:20]}"
        return reject(RejectedError(405, sentence, (b"allow", allowed.encode())))

    def _counting(self, route: Route, parameters: dict[str, Any]) -> Metrics:
        """Return where the requests of a path are counted: with the model that it asks."""
        if "name" in parameters:
            return self._of_models.get(parameters["name"], self.metrics)
        return self._first if route.path in OF_FIRST else self.metrics


OF_FIRST = ("/predict", "/predict/image", "/explain", "/model")
"""Paths that ask a model and name none: the first of several."""


async def unfound(request: Request, error: Exception) -> Answer:
    """Answer in JSON what FastAPI and the page refuse."""
    if not isinstance(error, HTTPException):
        raise error
    headers = [(key.lower().encode(), value.encode()) for key, value in (error.headers or {}).items()]
    path = request.url.path[:200]
    sentences = {
        404: f"there is nothing at {path}; /openapi.json describes what there is",
        405: f"{path} does not take {request.method[:20]}",
    }
    sentence = sentences.get(error.status_code, str(error.detail))
    return reject(RejectedError(error.status_code, sentence, *headers))

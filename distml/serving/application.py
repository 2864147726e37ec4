"""Assembles the HTTP application of a replica: three protocols, the page, their description (replica)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

import distml
from distml.config import ServeConfig
from distml.serving import encoded, native, openapi, openinference, tfserving
from distml.serving.asgi import Application, Calls, Endpoint, Route, unfound
from distml.serving.exchange import Answer, answer, options
from distml.serving.metrics import Metrics
from distml.serving.rpc import CallsRoute
from distml.serving.security import Guard, KeyCheck
from distml.serving.service import Models, Served, Service

PAGE = Path(__file__).parent / "page"
_PROTOCOLS = (native, tfserving, openinference)
_TAKEN = "GET, HEAD, OPTIONS"
_SECURITY = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


class _Page:
    """Static files that load nothing from elsewhere and cannot be framed. Final."""

    def __init__(self, folder: Path) -> None:
        self._files = StaticFiles(directory=folder, html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def secured(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_SECURITY]
            await send(message)

        if scope["method"] not in ("GET", "HEAD"):
            there = self._files.lookup_path(self._files.get_path(scope))[1] or scope["path"] == "/"
            if there and scope["method"] == "OPTIONS":
                await options(_TAKEN)(scope, receive, send)
                return
            raise HTTPException(405, headers={"Allow": _TAKEN}) if there else HTTPException(404)
        await self._files(scope, receive, secured)


def _examples(served: list[Served]) -> openapi.Examples:
    """Show every protocol's bodies with one image of the champion's shape."""
    if not served or served[0].shape[2] not in (1, 3):
        return {}
    image = openapi.example(served[0].shape)
    coded = encoded.example(np.asarray(image, np.uint8).reshape(served[0].shape))
    bodies: dict[str, Mapping[str, Any]] = {}
    for protocol in _PROTOCOLS:
        bodies |= protocol.examples(image, coded, next(iter(served[0].task.tensors)))
    return bodies


def key_check(config: ServeConfig, metrics: Metrics) -> KeyCheck | None:
    """Return what decides by a request's key, None where no key is needed.

    Raises:
        ConfigError: The keys file cannot be used.
    """
    return KeyCheck(config.auth, metrics, config) if config.auth.keys_file else None


def _description(app: Application, models: Models, config: ServeConfig) -> Endpoint:
    async def description(request: Request) -> Answer:
        """Describe all routes."""
        plain = openapi.with_keys(app.openapi()) if config.auth.keys_file else app.openapi()
        documents = {
            name: openapi.specialise(
                plain, served := service.served(), _examples(served), list(service.aliases())
            )
            for name, service in models.services.items()
        }
        return answer(openapi.merged(documents) if models.several else documents[""])

    return description


def application(
    service: Service | Models,
    config: ServeConfig,
    metrics: Metrics | None = None,
    keys: KeyCheck | None = None,
    decoder: encoded.Decoder | None = None,
    calls: Mapping[str, Calls] | None = None,
) -> Application:
    """Make the application that answers all HTTP requests.

    Args:
        service: Who classifies: a model, or several by their names.
        config: Limits.
        metrics: Where requests are counted; without it a new registry.
        keys: Decides by the key; none makes one where `serve.auth.keys_file` is set.
        decoder: Of pictures; none makes one.
        calls: What answers the calls of gRPC, by their paths.

    Raises:
        ConfigError: The keys file cannot be used.
    """
    encoded.bound()
    models = Models.of(service)
    metrics = Metrics() if metrics is None else metrics
    app = Application(
        metrics,
        Guard(config),
        keys or key_check(config, metrics),
        models.metrics,
        calls,
        title="distml",
        version=distml.__version__,
        description="Predicts from images. Speaks its own protocol, TensorFlow Serving's REST interface and "
        "the Open Inference Protocol (KServe V2).",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: unfound},
    )
    if calls:
        app.router.routes.append(CallsRoute())
    decoder = decoder or encoded.Decoder(config)
    for protocol in _PROTOCOLS:
        # `include_router` would wrap the routes in its own, slower ones.
        app.router.routes.extend(protocol.router(models, config, decoder.images).routes)

    app.router.routes.append(
        Route("/openapi.json", _description(app, models, config), include_in_schema=False)
    )
    if PAGE.is_dir():
        app.mount("/", _Page(PAGE), "page")
    return app

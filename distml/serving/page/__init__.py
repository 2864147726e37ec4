"""The page at `/`: static files that speak the native protocol, and what they may do (replica)."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

_KINDS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
}
HEADERS = {
    # Scripts, styles and answers from here alone; pictures from the person's own machine.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}
"""Sent with every file."""


def files() -> dict[str, tuple[bytes, str]]:
    """Return content and content type of every file, by path; the page itself is at the path ''."""
    folder = resources.files(__name__)
    return {
        "" if name == "index.html" else name: (folder.joinpath(name).read_bytes(), kind)
        for name, kind in _KINDS.items()
    }


def mount(app: FastAPI) -> None:
    """Let an application answer `/`, `/page.css` and `/page.js`."""
    from starlette.responses import Response

    def route(path: str, content: bytes, kind: str) -> None:
        async def send(_: object) -> Response:
            return Response(content, headers={**HEADERS, "content-type": kind})

        app.add_route(f"/{path}", send, ["GET"], include_in_schema=False)

    for path, (content, kind) in files().items():
        route(path, content, kind)

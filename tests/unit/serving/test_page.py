"""The page's files: complete, from here alone, and served with a policy that keeps it so."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from fastapi import FastAPI

from distml.serving import page


def get(app: FastAPI, path: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of an answer, by ASGI itself."""
    sent: list[Any] = []

    async def call() -> None:
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        scope |= {"headers": [], "root_path": "", "scheme": "http", "http_version": "1.1"}

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app(scope, receive, send)

    asyncio.run(call())
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(one.get("body", b"") for one in sent[1:])


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    page.mount(app)
    return app


@pytest.mark.parametrize(
    ("path", "kind"), [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")]
)
def test_each_file_comes_with_its_kind_and_the_policy(app: FastAPI, path: str, kind: str) -> None:
    status, headers, body = get(app, path)
    assert status == 200
    assert headers["content-type"] == f"{kind}; charset=utf-8"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-content-type-options"] == "nosniff"
    assert len(body) > 1000


def test_nothing_else_is_served_from_there(app: FastAPI) -> None:
    assert get(app, "/__init__.py")[0] == 404
    assert get(app, "/page/page.js")[0] == 404


def test_the_page_asks_nobody_else_for_anything() -> None:
    text = b"\n".join(content for content, _ in page.files().values()).decode()
    addresses = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
    assert not addresses
    assert "@import" not in text
    named = re.findall(r'(?:src|href)="([^"#]+)"', page.files()[""][0].decode())
    assert set(named) <= {"page.css", "page.js", "data:,", "docs"}


def test_every_element_the_script_names_is_on_the_page() -> None:
    markup, script = page.files()[""][0].decode(), page.files()["page.js"][0].decode()
    named = set(re.findall(r'\$\("(\w[\w-]*)"\)', script))
    assert len(named) > 15
    assert named <= set(re.findall(r'id="([\w-]+)"', markup))


def test_inline_code_would_be_refused_by_the_policy() -> None:
    markup = page.files()[""][0].decode()
    assert not re.findall(r"<script(?![^>]*src=)|\son\w+=|\sstyle=|<style", markup)

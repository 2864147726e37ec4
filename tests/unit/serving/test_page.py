"""The page's files: from here alone, with nothing inline, and consistent with each other."""

from __future__ import annotations

import re

import pytest
import requests

from distml.serving.application import PAGE
from tests.serving import core, running

MARKUP, SCRIPT, STYLE = ((PAGE / name).read_text() for name in ("index.html", "page.js", "page.css"))


def test_each_file_has_its_content_type_and_the_policy() -> None:
    with running(core()) as url:
        for path, kind in (("", "text/html"), ("page.css", "text/css"), ("page.js", "text/javascript")):
            answer = requests.get(f"{url}/{path}", timeout=10)
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        for path in ("__init__.py", "page/page.js", "..%2fnative.py"):
            assert requests.get(f"{url}/{path}", timeout=10).status_code == 404


def test_the_page_requests_nothing_from_other_hosts() -> None:
    addresses = set(re.findall(r"https?://[^\s\"'`]+", MARKUP + SCRIPT + STYLE))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    assert "@import" not in STYLE
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', MARKUP)) == {
        "page.css",
        "page.js",
        "data:,",
        "openapi.json",
    }


def test_every_element_the_script_names_is_on_the_page() -> None:
    named = set(re.findall(r'\$\("(\w[\w-]*)"\)', SCRIPT))
    assert len(named) > 15
    assert named <= set(re.findall(r'id="([\w-]+)"', MARKUP))


@pytest.mark.parametrize("inline", [r"<script(?![^>]*src=)", r"\son\w+=", r"\sstyle=", r"<style"])
def test_the_page_has_no_inline_script_or_style(inline: str) -> None:
    assert not re.findall(inline, MARKUP)

"""Which names an endpoint answers to, and which pages may ask it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import requests

from distml.config import ServeConfig
from distml.serving.security import Guard
from tests import serving

BODY = b'{"instances": [[[0]]]}'  # of another shape: what is taken is answered with 400
ROUTES = [
    "/predict",
    "/predict/image",
    "/v1/models/pets:predict",
    "/v2/models/pets/infer",
    "/v2/repository/index",
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


def post(url: str, path: str, **headers: str) -> requests.Response:
    named = {key.replace("_", "-"): value for key, value in headers.items()}
    return requests.post(url + path, BODY, headers={"content-type": "text/plain;charset=UTF-8"} | named)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "http://evil.example", "sec_fetch_site": "cross-site"},
        {"origin": "null"},
        {"origin": "http://localhost:3000", "sec_fetch_site": "same-site"},
        {"sec_fetch_site": "cross-site"},
    ],
    ids=["origin", "form", "null", "other port", "no origin"],
)
def test_pages_of_others_may_not_post(url: str, path: str, headers: dict[str, str]) -> None:
    response = post(url, path, **headers)
    assert response.status_code == 403
    assert "serve.cors_origins" in response.json()["error"]
    assert "access-control-allow-origin" not in response.headers


def test_the_own_page_programs_and_links_are_served(url: str) -> None:
    assert post(url, "/v1/models/pets:predict").status_code == 400
    own = {"origin": url, "sec_fetch_site": "same-origin"}
    assert post(url, "/v1/models/pets:predict", **own).status_code == 400
    behind = {"host": "127.0.0.1", "origin": "https://127.0.0.1"}  # a proxy that ends TLS
    assert post(url, "/v1/models/pets:predict", **behind).status_code == 400
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert requests.get(f"{url}/model", headers=link).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8100", "localhost.evil.example", "127.0.0.1.nip.io"]
)
def test_a_rebound_host_name_is_rejected(url: str, method: str, host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    path = "/model" if method == "GET" else "/predict"
    response = requests.request(method, url + path, headers=headers, data=BODY)
    assert response.status_code == 421
    assert "serve.allowed_hosts" in response.json()["error"]
    assert requests.get(f"{url}/healthz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "value", ["http://[::", "http://[", "[", "]", ":", "http://a:b", "%", "\u00bd", "bytes=x", ""]
)
@pytest.mark.parametrize(
    "name",
    ["origin", "host", "sec-fetch-site", "range", "content-encoding", "accept-encoding", "authorization"],
)
def test_a_header_without_meaning_is_no_failure_and_answered_in_json(url: str, name: str, value: str) -> None:
    for method, path in (("POST", "/predict"), ("GET", "/page.js")):
        response = requests.request(method, url + path, data=BODY, headers={name: value.encode("latin-1")})
        assert response.status_code < 500
        assert response.ok or response.json()["error"]


def rejected(serve: dict[str, Any], host: str, path: str = "/model") -> bool:
    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", host.encode())]}
    return Guard(ServeConfig(**serve)).reject(scope) is not None


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "app.localhost", "127.0.0.1:8000", "[::1]:8000", "10.1.2.3", ""],
)
def test_addresses_and_loopback_names_are_its_own(host: str) -> None:
    assert not rejected({}, host)
    assert not rejected({"host": "0.0.0.0", "allowed_hosts": ["api.example.com"]}, host)


def test_only_listed_host_names_are_accepted() -> None:
    listed = {"allowed_hosts": ["api.example.com", "*.shop.example"]}
    for host in ("api.example.com", "API.example.com.:443", "a.shop.example", "a.b.shop.example:1"):
        assert not rejected(listed, host)
    for host in ("example.com", "shop.example", "evilshop.example", "api.example.com.evil.example"):
        assert rejected(listed, host)
    assert not rejected({"allowed_hosts": ["*"]}, "anything.example")


def test_an_endpoint_that_is_bound_elsewhere_answers_to_every_name_unless_some_are_listed() -> None:
    assert not rejected({"host": "0.0.0.0"}, "serve.distml:8000")
    assert rejected({"host": "0.0.0.0", "allowed_hosts": ["distml"]}, "serve.distml:8000")


def test_an_origin_that_is_listed_asks_and_reads() -> None:
    config = ServeConfig(cors_origins=["https://shop.example"])
    with serving.running(serving.core(config=config), config) as url:
        asked = {"origin": "https://shop.example", "access-control-request-method": "POST"}
        preflight = requests.options(f"{url}/predict", headers=asked)
        assert preflight.status_code == 204
        assert "content-type" in preflight.headers["access-control-allow-headers"]
        for response in (preflight, post(url, "/v1/models/pets:predict", origin="https://shop.example")):
            assert response.headers["access-control-allow-origin"] == "https://shop.example"
            assert response.headers["vary"] == "origin"
        response = post(url, "/v1/models/pets:predict", origin="https://shop.example")
        assert response.status_code == 400
        for origin in ("http://shop.example", "https://shop.example.evil.example"):
            assert post(url, "/predict", origin=origin).status_code == 403
            other = requests.options(f"{url}/predict", headers=asked | {"origin": origin})
            assert "access-control-allow-origin" not in other.headers

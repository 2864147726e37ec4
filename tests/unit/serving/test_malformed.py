"""Every malformed request is answered with 4xx and one sentence that names the fault."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests

from tests import malformed, serving


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving.running(serving.core()) as url:
        yield url


@pytest.mark.parametrize("case", malformed.CASES, ids=lambda case: case.title)
def test_malformed_requests_get_an_error_message(url: str, case: malformed.Case) -> None:
    path = case.path.format(name=serving.NAME)
    response = requests.request(case.method, url + path, data=case.body, headers=case.headers)
    assert response.headers["content-type"] == "application/json", response.text
    sentence = response.json()["error"]
    assert (response.status_code, list(response.json())) == (case.status, ["error"]), sentence
    assert case.said in sentence
    assert len(sentence) < 300
    assert "\n" not in sentence
    assert (case.status == 405) == ("allow" in response.headers)

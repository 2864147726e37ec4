"""Steady load, overload and what comes after it; replicas follow the load."""

from __future__ import annotations

import asyncio
import collections
import os
import time
from collections.abc import Iterator

import aiohttp
import numpy as np
import pytest
import requests

from tests import registered
from tests.endpoint import Endpoint, serving
from tests.registered import Registry

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
BODY = {"instances": [np.zeros(registered.SHAPE, int).tolist()]}
CONCURRENCY = 64


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return registered.make_champion(tmp_path_factory.mktemp("load") / "storage")


@pytest.fixture(scope="module")
def live(registry: Registry) -> Iterator[Endpoint]:
    with serving(registry, "--serve.replicas.max=1", "--serve.max_queued_images=256") as endpoint:
        yield endpoint


async def _storm(url: str, count: int, concurrency: int, images: int) -> list[tuple[int, float, str]]:
    left, answers = iter(range(count)), []
    body = {"instances": BODY["instances"] * images}
    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(30)) as session:

        async def client() -> None:
            for _ in left:
                began = time.monotonic()
                async with session.post(f"{url}/predict", json=body) as response:
                    await response.read()
                    took = time.monotonic() - began
                    answers.append((response.status, took, response.headers.get("retry-after", "")))

        await asyncio.gather(*(client() for _ in range(concurrency)))
    return answers


def storm(
    live: Endpoint, count: int, concurrency: int = CONCURRENCY, images: int = 1
) -> list[tuple[int, float, str]]:
    """Ask as fast as the endpoint lets it; status, seconds and Retry-After of each answer."""
    return asyncio.run(_storm(live.url, count, concurrency, images))


def test_ten_thousand_requests_are_answered_and_overload_is_429(live: Endpoint) -> None:
    answers = storm(live, 10_000)
    assert collections.Counter(status for status, *_ in answers) == {200: 10_000}
    assert np.quantile([took for _, took, _ in answers], 0.99) <= 0.5

    answers = storm(live, 6_000, 10 * CONCURRENCY, images=8)
    statuses = collections.Counter(status for status, *_ in answers)
    assert statuses.keys() == {200, 429}, statuses
    assert all(retry.isdigit() for status, _, retry in answers if status == 429)

    ended = time.monotonic()
    assert requests.post(f"{live.url}/predict", json=BODY, timeout=10).status_code == 200
    assert {status for status, *_ in storm(live, 500)} == {200}
    assert time.monotonic() - ended <= 10


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two replicas want two processors")
def test_the_number_of_replicas_follows_the_load(registry: Registry) -> None:
    with serving(
        registry,
        "--serve.replicas.max=2",
        "--serve.replicas.target_ongoing_requests=4",
        "--serve.cpus_per_replica=0.5",
    ) as live:
        assert len(live.replicas()) == 1
        deadline = time.monotonic() + 90
        statuses: set[int] = set()
        while len(live.replicas()) < 2:
            assert time.monotonic() < deadline
            statuses |= {status for status, *_ in storm(live, 2_000)}
        statuses |= {status for status, *_ in storm(live, 2_000)}
        assert statuses == {200}

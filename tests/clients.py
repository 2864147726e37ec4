"""Clients that ask an endpoint at a steady rate while something happens to it."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any

import requests


class Clients:
    """Asks at a steady rate from several threads until it is stopped.

    Args:
        url: Of the endpoint.
        image: Nested lists of one image's numbers.
        per_s: Requests a second.
        fresh: A new connection for every request.
    """

    def __init__(self, url: str, image: Any, per_s: int = 50, fresh: bool = False) -> None:
        self.failed: list[str] = []
        self.slowest_s = 0.0
        self.answers: dict[int, list[list[float]]] = collections.defaultdict(list)
        self._url, self._stop = url, threading.Event()
        self._body, self._per_s, self._fresh = {"instances": [image]}, per_s, fresh
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(5)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        return sum(map(len, self.answers.values())) + len(self.failed)

    def _run(self) -> None:
        session = requests.Session()
        while not self._stop.wait(len(self._threads) / self._per_s):
            ask: Any = requests if self._fresh else session
            began = time.monotonic()
            try:
                response = ask.post(f"{self._url}/predict", json=self._body, timeout=10)
            except requests.RequestException as error:
                self.failed.append(f"{time.time():.3f} {error}")
                continue
            finally:
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            if response.status_code != 200:
                self.failed.append(f"{time.time():.3f} {response.status_code} {response.text[:200]}")
                continue
            said = response.json()
            self.answers[said["model"]["version"]].append(said["predictions"][0]["probabilities"])

    def wait(self, count: int, timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while self.count < count:
            assert time.monotonic() < deadline, f"{self.count} answers"
            time.sleep(0.1)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)

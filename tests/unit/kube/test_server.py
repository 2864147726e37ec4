"""The API server's patience, which ends when there is no time."""

from __future__ import annotations

import threading
import time

import pytest
import requests

from distml.errors import ClusterError
from distml.kube import server


def away() -> requests.Response:
    raise requests.ConnectionError


def test_a_shortened_deadline_stops_the_wait() -> None:
    hurried = threading.Event()
    threading.Timer(0.2, hurried.set).start()
    began = time.monotonic()
    with pytest.raises(ClusterError, match="has not responded") as caught:
        server.patiently(away, "the API server", 60.0, first_pause_s=30.0, hurried=hurried)
    assert time.monotonic() - began < 10
    assert caught.value.exit_code == 75

"""Bad, huge, explosive and endless requests against the whole endpoint."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import hypothesis
import numpy as np
import pytest
import requests
import schemathesis
from schemathesis.core.result import Ok

from distml.serving import ingress
from distml.serving.rpc import message
from tests import endpoint, malformed, registered
from tests.endpoint import Endpoint

pytestmark = [
    pytest.mark.fault,
    pytest.mark.ray,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
GOOD = {"instances": [np.zeros(registered.SHAPE, int).tolist()]}
HUGE_BYTES, MEBIBYTE = 64 << 20, 1 << 20
REJECTED = 64
"""Huge bodies, so many that what is kept of them exceeds what replicas and proxy allocate by themselves."""
GRPC_PORT = ingress.free_ports()[0]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    registry = registered.make_champion(tmp_path_factory.mktemp("registry"))
    flags = ["--serve.replicas.min=2", "--serve.cpus_per_replica=0.4", f"--serve.max_body_bytes={MEBIBYTE}"]
    flags.append(f"--serve.grpc_port={GRPC_PORT}")
    with endpoint.serving(registry, *flags) as live:
        yield live


@pytest.fixture(autouse=True)
def unharmed(live: Endpoint) -> Iterator[None]:
    """Every fault leaves the same replicas, and they answer."""
    before = live.replicas()
    assert len(before) == 2
    yield
    assert live.replicas() == before
    for _ in range(20):
        assert requests.post(f"{live.url}/predict", json=GOOD, timeout=10).status_code == 200


def test_malformed_requests_are_answered_in_one_sentence(live: Endpoint) -> None:
    for case in malformed.CASES:
        path = case.path.format(name=registered.NAME)
        response = requests.request(
            case.method, live.url + path, data=case.body, headers=case.headers, timeout=10
        )
        assert 400 <= response.status_code < 500, case.title
        assert list(response.json()) == ["error"], case.title


def answer(live: Endpoint, head: bytes, pieces: Iterator[bytes]) -> tuple[bytes, float]:
    """Send a request of any size, as far as the endpoint lets it; the answer and the seconds until it."""
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        first = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        connection.sendall(first + head)
        reading = selectors.DefaultSelector()
        reading.register(connection, selectors.EVENT_READ)
        for piece in pieces:
            if reading.select(0):
                break
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break  # what was answered before may still be read
        said, seconds = connection.recv(4096), time.monotonic() - started
        with contextlib.suppress(ConnectionResetError):  # the head may come before the sentence
            while not said.endswith(b"}") and (more := connection.recv(4096)):
                said += more
        return said, seconds


def fixed() -> tuple[bytes, Iterator[bytes]]:
    """A body with its length."""
    head = b"content-length: %d\r\n\r\n" % HUGE_BYTES
    return head, itertools.repeat(bytes(MEBIBYTE), HUGE_BYTES // MEBIBYTE)


def chunked() -> tuple[bytes, Iterator[bytes]]:
    """A body without."""
    piece = b"%x\r\n" % MEBIBYTE + bytes(MEBIBYTE) + b"\r\n"
    return b"transfer-encoding: chunked\r\n\r\n", itertools.repeat(piece, HUGE_BYTES // MEBIBYTE)


@pytest.mark.parametrize("body", [fixed, chunked])
def test_a_huge_body_is_rejected_at_once_and_not_kept(live: Endpoint, body: Any) -> None:
    for _ in range(4):
        answer(live, *body())
    before = live.memory_bytes()
    for _ in range(REJECTED):
        said, seconds = answer(live, *body())
        assert said.startswith(b"HTTP/1.1 413 "), said
        assert b"the body is larger than 1,048,576 bytes" in said
        assert seconds <= 1.0
    # Half of what it would be if the accepted part of each body were kept; the rest is of allocators.
    assert live.memory_bytes() - before <= REJECTED * MEBIBYTE // 2


BOMBS = [case for case in malformed.PICTURES if case.path == malformed.PICTURE]


def test_image_bombs_are_rejected_before_they_are_decoded(live: Endpoint) -> None:
    requests.post(f"{live.url}{malformed.PICTURE}", malformed.picture("PNG"), timeout=10)
    before, peak = live.memory_bytes(), 0
    with requests.Session() as session:
        for case in BOMBS:
            took = []
            for _ in range(5):
                response = session.post(live.url + case.path, case.body, headers=case.headers, timeout=10)
                assert 400 <= response.status_code < 500, case.title
                took.append(response.elapsed.total_seconds())
                peak = max(peak, live.memory_bytes())
            assert min(took) <= 0.1, (case.title, took)
    assert peak - before <= 20 << 20


def half_open(live: Endpoint, index: int) -> socket.socket:
    """A connection that stops in its headers or in its body."""
    connection = socket.create_connection(("127.0.0.1", live.port), timeout=10)
    head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    connection.sendall(head + (b"content-length: 5000\r\n\r\n{" if index % 2 else b"x-slow: "))
    return connection


def traffic(live: Endpoint, seconds: float, took: list[float]) -> None:
    """Ask about 50 times a second, each on a new connection; every answer must be right."""
    ended = time.monotonic() + seconds
    while time.monotonic() < ended:
        started = time.monotonic()
        response = requests.post(f"{live.url}/predict", json=GOOD, timeout=10)
        took.append(time.monotonic() - started if response.status_code == 200 else float("nan"))
        time.sleep(0.02)


def test_slow_clients_are_closed_without_delaying_others(live: Endpoint) -> None:
    quiet: list[float] = []
    traffic(live, 10, quiet)
    opened = [half_open(live, index) for index in range(500)]
    began, closed = time.monotonic(), {}
    busy: list[float] = []
    asking = threading.Thread(target=traffic, args=(live, 60, busy))
    asking.start()
    waiting = selectors.DefaultSelector()
    for connection in opened:
        waiting.register(connection, selectors.EVENT_READ)
    while waiting.get_map() and time.monotonic() - began < 30:
        for key, _ in waiting.select(1):
            assert isinstance(key.fileobj, socket.socket)
            try:
                data = key.fileobj.recv(4096)
            except ConnectionResetError:
                data = b""
            if not data:
                closed[key.fd] = time.monotonic() - began
                waiting.unregister(key.fileobj)
    asking.join()
    for connection in opened:
        connection.close()
    assert len(closed) == 500
    assert max(closed.values()) <= 15
    assert len(busy) > 500
    assert not np.isnan([*quiet, *busy]).any()
    # Twice the quiet figure, or a tenth of a second where that is noise on a busy machine.
    assert np.quantile(busy, 0.99) <= max(2 * np.quantile(quiet, 0.99), 0.1)


def test_no_generated_request_violates_the_openapi_description(live: Endpoint) -> None:
    schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
    for loaded in schema.get_all_operations():
        assert isinstance(loaded, Ok), loaded
        operation = loaded.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
        def ask(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(excluded_checks=[schemathesis.checks.positive_data_acceptance], timeout=10)

        ask()


def test_grpc_answers_as_http_and_invalid_messages_do_no_harm(live: Endpoint) -> None:
    image = np.arange(np.prod(registered.SHAPE), dtype=np.uint8).reshape(registered.SHAPE)
    answered = requests.post(f"{live.url}/predict", json={"instances": [image.tolist()]}, timeout=10).json()
    request = message("ModelInferRequest")(model_name=registered.NAME)
    request.inputs.add(name="image", datatype="UINT8", shape=[1, *image.shape])
    request.outputs.add(name="probabilities")
    request.raw_input_contents.append(image.tobytes())
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(50):
            response = message("ModelInferResponse").FromString(
                infer(request.SerializeToString(), timeout=10)
            )
            (raw,) = response.raw_output_contents
            np.testing.assert_allclose(
                np.frombuffer(raw, "<f4"), answered["predictions"][0]["probabilities"], rtol=1e-6
            )
        for bad in (b"\xff" * 100, request.SerializeToString()[:-7], bytes(2 * MEBIBYTE)):
            with pytest.raises(grpc.RpcError):
                infer(bad, timeout=10)

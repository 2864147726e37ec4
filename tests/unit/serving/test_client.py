"""The smoke test sees what goes wrong between training and serving."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml.config import Config
from distml.errors import ServingError
from distml.serving import client
from tests.registered import NAME

Label = Callable[[np.ndarray], int]


def right(image: np.ndarray) -> int:
    """What the data of `tests.registered:pictures` say."""
    return int(image.ravel()[0]) // 100


class Endpoint:
    """Answers as an endpoint does, with labels of its own.

    Args:
        numbers: Label of a picture that comes as numbers.
        files: Label of a picture that comes as a file.
        model: Who answers.
    """

    def __init__(self, numbers: Label, files: Label, model: dict[str, Any]) -> None:
        self.numbers, self.files, self.model = numbers, files, model
        self.status = 200

    def labels(self, path: str, body: bytes) -> list[int]:
        if path == "/predict":
            return [self.numbers(np.array(image)) for image in json.loads(body)["instances"]]
        starts = [at for at in range(len(body)) if body.startswith(b"\x89PNG", at)]
        pictures = [np.asarray(Image.open(io.BytesIO(body[at:]))) for at in starts]
        return [self.files(picture) for picture in pictures]


@pytest.fixture
def endpoint() -> Iterator[tuple[Endpoint, str]]:
    served = Endpoint(right, right, {"name": NAME, "version": 3})

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            about = {"shape": [2, 2, 1], "classes": list("abc"), "metrics": {"test_accuracy": 0.9}}
            self.answer(served.model | about)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            labels = served.labels(self.path, body)
            rows = [{"probabilities": np.eye(3)[label].tolist()} for label in labels]
            self.answer({"model": served.model, "predictions": rows})

        def answer(self, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(served.status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("x-model-version", str(served.model["version"]))
            self.end_headers()
            self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield served, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return Config.resolve(
        {
            "storage": {"root": str(tmp_path_factory.mktemp("smoke"))},
            "data": {"name": NAME, "format": "tests.registered:pictures", "val_fraction": 0.5},
            "tracking": {"registered_model": NAME},
        }
    )


def test_an_endpoint_with_correct_answers_passes(config: Config, endpoint: tuple[Endpoint, str]) -> None:
    result = client.check_answers(config, endpoint[1], 3, 0.95)
    assert (result.pop("metric"), result.pop("value")) == ("accuracy", 1.0)
    assert result == {"rows": 256, "accuracy": 1.0, "version": 3, "test_accuracy": 0.9}
    assert client.version(endpoint[1]) == 3


def test_a_difference_in_preprocessing_is_detected(config: Config, endpoint: tuple[Endpoint, str]) -> None:
    endpoint[0].numbers = lambda image: right(image / 255)
    with pytest.raises(ServingError, match=r"classifies 3\d\.\d% of 256 validation pictures"):
        client.check_answers(config, endpoint[1], 3, 0.95)


def test_a_difference_between_files_and_numbers_is_detected(
    config: Config, endpoint: tuple[Endpoint, str]
) -> None:
    endpoint[0].files = lambda image: right(image / 255)
    with pytest.raises(ServingError, match="for pictures sent as files"):
        client.check_answers(config, endpoint[1], 3, 0.95)


@pytest.mark.parametrize("model", [{"name": "other", "version": 3}, {"name": NAME, "version": 2}])
def test_an_answer_of_another_model_is_detected(
    config: Config,
    endpoint: tuple[Endpoint, str],
    model: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_LATE_S", 0.0)
    endpoint[0].model = model
    with pytest.raises(ServingError, match=rf"serves {model['name']} version {model['version']}, not"):
        client.check_answers(config, endpoint[1], 3, 0.95)


def test_a_replica_that_loads_the_champion_late_is_waited_for(
    config: Config, endpoint: tuple[Endpoint, str]
) -> None:
    served, url = endpoint
    served.model = {"name": NAME, "version": 2}
    news = threading.Timer(0.7, lambda: served.model.update(version=3))
    news.start()
    assert client.check_answers(config, url, 3, 0.95)["version"] == 3
    news.join()


def test_no_answer_and_a_rejection_are_error_messages(config: Config, endpoint: tuple[Endpoint, str]) -> None:
    endpoint[0].status = 503
    assert client.version(endpoint[1]) is None
    with pytest.raises(ServingError, match="responds 503"):
        client.check_answers(config, endpoint[1], 3, 0.95)
    with pytest.raises(ServingError, match="does not respond"):
        client.check_answers(config, "http://127.0.0.1:9", 3, 0.95)
    assert client.version("http://127.0.0.1:9") is None


def test_the_drawn_data_differ_in_the_pixel_that_decides(tmp_path: Path) -> None:
    from tests.registered import pictures

    images, labels = pictures()["test"]
    assert [right(image) for image in images] == labels.tolist()

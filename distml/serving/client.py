"""HTTP client of a running endpoint: predictions, status, and a check against held-out pictures (driver)."""

from __future__ import annotations

import io
import ipaddress
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import psutil
import requests
import urllib3
from PIL import Image

from distml.artifacts.layout import Model
from distml.config import Config
from distml.data import ingestion, shards
from distml.data.image import Policy
from distml.data.schema import Images
from distml.errors import ConfigError, ServingError
from distml.serving import keys
from distml.serving.models import own
from distml.storage import Storage
from distml.tasks import Outputs, Task, quality

logger = logging.getLogger(__name__)

_TIMEOUT_S = 20
_BATCH = 64
_BATCH_BYTES = 900_000
"""Below `serve.max_body_bytes` as it is set by default; a pixel takes at most four characters."""


def describe(url: str, own: bool = False) -> Model:
    """Ask what answers.

    Args:
        url: Of the endpoint.
        own: It is this Ray's (`keys.sent`).

    Raises:
        ServingError: Nothing does, or no endpoint of ours.
    """
    described = _answer("GET", f"{url}/model", own)
    try:
        height, width, depth = described["shape"]
        shape, classes = (height, width, depth), tuple(described["classes"])
        policy = Policy.from_dict(described["policy"]) if described.get("policy") else None
        return Model(
            described["name"],
            described["version"],
            shape,
            classes,
            dict(described["metrics"]),
            policy,
            described.get("target"),
        )
    except (KeyError, TypeError, ValueError):
        raise ServingError(
            f"{url}/model does not describe a model: {str(described)[:200]}.",
            "Give the address of distml serve.",
        ) from None


def verify(url: str) -> bool:
    """Whether a certificate has to name the address: not on this machine."""
    host = urlsplit(url).hostname or ""
    if url.startswith("http:") or not _is_here(host):
        return True
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return False


def _is_here(host: str) -> bool:
    addresses = {address.address for interface in psutil.net_if_addrs().values() for address in interface}
    try:
        return host in addresses or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def version(url: str) -> int | None:
    """Return the version that an endpoint answers with, None where it is not ready."""
    try:
        response = requests.get(f"{url}/readyz", timeout=2, verify=verify(url))
        return int(response.headers["x-model-version"]) if response.status_code == 200 else None
    except (requests.RequestException, ValueError, KeyError):
        return None


def outputs(url: str, images: Images, model: Model) -> npt.NDArray[np.float32]:
    """Classify images.

    Args:
        url: Of the endpoint.
        images: uint8 [N, H, W, C].
        model: As `describe` returned it.

    Returns:
        float32 [N, K].

    Raises:
        ServingError: No answer, a refusal, or another version's answer.
    """
    step = min(_BATCH, max(1, _BATCH_BYTES // (4 * images[0].size)))
    parts = []
    for at in range(0, len(images), step):
        answer = post(f"{url}/predict", json={"instances": images[at : at + step].tolist()})
        if answer["model"]["version"] != model.version:
            raise ServingError(f"{url} switched to version {answer['model']['version']}.", "Retry.")
        for warning in answer.get("warnings", ()):
            logger.warning("%s", warning["sentence"])
        parts += [prediction[model.task.output] for prediction in answer["predictions"]]
    return np.array(parts, np.float32)


def asking(url: str) -> tuple[Model, Callable[[Images], npt.NDArray[np.float32]]]:
    """Describe the model of an endpoint, and return the function that asks it about images.

    Args:
        url: Of the endpoint, `http://HOST:PORT`.

    Raises:
        ConfigError: The URL is not one of HTTP.
        ServingError: No endpoint of distml answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url is {url}, which is not an address.", "Write http://HOST:PORT.")
    address = url.rstrip("/")
    model = describe(address)
    return model, lambda images: outputs(address, images, model)


def get(url: str, own: bool = False) -> dict[str, Any]:
    """Ask a route; returns the JSON of its answer.

    Raises:
        ServingError: No answer, or a refusal.
    """
    described: dict[str, Any] = _answer("GET", url, own)
    return described


def index(url: str, own: bool = False) -> list[dict[str, str]]:
    """List the versions of all models of an endpoint: `name`, `version`, `state` and `reason`.

    Raises:
        ServingError: No answer, or a refusal.
    """
    listed = _answer("POST", f"{url}/v2/repository/index", own, kind=list)
    return [dict(entry) for entry in listed]


Samples = list[tuple[str, dict[str, str], float]]
"""Name, labels and value."""


def scrape(url: str, own: bool = False) -> Samples:
    """Return the metrics of an endpoint.

    Raises:
        ServingError: No answer, or a refusal.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        response = requests.get(
            f"{url}/metrics", timeout=_TIMEOUT_S, headers=keys.sent(own), verify=verify(url)
        )
        response.raise_for_status()
    except requests.RequestException as error:
        raise ServingError(f"{url}/metrics does not respond: {str(error)[:200]}.") from None
    families = text_string_to_metric_families(response.text)
    samples = itertools.chain.from_iterable(family.samples for family in families)
    return [(sample.name, dict(sample.labels), sample.value) for sample in samples]


def post(url: str, own: bool = False, **body: Any) -> dict[str, Any]:
    """Send a request; returns the JSON of its answer.

    Args:
        url: Of a route.
        own: The endpoint is this Ray's (`keys.sent`).
        body: As `requests.post` takes it.

    Raises:
        ServingError: No answer, or a refusal.
    """
    answer: dict[str, Any] = _answer("POST", url, own, **body)
    return answer


def _answer(method: str, url: str, own: bool, kind: type = dict, **body: Any) -> Any:
    try:
        response = requests.request(
            method, url, timeout=_TIMEOUT_S, headers=keys.sent(own), verify=verify(url), **body
        )
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        raise ServingError(f"{url} does not respond: {str(error)[:200]}.") from None
    if response.status_code == 401:
        raise ServingError(
            f"{url} needs an API key, or another one: {str(answer)[:200]}.", f"Put it into {keys.VARIABLE}."
        )
    if response.status_code != 200 or not isinstance(answer, kind):
        raise ServingError(f"{url} responds {response.status_code}: {str(answer)[:200]}.")
    return answer


ROWS = 256
"""Pictures asked about: enough for the bound below to be five standard deviations at 90 % accuracy."""
_CHECK_BATCH = 64
_SLACK = 0.1
_PICTURES = 4
_LATE_S = 10.0


def check_answers(config: Config, url: str, version: int, val_correct: float) -> dict[str, Any]:
    """Ask about validation pictures, as numbers and as PNG files.

    Pixels that are scaled otherwise when served than when trained show here: in the share of right answers,
    or in a difference between numbers and files.

    Args:
        config: Says which data.
        url: Of the endpoint.
        version: That is to answer.
        val_correct: How right it was on all validation rows, see `Task.correct`; the accuracy of classes.

    Returns:
        `rows` asked about, `accuracy` (how right the answers are), `metric` and `value` (the task's main one
        on those rows), `version`, and `test_accuracy` as its
        training measured it, None where there was no test split.

    Raises:
        ServingError: Another model answers, the answers are wrong too often, or none comes.
    """
    storage = Storage(config.storage.root)
    images, labels = shards.read(storage, ingestion.prepare(config, storage), "validation")
    images, labels = images[:ROWS], labels[:ROWS]
    expected = (own(config)[0], version)
    model = describe(url, True)
    parts = [
        _ask(
            f"{url}/predict",
            expected,
            model.task,
            json={"instances": images[at : at + _CHECK_BATCH].tolist()},
        )
        for at in range(0, len(images), _CHECK_BATCH)
    ]
    answers, task = np.concatenate(parts), model.task
    accuracy = float(np.mean(task.correct(labels, answers)))
    if accuracy < val_correct - _SLACK:
        raise ServingError(
            f"{url} classifies {accuracy:.1%} of {len(labels)} validation pictures correctly, but version "
            f"{version} classified {val_correct:.1%} of all of them correctly.",
            "The endpoint preprocesses pictures differently from training; do not use it.",
        )
    _check_files(url, expected, task, images[:_PICTURES], answers)
    return {
        "rows": len(labels),
        "accuracy": round(accuracy, 4),
        "metric": task.main,
        "value": float(quality.digits(task.value(task.main, labels, answers))),
        "version": version,
        "test_accuracy": model.metrics.get("test_accuracy"),
    }


def _check_files(url: str, expected: tuple[str, int], task: Task, images: Images, answers: Outputs) -> None:
    """Require that images as PNG files get the outputs that they got as numbers."""
    files = [("files", (f"{at}.png", _png(image))) for at, image in enumerate(images)]
    seen = _ask(f"{url}/predict/image", expected, task, files=files)
    if not task.agree(seen, answers[: len(seen)]).all():
        decided = [task.decide(some).tolist() for some in (seen, answers[: len(seen)])]
        raise ServingError(
            f"{url} predicts {decided[0]} for pictures sent as files and {decided[1]} for their numbers."
        )


def _ask(url: str, expected: tuple[str, int], task: Task, **body: Any) -> Outputs:
    """Send a request; return outputs [N, K]. Waits for replicas that load the champion late."""
    until = time.monotonic() + _LATE_S
    while True:
        answer = post(url, True, **body)
        actual = (answer["model"]["name"], answer["model"]["version"])
        if actual == expected or time.monotonic() > until:
            break
        time.sleep(0.5)
    if actual != expected:
        raise ServingError(
            f"{url} serves {actual[0]} version {actual[1]}, not {expected[0]} version {expected[1]}."
        )
    return np.array([prediction[task.output] for prediction in answer["predictions"]], np.float32)


def _png(image: Images) -> bytes:
    """Encode one picture, uint8 [H, W, C]."""
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()

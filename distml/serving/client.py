"""Asking a running endpoint over HTTP, in its native protocol (driver)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import requests

from distml.data.image import Policy
from distml.data.schema import Images
from distml.errors import ServingError

_TIMEOUT_S = 20
_BATCH = 64
_BATCH_BYTES = 900_000
"""Below `serve.max_body_bytes` as it is set by default; a pixel takes at most four characters."""


@dataclass(frozen=True)
class Model:
    """Who answers.

    Args:
        name: Of the registered model.
        version: Its version, None where it is not registered.
        shape: (H, W, C) that it takes.
        classes: Their names.
        metrics: What training measured, as `test_accuracy`.
        policy: How pictures become such images, None where the endpoint does not say.
    """

    name: str
    version: int | None
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    policy: Policy | None = None

    @property
    def pictures(self) -> Policy:
        """How a picture becomes an image that the model takes."""
        return self.policy or Policy.of_arrays(self.shape)


def describe(url: str) -> Model:
    """Ask what answers.

    Raises:
        ServingError: Nothing does, or no endpoint of ours.
    """
    found = _answer("GET", f"{url}/model")
    try:
        height, width, depth = found["shape"]
        shape, classes = (height, width, depth), tuple(found["classes"])
        policy = Policy.from_dict(found["policy"]) if found.get("policy") else None
        return Model(found["name"], found["version"], shape, classes, dict(found["metrics"]), policy)
    except (KeyError, TypeError, ValueError):
        raise ServingError(
            f"{url}/model does not describe a model: {str(found)[:200]}.", "Give the address of distml serve."
        ) from None


def version(url: str) -> int | None:
    """Return the version that an endpoint answers with, None where it is not ready."""
    try:
        if requests.get(f"{url}/readyz", timeout=2).status_code != 200:
            return None
        return int(requests.get(f"{url}/model", timeout=5).json()["version"])
    except (requests.RequestException, ValueError, KeyError, TypeError):
        return None


def probabilities(url: str, images: Images, model: Model) -> npt.NDArray[np.float32]:
    """Classify images.

    Args:
        url: Of the endpoint.
        images: uint8 [N, H, W, C].
        model: As `describe` found it.

    Returns:
        float32 [N, classes].

    Raises:
        ServingError: No answer, a refusal, or another version's answer.
    """
    step = min(_BATCH, max(1, _BATCH_BYTES // (4 * images[0].size)))
    parts = []
    for at in range(0, len(images), step):
        found = post(f"{url}/predict", json={"instances": images[at : at + step].tolist()})
        if found["model"]["version"] != model.version:
            raise ServingError(f"{url} went over to version {found['model']['version']}.", "Ask again.")
        parts += [one["probabilities"] for one in found["predictions"]]
    return np.array(parts, np.float32)


def post(url: str, **body: Any) -> dict[str, Any]:
    """Send a request; returns the JSON of its answer.

    Args:
        url: Of a route.
        body: As `requests.post` takes it.

    Raises:
        ServingError: No answer, or a refusal.
    """
    return _answer("POST", url, **body)


def _answer(method: str, url: str, **body: Any) -> dict[str, Any]:
    try:
        response = requests.request(method, url, timeout=_TIMEOUT_S, **body)
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        raise ServingError(f"{url} does not answer: {str(error)[:200]}.") from None
    if response.status_code != 200 or not isinstance(answer, dict):
        raise ServingError(f"{url} answers {response.status_code}: {str(answer)[:200]}.")
    return answer

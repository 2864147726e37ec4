"""Does an endpoint answer as its model should? Real held-out pictures over HTTP (driver)."""

from __future__ import annotations

import io
import time
from typing import Any

from PIL import Image

from distml.config import Config
from distml.data import shards
from distml.data.schema import Images
from distml.errors import ServingError
from distml.serving import client
from distml.storage import Storage

ROWS = 256
"""Pictures asked about: enough for the bound below to be five standard deviations at 90 % accuracy."""
_BATCH = 64
_SLACK = 0.1
_PICTURES = 4
_LATE_S = 10.0


def check(config: Config, url: str, version: int, val_accuracy: float) -> dict[str, Any]:
    """Ask about validation pictures, as numbers and as PNG files.

    Pixels that are scaled otherwise when served than when trained show here: in the share of right answers,
    or in a difference between numbers and files.

    Args:
        config: Says which data.
        url: Of the endpoint.
        version: That is to answer.
        val_accuracy: What it reached on all validation rows.

    Returns:
        `rows` asked about, `accuracy` on them, `version`, and `test_accuracy` as its training measured it,
        None where there was no test split.

    Raises:
        ServingError: Another model answers, the answers are wrong too often, or none comes.
    """
    storage = Storage(config.storage.root)
    images, labels = shards.read(storage, shards.prepare(config, storage), "validation")
    images, labels = images[:ROWS], labels[:ROWS]
    expected = (config.tracking.registered_model, version)
    answers: list[int] = []
    for at in range(0, len(images), _BATCH):
        answers += _ask(f"{url}/predict", expected, json={"instances": images[at : at + _BATCH].tolist()})
    accuracy = sum(int(a == b) for a, b in zip(answers, labels, strict=True)) / len(labels)
    if accuracy < val_accuracy - _SLACK:
        raise ServingError(
            f"{url} is right about {accuracy:.1%} of {len(labels)} validation pictures, but version "
            f"{version} was right about {val_accuracy:.1%} of them all.",
            "The endpoint treats pictures otherwise than training did; do not use it.",
        )
    files = [("files", (f"{at}.png", _png(image))) for at, image in enumerate(images[:_PICTURES])]
    seen = _ask(f"{url}/predict/image", expected, files=files)
    if seen != answers[: len(seen)]:
        raise ServingError(
            f"{url} says {seen} about pictures as files and {answers[: len(seen)]} about the same as numbers."
        )
    measured = client.describe(url).metrics.get("test_accuracy")
    return {
        "rows": len(labels),
        "accuracy": round(accuracy, 4),
        "version": version,
        "test_accuracy": measured,
    }


def _ask(url: str, expected: tuple[str, int], **body: Any) -> list[int]:
    """Send a request; returns the label of each picture. A replica may hear late of a champion."""
    until = time.monotonic() + _LATE_S
    while True:
        answer = client.post(url, **body)
        found = (answer["model"]["name"], answer["model"]["version"])
        if found == expected or time.monotonic() > until:
            break
        time.sleep(0.5)
    if found != expected:
        raise ServingError(
            f"{url} answers with {found[0]} version {found[1]}, not {expected[0]} version {expected[1]}."
        )
    return [int(one["label"]) for one in answer["predictions"]]


def _png(image: Images) -> bytes:
    """Encode one picture, uint8 [H, W, C]."""
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(stream, "PNG")
    return stream.getvalue()

"""Images that are probably not what their sender means, said beside the prediction (replica).

Nothing here rejects: a black picture may be meant. What can only be an error (floats from 0 to 1 where pixels
are whole numbers) is rejected where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.requests import Request

from distml.data.image import Images
from distml.serving.exchange import Answer
from distml.serving.metrics import Metrics

HEADER = b"x-input-warnings"
_DARK = 31
"""Of 255. A 16-bit picture that uses 12 of its bits is darker than that."""


@dataclass(frozen=True)
class Doubt:
    """What is odd about some images of a request.

    Args:
        code: For programs; also a label of the metrics.
        sentence: For people.
        images: How many are concerned.
    """

    code: str
    sentence: str
    images: int


def doubts(images: Images) -> list[Doubt]:
    """Say what is odd about images, uint8 [N, H, W, C]; mostly nothing."""
    if len(images) == 1:  # the usual request; over one axis of one row, NumPy takes three times as long
        values = images.ravel()
        if np.minimum.reduce(values) < (high := np.maximum.reduce(values)) and high > _DARK:
            return []
    flat = images.reshape(len(images), -1)
    low, high = flat.min(1), flat.max(1)
    constant = low == high
    binary = ~constant & (high <= 1)
    dark = ~constant & ~binary & (high <= _DARK)
    kinds = {
        "constant": (constant, "one value everywhere"),
        "values_0_to_1": (binary, "no value above 1; pixels are 0 to 255, do not scale them"),
        "very_dark": (
            dark,
            f"no value above {_DARK} of 255; a 16-bit picture must use all its bits, a photograph some light",
        ),
    }
    return [_doubt(code, odd, what) for code, (odd, what) in kinds.items() if odd.any()]


def _doubt(code: str, odd: npt.NDArray[np.bool_], what: str) -> Doubt:
    first, count = int(odd.argmax()), int(odd.sum())
    others = f" and {count - 1} others" if count > 1 else ""
    return Doubt(code, f"image {first}{others}: {what}", count)


def described(found: list[Doubt]) -> dict[str, Any]:
    """The member of the native form, none where nothing is odd."""
    return {"warnings": [{"code": one.code, "sentence": one.sentence} for one in found]} if found else {}


def tell(request: Request, answer: Answer, found: list[Doubt]) -> Answer:
    """Name the doubts in a header and count them."""
    if found:
        answer.raw_headers.append((HEADER, ", ".join(doubt.code for doubt in found).encode()))
        metrics: Metrics = request.app.metrics
        for doubt in found:
            metrics.doubted.labels(doubt.code).inc(doubt.images)
    return answer

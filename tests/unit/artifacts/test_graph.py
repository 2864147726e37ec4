"""The exported `image_bytes` signature decodes and fits as everything else does."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml.data import image
from distml.data.image import Policy
from distml.errors import DataError
from tests import zoo

pytestmark = pytest.mark.tensorflow


def deep(factor: int, **options: Any) -> bytes:
    """A gray PNG of 16 bits whose values reach from 0 to 255 times a factor."""
    values = np.random.default_rng(factor).integers(0, 256, (50, 60), np.uint16) * factor
    values[0, 0] = 255 * factor
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG", **options)
    return stream.getvalue()


DEEP = {f"{factor} of 257-png": deep(factor) for factor in (1, 4, 16, 60, 257)}
ZOO = zoo.files() | DEEP | {"keyed and deep-png": deep(16, transparency=16 * 100)}
LACKING = ("tiff", "avif", "ppm")
"""Formats that TensorFlow does not decode."""


@pytest.fixture(scope="module", params=[1, 3])
def ways(request: pytest.FixtureRequest) -> dict[str, Any]:
    import tensorflow as tf

    from distml.artifacts import export

    made = {}
    for fit in ("crop", "letterbox", "stretch"):
        policy = Policy((24, 36, request.param), fit, (200, 60, 20))
        signature = [tf.TensorSpec([], tf.string)]
        made[fit] = (
            policy,
            tf.function(lambda data, policy=policy: export.fit_picture(data, policy), signature),
        )
    return made


@pytest.mark.parametrize("fit", ["crop", "letterbox", "stretch"])
def test_the_graph_decodes_the_same_pixels_as_pillow(ways: dict[str, Any], fit: str) -> None:
    policy, fitted = ways[fit]
    compared = 0
    for name, data in ZOO.items():
        if name.endswith(LACKING) or name == "keyed-gif":
            continue
        off = np.abs(image.read(data, policy).astype(int) - fitted(data).numpy())
        assert off.mean() < 0.3, name
        assert off.max() <= 2, name
        compared += 1
    assert compared >= 30


def test_images_damaged_for_pillow_are_damaged_for_the_graph(ways: dict[str, Any]) -> None:
    import tensorflow as tf

    policy, fitted = ways["crop"]
    for data in (ZOO["plain-jpg"][:-300], ZOO["colour-png"][:-60], b"hello", b""):
        with pytest.raises(DataError):
            image.read(data, policy)
        with pytest.raises(tf.errors.OpError):
            fitted(data)

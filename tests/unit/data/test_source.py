from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distml.data.source import of_arrays, to_nhwc, to_uint8
from distml.errors import DataError


def test_pixels_in_range_become_uint8() -> None:
    for values, expected in (
        (np.array([0, 255], np.uint8), [0, 255]),
        (np.array([0, 255], np.int64), [0, 255]),
        (np.array([0.0, 0.5, 1.0], np.float32), [0, 128, 255]),
    ):
        pixels = to_uint8(values, "x")
        assert pixels.dtype == np.uint8
        assert pixels.tolist() == expected


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.array([0, 256]), "span 0 to 256, expected 0 to 255"),
        (np.array([-1, 5]), "span -1 to 5"),
        (np.array([0.0, 255.0]), "span 0.0 to 255.0, expected 0 to 1"),
        (np.array([-1.0, 1.0]), "span -1.0 to 1.0"),
        (np.array([0.5, np.nan]), "span nan to nan"),
        (np.array([True]), "images of bool"),
        (np.array(["a"]), "are not numbers"),
    ],
)
def test_pixels_of_unclear_meaning_are_rejected(values: npt.NDArray[Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"x: .*{said}"):
        to_uint8(values, "x")


def test_gray_images_get_a_channel() -> None:
    assert to_nhwc(np.zeros((5, 3, 4), np.uint8), "x").shape == (5, 3, 4, 1)
    assert to_nhwc(np.zeros((5, 6, 4, 7), np.uint8), "x").shape == (5, 6, 4, 7)


@pytest.mark.parametrize("shape", [(5, 784), (5,), (5, 1, 2, 3, 4), (5, 0, 3), (5, 3, 32, 32)])
def test_other_shapes_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="x: images of shape"):
        to_nhwc(np.zeros(shape, np.uint8), "x")


def test_arrays_are_gathered_in_the_asked_order() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    rows = of_arrays(images, np.zeros(10, np.int32))
    assert rows.gather(np.array([7, 2, 7])).images.ravel().tolist() == [7, 2, 7]

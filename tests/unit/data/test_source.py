from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from distml.data.source import encode, of_arrays, to_nhwc, to_uint8
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
def test_pixels_of_unclear_meaning_are_refused(values: npt.NDArray[Any], said: str) -> None:
    with pytest.raises(DataError, match=rf"x: .*{said}"):
        to_uint8(values, "x")


def test_gray_images_get_a_channel() -> None:
    assert to_nhwc(np.zeros((5, 3, 4), np.uint8), "x").shape == (5, 3, 4, 1)
    assert to_nhwc(np.zeros((5, 6, 4, 7), np.uint8), "x").shape == (5, 6, 4, 7)


@pytest.mark.parametrize("shape", [(5, 784), (5,), (5, 1, 2, 3, 4), (5, 0, 3), (5, 3, 32, 32)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="x: images of shape"):
        to_nhwc(np.zeros(shape, np.uint8), "x")


def test_texts_are_numbered_in_order_of_the_training_labels() -> None:
    classes, labels = encode({"train": np.array(["dog", "cat", "dog"]), "test": np.array(["cat"])})
    assert classes == ("cat", "dog")
    assert (labels["train"].tolist(), labels["test"].tolist()) == ([1, 0, 1], [0])
    assert labels["test"].dtype == np.int32


def test_integers_keep_their_number_where_names_say_what_they_mean() -> None:
    classes, labels = encode({"train": np.array([2, 0])}, ["a", "b", "c"])
    assert (classes, labels["train"].tolist()) == (("a", "b", "c"), [2, 0])
    classes, labels = encode({"train": np.array([7, 3, 7])})
    assert (classes, labels["train"].tolist()) == (("3", "7"), [1, 0, 1])


@pytest.mark.parametrize(
    ("given", "names", "said"),
    [
        ({"train": np.array([0, 3])}, ["a", "b", "c"], "train label 3 is not among"),
        ({"train": np.array([0, -1])}, ["a", "b"], "train label -1 is not among"),
        ({"train": np.array(["a", "b"]), "test": np.array(["z"])}, None, "test label z is not among"),
        ({"train": np.array([0, 0])}, None, "not at least two"),
        ({"train": np.array([0, 1])}, ["a", "a"], "not at least two"),
        ({"train": np.array([0.5, 1.0])}, None, r"train labels are float64 \(2,\), not integers"),
        ({"train": np.array(["a", "b"]), "test": np.array([0])}, None, "not texts, as in train"),
        ({"train": np.array([[0], [1]])}, None, r"int64 \(2, 1\)"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    given: dict[str, npt.NDArray[Any]], names: list[str] | None, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        encode(given, names)


def test_arrays_are_gathered_in_the_asked_order() -> None:
    images = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    rows = of_arrays(images, np.zeros(10, np.int32))
    assert rows.gather(np.array([7, 2, 7])).images.ravel().tolist() == [7, 2, 7]

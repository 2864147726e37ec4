"""Numbers become exactly the pixels they are, or are rejected; the fast way and the exact way agree."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from distml.serving import exchange, pixels
from distml.serving.exchange import RejectedError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(4, 5, 1), (1, 1, 1), (3, 2, 3), (2, 2, 4)])
@pytest.mark.parametrize("kind", [int, float])
@pytest.mark.parametrize("booleans", [False, True])
def test_every_form_of_numbers_is_read_exactly(
    shape: tuple[int, int, int], kind: type, booleans: bool
) -> None:
    images = RANDOM.integers(0, 256, (6, *shape), np.uint8)
    forms = [images, images[..., 0]] if shape[2] == 1 else [images]
    for form in forms:
        read = pixels.images(form.astype(kind).tolist(), shape, "x", booleans)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, images)
    np.testing.assert_array_equal(
        pixels.flat(images.ravel().astype(kind).tolist(), "x", booleans), images.ravel()
    )


def mutate(value: Any) -> Any:
    """Put something wrong at a random place of a nested list."""
    copied = json.loads(json.dumps(value))
    at = copied
    while isinstance(at[0], list) and RANDOM.random() < 0.8:
        at = at[RANDOM.integers(len(at))]
    wrong: list[Any] = [True, None, "7", "", {}, {"b64": "x"}, [], [[]], -1, 256, 0.5, 1e300, 10**30]
    if RANDOM.random() < 0.2:
        del at[RANDOM.integers(len(at))]
    elif isinstance(at[0], list):
        at[RANDOM.integers(len(at))] = [*wrong, 7, [7], [7, 7, 7, 7, 7, 7]][RANDOM.integers(16)]
    else:
        at[RANDOM.integers(len(at))] = [*wrong, [7, 7]][RANDOM.integers(14)]
    return copied


def is_image(value: Any, sizes: tuple[int, ...]) -> bool:
    """Whether a value is nested lists of pixels of these sizes, slowly and plainly."""
    if not sizes:
        return type(value) in (int, float) and value in range(256)
    whole = isinstance(value, list) and len(value) == sizes[0]
    return whole and all(is_image(part, sizes[1:]) for part in value)


@pytest.mark.parametrize("shape", [(3, 2, 1), (3, 2, 3)])
def test_invalid_nested_lists_are_rejected_and_valid_ones_read(shape: tuple[int, int, int]) -> None:
    refused = 0
    for _ in range(1000):
        images = RANDOM.integers(0, 256, (2, *shape), np.uint8)
        form = images[..., 0] if shape[2] == 1 and RANDOM.random() < 0.5 else images
        document = exchange.parse_json(json.dumps({"x": mutate(form.tolist())}).encode())
        values = document.members["x"]
        if all(is_image(value, form.shape[1:]) for value in values):
            read = pixels.images(values, shape, "x", document.booleans)
            np.testing.assert_array_equal(read.reshape(-1, *form.shape[1:]), values)
        else:
            refused += 1
            with pytest.raises(RejectedError, match=r"^x"):
                pixels.images(values, shape, "x", document.booleans)
    assert refused > 800


def test_images_with_and_without_lists_of_one_channel_do_not_mix() -> None:
    with pytest.raises(RejectedError, match="x mixes images of numbers and of lists of 1"):
        pixels.images([[[0]], [[[0]]]], (1, 1, 1), "x")


def test_a_number_is_not_a_list_of_zeros() -> None:
    with pytest.raises(RejectedError, match=r"x\[0\] is a number, not a list of 5 rows"):
        pixels.images([5], (5, 5, 1), "x")
    with pytest.raises(RejectedError, match=r"x\[0\]\[0\] is a number, not a list of 5 pixels"):
        pixels.images([[5, 5]], (2, 5, 1), "x")

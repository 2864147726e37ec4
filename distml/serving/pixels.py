"""Converts JSON numbers of a request to uint8 images, with exact error positions (replica)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from math import prod
from typing import Any

import numpy as np

from distml.data.schema import Images
from distml.serving.exchange import RejectedError, json_type

_flatten = chain.from_iterable
Shape = tuple[int, int, int]


def images(values: Any, shape: Shape, where: str, booleans: bool = False) -> Images:
    """Read images from nested lists.

    Pixel values are whole numbers from 0 to 255; 7.0 is one, 0.5 is not, for a model takes raw pixels and
    scales them itself.

    Args:
        values: N lists of H rows of W pixels, each a number where C is 1 or a list of C numbers.
        shape: (H, W, C) of the model.
        where: What the values are called in the request, said in rejections.
        booleans: Whether `true` or `false` may stand among them.

    Returns:
        uint8 [N, H, W, C], read-only.

    Raises:
        RejectedError: 400, naming the position of the first fault.
    """
    if not isinstance(values, list) or not values:
        raise RejectedError(400, f"{where} must be a list of at least one image")
    if not booleans:
        try:
            return _regular(values, shape)
        except (TypeError, ValueError):  # a number that is no byte, or a list that is none
            pass
    return _exact(values, shape, where)


def _regular(values: list[Any], shape: Shape) -> Images:
    """Read whole numbers at the speed of `bytes`, which rejects everything else but booleans.

    The lengths come first: `bytes(5)` would be five zeros.
    """
    height, width, depth = shape
    rows = list(_flatten(values))
    lengths = (set(map(len, values)), set(map(len, rows)))
    if lengths != ({height}, {width}):
        raise ValueError
    if depth == 1 and not isinstance(rows[0][0], list):
        data = b"".join(map(bytes, rows))
    else:
        pixels = list(_flatten(rows))
        if set(map(len, pixels)) != {depth} or set(map(type, pixels)) != {list}:
            raise ValueError
        data = bytes(list(_flatten(pixels)))
    return np.frombuffer(data, np.uint8).reshape(len(values), *shape)


def _exact(values: list[Any], shape: Shape, where: str) -> Images:
    """Read numbers of any kind, or name the first fault."""
    height, width, depth = shape
    try:
        rows = list(_flatten(values))
        pixels: list[Any] = list(_flatten(rows))
        nested = depth > 1 or isinstance(pixels[0], list)
        regular = {type(value) for value in chain(values, rows, pixels if nested else ())} == {list}
        sides = [(values, height), (rows, width), *([(pixels, depth)] if nested else [])]
        if regular and all(set(map(len, lists)) == {side} for lists, side in sides):
            numbers = list(_flatten(pixels)) if nested else pixels
            return _whole(numbers, where).reshape(len(values), *shape)
    except (TypeError, IndexError, RejectedError):
        pass
    for index, image in enumerate(values):
        _require(image, shape, f"{where}[{index}]", values)
    raise RejectedError(400, f"{where} mixes images of numbers and of lists of {depth}")


def flat(values: list[Any], where: str, booleans: bool = False) -> Images:
    """Read a flat list of pixel values, uint8 [len(values)].

    Raises:
        RejectedError: 400, naming the first that is no whole number from 0 to 255.
    """
    if not booleans:
        try:
            return np.frombuffer(bytes(values), np.uint8)
        except (TypeError, ValueError):
            pass
    return _whole(values, where)


def _whole(values: list[Any], where: str) -> Images:
    """Read whole numbers of any type."""
    if set(map(type, values)) <= {int, float}:
        numbers = np.array(values, np.float64)
        if bool(np.all((numbers >= 0) & (numbers <= 255) & (numbers == np.floor(numbers)))):
            return numbers.astype(np.uint8)
    for index, value in enumerate(values):
        _require_pixel(value, f"{where}[{index}]", values)
    raise AssertionError("every value is a pixel, but not all of them are")


def _require(value: Any, shape: tuple[int, ...], where: str, every: list[Any]) -> None:
    """Find the first fault in an image, one of all that were sent."""
    if not shape:
        return _require_pixel(value, where, every)
    if len(shape) == 1 and shape[0] == 1 and not isinstance(value, list):
        return _require_pixel(value, where, every)  # one channel may stand without its list
    unit = {3: "rows", 2: "pixels", 1: "channels"}[len(shape)]
    if not isinstance(value, list):
        coded = '; an encoded picture is {"b64": "…"}' if isinstance(value, str) and len(shape) == 3 else ""
        raise RejectedError(400, f"{where} is {json_type(value)}, not a list of {shape[0]} {unit}{coded}")
    if len(value) != shape[0]:
        order = _order(value, shape)
        raise RejectedError(400, f"{where} has {len(value)} {unit}; the model takes {shape[0]}{order}")
    for index, part in enumerate(value):
        _require(part, shape[1:], f"{where}[{index}]", every)
    return None


def _order(value: list[Any], shape: tuple[int, ...]) -> str:
    """The remedy for an image whose numbers are there in another order, as far as its outer lists tell."""
    if len(shape) < 3:
        return ""
    if len(value) == shape[2] and all(isinstance(part, list) and len(part) == shape[0] for part in value):
        return "; the channels come last"
    flat = len(value) == prod(shape) and not isinstance(value[0], list)
    return f"; send {shape[0]} lists of {shape[1]} pixels" if flat else ""


def _require_pixel(value: Any, where: str, every: list[Any]) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RejectedError(400, f"{where} is {json_type(value)}, not a whole number from 0 to 255")
    if not 0 <= value <= 255 or value != int(value):
        raise no_pixel(value, where, every)


LOOKED_AT = 10_000
"""Numbers of a rejected request that tell what was done to all."""
_NORMALIZED = 10


def no_pixel(value: float, where: str, every: list[Any]) -> RejectedError:
    """Reject a number that is no pixel, with the remedy for what was probably done to all of them.

    Args:
        value: The first such number.
        where: Its place in the request.
        every: All numbers that were sent, in lists of any depth.
    """
    some = [float(number) for number in islice(_numbers(every), LOOKED_AT)]
    low, high = min([value, *some]), max([value, *some])
    hint = ""
    if low >= 0 and high <= 1:
        hint = "; pixel values are not scaled to 0 to 1"
    elif low < 0 and high <= _NORMALIZED:
        hint = "; send raw pixel values, not normalized ones"
    elif 0 <= value <= 255:
        hint = "; round it"
    return RejectedError(400, f"{where} is {value:.6g}, not a whole number from 0 to 255{hint}")


def _numbers(values: list[Any]) -> Iterator[float]:
    for value in values:
        if isinstance(value, list):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield value

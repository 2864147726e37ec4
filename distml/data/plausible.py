"""Warnings about images that a model is asked about, such as inverted ones (predict, batch, replica).

The endpoint, `predict` and batch ask the same function. Nothing here rejects: a black image may be valid.
What can only be an error (floats from 0 to 1 where pixels are whole numbers) is rejected where it is read.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from distml.data import statistics
from distml.data.image import Images

_DARK = 31
"""Of 255; without training statistics, an image that is darker everywhere is odd."""
_SAMPLE_VALUES = 200_000_000
_SAMPLE_ROWS = 10_000
_QUANTILE = 0.999
_LEAST_RATIO = 7.0
"""Natural logarithm of how much likelier the inverted image must be, at least: a thousand times."""


MEANINGS = {
    "constant": "all pixels have one value; a drawing may have the color of its background",
    "values_0_to_1": "no value above 1; pixels are 0 to 255, do not scale them",
    "very_dark": f"no value above {_DARK} of 255, darker than the training images",
    "inverted": "brightness is inverted compared with the training images; invert it",
    "low_contrast": "less contrast than any of the training images",
    "unused_bits": "it uses few of its 16 bits, which were taken for the whole range",
}
"""What may be odd about an image, by code."""


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


NOTED: contextvars.ContextVar[tuple[Doubt, ...]] = contextvars.ContextVar("noted", default=())
"""What was odd about the files of the present request before they became images."""


@dataclass(frozen=True)
class Usual:
    """Statistics of training images, the same that drift is computed from.

    Args:
        edges: Inner edges of the bins, by statistic.
        counts: Rows by bin, one more than edges, by statistic.
        ratio: Logarithm of how much likelier an inverted image is than itself, for one row in a thousand.
    """

    edges: Mapping[str, tuple[float, ...]]
    counts: Mapping[str, tuple[int, ...]]
    ratio: float

    @classmethod
    def of(cls, images: Images) -> Self:
        """Measure held-out rows.

        Args:
            images: uint8 [N, H, W, C]; a sample is enough.
        """
        height, width, depth = images.shape[1:]
        most = max(1, min(_SAMPLE_ROWS, _SAMPLE_VALUES // (height * width * depth)))
        step = -(-len(images) // most)
        measured = statistics.measure(images[::step])
        names = statistics.names((height, width, depth))
        edges = [statistics.edges(column) for column in measured.T]
        counts = [statistics.count(column, values) for column, values in zip(measured.T, edges, strict=True)]
        plain = cls(
            {name: tuple(map(float, values)) for name, values in zip(names, edges, strict=True)},
            {name: tuple(map(int, values)) for name, values in zip(names, counts, strict=True)},
            0.0,
        )
        ratios = plain.ratios(dict(zip(names, measured.T, strict=True)))
        return cls(plain.edges, plain.counts, float(np.quantile(ratios, _QUANTILE)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` and JSON made of it; raises KeyError, TypeError or ValueError."""
        edges = {str(name): tuple(map(float, numbers)) for name, numbers in values["edges"].items()}
        counts = {str(name): tuple(map(int, numbers)) for name, numbers in values["counts"].items()}
        if edges.keys() != counts.keys() or any(len(counts[name]) != len(edges[name]) + 1 for name in edges):
            raise ValueError("statistics without their counts")
        return cls(edges, counts, float(values["ratio"]))

    @functools.cached_property
    def _densities(self) -> Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """Edges and the logarithm of each bin's density, by statistic that an inversion mirrors."""
        densities = {}
        for name, edges in self.edges.items():
            if "intensity" in name:
                widths = np.diff(np.concatenate([[0.0], np.clip(edges, 0, 1), [1.0]])) + 1e-3
                shares = (np.array(self.counts[name]) + 0.5) / (sum(self.counts[name]) + 0.5 * len(widths))
                densities[name] = (np.array(edges), np.log(shares / widths))
        return densities

    def ratios(self, measured: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        """Return the logarithm of how much likelier each inverted image is than the image itself.

        Args:
            measured: float32 [N], by statistic.
        """
        total = np.zeros(len(next(iter(measured.values()))))
        for name, (edges, density) in self._densities.items():
            values = measured[name]
            total += density[np.searchsorted(edges, 1 - values)] - density[np.searchsorted(edges, values)]
        return total

    @functools.cached_property
    def suspect(self) -> npt.NDArray[np.bool_]:
        """Whether an image of that mean, 0 to 255, may be inverted and has to be measured; bool [256]."""
        edges, density = self._densities["mean intensity"]
        means = np.arange(256) / 255
        inverted, plain = np.searchsorted(edges, 1 - means), np.searchsorted(edges, means)
        return np.asarray(density[inverted] > density[plain])

    @property
    def least_contrast(self) -> float:
        """Standard deviation of the intensity of the flattest training image."""
        return max(0.0, self.edges["contrast"][0])

    @property
    def darkest(self) -> float:
        """Mean intensity of the darkest training image."""
        return max(0.0, self.edges["mean intensity"][0])


def _is_usual(images: Images, usual: Usual | None) -> bool:
    """Decide for one image what most are, without axes, which take NumPy three times as long."""
    values = images.ravel()
    low, high = int(np.minimum.reduce(values)), int(np.maximum.reduce(values))
    if high <= _DARK or low == high:
        return False
    if usual is None:
        return True
    mean = int(np.add.reduce(values, dtype=np.int64)) // values.size
    return not usual.suspect[mean] and (high - low) / 510 >= usual.least_contrast


def doubts(images: Images, usual: Usual | None = None) -> list[Doubt]:
    """Say what is odd about images; mostly nothing.

    Args:
        images: uint8 [N, H, W, C].
        usual: How training images are, None where the model does not say.
    """
    noted = NOTED.get()
    if len(images) == 1 and not noted and _is_usual(images, usual):
        return []
    odd_images = odd(images, usual)
    return [doubt(code, np.flatnonzero(is_odd).tolist()) for code, is_odd in odd_images.items()] + list(noted)


def codes(images: Images, usual: Usual | None = None) -> list[list[str]]:
    """Return the codes of what is odd about each image; arguments as `odd`."""
    kinds = odd(images, usual) if len(images) else {}
    return [[code for code, rows in kinds.items() if rows[at]] for at in range(len(images))]


def odd(images: Images, usual: Usual | None = None) -> dict[str, npt.NDArray[np.bool_]]:
    """Return which images are odd, bool [N], by the code of what is odd about them; mostly nothing.

    Args:
        images: uint8 [N, H, W, C].
        usual: How training images are, None where the model does not say.
    """
    flat = images.reshape(len(images), -1)
    low, high = flat.min(1), flat.max(1)
    constant = low == high
    binary = ~constant & (high <= 1)
    dark = ~constant & ~binary & (high <= _DARK)
    inverted = np.zeros(len(images), bool)
    flattened = np.zeros(len(images), bool)
    if usual:
        means = flat.mean(1)
        wanted = (
            ~constant
            & ~binary
            & (usual.suspect[means.astype(int)] | ((high - low) / 510 < usual.least_contrast))
        )
        dark &= means < usual.darkest * 255
        if wanted.any():
            names = statistics.names((images.shape[1], images.shape[2], images.shape[3]))
            measured = dict(zip(names, statistics.measure(images[wanted]).T, strict=True))
            inverted[wanted] = usual.ratios(measured) > max(usual.ratio, _LEAST_RATIO)
            flattened[wanted] = measured["contrast"] < usual.least_contrast
        inverted &= ~dark
        flattened &= ~dark & ~inverted
    kinds = {
        "constant": constant,
        "values_0_to_1": binary,
        "very_dark": dark,
        "inverted": inverted,
        "low_contrast": flattened,
    }
    return {code: is_odd for code, is_odd in kinds.items() if is_odd.any()}


def doubt(code: str, images: list[int], what: str | None = None) -> Doubt:
    """Describe what is odd about the images at these positions.

    Args:
        code: A key of `MEANINGS`.
        images: Positions.
        what: Instead of the meaning there.
    """
    others = f" and {len(images) - 1} others" if len(images) > 1 else ""
    return Doubt(code, f"image {images[0]}{others}: {what or MEANINGS[code]}", len(images))


def unused(bits: list[int]) -> tuple[Doubt, ...]:
    """Say which files leave how many of their 16 bits unused."""
    odd = [index for index, left in enumerate(bits) if left]
    if not odd:
        return ()
    what = f"it uses {16 - bits[odd[0]]} of its 16 bits, which were taken for the whole range"
    return (doubt("unused_bits", odd, what),)


def described(doubts: Iterable[Doubt]) -> dict[str, Any]:
    """The member `warnings` of a result, none where nothing is odd."""
    warnings = [{"code": item.code, "sentence": item.sentence} for item in doubts]
    return {"warnings": warnings} if warnings else {}

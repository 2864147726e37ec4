"""Data augmentation of batches: MixUp, CutMix, and Keras's layers as `train.augment` lists them (worker).

Random numbers are a function of (seed, step, rank), so a resumed run draws the same numbers as an
uninterrupted run. Keras's layers keep theirs in variables, which are set before each batch. Defaults, such as
that of MixUp's alpha, are in `config.schema`.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distml.config import AugmentConfig, functions
from distml.errors import ModelError
from distml.models import registry

Tensor = Any


class Augmentation:
    """The augmentation a configuration names. Final.

    Args:
        augment: Which augmentations.
        size: Height and width of the images that the network takes.

    Raises:
        ModelError: A layer cannot be made, or changes the size of images.
    """

    def __init__(self, augment: AugmentConfig, shape: tuple[int, int, int]) -> None:
        self._augment, self._size = augment, shape[:2]
        self._layers = [
            _layer(name, options, shape) for layer in augment.layers for name, options in layer.items()
        ]

    def __call__(self, images: Tensor, seed: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 (N, H', W', C), raw pixels, perhaps larger than the network's by a margin.
            seed: int32 (2,), unique to this batch.

        Returns:
            uint8 or float32 (N, H, W, C), raw pixels.
        """
        augment = self._augment
        if augment.crop_scale:
            images = _resized_crop(images, self._size, augment.crop_scale, augment.crop_ratio, seed + [4, 0])
        elif tuple(images.shape[1:3]) != self._size:
            images = _window(images, self._size, seed + [5, 0])
        if augment.flip:
            images = _flip(images, seed + [1, 0])
        if augment.crop_padding:
            images = _crop(images, augment.crop_padding, seed + [2, 0])
        for position, (layer, states) in enumerate(self._layers):
            for number, state in enumerate(states):
                offset = tf.constant([100 + 1000 * position + number, 0])
                drawn = tf.random.stateless_uniform([2], seed + offset, None, None, tf.uint32)
                state.assign(tf.cast(drawn, state.dtype))
            # AugMix (Keras 3.15) chooses the layers of its chains by Python's generator, once a trace.
            with registry.seeded(position):
                images = layer(tf.cast(images, tf.float32), training=True)
        if augment.erase:
            images = _erase(images, augment.erase, seed + [3, 0])
        return images

    def mix(self, images: Tensor, labels: Tensor, seed: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mix each image of a batch with another one, where that is configured.

        Args:
            images: (N, H, W, C).
            labels: (N, ...).
            seed: As `__call__` takes it.

        Returns:
            Images, and either (labels,) or labels, those of the other image and the first one's share,
            float32 (N,).
        """
        augment = self._augment
        if not augment.mixup and not augment.cutmix:
            return images, (labels,)
        images = tf.cast(images, tf.float32)
        others, share = images[::-1], tf.ones(tf.shape(labels)[:1])  # rows come in random order
        pasted = _uniform(tf.shape(share), seed + [6, 0]) < (0.5 if augment.mixup else 1.0)
        if augment.cutmix:
            cut, part = _pasted(images, others, _beta(augment.cutmix, tf.shape(share), seed + [7, 0]), seed)
            images = tf.where(pasted[:, None, None, None], cut, images)
            share = tf.where(pasted, part, share)
        if augment.mixup:
            part = _beta(augment.mixup, tf.shape(share), seed + [8, 0])
            blended = ~pasted if augment.cutmix else tf.ones_like(pasted)
            share = tf.where(blended, part, share)
            part = tf.where(blended, part, 1.0)[:, None, None, None]
            images = part * images + (1 - part) * others
        return images, (labels, labels[::-1], share)


def _layer(name: str, options: dict[str, Any], shape: tuple[int, int, int]) -> tuple[Any, list[Any]]:
    """What applies a layer, and the variables it draws random numbers from."""
    if ":" in name:
        kind, given = functions.load(name, functions.LAYERS), options
    else:
        kind, given = getattr(keras.layers, name), options | {"dtype": "float32"}
    layer = functions.called(name, kind, functions.LAYERS, **given)
    image = tf.cast(tf.reshape(tf.range(2 * np.prod(shape)) % 256, [2, *shape]), tf.float32)
    changed = functions.called(name, lambda: layer(image, training=True), functions.LAYERS)
    if tuple(changed.shape) != tuple(image.shape):
        raise ModelError(
            f"train.augment.layers: {name} turns images of {shape} into {tuple(changed.shape[1:])}.",
            "Leave it out.",
        )
    weights = {id(weight) for weight in layer.weights}
    drawn = [variable.value for variable in layer.variables if id(variable) not in weights]
    if ":" not in name:
        return layer, drawn
    # With AutoGraph, which the step goes without: a class of the user's own may branch on a tensor, although
    # `call` of a Keras layer may not, as in Keras's own training.
    converted = tf.function(layer)
    changed = functions.called(name, lambda: converted(image, training=True), functions.LAYERS)
    _require_pixels(name, changed)
    return converted, drawn


_SCALED = 2.0
"""A greatest value by which images are scaled to 0 to 1 or -1 to 1."""


def _require_pixels(name: str, images: Tensor) -> None:
    """Reject a layer of the user's that scales pixels, which the network does."""
    most = float(tf.reduce_max(tf.abs(images)))
    if 0 < most <= _SCALED:
        raise ModelError(
            f"train.augment.layers: {name} turns pixels of 0 to 255 into values up to {most:.3g}.",
            "Return pixels of 0 to 255: the network scales them.",
        )


def centre(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cut images that keep a margin to the size of the network, (N, H, W, C), as held-out rows are."""
    top, left = ((images.shape[1 + axis] - size[axis]) // 2 for axis in (0, 1))
    return images[:, top : top + size[0], left : left + size[1]]


def _integers(shape: Tensor, high: int, seed: Tensor) -> Tensor:
    return tf.random.stateless_uniform(shape, seed, 0, high, tf.int32)


def _uniform(shape: Tensor, seed: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return tf.random.stateless_uniform(shape, seed, low, high)


def _beta(concentration: float, shape: Tensor, seed: Tensor) -> Tensor:
    """Draw from the symmetric beta distribution, as the share of a gamma variate among two."""
    first, second = (
        tf.random.stateless_gamma(shape, seed + [0, part], concentration, dtype=tf.float32) for part in (3, 5)
    )
    return tf.math.divide_no_nan(first, first + second)


def _flip(images: Tensor, seed: Tensor) -> Tensor:
    mirrored = _integers([tf.shape(images)[0], 1, 1, 1], 2, seed) == 1
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def _crop(images: Tensor, padding: int, seed: Tensor) -> Tensor:
    size = tuple(images.shape[1:3])
    return _window(tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]]), size, seed)


def _window(images: Tensor, size: tuple[int, int], seed: Tensor) -> Tensor:
    """Cut a window of this size at a random place of each image."""
    count, (height, width) = tf.shape(images)[0], size
    spare = [images.shape[1] - height + 1, images.shape[2] - width + 1]
    if spare[0] == spare[1]:
        top, left = tf.unstack(_integers([2, count, 1], spare[0], seed))
    else:
        top, left = (_integers([count, 1], high, seed + [0, at]) for at, high in enumerate(spare))
    rows = tf.gather(images, top + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, left + tf.range(width), axis=2, batch_dims=1)


def _resized_crop(
    images: Tensor,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    seed: Tensor,
) -> Tensor:
    """Cut a random share of each image's area, of a random shape, and resize it (Szegedy et al. 2015)."""
    count = tf.shape(images)[0]
    area = _uniform([count], seed, *scale)
    shape = tf.exp(_uniform([count], seed + [0, 1], *(float(np.log(side)) for side in ratio)))
    whole = images.shape[2] / images.shape[1]
    height = tf.minimum(tf.sqrt(area * whole / shape), 1.0)
    width = tf.minimum(tf.sqrt(area * shape / whole), 1.0)
    top = _uniform([count], seed + [0, 2]) * (1 - height)
    left = _uniform([count], seed + [0, 3]) * (1 - width)
    boxes = tf.stack([top, left, top + height, left + width], -1)
    return tf.image.crop_and_resize(images, boxes, tf.range(count), size)


def _inside(top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
    """Whether each pixel (N, H, W, 1) is in its image's rectangle; int32 (N, 1, 1, 1) each."""
    y = tf.range(size[0])[None, :, None, None]
    x = tf.range(size[1])[None, None, :, None]
    return (y >= top) & (y < top + height) & (x >= left) & (x < left + width)


def _erase(images: Tensor, side: int, seed: Tensor) -> Tensor:
    """Zero one square per image; it may extend beyond the edge, as in cutout (DeVries & Taylor 2017)."""
    height, width = images.shape[1], images.shape[2]
    count = tf.shape(images)[0]
    top = _integers([count, 1, 1, 1], height, seed) - side // 2
    left = _integers([count, 1, 1, 1], width, seed + [0, 7]) - side // 2
    return tf.where(_inside(top, left, side, side, (height, width)), tf.zeros_like(images), images)


def _pasted(images: Tensor, others: Tensor, share: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of the other image over 1 - share of each image (Yun et al. 2019).

    Returns:
        Images, and the share of their pixels that stayed.
    """
    size = (images.shape[1], images.shape[2])
    side, count = tf.sqrt(1 - share)[:, None, None, None], tf.shape(images)[0]
    height, width = (tf.cast(side * length, tf.int32) for length in size)
    top = _integers([count, 1, 1, 1], size[0], seed + [9, 0]) - height // 2
    left = _integers([count, 1, 1, 1], size[1], seed + [9, 1]) - width // 2
    inside = _inside(top, left, height, width, size)
    return tf.where(inside, others, images), 1 - tf.reduce_mean(tf.cast(inside, tf.float32), [1, 2, 3])

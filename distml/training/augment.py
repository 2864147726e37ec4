"""Augmentation of raw training images inside the graph (worker).

Random numbers are stateless, a function of (seed, step, rank), so a resumed run draws the same numbers as an
uninterrupted run.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from distml.config import AugmentConfig

Tensor = Any


def apply(images: Tensor, augment: AugmentConfig, seed: Tensor) -> Tensor:
    """Augment a batch.

    Args:
        images: uint8 (N, H, W, C), raw pixels.
        augment: Which augmentations.
        seed: int32 (2,), unique to this batch.

    Returns:
        uint8 (N, H, W, C).
    """
    if augment.flip:
        images = _flip(images, seed + [1, 0])
    if augment.crop_padding:
        images = _crop(images, augment.crop_padding, seed + [2, 0])
    if augment.erase:
        images = _erase(images, augment.erase, seed + [3, 0])
    return images


def _integers(shape: Tensor, high: int, seed: Tensor) -> Tensor:
    return tf.random.stateless_uniform(shape, seed, 0, high, tf.int32)


def _flip(images: Tensor, seed: Tensor) -> Tensor:
    mirrored = _integers([tf.shape(images)[0], 1, 1, 1], 2, seed) == 1
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def _crop(images: Tensor, padding: int, seed: Tensor) -> Tensor:
    height, width = images.shape[1], images.shape[2]
    count = tf.shape(images)[0]
    offsets = _integers([2, count, 1], 2 * padding + 1, seed)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = tf.gather(padded, offsets[0] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, offsets[1] + tf.range(width), axis=2, batch_dims=1)


def _erase(images: Tensor, side: int, seed: Tensor) -> Tensor:
    """Zero one square per image; it may extend beyond the edge, as in cutout (DeVries & Taylor 2017)."""
    height, width = images.shape[1], images.shape[2]
    count = tf.shape(images)[0]
    top = _integers([count, 1, 1, 1], height, seed) - side // 2
    left = _integers([count, 1, 1, 1], width, seed + [0, 7]) - side // 2
    y = tf.range(height)[None, :, None, None]
    x = tf.range(width)[None, None, :, None]
    inside = (y >= top) & (y < top + side) & (x >= left) & (x < left + side)
    return tf.where(inside, tf.zeros_like(images), images)

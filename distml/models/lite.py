"""EfficientNet-Lite: inverted residuals without squeeze-and-excitation, with ReLU6 (worker).

Source: Tan & Le, "EfficientNet" (2019), in the variant that Google released for phones and other processors
without fast swish (`tpu/models/official/efficientnet/lite`, 2020): stem and head keep their width, the first
and the last stage their number of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

Tensor = Any
_STEM, _HEAD = 32, 1280
_INITIALIZER = "he_normal"


@dataclass(frozen=True)
class _Stage:
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)

SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
"""Factors on the width and the depth of the stages."""


def features(name: str, shape: tuple[int, int, int]) -> keras.Model:
    """Build the network up to its last feature map.

    Args:
        name: A key of `SCALES`.
        shape: Height, width and channels of an image.

    Returns:
        A model from scaled pixels, (N, H, W, C), to features, (N, ceil(H / 32), ceil(W / 32), 1280). Its
        layers are named like the published weights: `stem_conv`, `block03_depthwise_norm`, `head_conv`.
    """
    inputs = layers.Input(shape)
    x = _relu6(_conv(inputs, _STEM, 3, 2, "stem"), "stem")
    for number, (stage, stride) in enumerate(_blocks(*SCALES[name])):
        x = _block(x, stage, stride, f"block{number:02d}")
    x = _relu6(_conv(x, _HEAD, 1, 1, "head"), "head")
    return keras.Model(inputs, x, name=name)


def _blocks(width: float, depth: float) -> Iterator[tuple[_Stage, int]]:
    """Every block: its stage at the scaled width, and its stride."""
    for position, stage in enumerate(_STAGES):
        ends = position in (0, len(_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(stage.repeats * depth)
        scaled = _Stage(repeats, stage.kernel, 1, stage.expansion, _rounded(stage.filters * width))
        for number in range(repeats):
            yield scaled, stage.stride if number == 0 else 1


def _rounded(filters: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * filters else nearest


def _block(x: Tensor, stage: _Stage, stride: int, name: str) -> Tensor:
    """Expand, convolve each channel, project; around it the shortcut where the shapes agree."""
    entered, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = _relu6(_conv(x, channels * stage.expansion, 1, 1, f"{name}_expand"), f"{name}_expand")
    x = layers.DepthwiseConv2D(
        stage.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_INITIALIZER,
        name=f"{name}_depthwise_conv",
    )(x)
    x = _relu6(_norm(x, f"{name}_depthwise"), f"{name}_depthwise")
    x = _conv(x, stage.filters, 1, 1, f"{name}_project")
    if stride == 1 and channels == stage.filters:
        x = layers.Add(name=f"{name}_add")([entered, x])
    return x


def _conv(x: Tensor, filters: int, size: int, stride: int, name: str) -> Tensor:
    """A convolution without bias and its normalisation."""
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_INITIALIZER,
        name=f"{name}_conv",
    )(x)
    return _norm(x, name)


def _norm(x: Tensor, name: str) -> Tensor:
    return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)


def _relu6(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)

"""Residual networks implemented here: `resnet`, `poolnet` and EfficientNet-Lite (worker).

Sources. `resnet`: He et al., "Deep Residual Learning for Image Recognition" (2015), the last normalisation
of each block starting at zero, so that the network starts shallow (Goyal et al., "Accurate, Large Minibatch
SGD", 2017). `poolnet`: Page, "How to train your ResNet" (2018); pooling before the normalisation, which then
has a quarter of the work, is from Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU" (2024).
EfficientNet-Lite: Tan & Le, "EfficientNet" (2019), as Google released it for phones
(`tpu/models/official/efficientnet/lite`, 2020): stem and head keep their width, the first and the last
stage their number of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from distml.errors import ModelError

Tensor = Any


def resnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    widths: Sequence[int] = (16, 32, 64),
    blocks: int = 1,
    stem: int = 0,
    dropout: float = 0.0,
    momentum: float = 0.97,
    synchronized: bool = False,
) -> keras.Model:
    """A stem, then one stage of residual blocks per width, each but the first at half the size.

    Args:
        shape: Height, width and channels of an image; any size.
        classes: Width of the last layer.
        widths: Channels of each stage.
        blocks: Residual blocks in each stage.
        stem: 0 is one convolution at full size; else a convolution of that many channels at full size and
            one that halves, which leaves the time for wider stages (half the work goes into full size).
        dropout: Share of the pooled features dropped while training.
        momentum: Of the moving statistics; lower than Keras's default, because runs are short.
        synchronized: Normalise with the statistics of the global batch, one more exchange between
            the workers per layer and step; otherwise each worker uses its own share of the batch.

    Returns:
        A network from normalised float32 pixels, (N, H, W, C), to float32 logits, (N, classes).
    """
    unit = _Convolution(momentum, synchronized)
    inputs = layers.Input(shape)
    features = inputs
    if stem:
        features = _relu(unit(features, stem, "full"), "full")
    features = _relu(unit(features, widths[0], "stem", strides=2 if stem else 1), "stem")
    for stage, width in enumerate(widths, 1):
        for block in range(1, blocks + 1):
            halve = stage > 1 and block == 1
            features = _block(unit, features, width, 2 if halve else 1, f"stage{stage}_block{block}")
    pooled = layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(inputs, _logits(pooled, classes, dropout), name="resnet")


def _logits(pooled: Tensor, classes: int, dropout: float) -> Tensor:
    """The last layers, the same in both networks."""
    if dropout:
        pooled = layers.Dropout(dropout, name="dropout")(pooled)
    return layers.Dense(classes, dtype="float32", name="logits")(pooled)


@dataclass(frozen=True)
class _Convolution:
    """A convolution without bias and its normalisation."""

    momentum: float
    synchronized: bool

    def __call__(
        self, x: Tensor, width: int, name: str, *, size: int = 3, strides: int = 1, gamma: str = "ones"
    ) -> Tensor:
        conv = layers.Conv2D(
            width,
            size,
            strides=strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv",
        )
        norm = layers.BatchNormalization(
            momentum=self.momentum,
            gamma_initializer=gamma,
            synchronized=self.synchronized,
            name=f"{name}_norm",
        )
        return norm(conv(x))


def _relu(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(name=f"{name}_relu")(x)


def _block(unit: _Convolution, x: Tensor, width: int, strides: int, name: str) -> Tensor:
    y = _relu(unit(x, width, f"{name}_a", strides=strides), f"{name}_a")
    y = unit(y, width, f"{name}_b", gamma="zeros")
    if strides > 1 or x.shape[-1] != width:
        x = unit(x, width, f"{name}_skip", size=1, strides=strides)
    return _relu(layers.Add(name=f"{name}_add")([x, y]), name)


def poolnet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    widths: Sequence[int] = (32, 64, 128),
    stem: int = 32,
    depth: int = 2,
    dropout: float = 0.0,
    momentum: float = 0.97,
) -> keras.Model:
    """A stem at full size and a pooling, then stages of convolutions, each but the first pooling once.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the last layer.
        widths: Channels of each stage.
        stem: Channels of the first convolution.
        depth: Convolutions in each stage; all but the first have the features pass around them.
        dropout: Share of the pooled features dropped while training.
        momentum: Of the moving statistics; lower than Keras's default, because runs are short.

    Returns:
        A network from normalised float32 pixels, (N, H, W, C), to float32 logits, (N, classes).

    Raises:
        ModelError: The images are too small for that many poolings.
    """
    least = 2 ** len(widths)
    if min(shape[:2]) < least:
        raise ModelError(
            f"images of {shape[0]}x{shape[1]} pixels are too small for poolnet: {len(widths)} poolings "
            f"need {least}x{least}.",
            "Give fewer model.options.widths, or take resnet, which takes any size.",
        )
    unit = _PooledConvolution(momentum)
    inputs = layers.Input(shape)
    features = layers.MaxPooling2D(2, name="stem_pool")(unit(inputs, stem, "stem"))
    for stage, width in enumerate(widths, 1):
        features = unit(features, width, f"stage{stage}_conv1", pool=stage > 1)
        if depth > 1:
            deeper = features
            for number in range(2, depth + 1):
                deeper = unit(deeper, width, f"stage{stage}_conv{number}")
            features = layers.Add(name=f"stage{stage}_add")([deeper, features])
    pooled = layers.GlobalMaxPooling2D(name="pool")(features)
    return keras.Model(inputs, _logits(pooled, classes, dropout), name="poolnet")


@dataclass(frozen=True)
class _PooledConvolution:
    """A 3x3 convolution without bias, perhaps a pooling, normalisation and relu."""

    momentum: float

    def __call__(self, x: Tensor, width: int, name: str, *, pool: bool = False) -> Tensor:
        convolution = layers.Conv2D(
            width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
        )
        x = convolution(x)
        if pool:
            x = layers.MaxPooling2D(2, name=f"{name}_pool")(x)
        x = layers.BatchNormalization(momentum=self.momentum, name=f"{name}_norm")(x)
        return layers.ReLU(name=f"{name}_relu")(x)


_LITE_STEM, _LITE_HEAD = 32, 1280
_INITIALIZER = "he_normal"


@dataclass(frozen=True)
class _LiteStage:
    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


_STAGES = (
    _LiteStage(1, 3, 1, 1, 16),
    _LiteStage(2, 3, 2, 6, 24),
    _LiteStage(2, 5, 2, 6, 40),
    _LiteStage(3, 3, 2, 6, 80),
    _LiteStage(3, 5, 1, 6, 112),
    _LiteStage(4, 5, 2, 6, 192),
    _LiteStage(1, 3, 1, 6, 320),
)

LITE_SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
    "efficientnet_lite3": (1.2, 1.4),
    "efficientnet_lite4": (1.4, 1.8),
}
"""Factors on the width and the depth of the stages."""


def lite_features(name: str, shape: tuple[int, int, int]) -> keras.Model:
    """Build the network up to its last feature map.

    Args:
        name: A key of `LITE_SCALES`.
        shape: Height, width and channels of an image.

    Returns:
        A model from scaled pixels, (N, H, W, C), to features, (N, ceil(H / 32), ceil(W / 32), 1280). Its
        layers are named like the published weights: `stem_conv`, `block03_depthwise_norm`, `head_conv`.
    """
    inputs = layers.Input(shape)
    x = _relu6(_lite_conv(inputs, _LITE_STEM, 3, 2, "stem"), "stem")
    for number, (stage, stride) in enumerate(_blocks(*LITE_SCALES[name])):
        x = _inverted(x, stage, stride, f"block{number:02d}")
    x = _relu6(_lite_conv(x, _LITE_HEAD, 1, 1, "head"), "head")
    return keras.Model(inputs, x, name=name)


def _blocks(width: float, depth: float) -> Iterator[tuple[_LiteStage, int]]:
    """Every block: its stage at the scaled width, and its stride."""
    for position, stage in enumerate(_STAGES):
        ends = position in (0, len(_STAGES) - 1)
        repeats = stage.repeats if ends else math.ceil(stage.repeats * depth)
        scaled = _LiteStage(repeats, stage.kernel, 1, stage.expansion, _rounded(stage.filters * width))
        for number in range(repeats):
            yield scaled, stage.stride if number == 0 else 1


def _rounded(filters: float) -> int:
    """The nearest multiple of 8 that is not more than a tenth smaller."""
    nearest = max(8, int(filters + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * filters else nearest


def _inverted(x: Tensor, stage: _LiteStage, stride: int, name: str) -> Tensor:
    """Expand, convolve each channel, project; around it the shortcut where the shapes agree."""
    entered, channels = x, x.shape[-1]
    if stage.expansion > 1:
        x = _relu6(_lite_conv(x, channels * stage.expansion, 1, 1, f"{name}_expand"), f"{name}_expand")
    x = layers.DepthwiseConv2D(
        stage.kernel,
        strides=stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_INITIALIZER,
        name=f"{name}_depthwise_conv",
    )(x)
    x = _relu6(_lite_norm(x, f"{name}_depthwise"), f"{name}_depthwise")
    x = _lite_conv(x, stage.filters, 1, 1, f"{name}_project")
    if stride == 1 and channels == stage.filters:
        x = layers.Add(name=f"{name}_add")([entered, x])
    return x


def _lite_conv(x: Tensor, filters: int, size: int, stride: int, name: str) -> Tensor:
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
    return _lite_norm(x, name)


def _lite_norm(x: Tensor, name: str) -> Tensor:
    return layers.BatchNormalization(epsilon=1e-3, name=f"{name}_norm")(x)


def _relu6(x: Tensor, name: str) -> Tensor:
    return layers.ReLU(6.0, name=f"{name}_relu6")(x)

"""A small residual network for accuracy on a CPU (worker).

Source of the block: He et al., "Deep Residual Learning for Image Recognition" (2015), with the last
normalisation of each block starting at zero, so that the network starts shallow (Goyal et al.,
"Accurate, Large Minibatch SGD", 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

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
    unit = _Unit(momentum, synchronized)
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
    if dropout:
        pooled = layers.Dropout(dropout, name="dropout")(pooled)
    logits = layers.Dense(classes, dtype="float32", name="logits")(pooled)
    return keras.Model(inputs, logits, name="resnet")


@dataclass(frozen=True)
class _Unit:
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


def _block(unit: _Unit, x: Tensor, width: int, strides: int, name: str) -> Tensor:
    y = _relu(unit(x, width, f"{name}_a", strides=strides), f"{name}_a")
    y = unit(y, width, f"{name}_b", gamma="zeros")
    if strides > 1 or x.shape[-1] != width:
        x = unit(x, width, f"{name}_skip", size=1, strides=strides)
    return _relu(layers.Add(name=f"{name}_add")([x, y]), name)

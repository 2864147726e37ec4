"""Small convolutional networks, `convnet` and variants; `models.registry` gives them their names (worker).

A builder takes the shape of an image and the number of classes, and returns a network from float32
pixels already normalised, (N, H, W, C), to logits, (N, classes). Logits are float32 also under mixed
precision: the sum over many low-precision exponentials is where accuracy is lost first.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import layers

from distml.errors import ModelError

Shape = tuple[int, int, int]


def convnet(
    shape: Shape,
    classes: int,
    *,
    filters: Sequence[int] = (32, 64),
    dense: int = 64,
    dropout: float = 0.0,
) -> keras.Model:
    """For each of `filters` a convolution with relu and a pooling, then the dense head.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the last layer.
        filters: Filters of each convolution.
        dense: Width of the hidden dense layer.
        dropout: Share of the flattened features dropped while training.

    Raises:
        ModelError: The images are too small for that many poolings.
    """
    _require_size("convnet", shape, [True] * len(filters))
    body: list[keras.Layer] = []
    for number, width in enumerate(filters, 1):
        body += [_conv(number, width, "relu"), _pool(number)]
    if dropout:
        body.append(layers.Dropout(dropout, name="dropout"))
    return _classifier("convnet", shape, classes, body, dense)


def cnn(shape: Shape, classes: int, *, dense: int = 64) -> keras.Model:
    """One convolution of 32 with relu and one pooling. Arguments and errors as `convnet`."""
    _require_size("cnn", shape, [True])
    return _classifier("cnn", shape, classes, [_conv(1, 32, "relu"), _pool(1)], dense)


def cnn_batchnorm(
    shape: Shape, classes: int, *, dense: int = 64, momentum: float = 0.99, synchronized: bool = False
) -> keras.Model:
    """Two blocks of convolution, batch norm, sigmoid and pooling, then a convolution of 64 with relu.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the last layer.
        dense: Width of the hidden dense layer.
        momentum: Of the moving statistics.
        synchronized: Normalise with the statistics of the global batch, one more exchange between
            the workers per layer and step; otherwise each worker uses its own share of the batch.

    Raises:
        ModelError: The images are too small.
    """
    _require_size("cnn_batchnorm", shape, [True, True, False])
    body: list[keras.Layer] = []
    for number, width in enumerate((32, 64), 1):
        body += [
            _conv(number, width, None),
            layers.BatchNormalization(momentum=momentum, synchronized=synchronized, name=f"norm{number}"),
            layers.Activation("sigmoid", name=f"sigmoid{number}"),
            _pool(number),
        ]
    return _classifier("cnn_batchnorm", shape, classes, [*body, _conv(3, 64, "relu")], dense)


def cnn_dropout(shape: Shape, classes: int, *, dense: int = 64, rate: float = 0.5) -> keras.Model:
    """Two blocks of convolution with relu and pooling, dropout, then a convolution of 64 with relu.

    Args:
        shape: Height, width and channels of an image.
        classes: Width of the last layer.
        dense: Width of the hidden dense layer.
        rate: Share of the features dropped while training.

    Raises:
        ModelError: The images are too small.
    """
    _require_size("cnn_dropout", shape, [True, True, False])
    body = [
        *(_conv(1, 32, "relu"), _pool(1)),
        *(_conv(2, 64, "relu"), _pool(2)),
        layers.Dropout(rate, name="dropout"),
        _conv(3, 64, "relu"),
    ]
    return _classifier("cnn_dropout", shape, classes, body, dense)


def _conv(number: int, filters: int, activation: str | None) -> keras.Layer:
    return layers.Conv2D(filters, 3, activation=activation, name=f"conv{number}")


def _pool(number: int) -> keras.Layer:
    return layers.MaxPooling2D(2, name=f"pool{number}")


def _classifier(
    name: str, shape: Shape, classes: int, body: list[keras.Layer], dense: int
) -> keras.Sequential:
    head = [
        layers.Flatten(name="flatten"),
        layers.Dense(dense, activation="relu", name="dense"),
        layers.Dense(classes, dtype="float32", name="logits"),
    ]
    return keras.Sequential([layers.Input(shape), *body, *head], name=name)


def _require_size(name: str, shape: Shape, pooled: Sequence[bool]) -> None:
    """Reject images from which the 3x3 convolutions, some followed by a pooling, leave nothing."""
    least = 1
    for halves in reversed(pooled):
        least = (least * 2 if halves else least) + 2
    if min(shape[:2]) < least:
        raise ModelError(
            f"images of {shape[0]}x{shape[1]} pixels are too small for {name}, "
            f"whose convolutions and poolings need {least}x{least}.",
            "Use larger images, or resnet, which takes any size.",
        )

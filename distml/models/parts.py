"""A network cut in two at its `pool`: features that may be frozen, and the head behind them (worker)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from distml.models.backbones import BACKBONE, POOL

Tensor = Any


@dataclass(frozen=True)
class Parts:
    """Both parts share the layers of the whole.

    Attributes:
        features: Raw pixels, (N, H, W, C), to pooled features, (N, F).
        head: Features to float32 logits, (N, classes).
    """

    features: keras.Model
    head: keras.Model


def split(network: keras.Model) -> Parts | None:
    """Cut a network that `registry.build` returned.

    Returns:
        Its parts, None where it has no layers named `backbone` and `pool`.
    """
    inner = next((one for one in (network, *network.layers) if _has_backbone(one)), None)
    if inner is None:
        return None
    pooled = inner.get_layer(POOL).output
    features, head = keras.Model(inner.input, pooled), keras.Model(pooled, inner.output)
    if inner is network:
        return Parts(features, head)
    before, after = [
        [network.get_layer(name) for name in names if name in {layer.name for layer in network.layers}]
        for names in (("normalise",), ("float32_logits",))
    ]
    image, vector = keras.Input(network.input_shape[1:]), keras.Input(pooled.shape[1:], dtype=pooled.dtype)
    return Parts(
        keras.Model(image, _through([*before, features], image)),
        keras.Model(vector, _through([head, *after], vector)),
    )


def _has_backbone(network: Any) -> bool:
    names = {layer.name for layer in network.layers} if isinstance(network, keras.Model) else set()
    return {BACKBONE, POOL} <= names


def _through(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x

"""Transforms built networks: cuts, frozen layers, test-time views, faster layers, heat maps (worker).

Batch normalisation: Keras computes moments, scale and offset one after the other, always in float32.
TensorFlow has a single operation for all of it, which also reads and writes 16-bit features: with it 16-bit
arithmetic pays on processors that have it (figures in benchmarks/README.md).
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from distml.errors import ModelError
from distml.models.backbones import BACKBONE, POOL
from distml.runtime import compat

Tensor = Any


@dataclass(frozen=True)
class Parts:
    """A network cut in two; both parts share the layers of the whole.

    Attributes:
        features: Raw pixels, (N, H, W, C), to features: (N, F), or maps (N, H', W', F).
        head: Features to float32 logits, (N, classes).
        pool: Of a cut in front of some layers of the backbone, maps to pooled features, (N, F).
    """

    features: keras.Model
    head: keras.Model
    pool: keras.Model | None = None


def split(network: keras.Model) -> Parts | None:
    """Cut a network that `registry.build` returned behind its pooled features.

    Returns:
        Its parts, None where it has no layers named `backbone` and `pool`.
    """
    inner = _inner(network)
    if inner is None:
        return None
    pooled = inner.get_layer(POOL).output
    return _parts(network, inner, keras.Model(inner.input, pooled), keras.Model(pooled, inner.output))


def no_backbone(name: str, freeze_epochs: int) -> ModelError:
    """Return the error of a network whose backbone cannot be frozen, because no layers are named so."""
    return ModelError(
        f"model.freeze_epochs = {freeze_epochs}, but no layers of {name} are named backbone and pool.",
        "Name them so in its builder, or set model.freeze_epochs to 0.",
    )


def split_frozen(network: keras.Model) -> Parts | None:
    """Cut a network that `registry.build` returned where the frozen first layers of its backbone end.

    The cut is the last place in front of all layers that learn which everything passes through; between
    the branches of a block there is none.

    Returns:
        Its parts; None where no layer with weights is frozen in front of one that learns, or where the
        backbone is no graph of layers.
    """
    inner = _inner(network)
    backbone: Any = inner.get_layer(BACKBONE) if inner else None
    edge = _edge(backbone) if isinstance(backbone, keras.Model) else None
    if inner is None or edge is None:
        return None
    given, made = compat.call(backbone)
    image, maps = inner.input, keras.Input(edge.shape[1:], dtype=edge.dtype)
    lower = keras.Model(image, keras.Model(backbone.inputs[0], edge)(given))
    last = keras.Model(edge, backbone.outputs[0])(maps)
    pool = keras.Model(maps, keras.Model(made, inner.get_layer(POOL).output)(last))
    parts = _parts(network, inner, lower, keras.Model(maps, keras.Model(made, inner.output)(last)))
    return replace(parts, pool=pool)


def _inner(network: keras.Model) -> keras.Model | None:
    """The model that has the backbone: the network itself, or what `registry.build` wrapped."""
    return next((model for model in (network, *network.layers) if _has_backbone(model)), None)


def _has_backbone(network: Any) -> bool:
    names = {layer.name for layer in network.layers} if isinstance(network, keras.Model) else set()
    return {BACKBONE, POOL} <= names


def _edge(backbone: keras.Model) -> Any:
    """The tensor at which a backbone's frozen layers end, None where there is none."""
    try:  # a sequence of layers is a graph, too
        operations = keras.Model(backbone.inputs, backbone.outputs).operations
    except (AttributeError, ValueError):  # a subclass with a `call` of its own
        return None
    # Each operation comes after those that it takes tensors from.
    weights = [getattr(operation, "weights", ()) for operation in operations]
    learning = [bool(getattr(operation, "trainable_variables", ())) for operation in operations]
    last_use = {
        id(tensor): place
        for place, operation in enumerate(operations)
        for tensor in keras.tree.flatten(operation.input)
    }
    edge, needed = None, set()
    for place, operation in enumerate(operations[: learning.index(True) if any(learning) else 0]):
        made = keras.tree.flatten(operation.output)
        needed |= {id(tensor) for tensor in made}
        needed -= {tensor for tensor in needed if last_use.get(tensor, len(operations)) <= place}
        if needed == {id(made[0])} and any(weights[: place + 1]):
            edge = made[0]
    return edge


def _parts(network: keras.Model, inner: keras.Model, features: keras.Model, head: keras.Model) -> Parts:
    """Parts of the inner model with the layers that the network has around it."""
    if inner is network:
        return Parts(features, head)
    before, after = [
        [network.get_layer(name) for name in names if name in {layer.name for layer in network.layers}]
        for names in (("normalise",), ("float32_logits",))
    ]
    cut = head.input
    image, rows = keras.Input(network.input_shape[1:]), keras.Input(cut.shape[1:], dtype=cut.dtype)
    return Parts(
        keras.Model(image, _through([*before, features], image)),
        keras.Model(rows, _through([head, *after], rows)),
    )


def _through(layers: list[Any], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def averaged(network: keras.Model, views: Sequence[str]) -> keras.Model:
    """Average a network's logits over an image and views of it: test-time augmentation.

    Made of Keras's own operations, so that the saved model needs nothing of ours; it shares the weights of
    `network`, in their order.

    Args:
        network: (N, H, W, C) to logits, (N, classes).
        views: Of `config.schema.VIEWS`.

    Returns:
        A model of the same input and output, at one more prediction's work for each view.
    """
    image = keras.layers.Input(network.input_shape[1:], dtype="float32", name="image")
    logits = [network(image), *(network(_view(image, view)) for view in views)]
    average = keras.layers.Average(dtype="float32", name="both")(logits)
    return keras.Model(image, average, name=network.name)


def _view(image: Tensor, view: str) -> Tensor:
    """An image as it is looked at once more, (N, H, W, C)."""
    axes = {"mirror": 2, "flip": 1, "turn": (1, 2)}
    if view in axes:
        return keras.ops.flip(image, axis=axes[view])
    height, width = image.shape[1:3]
    top, left = height // 16, width // 16
    middle = image[:, top : height - top, left : width - left]
    return keras.ops.image.resize(middle, (height, width))


def freeze_below(network: keras.Model, first: str) -> None:
    """Freeze the layers of a backbone in front of one, their weights and their moving statistics.

    Args:
        network: As `registry.build` returns it; not trained yet.
        first: First layer that learns: its name or the beginning of one, or how many of the last layers
            with weights.

    Raises:
        ModelError: There is no backbone, or it has no such layer.
    """
    layers = _backbone_layers(network)
    names = [layer.name for layer in layers]
    if first.isdigit():
        place = len(layers) - int(first)
    else:
        place = next((at for at, name in enumerate(names) if name == first), -1)
        place = (
            next((at for at, name in enumerate(names) if name.startswith(first)), place)
            if place < 0
            else place
        )
    if place < 0:
        near = difflib.get_close_matches(first, [*names, *(name.partition("_")[0] for name in names)], 1)
        raise ModelError(
            f"model.unfreeze_from = {first}, but the backbone of {network.name} has {len(layers)} layers "
            f"with weights, {', '.join(names[:3])}, … {names[-1]}.",
            f"Did you mean {near[0]}?" if near else "Name one of them, or a number of them.",
        )
    for layer in layers[:place]:
        layer.trainable = False


def _backbone_layers(network: keras.Model) -> list[Any]:
    """Layers of the backbone that have weights, from the image to the features."""
    every = compat.layers(network)
    backbone = next((layer for layer in every if layer.name == BACKBONE), None)
    layers = compat.layers(backbone, include_self=False) if isinstance(backbone, keras.Model) else []
    layers = [layer for layer in layers if compat.own_variables(layer)]
    if not layers:
        raise ModelError(
            f"model.unfreeze_from: no layer of {network.name} is named {BACKBONE} and has layers.",
            "Leave it out, or name a model in its builder so.",
        )
    return layers


def frozen_variables(network: keras.Model) -> set[int]:
    """Identities of the variables of layers that do not learn."""
    still = [layer for layer in compat.layers(network) if not layer.trainable]
    return {id(variable) for layer in still for variable in compat.own_variables(layer)}


def fuse(network: keras.Model) -> int:
    """Let layers compute by operations that are faster on CPUs, in place.

    Batch normalisation takes TensorFlow's fused operation; a depthwise convolution with strides computes in
    float32 what in bfloat16 takes ten times as long, the gradient of its images.

    Weights, names and initial values stay; so does the type of what is saved, because an export is built
    anew. Subclasses of the layers, synchronised ones and batch renormalisation are left as they are.

    Args:
        network: Any model, also a user's; layers at any depth are replaced.

    Returns:
        The number of layers changed.
    """
    swaps = [
        (layer, kind)
        for layer in compat.layers(network)
        for kind, fits in ((_FusedNormalization, _fusible), (_StridedDepthwise, _strided))
        if fits(layer)
    ]
    for layer, kind in swaps:
        compat.swap_class(layer, kind)
    return len(swaps)


def _fusible(layer: Any) -> bool:
    """Stock, over the last axis of images, with nothing the operation cannot do."""
    return (
        type(layer) is keras.layers.BatchNormalization
        and not (layer.renorm or layer.synchronized)
        and layer.input_spec is not None
        and layer.input_spec.ndim == 4
        and layer.axis in (-1, 3)
    )


def _strided(layer: Any) -> bool:
    """A stock depthwise convolution of images in bfloat16 that leaves out places."""
    return (
        type(layer) is keras.layers.DepthwiseConv2D
        and layer.compute_dtype == "bfloat16"
        and layer.data_format == "channels_last"
        and layer.strides[0] == layer.strides[1] > 1
        and tuple(layer.dilation_rate) == (1, 1)
    )


class _FusedNormalization(keras.layers.BatchNormalization):
    """The stock layer with another `call`. Final."""

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        """Normalise (N, H, W, C) of any float type; statistics, scale and offset are float32 (C,)."""
        if mask is not None:
            return super().call(inputs, training=training, mask=mask)
        learning = bool(training and self.trainable)
        moving = [tf.convert_to_tensor(value) for value in (self.moving_mean, self.moving_variance)]
        mean, variance = ([], []) if learning else moving
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.ones_like(moving[0]) if self.gamma is None else tf.convert_to_tensor(self.gamma),
            offset=tf.zeros_like(moving[0]) if self.beta is None else tf.convert_to_tensor(self.beta),
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=learning,
        )
        if learning:
            self._follow(mean, variance * _biased(inputs))
        return tf.cast(outputs, self.compute_dtype)

    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + value * (1.0 - self.momentum))


class _StridedDepthwise(keras.layers.DepthwiseConv2D):
    """The stock layer with another gradient. Final."""

    def call(self, inputs: Tensor) -> Tensor:
        """Convolve bfloat16 (N, H, W, C)."""
        place = {"strides": [1, *self.strides, 1], "padding": self.padding.upper()}

        @tf.custom_gradient
        def convolved(images: Tensor, kernel: Tensor) -> tuple[Tensor, Callable[[Tensor], Any]]:
            def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
                wide = (tf.cast(kernel, tf.float32), tf.cast(upstream, tf.float32))
                of_images = tf.nn.depthwise_conv2d_backprop_input(tf.shape(images), *wide, **place)
                of_kernel = tf.nn.depthwise_conv2d_backprop_filter(
                    images, tf.shape(kernel), upstream, **place
                )
                return tf.cast(of_images, images.dtype), of_kernel

            return tf.nn.depthwise_conv2d(images, kernel, **place), gradient

        outputs = convolved(inputs, tf.convert_to_tensor(self.kernel))
        if self.use_bias:
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))
        return outputs if self.activation is None else self.activation(outputs)


def _biased(inputs: Tensor) -> Tensor:
    """Factor from the sample variance, which the operation returns, to the variance Keras averages."""
    count = tf.cast(tf.size(inputs) // tf.shape(inputs)[-1], tf.float32)
    return tf.maximum(count - 1.0, 1.0) / tf.maximum(count, 1.0)


@dataclass(frozen=True)
class Inside:
    """Layers of a network at which it is looked into.

    Attributes:
        head: Turns vectors of features into what is predicted: the last layer with weights, where it takes
            vectors; None where it does not.
        maps: Its output are the last feature maps of more than one pixel; None where there are none.
    """

    head: Any
    maps: Any


@dataclass(frozen=True)
class Seen:
    """What a network made of images.

    Attributes:
        outputs: (N, K).
        features: In front of the head, (N, F); None without a head.
        maps: The last feature maps, (N, h, w, C); None without any.
    """

    outputs: Tensor
    features: Tensor | None
    maps: Tensor | None


def inside(network: keras.Model) -> Inside:
    """Find where to look into a network, by letting it predict one black image."""
    head = maps = None

    def hear(layer: Any, given: Tensor, made: Tensor) -> None:
        nonlocal head, maps
        shape: Any = getattr(made, "shape", ())
        if len(shape) == 4 and shape[1] * shape[2] > 1:
            maps = layer
        if compat.own_variables(layer):
            head = layer if len(getattr(given, "shape", ())) == 2 else None

    with _watched([layer for layer in compat.layers(network) if not compat.layers(layer, False)], hear):
        network(tf.zeros((1, *network.input_shape[1:]), network.inputs[0].dtype), training=False)
    return Inside(head, maps)


def look(network: keras.Model, places: Inside, images: Tensor) -> Seen:
    """Predict and keep what is inside; of several views of an image, that of the image itself.

    Args:
        network: (N, H, W, C) to (N, K).
        places: Of `inside`.
        images: Of the network's own type.
    """
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def hear(layer: Any, given: Tensor, made: Tensor) -> None:
        kept.setdefault(id(layer), (given, made))

    with _watched([layer for layer in (places.head, places.maps) if layer is not None], hear):
        outputs = network(images, training=False)
    features, maps = kept.get(id(places.head)), kept.get(id(places.maps))
    return Seen(outputs, None if features is None else features[0], None if maps is None else maps[1])


@contextlib.contextmanager
def _watched(layers: Sequence[Any], hear: Callable[[Any, Tensor, Tensor], None]) -> Iterator[None]:
    """Tell of every call of layers, with what was given and what was made."""

    def watch(layer: Any, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(given: Tensor, *rest: Any, **named: Any) -> Tensor:
            made = call(given, *rest, **named)
            hear(layer, given, made)
            return made

        return watched

    for layer in dict.fromkeys(layers):
        object.__setattr__(layer, "call", watch(layer, layer.call))
    try:
        yield
    finally:
        for layer in dict.fromkeys(layers):
            object.__delattr__(layer, "call")


def class_activation(network: keras.Model, places: Inside, images: Any, chosen: Sequence[int]) -> Any:
    """Grad-CAM: how much each place of the last feature maps contributes to an output.

    As in Selvaraju et al., "Grad-CAM", without the last step that keeps positive values alone.

    Args:
        network: (N, H, W, C) to (N, K).
        places: Of `inside`, with maps.
        images: float32 (N, H, W, C).
        chosen: Number of the output of each image.

    Returns:
        float32 (N, h, w).
    """
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)  # a frozen backbone has no variable that would be
        seen = look(network, places, images)
        outputs = tf.gather(seen.outputs, tf.constant(chosen), axis=1, batch_dims=1)
    slopes = tf.reduce_mean(tape.gradient(outputs, seen.maps), (1, 2), keepdims=True)
    return tf.reduce_sum(tf.cast(slopes * seen.maps, tf.float32), -1).numpy()

"""Builds a network by name or by the user's `module:function`, and checks it: options, scaling, logits.

Checking imports no TensorFlow; building does.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import functools
import inspect
import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml import tasks
from distml.config import Config, ModelConfig, functions
from distml.config.functions import check as check_options
from distml.config.functions import require_accepted
from distml.data import schema
from distml.errors import ConfigError, DistmlError, ModelError
from distml.models import backbones
from distml.runtime import compat
from distml.tasks.classification import Classification
from distml.tasks.regression import Regression

if TYPE_CHECKING:
    import keras

_LOG = logging.getLogger(__name__)

BUILDERS = {
    "cnn": "distml.models.cnn:cnn",
    "cnn_batchnorm": "distml.models.cnn:cnn_batchnorm",
    "cnn_dropout": "distml.models.cnn:cnn_dropout",
    "convnet": "distml.models.cnn:convnet",
    "poolnet": "distml.models.residual:poolnet",
    "resnet": "distml.models.residual:resnet",
}
"""Where the builder of each network of ours is; `backbones.BACKBONES` has the others by name."""

RAW_PIXELS = "raw_pixels"
"""Attribute by which a builder says that its network takes pixels of 0 to 255 and scales them itself.

Without it, a network whose first layer is a `Rescaling` of such values takes them, any other 0 to 1.
"""
_SCALES_BYTES = 1 / 16
"""A first `Rescaling` by less scales 0 to 255; by more, values from 0 to 1."""


def names() -> list[str]:
    """Names of the small networks of ours, which take images of any kind and start from random weights."""
    return sorted(BUILDERS)


def check(name: str, options: Mapping[str, Any]) -> None:
    """Check that a model and its options exist, without TensorFlow and without running its module.

    Args:
        name: A built-in name or `module:function`, importable from the current directory.
        options: Keyword options for the builder.

    Raises:
        ConfigError: Unknown name, missing module or function, unknown option or an option of another
            type than its default.
    """
    if name in backbones.BACKBONES:
        require_accepted(name, backbones.BACKBONES[name].options, options)
        return
    module, function = _split(name)
    check_options(name, module, function, options)


def check_config(model: ModelConfig) -> None:
    """Check a model's section, without TensorFlow and without running the builder's module.

    Args:
        model: The section.

    Raises:
        ConfigError: As `check`, or a backbone is to be frozen where there is none, or none worth freezing.
    """
    check(model.name, model.options)
    if model.dropout is not None:
        try:
            check(model.name, model.builder_options)
        except ConfigError as error:
            raise ConfigError(
                f"model.dropout = {model.dropout}, but {model.name} has no option dropout.", error.remedy
            ) from None
    given = {"freeze_epochs": 0, "unfreeze_from": None, "backbone_learning_rate": 1}
    key = next((key for key, usual in given.items() if getattr(model, key) != usual), None)
    if key is None:
        return
    value = getattr(model, key)
    if model.name in BUILDERS:
        raise ConfigError(
            f"model.{key} = {value}, but {model.name} has no backbone.",
            "Choose a backbone that `distml models` lists.",
        )
    if key != "backbone_learning_rate" and model.weights is None and model.name in backbones.BACKBONES:
        raise ConfigError(
            f"model.{key} = {value} would freeze a backbone with random weights.",
            "Set model.weights, as to imagenet.",
        )


def check_run(config: Config) -> None:
    """Check everything that a configuration names of a model and its training, without TensorFlow.

    Args:
        config: Of a run.

    Raises:
        ConfigError: A model, a layer, a function or an option that does not exist.
    """
    check_config(config.model)
    functions.check_train(config.train)
    functions.check_metrics(config.evaluate.own_metrics)
    tasks.check(config)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check what can be known without TensorFlow about a model for images of some shape.

    Args:
        name: A built-in name or `module:function`.
        shape: Height, width and channels of an image.

    Raises:
        ModelError: The model cannot take them.
    """
    if name in backbones.BACKBONES:
        backbones.check_shape(name, shape)


def build(
    name: str,
    shape: tuple[int, int, int],
    classes: int,
    options: Mapping[str, Any],
    seed: int,
    kind: str = Classification.kind,
) -> keras.Model:
    """Build a model from raw pixels to logits; call it inside the strategy's scope.

    Args:
        name: A built-in name or `module:function`.
        shape: Height, width and channels of an image.
        classes: Number of classes.
        options: Keyword options for the builder.
        seed: The initial weights are a function of it alone.
        kind: Of the task: a last softmax or sigmoid is removed where the export adds it.

    Returns:
        A built model from float32 (N, H, W, C), values 0 to 255, to float32 logits (N, classes).

    Raises:
        ConfigError: As `check`.
        ModelError: The builder fails for these images, or returns something else than a network with
            one output of shape (None, classes).
    """
    check(name, options)
    builder = _load(name)
    with seeded(seed):
        network = _call(name, builder, shape, classes, options)
        raw = getattr(builder, RAW_PIXELS, None)
        if ":" in name:
            network = _without_probabilities(name, network, kind)
            raw = _scales_itself(name, network, shape) if raw is None else raw
        pair = kind == Classification.kind and classes == 2
        return _from_pixels(name, network, shape, classes, raw=bool(raw), pair=pair)


def _split(name: str) -> tuple[str, str]:
    if ":" in name:
        module, _, function = name.partition(":")
        return module, function
    if name not in BUILDERS:
        close = difflib.get_close_matches(name, [*BUILDERS, *backbones.BACKBONES], 1)
        guess = f"Did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"model.name = {name!r} is not a known model.",
            f"{guess}Ours are {', '.join(names())}; `distml models` lists {len(backbones.BACKBONES)} that "
            "others have trained; your own is module:function.",
        )
    module, _, function = BUILDERS[name].partition(":")
    return module, function


def _load(name: str) -> Callable[..., Any]:
    if name in backbones.BACKBONES:
        known = functools.partial(backbones.classifier, name)
        setattr(known, RAW_PIXELS, True)
        return known
    module, function = _split(name)
    return functions.imported(name, module, function, functions.MODEL, ConfigError)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's generator, from which Keras draws the seeds of unseeded layers, and AugMix its chains.

    (`keras.src.random.seed_generator.make_default_seed`, 3.15); its
    state is put back, so that building a model does not change the global random state.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _call(
    name: str,
    builder: Callable[..., Any],
    shape: tuple[int, int, int],
    classes: int,
    options: Mapping[str, Any],
) -> Any:
    try:
        inspect.signature(builder).bind(shape, classes, **options)
    except TypeError as error:
        remedy = "It is called with shape, classes and what model.options has."
        raise ConfigError(f"{name} does not take its arguments: {error}.", remedy) from None
    import keras

    policy = keras.config.dtype_policy().name
    try:
        network = builder(shape, classes, **options)
    except DistmlError:
        raise
    except Exception as error:  # a builder may be the user's: whatever it raises is answered in a sentence
        place = functions.raised_at(name, error)
        raise ModelError(
            f"{name} cannot be built for images of shape {shape}{place}: {functions.brief(error)}",
            remedy_of(error) or _SIZE * ("expected shape=" in str(error)),
        ) from error
    changed = keras.config.dtype_policy().name
    if changed != policy:
        keras.config.set_dtype_policy(policy)  # exports would be in it, and every network after this one
        raise ModelError(f"{name} sets Keras's dtype policy to {changed}.", "Set train.precision instead.")
    return network


def line_of(name: str, *words: str) -> str:
    """Say where a builder, or what it calls in its module, first uses some words, as ` (mine.py line 7)`.

    Nothing is said where another package's function does what is asked about.

    Args:
        name: `module:function`.
        words: Functions that are called, arguments that are named, or texts.
    """
    module, _, function = name.partition(":")
    path = getattr(sys.modules.get(module), "__file__", None)
    if path is None:
        return ""
    tree = functions.parsed(Path(path))
    named = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    builder = named.get(function)
    inner = {node.id for node in ast.walk(builder) if isinstance(node, ast.Name)} if builder else set()
    for node in (builder, *(named[name] for name in named if name in inner)) if builder else (tree,):
        if lines := list(_lines(node, set(words))):
            return f" ({Path(path).name} line {min(lines)})"
    return ""


def _lines(tree: ast.AST | None, words: set[str]) -> Iterator[int]:
    """Lines of the calls in a tree that use a word as function, argument or value."""
    for node in ast.walk(tree) if tree is not None else ():
        if not isinstance(node, ast.Call):
            continue
        values = [*node.args, *(word.value for word in node.keywords)]
        used = {getattr(node.func, "attr", getattr(node.func, "id", None))}
        used |= {word.arg for word in node.keywords}
        used |= {value.value for value in values if isinstance(value, ast.Constant)}
        used |= {value.attr for value in values if isinstance(value, ast.Attribute)}
        if used & words:
            yield node.lineno


def _without_probabilities(name: str, network: Any, kind: str) -> Any:
    """Take a softmax or sigmoid off the end of a network: the loss and the export contain it already."""
    import keras

    last = _last(network)
    activation = getattr(last, "activation", None)
    softmax = activation is keras.activations.softmax or isinstance(last, keras.layers.Softmax)
    sigmoid = activation is keras.activations.sigmoid
    if sigmoid and kind == Regression.kind:
        where = line_of(name, "sigmoid")
        _LOG.warning("%s ends in a sigmoid%s: it reaches few of the scaled numbers.", name, where)
        return network
    if activation is keras.activations.relu:
        _LOG.warning("%s ends in a relu%s: no output is below zero.", name, line_of(name, "relu", "ReLU"))
    if not (softmax or sigmoid):
        return network
    if not isinstance(last, (keras.layers.Softmax, keras.layers.Activation)):
        last.activation = keras.activations.linear
    elif isinstance(network, keras.Sequential) and network.layers[-1] is last:
        network.pop()
    elif network.layers[-1] is last:
        network = keras.Model(network.inputs, last.input, name=network.name)
    else:
        return network
    what = "softmax" if softmax else "sigmoid"
    place = line_of(name, what, what.capitalize())
    adds = "it" if softmax == (kind == Classification.kind) else "what the task needs"
    _LOG.warning("%s ends in a %s%s, which is removed: the export adds %s.", name, what, place, adds)
    return network


def _last(network: Any) -> Any:
    """The layer that gives a network's output, None where the code of a class decides."""
    import keras

    last = network
    while isinstance(last, keras.Model):
        layers = last.layers
        if not layers:
            return None
        if not isinstance(last, keras.Sequential):
            outputs = getattr(last, "outputs", None) or []
            if len(outputs) != 1 or outputs[0] is not getattr(layers[-1], "output", None):
                return None
        last = layers[-1]
    return last


def _factor(network: Any, shape: tuple[int, ...]) -> float | None:
    """By how much a network scales pixels in front of its first weights, by whatever; None where unknown."""
    import keras

    inputs = getattr(network, "inputs", None) or []
    if len(inputs) != 1 or tuple(inputs[0].shape[1:]) != tuple(shape):
        return None
    reached, factor = inputs[0], 1.0
    operations = list(getattr(network, "operations", network.layers))
    while True:
        readers = [
            (operation, result)
            for operation in operations
            for given, result in compat.calls(operation)
            if given is reached
        ]
        if len(readers) != 1:
            break
        [(operation, result)] = readers
        weights = (
            [] if isinstance(operation, keras.layers.Normalization) else getattr(operation, "weights", [])
        )
        if weights and isinstance(operation, keras.Model):
            factor = _factor(operation, tuple(reached.shape[1:])) or 1.0
        if weights or result.shape[-1] != shape[-1] or len(result.shape) != len(inputs[0].shape):
            break
        reached = result
    if reached is inputs[0]:
        return factor
    front = keras.Model(inputs[0], reached)
    dark, light = (np.asarray(front(np.full((1, *shape), value, np.float32))) for value in (0, 255))
    step = float(np.abs(light - dark).max()) / 255
    return step * factor or None


def _scales_itself(name: str, network: Any, shape: tuple[int, ...]) -> bool:
    """Whether a network begins by scaling pixels of 0 to 255, as those of Keras's tutorials do."""
    import keras

    if not isinstance(network, keras.Model):
        return False
    factor = _factor(network, shape)
    if factor is not None:
        return _scales_bytes(name, factor)
    leaves = (
        layer
        for layer in compat.layers(network, include_self=False)
        if not isinstance(layer, keras.Model | keras.layers.InputLayer | keras.layers.Resizing)
        and not type(layer).__name__.startswith("Random")
    )
    first = next(leaves, None)
    if not isinstance(first, keras.layers.Rescaling) or np.max(np.abs(first.scale)) > _SCALES_BYTES:
        return False
    return _scales_bytes(name, float(np.max(np.abs(first.scale))))


def _scales_bytes(name: str, factor: float) -> bool:
    """Whether a factor scales 0 to 255; it is said, and that pixels are scaled twice, too."""
    if factor > _SCALES_BYTES:
        return False
    place = line_of(name, "Rescaling", "Normalization", "preprocess_input")
    _LOG.warning("%s scales pixels itself%s, so it is given 0 to 255 and not 0 to 1.", name, place)
    if 255 * factor < _SCALES_BYTES:
        _LOG.warning(
            "%s scales pixels twice%s: 0 to 255 become a range of %.2g; leave out one of both, as the "
            "Rescaling in front of a network of keras.applications that has its own.",
            *(name, place, 255 * factor),
        )
    return True


def _logits(name: str, network: Any, pixels: Any, classes: int, pair: bool = False) -> Any:
    """What a network makes of an image, checked; builds a network that was not built yet.

    Of a pair of classes a single output may be the logit of the second.
    """
    several = len(getattr(network, "inputs", None) or [])
    if several > 1:
        raise ModelError(
            f"{name} takes {several} inputs, but a row is one image.", "Give it one Input(shape)."
        )
    try:
        logits = network(pixels)
    except Exception as error:  # Keras raises anything on what does not fit
        raise ModelError(
            f"{name} cannot be built for images of shape {tuple(pixels.shape[1:])}"
            f"{functions.raised_at(name, error)}: {functions.brief(error)}",
            remedy_of(error)
            or "Begin with keras.Input(shape), the shape that the builder is given: height, width, channels.",
        ) from error
    shape = getattr(logits, "shape", None)
    if isinstance(logits, dict | list | tuple):
        raise ModelError(
            f"{name} returns a {type(logits).__name__} of {len(logits)} outputs, but a row has one.",
            "Give keras.Model one tensor as its outputs, not in a list or a dictionary.",
        )
    if shape is None or tuple(shape) not in ((None, classes), (None, 1 if pair else classes)):
        what = type(logits).__name__ if shape is None else tuple(shape)
        raise ModelError(
            f"{name} returns {what}, but {classes} classes need logits of shape {(None, classes)}.",
            "Put GlobalAveragePooling2D() in front of Dense(classes), and end the network in it."
            if len(shape or ()) > 2
            else "End the network in Dense(classes) without an activation.",
        )
    return logits


_REMEDIES = (
    (
        "A KerasTensor cannot be used as input to a TensorFlow function",
        "Use keras.ops or a layer of Keras there.",
    ),
    ("NHWC", "Leave out data_format: images have their channels last, and CPUs compute no others."),
    ("No module named 'tf_keras'", "Use keras, which is Keras 3, in place of tf_keras."),
    ("No module named", "Install that package into the environment of distml."),
    ("`axis` -1 of the input shape", "Create a layer for the size that it is given, or pool in front of it."),
    ("expected axis -1 of input shape", "Let the layer in front end in that size, or pool in front of it."),
    ("missing a required argument: 'training'", "Give it a default: call(self, images, training=False)."),
    ("a variable on a non-first call", "Create layers and weights in __init__ or build, not in call."),
)
"""What to do about what Keras and TensorFlow say, by a part of it."""
_SIZE = "Make its layers for the shape that the builder is given, or pool in front of them."


def remedy_of(error: Exception) -> str:
    """What to do about an error of a user's network, "" where that is not known."""
    said = str(error)
    return next((remedy for part, remedy in _REMEDIES if part in said), "")


def _from_pixels(
    name: str, network: Any, shape: tuple[int, int, int], classes: int, raw: bool, pair: bool = False
) -> keras.Model:
    """Let a network take raw pixels and give float32, whatever it computes in.

    Args:
        name: Said in errors.
        network: As its builder returned it.
        shape: Of an image.
        classes: Their number.
        raw: It scales pixels itself; otherwise the scaling to [0, 1] is put in front.
        pair: One output may say which of two classes it is.
    """
    import keras

    _require_network(name, network)
    pixels = keras.layers.Input(shape, dtype="float32", name="image")
    normalise = keras.layers.Rescaling(schema.SCALE, schema.OFFSET, dtype="float32", name="normalise")
    logits = _logits(name, network, pixels if raw else normalise(pixels), classes, pair)
    if isinstance(network, keras.Layer) and not network.trainable_variables:
        raise ModelError(
            f"{name} has no weights that learn.",
            "Leave its head trainable; model.freeze_epochs and model.unfreeze_from freeze a backbone."
            if network.variables
            else "Create its layers in __init__, not in call, where Keras does not see them.",
        )
    single = pair and tuple(logits.shape) == (None, 1)
    if raw and isinstance(network, keras.Model) and _is_float32(network) and not single:
        return network
    if single:
        _LOG.warning("%s has one output, used as the logit of the second class.", name)
        padded = keras.layers.ZeroPadding1D((1, 0), name="first_class")(keras.layers.Reshape((1, 1))(logits))
        logits = keras.layers.Flatten(name="both_classes")(padded)
    if keras.backend.standardize_dtype(logits.dtype) != "float32":
        logits = keras.layers.Activation("linear", dtype="float32", name="float32_logits")(logits)
    return keras.Model(pixels, logits, name=network.name)


def _require_network(name: str, network: Any) -> None:
    """Reject what a builder may return by mistake."""
    if isinstance(network, type):
        raise ModelError(f"{name} returns the class {network.__name__}.", "Return a model: call the class.")
    if type(network).__module__.startswith("tf_keras"):
        raise ModelError(
            f"{name} returns a model of tf_keras, which is Keras 2.",
            "Import keras, which is Keras 3, instead.",
        )
    if not callable(network):
        remedy = "End the builder in return and the model." if network is None else ""
        raise ModelError(f"{name} returns {type(network).__name__}, not a Keras model.", remedy)


def _is_float32(network: keras.Model) -> bool:
    """Whether both ends of a functional network are float32 already."""
    ends = [*(getattr(network, "inputs", None) or []), *(getattr(network, "outputs", None) or [])]
    return len(ends) == 2 and all(str(end.dtype) == "float32" for end in ends)

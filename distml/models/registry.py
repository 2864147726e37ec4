"""Finds a builder by name, checks its options and makes a network of raw pixels of it (driver, worker).

Checking imports no TensorFlow; building does.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from distml.config import Config, ModelConfig, functions
from distml.config.functions import check as check_options
from distml.config.functions import require_accepted
from distml.data import schema
from distml.errors import ConfigError, DistmlError, ModelError
from distml.models import backbones

if TYPE_CHECKING:
    import keras

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
"""Attribute by which a builder says that its network takes pixels of 0 to 255 and scales them itself."""


def names() -> list[str]:
    """Names of the small networks of ours, which take images of any kind and learn from noise."""
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
    if not model.freeze_epochs and model.backbone_learning_rate == 1:
        return
    key = "freeze_epochs" if model.freeze_epochs else "backbone_learning_rate"
    value = getattr(model, key)
    if model.name in BUILDERS:
        raise ConfigError(
            f"model.{key} = {value}, but {model.name} has no backbone.",
            "Choose a backbone that `distml models` lists.",
        )
    if model.freeze_epochs and model.weights is None and model.name in backbones.BACKBONES:
        raise ConfigError(
            f"model.freeze_epochs = {value} would freeze a backbone that nobody has trained.",
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
    name: str, shape: tuple[int, int, int], classes: int, options: Mapping[str, Any], seed: int
) -> keras.Model:
    """Build a model from raw pixels to logits; call it inside the strategy's scope.

    Args:
        name: A built-in name or `module:function`.
        shape: Height, width and channels of an image.
        classes: Number of classes.
        options: Keyword options for the builder.
        seed: The initial weights are a function of it alone.

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
        _require_logits(name, network, classes)
        return _from_pixels(network, shape, raw=getattr(builder, RAW_PIXELS, False))


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
    try:
        builder = getattr(importlib.import_module(module), function, None)
    except Exception as error:  # the user's module may raise anything, and it is the user who reads this
        raise ConfigError(f"model.name = {name!r}: importing {module} fails: {error!r}.") from error
    if not callable(builder):
        raise ConfigError(f"model.name = {name!r}: {function} is not a function of {module}.")
    return builder  # type: ignore[no-any-return]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's generator, from which Keras draws the seeds of unseeded layers, and AugMix its chains.

    (`keras.src.random.seed_generator.make_default_seed`, 3.15); its
    state is put back, so that building a model changes nobody else's random numbers.
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
        raise ConfigError(f"model.options do not fit {name}: {error}.") from None
    try:
        return builder(shape, classes, **options)
    except DistmlError:
        raise
    except Exception as error:  # a builder may be the user's: whatever it raises is answered in a sentence
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"{name} cannot be built for images of shape {shape}: {first}") from error


def _require_logits(name: str, network: Any, classes: int) -> None:
    shape = getattr(network, "output_shape", None)
    if shape != (None, classes):
        raise ModelError(
            f"{name} returns {shape or type(network).__name__}, but {classes} classes need logits of "
            f"shape {(None, classes)}.",
            "End the network in Dense(classes) without an activation.",
        )


def _from_pixels(network: keras.Model, shape: tuple[int, int, int], raw: bool) -> keras.Model:
    """Let a network take raw pixels and give float32, whatever it computes in.

    Args:
        network: As its builder returned it.
        shape: Of an image.
        raw: It scales pixels itself; otherwise the scaling to [0, 1] is put in front.
    """
    import keras

    if raw and isinstance(network, keras.Model) and _is_float32(network):
        return network
    pixels = keras.layers.Input(shape, dtype="float32", name="image")
    normalise = keras.layers.Rescaling(schema.SCALE, schema.OFFSET, dtype="float32", name="normalise")
    logits = network(pixels if raw else normalise(pixels))
    if keras.backend.standardize_dtype(logits.dtype) != "float32":
        logits = keras.layers.Activation("linear", dtype="float32", name="float32_logits")(logits)
    return keras.Model(pixels, logits, name=network.name)


def _is_float32(network: keras.Model) -> bool:
    """Whether both ends of a functional network are float32 already."""
    ends = [*(getattr(network, "inputs", None) or []), *(getattr(network, "outputs", None) or [])]
    return len(ends) == 2 and all(str(end.dtype) == "float32" for end in ends)

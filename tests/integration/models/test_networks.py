"""What the networks are made of, and what `registry.build` promises of every one of them."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.artifacts import predictor
from distml.data import schema
from distml.errors import ConfigError, ModelError
from distml.models import registry

pytestmark = pytest.mark.tensorflow

SHAPE = (28, 28, 1)


def body(name: str, **options: Any) -> list[Any]:
    """Layers of a network, without the input and the normalisation in front."""
    model = registry.build(name, SHAPE, 10, options, 0)
    return list(model.get_layer(name).layers)


def described(layer: Any) -> str:
    """A layer as the issue writes it."""
    match type(layer).__name__:
        case "Conv2D":
            assert (layer.kernel_size, layer.strides, layer.padding) == ((3, 3), (1, 1), "valid")
            return f"conv {layer.filters} {layer.activation.__name__}"
        case "MaxPooling2D":
            assert (layer.pool_size, layer.strides) == ((2, 2), (2, 2))
            return "pool"
        case "Dense":
            return f"dense {layer.units} {layer.activation.__name__}"
        case "Dropout":
            return f"dropout {layer.rate}"
        case "Activation":
            return str(layer.activation.__name__)
        case kind:
            return {"BatchNormalization": "batch norm", "Flatten": "flatten"}[kind]


HEAD = ["flatten", "dense 64 relu", "dense 10 linear"]
VARIANTS = {
    "cnn": ["conv 32 relu", "pool"],
    "cnn_batchnorm": [
        *("conv 32 linear", "batch norm", "sigmoid", "pool"),
        *("conv 64 linear", "batch norm", "sigmoid", "pool"),
        "conv 64 relu",
    ],
    "cnn_dropout": ["conv 32 relu", "pool", "conv 64 relu", "pool", "dropout 0.5", "conv 64 relu"],
    "convnet": ["conv 32 relu", "pool", "conv 64 relu", "pool"],
}
PARAMETERS = {  # trainable, moving statistics
    "cnn": (347_146, 0),
    "cnn_batchnorm": (93_514, 192),
    "cnn_dropout": (93_322, 0),
    "convnet": (121_930, 0),
    "poolnet": (297_450, 960),
    "resnet": (77_754, 672),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_exactly_its_layers(keras: Any, name: str) -> None:
    assert [described(layer) for layer in body(name)] == [*VARIANTS[name], *HEAD]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(keras: Any, name: str) -> None:
    model = registry.build(name, SHAPE, 10, {}, 0)
    moving = [weight for weight in model.non_trainable_variables if "moving" in weight.path]
    counts = [
        sum(int(np.prod(weight.shape)) for weight in kind) for kind in (model.trainable_weights, moving)
    ]
    assert tuple(counts) == PARAMETERS[name]


def test_every_built_in_model_is_counted() -> None:
    assert sorted(PARAMETERS) == registry.names()


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize(("shape", "classes"), [((28, 28, 1), 10), ((32, 20, 3), 3)])
def test_raw_pixels_become_float32_logits(
    keras: Any, name: str, shape: tuple[int, int, int], classes: int
) -> None:
    model = registry.build(name, shape, classes, {}, 0)
    assert model.input_shape == (None, *shape)
    assert model.input.dtype == "float32"
    pixels = np.random.default_rng(0).integers(0, 256, (4, *shape)).astype(np.float32)
    logits = np.asarray(model(pixels))
    assert logits.shape == (4, classes)
    assert logits.dtype == np.float32
    inner = model.get_layer(name)(schema.normalise(pixels))
    np.testing.assert_allclose(logits, np.asarray(inner), rtol=1e-5, atol=1e-5)
    assert not np.allclose(logits.sum(axis=1), 1)


@pytest.mark.parametrize("name", registry.names())
def test_initial_weights_are_a_function_of_the_seed_alone(keras: Any, name: str) -> None:
    def weights(seed: int) -> list[np.ndarray]:
        return [np.asarray(value) for value in registry.build(name, SHAPE, 10, {}, seed).weights]

    random.seed(123)
    first = weights(7)
    random.seed(456)
    random.random()
    registry.build("cnn", SHAPE, 3, {}, 99)
    again, other = weights(7), weights(8)
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(not np.array_equal(left, right) for left, right in zip(first, other, strict=True))


def test_building_does_not_change_the_global_random_state(keras: Any) -> None:
    random.seed(5)
    expected = random.random()
    random.seed(5)
    registry.build("cnn_dropout", SHAPE, 10, {}, 0)
    assert random.random() == expected


def test_batchnorm_normalises_and_dropout_drops(keras: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, *SHAPE)).astype(np.float32)
    dropping = registry.build("cnn_dropout", SHAPE, 10, {}, 0)
    assert not np.allclose(dropping(pixels, training=True), dropping(pixels, training=True))
    np.testing.assert_array_equal(dropping(pixels), dropping(pixels))
    moving = registry.build("cnn_batchnorm", SHAPE, 10, {}, 0)
    mean = moving.get_layer("cnn_batchnorm").get_layer("norm1").moving_mean
    before = mean.numpy()
    np.testing.assert_array_equal(moving(pixels, training=True), moving(pixels, training=True))
    assert not np.allclose(before, mean.numpy())


def test_options_reach_the_layers(keras: Any) -> None:
    layers = [described(layer) for layer in body("convnet", filters=[8], dense=16, dropout=0.25)]
    assert layers == ["conv 8 relu", "pool", "dropout 0.25", "flatten", "dense 16 relu", "dense 10 linear"]
    norms = [layer for layer in body("resnet", synchronized=True) if "norm" in layer.name]
    assert norms
    assert all(layer.synchronized for layer in norms)
    assert not any(getattr(layer, "synchronized", False) for layer in body("cnn_batchnorm"))
    assert registry.build("resnet", SHAPE, 10, {"widths": [8], "blocks": 3}, 0).count_params() < 5_000


def test_the_users_keras_json_is_ignored(keras: Any) -> None:
    keras.config.set_image_data_format("channels_first")
    keras.config.set_floatx("float16")
    keras.config.set_epsilon(0.5)
    loaded = predictor._keras()
    config = loaded.config
    assert (config.image_data_format(), config.floatx()) == ("channels_last", "float32")
    assert config.epsilon() == 1e-7


@pytest.fixture
def policy(keras: Any) -> Iterator[str]:
    """Mixed precision, as the training configuration sets it."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield "mixed_bfloat16"
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("name", registry.names())
def test_logits_are_float32_under_mixed_precision(keras: Any, policy: str, name: str) -> None:
    model = registry.build(name, SHAPE, 10, {}, 0)
    network = model.get_layer(name)
    assert network.layers[0].compute_dtype == "bfloat16"
    assert network.layers[-1].compute_dtype == "float32"
    assert model.output.dtype == "float32"
    assert all(weight.dtype == "float32" for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("name", "least"), [("cnn", 4), ("convnet", 10), ("cnn_dropout", 18), ("poolnet", 8)]
)
def test_too_small_images_are_rejected_with_the_minimum_size(keras: Any, name: str, least: int) -> None:
    assert registry.build(name, (least, least, 1), 10, {}, 0).output_shape == (None, 10)
    with pytest.raises(ModelError, match=f"{least + 9}x{least - 1} pixels .* need {least}x{least}"):
        registry.build(name, (least + 9, least - 1, 1), 10, {}, 0)


def test_resnet_takes_any_size(keras: Any) -> None:
    assert registry.build("resnet", (1, 3, 2), 10, {}, 0).output_shape == (None, 10)


def test_poolnet_pools_before_normalisation_and_keeps_the_features(keras: Any) -> None:
    names = [layer.name for layer in body("poolnet", widths=[4, 8], stem=4, depth=3)]
    assert [name for name in names if name.startswith("stage2")] == [
        *("stage2_conv1", "stage2_conv1_pool", "stage2_conv1_norm", "stage2_conv1_relu"),
        *("stage2_conv2", "stage2_conv2_norm", "stage2_conv2_relu"),
        *("stage2_conv3", "stage2_conv3_norm", "stage2_conv3_relu", "stage2_add"),
    ]
    shallow = [layer.name for layer in body("poolnet", depth=1, dropout=0.1)]
    assert "stage1_add" not in shallow
    assert "dropout" in shallow


OWN = """
import keras

def halves(shape, classes):
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.Dense(classes)(keras.layers.Flatten()(inputs)))

def softmax_of_eleven(shape, classes):
    return keras.Sequential([keras.layers.Input(shape), keras.layers.Flatten(), keras.layers.Dense(11)])

def nothing(shape, classes): ...

def fails(shape, classes):
    raise KeyError("weights.h5")

def _inner(shape, classes, *, width): ...

wrapped = _inner
constant = 3
"""


@pytest.fixture
def own(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's in the current directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (workdir / "own_keras.py").write_text(OWN)
    yield "own_keras"
    sys.modules.pop("own_keras", None)


def test_a_builder_of_the_user_gets_the_same_scaling_and_head(keras: Any, own: str, policy: str) -> None:
    model = registry.build(f"{own}:halves", SHAPE, 4, {}, 0)
    assert model.output_shape == (None, 4)
    assert model.output.dtype == "float32"
    assert model.get_layer("normalise").scale == schema.SCALE


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("softmax_of_eleven", r"returns \(None, 11\), but 10 classes need logits of shape \(None, 10\)"),
        ("nothing", "returns NoneType"),
        ("fails", "weights.h5"),
    ],
)
def test_an_unusable_network_of_the_user_is_an_error_message(
    keras: Any, own: str, function: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        registry.build(f"{own}:{function}", SHAPE, 10, {}, 0)
    assert f"{own}:{function}" in str(caught.value)


def test_errors_raised_by_the_builder_are_configuration_errors(keras: Any, own: str) -> None:
    with pytest.raises(ConfigError, match="width"):
        registry.build(f"{own}:wrapped", SHAPE, 10, {"widht": 3}, 0)
    with pytest.raises(ConfigError, match="constant is not a function"):
        registry.build(f"{own}:constant", SHAPE, 10, {}, 0)


def test_a_module_that_cannot_be_imported_is_reported_with_the_reason(
    keras: Any, own: str, workdir: Path
) -> None:
    (workdir / "own_absent.py").write_text("import absent_package\ndef network(shape, classes): ...\n")
    with pytest.raises(ConfigError, match=r"importing own_absent fails.*absent_package"):
        registry.build("own_absent:network", SHAPE, 10, {}, 0)


def test_a_bad_option_value_is_an_error_message(keras: Any) -> None:
    with pytest.raises(ModelError, match="rate"):
        registry.build("cnn_dropout", SHAPE, 10, {"rate": 1.5}, 0)


RAW = """
import keras

def halves(shape, classes):
    image = keras.Input(shape)
    scaled = keras.layers.Rescaling(1 / 64, name="own_scaling")(image)
    return keras.Model(image, keras.layers.Dense(classes, dtype="float32")(keras.layers.Flatten()(scaled)))

def subclassed(shape, classes):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(classes)
            self.output_shape_ = (None, classes)

        output_shape = property(lambda self: self.output_shape_)

        def call(self, inputs):
            return self.dense(keras.ops.mean(inputs, axis=(1, 2)))

    return Own()

halves.raw_pixels = subclassed.raw_pixels = True
"""


@pytest.mark.parametrize("function", ["halves", "subclassed"])
def test_a_builder_may_declare_that_its_network_scales_itself(
    keras: Any, policy: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (workdir / "own_raw.py").write_text(RAW)
    model = registry.build(f"own_raw:{function}", SHAPE, 4, {}, 0)
    sys.modules.pop("own_raw")
    assert "normalise" not in [layer.name for layer in model.layers]
    assert (model.output_shape, model.output.dtype) == ((None, 4), "float32")
    bright, dark = np.full((1, *SHAPE), 200.0, np.float32), np.zeros((1, *SHAPE), np.float32)
    assert np.abs(np.asarray(model(bright)) - np.asarray(model(dark))).max() > 1

"""Weights from files: matched by layer, reported by count and name; a file of another network is rejected."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.errors import ModelError
from distml.models import backbones, registry, weights
from distml.tasks.classification import Classification

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15 on NumPy 2, while it saves.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    # Keras warns of its own old format.
    pytest.mark.filterwarnings("ignore:.*HDF5.*"),
]

LITE, SHAPE = "efficientnet_lite0", (32, 32, 3)


@functools.cache  # nothing changes what is loaded from, and building it takes a second or two
def drawn(name: str = LITE, classes: int = 5, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> Any:
    """A network all of whose weights are drawn."""
    network = registry.build(name, shape, classes, {}, seed)
    numbers = np.random.default_rng(seed)
    for weight in network.weights:
        weight.assign(numbers.uniform(0.1, 1.0, weight.shape))
    return network


@functools.cache
def _built(name: str, shape: tuple[int, int, int], classes: int) -> tuple[Any, list[np.ndarray]]:
    network = registry.build(name, shape, classes, {}, 1)
    return network, network.get_weights()


def built(name: str, shape: tuple[int, int, int], classes: int) -> Any:
    """A network with the weights of seed 1: one object for all tests, for building takes seconds."""
    network, first = _built(name, shape, classes)
    network.set_weights(first)
    return network


def published(network: Any, path: Path) -> None:
    """Write weights as the publisher of EfficientNet-Lite does: `block03/expand/conv/kernel`."""
    arrays = {}
    for weight in network.weights:
        layer, _, name = weight.path.rpartition("/")
        layer = {"logits": "classifier"}.get(layer, layer.replace("_", "/"))
        arrays[f"{layer}/{name}"] = weight.numpy()
    np.savez(path, **{**arrays, "probe/image": np.zeros(3)})


def same(first: Any, second: Any) -> bool:
    """Whether two networks have the same backbone."""
    pairs = zip(*(model.get_layer(backbones.BACKBONE).weights for model in (first, second)), strict=True)
    return all(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs)


def test_published_arrays_load_into_every_layer_but_the_head(keras: Any, tmp_path: Path) -> None:
    source, network = drawn(), built(LITE, SHAPE, 3)
    head = network.get_layer("logits").get_weights()
    published(source, tmp_path / "lite0.npz")
    loaded = weights.load(network, tmp_path / "lite0.npz", "lite0.npz")
    assert same(source, network)
    assert (loaded.loaded, loaded.total) == (245, 247)
    assert loaded.fresh == ("logits/kernel", "logits/bias")
    assert loaded.unused == ("classifier", "probe")
    assert str(loaded) == (
        "245 of 247 arrays loaded; 2 start from random weights (logits/kernel, logits/bias); "
        "2 layers of the file are not used (classifier, probe)"
    )
    assert all(
        np.array_equal(*both) for both in zip(head, network.get_layer("logits").get_weights(), strict=True)
    )


@pytest.mark.parametrize("file", ["a.keras", "a.weights.h5", "a.h5"])
@pytest.mark.parametrize(("classes", "count"), [(5, 247), (3, 245)])
def test_keras_files_are_loaded_with_the_head_where_it_fits(
    keras: Any, tmp_path: Path, file: str, classes: int, count: int
) -> None:
    source, network = drawn(), built(LITE, (40, 48, 1), classes)
    (source.save_weights if file == "a.weights.h5" else source.save)(tmp_path / file)
    loaded = weights.load(network, tmp_path / file, file)
    assert same(source, network)
    assert (loaded.loaded, loaded.unused) == (count, ())


def test_the_export_of_a_run_is_loaded_into_another(keras: Any, tmp_path: Path) -> None:
    from distml.artifacts import export
    from distml.models import transform

    for name, classes in (("poolnet", 4), ("resnet", 10)):
        source = registry.build(name, (28, 28, 1), 10, {}, 3)
        task = Classification(tuple("abcdefghij"))
        export.served(transform.averaged(source, ["mirror"]), task).save(tmp_path / "model.keras")
        network = registry.build(name, (28, 28, 1), classes, {}, 4)
        loaded = weights.load(network, tmp_path / "model.keras", "runs:/first")
        fits = {"poolnet": ("logits/kernel", "logits/bias"), "resnet": ()}[name]
        assert loaded.fresh == fits
        pairs = zip(source.weights, network.weights, strict=True)
        assert sum(np.array_equal(a.numpy(), b.numpy()) for a, b in pairs) == loaded.loaded


def test_a_whole_model_in_the_old_format_is_loaded_without_its_head(keras: Any, tmp_path: Path) -> None:
    source = keras.applications.MobileNetV2(weights=None, classes=7, input_shape=(96, 96, 3))
    source.save(tmp_path / "a.h5")
    network = built("mobilenet_v2", SHAPE, 3)
    loaded = weights.load(network, tmp_path / "a.h5", "a.h5")
    assert (loaded.loaded, loaded.unused) == (260, ("predictions",))
    narrow = registry.build("mobilenet_v2", SHAPE, 3, {"alpha": 0.35}, 1)
    with pytest.raises(ModelError, match=r"are not of mobilenet_v2: 4 of the 260 arrays .* is \["):
        weights.load(narrow, tmp_path / "a.h5", "a.h5", options={"alpha": 0.35})


@functools.cache
def application(name: str, top: bool) -> Any:
    """A network of Keras's own, with or without its classifier."""
    import keras

    return getattr(keras.applications, backbones.BACKBONES[name].function)(weights=None, include_top=top)


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0"])
@pytest.mark.parametrize(("top", "file"), [(False, "a.h5"), (False, "a.weights.h5"), (True, "a.weights.h5")])
def test_keras_own_files_are_loaded_with_and_without_their_classifier(
    keras: Any, tmp_path: Path, name: str, top: bool, file: str
) -> None:
    source = application(name, top)
    (source.save_weights if "weights" in file else source.save)(tmp_path / file)
    network = built(name, SHAPE, 3)
    loaded = weights.load(network, tmp_path / file, file)
    assert loaded.fresh == ("logits/kernel", "logits/bias")
    theirs = {weight.path: weight.numpy() for weight in source.weights}
    ours = network.get_layer(backbones.BACKBONE).weights
    assert all(np.array_equal(weight.numpy(), theirs[weight.path]) for weight in ours)


@pytest.mark.slow
def test_layers_that_keras_numbers_are_matched_by_position(keras: Any, tmp_path: Path) -> None:
    source, network = (
        drawn("inception_v3", shape=(75, 75, 3)),
        registry.build("inception_v3", (75, 75, 3), 3, {}, 1),
    )
    source.save(tmp_path / "a.keras")
    assert source.get_layer("backbone").layers[1].name != network.get_layer("backbone").layers[1].name
    assert weights.load(network, tmp_path / "a.keras", "a.keras").loaded == 376
    assert same(source, network)


OTHERS = {
    "another backbone": ("mobilenet", LITE, "are not of efficientnet_lite0: 0 of the 245"),
    "another network": ("convnet", "resnet", "fit no layer of resnet"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_weights_of_another_network_are_rejected_with_the_reason(
    keras: Any, tmp_path: Path, kind: str
) -> None:
    other, name, said = OTHERS[kind]
    drawn(other).save(tmp_path / "other.keras")
    network = built(name, SHAPE, 9)
    before = network.get_weights()
    with pytest.raises(ModelError, match=said):
        weights.load(network, tmp_path / "other.keras", "other.keras")
    assert all(np.array_equal(*both) for both in zip(before, network.get_weights(), strict=True))


def test_a_network_that_shares_its_last_layer_alone_is_rejected(keras: Any, tmp_path: Path) -> None:
    drawn("convnet").save(tmp_path / "other.keras")
    network = registry.build("resnet", SHAPE, 5, {"widths": [32, 64], "blocks": 1}, 1)
    with pytest.raises(ModelError, match=r"are not of resnet: [12] of its \d+ arrays fit"):
        weights.load(network, tmp_path / "other.keras", "other.keras")


def test_arrays_of_pytorch_and_of_a_training_that_diverged_are_named(keras: Any, tmp_path: Path) -> None:
    published(drawn(), tmp_path / "whole.npz")
    arrays = dict(np.load(tmp_path / "whole.npz"))
    network = built(LITE, SHAPE, 5)
    turned = {name: array.transpose() for name, array in arrays.items()}
    np.savez(tmp_path / "turned.npz", allow_pickle=False, **turned)
    with pytest.raises(ModelError) as caught:
        weights.load(network, tmp_path / "turned.npz", "turned.npz")
    assert "a kernel is (height, width, in, out)" in caught.value.remedy
    arrays["block03/expand/conv/kernel"] *= np.nan
    np.savez(tmp_path / "nan.npz", allow_pickle=False, **arrays)
    with pytest.raises(ModelError, match="block03_expand_conv/kernel that are not finite"):
        weights.load(network, tmp_path / "nan.npz", "nan.npz")


def test_a_model_with_code_of_its_own_gets_the_way_out(keras: Any, tmp_path: Path) -> None:
    layers = [keras.Input(SHAPE), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Flatten()]
    keras.Sequential([*layers, keras.layers.Dense(3)]).save(tmp_path / "own.keras")
    with pytest.raises(ModelError) as caught:
        weights.load(registry.build("convnet", SHAPE, 3, {}, 1), tmp_path / "own.keras", "own.keras")
    assert "model.save_weights" in caught.value.remedy
    assert caught.value.message.endswith("disallowed by default.")


def test_a_small_network_loads_the_matching_layers_and_lists_the_others(keras: Any, tmp_path: Path) -> None:
    drawn("convnet", shape=(28, 28, 1)).save(tmp_path / "gray.keras")
    network = registry.build("convnet", SHAPE, 5, {}, 1)
    loaded = weights.load(network, tmp_path / "gray.keras", "gray.keras")
    assert loaded.fresh == ("convnet/conv1/kernel", "convnet/dense/kernel")
    assert (loaded.loaded, loaded.unused) == (6, ())


def test_a_backbone_is_loaded_completely_or_rejected(keras: Any, tmp_path: Path) -> None:
    published(drawn(), tmp_path / "whole.npz")
    arrays = dict(np.load(tmp_path / "whole.npz"))
    del arrays["block03/expand/conv/kernel"]
    np.savez(tmp_path / "less.npz", allow_pickle=False, **arrays)
    network = built(LITE, SHAPE, 5)
    with pytest.raises(ModelError, match=r"244 of the 245 arrays .* it has no block03_expand_conv/kernel"):
        weights.load(network, tmp_path / "less.npz", "less.npz")


@pytest.mark.parametrize("file", ["a.npz", "a.keras", "a.h5", "a.weights.h5"])
def test_a_damaged_file_is_an_error_message(keras: Any, tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_bytes(b"PK\x03\x04 not what it seems")
    with pytest.raises(ModelError, match=f"weights mine/{file} cannot be read") as caught:
        weights.load(built(LITE, SHAPE, 5), tmp_path / file, f"mine/{file}")
    assert "\n" not in str(caught.value)


def test_pickled_arrays_are_rejected(keras: Any, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"stem/conv/kernel": np.array([{"a": 1}], object)}
    np.savez(tmp_path / "evil.npz", **arrays)
    with pytest.raises(ModelError, match="cannot be read: Object arrays cannot be loaded"):
        weights.load(built(LITE, SHAPE, 5), tmp_path / "evil.npz", "evil.npz")

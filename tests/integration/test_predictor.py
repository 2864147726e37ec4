"""An exported model answers like the network it came from, and a dangerous one is never loaded."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.artifacts import layout
from distml.artifacts.layout import CLASSES, LITE, MODEL, write_digests
from distml.artifacts.predictor import Engine, Predictor
from distml.data import schema
from distml.errors import ModelError

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SHAPE, CLASSES_USED = (12, 10, 3), ["cat", "dog", "bird"]
IMAGES = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), np.uint8)


@pytest.fixture(scope="module")
def network() -> Any:
    """A small network as training builds it: raw pixels in, logits out."""
    from distml.models import registry

    return registry.build("convnet", SHAPE, len(CLASSES_USED), {"filters": [4], "dense": 8}, 3)


@pytest.fixture(scope="module")
def exported(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of it."""
    from distml.artifacts.export import export

    folder = tmp_path_factory.mktemp("exported")
    described = {"name": "pets", "classes": CLASSES_USED, "shape": list(SHAPE)}
    export(network, folder, described, IMAGES[:2])
    return folder


@pytest.fixture
def own(exported: Path, tmp_path: Path) -> Path:
    """A copy to do things to."""
    return Path(shutil.copytree(exported, tmp_path / "own"))


@pytest.fixture(scope="module", params=["litert", "tensorflow"])
def predictor(exported: Path, request: pytest.FixtureRequest) -> Predictor:
    engine: Engine = request.param
    return Predictor.of(layout.verify(exported), engine)


def test_the_predictor_equals_the_network(predictor: Predictor, network: Any) -> None:
    logits = np.asarray(network(IMAGES.astype(np.float32)), np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answers = predictor.predict(IMAGES)
    assert answers.dtype == np.float32
    np.testing.assert_allclose(answers, expected, rtol=1e-5, atol=1e-6)
    assert (predictor.classes, predictor.shape) == (tuple(CLASSES_USED), SHAPE)


def test_the_first_layer_of_an_export_is_our_normalisation(exported: Path) -> None:
    import keras

    model = keras.saving.load_model(exported / MODEL, compile=False)
    (network,) = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    scaled = network.get_layer("normalise")(model.get_layer("to_float")(IMAGES))
    np.testing.assert_allclose(np.asarray(scaled), schema.normalise(IMAGES), rtol=1e-6, atol=1e-7)


def test_the_batch_size_does_not_change_predictions(predictor: Predictor) -> None:
    many = np.concatenate([IMAGES] * 60)
    answers = predictor.predict(many)
    assert answers.shape == (300, 3)
    np.testing.assert_allclose(answers, np.concatenate([predictor.predict(IMAGES)] * 60), rtol=1e-5)
    assert predictor.predict(IMAGES[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (IMAGES.astype(np.float32), "not float32 [5, 12, 10, 3]."),
        (IMAGES[0], "not uint8 [12, 10, 3]."),
        (IMAGES[:, :, :9], "not uint8 [5, 12, 9, 3]."),
        (IMAGES[..., :1], "not uint8 [5, 12, 10, 1]."),
    ],
)
def test_arrays_of_other_shapes_or_types_are_rejected(predictor: Predictor, images: Any, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        predictor.predict(images)
    assert str(caught.value) == f"the model takes uint8 [N, 12, 10, 3], {said}"


def test_a_changed_byte_of_the_weights_is_rejected(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    content = bytearray((own / MODEL).read_bytes())
    content[-3000] ^= 1
    (own / MODEL).write_bytes(content)
    with pytest.raises(ModelError, match="has the SHA-256"):
        Predictor.load(own)


def test_a_zip_bomb_with_a_matching_digest_is_rejected(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    with zipfile.ZipFile(own / MODEL, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(64 << 20))
    write_digests(own)
    with pytest.raises(ModelError, match="would unpack to far more"):
        Predictor.load(own)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that hostile code would make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


def replace(own: Path, model: Any) -> None:
    model.save(own / MODEL)
    (own / LITE).unlink()
    write_digests(own)


def test_a_lambda_layer_is_rejected(own: Path, canary: Path) -> None:
    import keras

    image = keras.Input(SHAPE, dtype="uint8")
    touch = eval(f"lambda x: (__import__('pathlib').Path({str(canary)!r}).touch(), x)[1]")
    flat = keras.layers.Flatten()(keras.layers.Lambda(touch, output_shape=SHAPE)(image))
    replace(own, keras.Model(image, keras.layers.Dense(3)(flat)))
    canary.unlink(missing_ok=True)
    keras.saving.load_model(own / MODEL, compile=False, safe_mode=False)(IMAGES)
    assert canary.exists(), "it would not have harmed anybody"
    canary.unlink()
    with pytest.raises(ModelError, match="cannot be loaded safely") as caught:
        Predictor.load(own)
    assert "Lambda" in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [("os", "system", ["touch canary"]), ("keras.utils", "get_file", ["x", "http://127.0.0.1:9/x"])],
)
def test_a_configuration_that_names_foreign_code_is_rejected(
    own: Path, canary: Path, module: str, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(canary.parent)
    with zipfile.ZipFile(own / MODEL) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    config = json.loads(members["config.json"])
    layer = config["config"]["layers"][1]
    layer["module"], layer["class_name"], layer["registered_name"] = module, name, name
    layer["config"] = {"arguments": arguments}
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(own / MODEL, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    (own / LITE).unlink()
    write_digests(own)
    with pytest.raises(ModelError, match="cannot be loaded safely"):
        Predictor.load(own)


@pytest.mark.parametrize(
    "described", [{"classes": ["one"], "shape": list(SHAPE)}, {"classes": CLASSES_USED, "shape": [28, 28, 1]}]
)
@pytest.mark.parametrize("engine", ["litert", "tensorflow"])
def test_a_description_that_does_not_fit_is_rejected(
    own: Path, described: dict[str, Any], engine: Engine
) -> None:
    (own / CLASSES).write_text(json.dumps(described))
    write_digests(own)
    with pytest.raises(ModelError, match=r"expected \(None|is not a model of images|does not map"):
        Predictor.of(layout.verify(own), engine)


def test_a_damaged_litert_file_with_a_matching_digest_is_an_error_message(own: Path) -> None:
    (own / LITE).write_bytes((own / LITE).read_bytes()[:1000])
    write_digests(own)
    with pytest.raises(ModelError, match="is not a model of images"):
        Predictor.load(own)


def test_a_litert_file_without_a_digest_is_never_loaded(own: Path) -> None:
    content = (own / LITE).read_bytes()
    (own / LITE).unlink()
    write_digests(own)
    (own / LITE).write_bytes(content)
    with pytest.raises(ModelError, match="does not belong to the model"):
        Predictor.load(own)


def test_a_network_without_litert_file_runs_in_tensorflow(own: Path, predictor: Predictor) -> None:
    (own / LITE).unlink()
    write_digests(own)
    fallen_back = Predictor.load(own)
    np.testing.assert_allclose(fallen_back.predict(IMAGES), predictor.predict(IMAGES), atol=1e-5)
    assert type(fallen_back.function).__module__.startswith("tensorflow")


def test_a_prediction_does_not_depend_on_the_rest_of_the_batch(predictor: Predictor) -> None:
    alone = np.concatenate([predictor.predict(IMAGES[at : at + 1]) for at in range(len(IMAGES))])
    np.testing.assert_allclose(alone, predictor.predict(IMAGES), rtol=1e-5)

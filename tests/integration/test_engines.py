"""Every form of an export answers like the network, and the fastest of those that do is taken."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.artifacts import layout, predictor
from distml.artifacts.layout import LITE, LITE_INT8, ONNX
from distml.artifacts.predictor import Predictor
from distml.config import ExportConfig
from distml.errors import ConfigError, ModelError
from distml.storage import Storage

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SHAPE, NAMES = (12, 10, 1), ["dark", "light"]
GREY = np.random.default_rng(0).integers(0, 256, (64, 1, 1, 1), np.uint8)
IMAGES = np.broadcast_to(GREY, (64, *SHAPE)).copy()
TARGETS = (GREY.reshape(-1) > 127).astype(np.int32)
DESCRIBED = {"name": "shades", "classes": NAMES, "shape": list(SHAPE)}


@pytest.fixture(scope="module")
def network() -> Any:
    """Tells dark from light pictures; set by hand, nothing is trained."""
    import keras

    from distml.models import registry

    network = registry.build("convnet", SHAPE, 2, {"filters": [2], "dense": 4}, 3)
    mean = keras.layers.GlobalAveragePooling2D()(network.inputs[0])
    sides = keras.layers.Dense(2)
    logits = keras.layers.Add()([sides(mean), keras.layers.Rescaling(0.01)(network.outputs[0])])
    sides.set_weights([np.array([[-0.05, 0.05]]), np.array([6.375, -6.375])])
    return keras.Model(network.inputs[0], logits)


@pytest.fixture(scope="module")
def exported(network: Any, tmp_path_factory: pytest.TempPathFactory) -> layout.Export:
    """An export in every form."""
    from distml.artifacts.export import Rows, export

    folder = tmp_path_factory.mktemp("exported")
    rows = Rows(IMAGES[:32], IMAGES, TARGETS)
    export(network, folder, DESCRIBED, IMAGES[:2], ExportConfig(quantize="int8"), rows)
    return layout.verify(folder)


@pytest.fixture(scope="module")
def expected(network: Any) -> Any:
    from distml import tasks
    from distml.artifacts.export import served

    return np.asarray(served(network, tasks.restore(NAMES, None))(IMAGES, training=False))


@pytest.mark.parametrize("engine", ["litert", "onnx", "openvino", "tensorflow"])
def test_every_engine_gives_the_answers_of_the_network(
    exported: layout.Export, expected: Any, engine: Any
) -> None:
    loaded = Predictor.of(exported, engine, threads=2, batch=5)
    for count in (0, 1, 5, 64):
        np.testing.assert_allclose(loaded.predict(IMAGES[:count]), expected[:count], atol=1e-5)


def test_eight_bits_are_smaller_and_decide_alike(exported: layout.Export, expected: Any) -> None:
    answers = Predictor.of(exported, "litert_int8").predict(IMAGES)
    assert 0 < np.max(np.abs(answers - expected)) < 0.1
    assert np.mean(answers.argmax(1) == TARGETS) == 1.0
    record = json.loads((exported.folder / layout.CLASSES).read_text())["formats"]
    assert record["litert_int8"]["accuracy"] == record["litert_int8"]["accuracy_float"] == 1.0
    assert record["onnx"]["bytes"] == (exported.folder / ONNX).stat().st_size
    assert record["onnx"]["difference"] < 1e-4


def test_eight_bits_that_lose_too_much_are_not_kept(
    network: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from distml.artifacts.export import Rows, export

    wanted, rows = ExportConfig(formats=["litert"], quantize="int8"), Rows(IMAGES[:8], IMAGES, TARGETS)
    strict = wanted.model_copy(update={"max_loss_of_accuracy": -1.0})  # no file can meet it
    record = export(network, tmp_path, DESCRIBED, IMAGES[:2], strict, rows)
    assert "max_loss_of_accuracy is -1" in record["litert_int8"]["left_out"]
    assert "is not kept" in caplog.text
    assert (tmp_path / LITE).exists()
    assert not (tmp_path / LITE_INT8).exists()
    assert not (tmp_path / ONNX).exists()
    assert not (tmp_path / layout.SAVED_MODEL).exists()
    with pytest.raises(ModelError, match=r"no file for the engine litert_int8 .*Train it with export"):
        Predictor.of(layout.verify(tmp_path), "litert_int8")


def test_few_validation_rows_are_named_where_eight_bits_lose_too_much() -> None:
    from distml.artifacts import export

    few = export._too_much_lost((0.9524, 0.9286), 42, 0.01)
    assert "0.9286 of 42 validation rows are predicted correctly instead of 0.9524" in few
    assert few.endswith("one of so few rows is 0.0238: hold out more of them, or set a higher limit")
    assert export._too_much_lost((0.95, 0.9), 5000, 0.01).endswith("export.max_loss_of_accuracy is 0.01")


def _installed(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *given: None if name in missing else find(name, *given)
    )


def test_an_engine_that_is_not_installed_is_an_error(
    exported: layout.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, "onnxruntime", "tf2onnx")
    with pytest.raises(ModelError, match=r"onnx is not installed. pip install 'distml\[onnx\]'"):
        Predictor.of(exported, "onnx")
    with pytest.raises(ConfigError, match=r"export.formats names onnx"):
        layout.require_formats(ExportConfig(formats=["onnx"]))
    layout.require_formats(ExportConfig())


def test_the_fastest_that_agrees_is_taken_and_kept(
    exported: layout.Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Storage(str(tmp_path))
    choice = predictor.choose(exported, 2, kept, budget_s=2.0)
    measured = {(figure.engine, figure.threads) for figure in choice.figures if not figure.note}
    assert ("litert", 1) in measured
    assert {figure.engine for figure in choice.figures} == {"litert", "onnx", "openvino"}
    least = min(figure.cost for figure in choice.figures if not figure.note)
    assert choice.figures[0].cost <= 1.05 * least
    monkeypatch.setattr(predictor, "_measured", lambda *_: pytest.fail("it was measured before"))
    assert predictor.choose(exported, 2, kept) == choice
    (name,) = kept.names("engines")
    kept.write_bytes(b"{}", "engines", name)
    with pytest.raises(pytest.fail.Exception):
        predictor.choose(exported, 2, kept)


def test_with_one_engine_nothing_is_measured(
    exported: layout.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(monkeypatch, "onnxruntime", "openvino")
    monkeypatch.setattr(predictor, "_measured", lambda *_: pytest.fail("there is nothing to choose"))
    assert predictor.choose(exported) == predictor.Choice("litert", 1)


def test_tensorflow_is_compared_once_for_the_next_start(
    exported: layout.Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Storage(str(tmp_path))
    _installed(monkeypatch, "onnxruntime", "openvino")
    first = predictor.choose(exported, 1, kept)
    assert not predictor.compared(first)
    choice = predictor.compare(exported.folder, exported.sha256, 1, kept, budget_s=2.0)
    measured = {figure.engine for figure in choice.figures if not figure.note}
    assert measured == {"litert", "tensorflow"}
    assert predictor.compared(choice)
    monkeypatch.setattr(predictor, "_measured", lambda *_: pytest.fail("it was measured before"))
    assert predictor.compare(exported.folder, exported.sha256, 1, kept) == choice
    assert predictor.choose(exported, 1, kept) == choice
    (name,) = kept.names("engines")
    faster = replace(choice, engine="tensorflow")
    kept.write_bytes(json.dumps(asdict(faster)).encode(), "engines", name)
    assert predictor.choose(exported, 1, kept).engine == "tensorflow"
    assert Predictor.fastest(exported, "auto", 1, kept).choice.engine == "tensorflow"


def test_an_engine_that_answers_differently_is_not_taken(
    exported: layout.Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(predictor.Onnx):
        def __call__(self, images: Any) -> Any:
            return super().__call__(images) + 0.01

    kinds = dict(predictor._KINDS)
    kinds["onnx"] = predictor._Kind(Wrong, (ONNX,), "onnxruntime", "onnx")
    monkeypatch.setattr(predictor, "_KINDS", kinds)
    figures = predictor.choose(exported, budget_s=2.0).figures
    (wrong,) = [figure for figure in figures if figure.engine == "onnx"]
    assert wrong.note == "its outputs differ by 0.01"
    assert figures[0].engine != "onnx"


@pytest.mark.parametrize(("engine", "file"), [("litert", LITE), ("onnx", ONNX), ("openvino", LITE)])
def test_a_file_of_other_images_is_rejected(
    exported: layout.Export, tmp_path: Path, engine: str, file: str
) -> None:
    folder = Path(shutil.copytree(exported.folder, tmp_path / "own"))
    other = layout.Export(folder, exported.sha256, (*exported.classes, "third"), exported.shape)
    with pytest.raises(ModelError, match=r"does not map uint8 images to float32 \[N, 3\]"):
        predictor.load(other, engine)
    (folder / file).write_bytes(b"no model")
    with pytest.raises(ModelError, match="is not a model of images"):
        predictor.load(exported.__class__(folder, "", exported.classes, exported.shape), engine)


def test_the_packages_of_engines_are_imported_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    monkeypatch.setattr("importlib.import_module", imported.append)
    monkeypatch.setattr(predictor._Kind, "installed", True)
    kept = Storage(str(tmp_path))
    predictor.prepare("auto", kept)
    assert imported == ["ai_edge_litert.interpreter", "onnxruntime", "openvino"]
    kept.write_bytes(b"{}", predictor.FOLDER, "known.json")  # measured before: the usual winner
    predictor.prepare("auto", kept)
    predictor.prepare("onnx", kept)
    predictor.prepare("tensorflow", kept)
    assert imported[3:] == ["ai_edge_litert.interpreter", "onnxruntime"]

"""Multilabel and regression from drawn pictures to predictions: ingest, steps, evaluation, export, gate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distml.artifacts import layout
from distml.artifacts.predictor import Embedder, Predictor
from distml.config import AugmentConfig, Config, PromoteConfig
from distml.data import feed, ingestion, shards
from distml.data.manifest import Manifest
from distml.selection import gate, score
from distml.storage import Storage
from distml.tasks import Evaluation, Task
from tests import drawn

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

ROWS, EPOCHS, BATCH = 1600, 12, 64


@dataclass(frozen=True)
class Trained:
    """A network trained on drawn pictures.

    Attributes:
        task: With what was chosen on validation rows.
        evaluation: On the test rows.
        predictor: Of the export.
        rows: Images and targets of the test split.
        outputs: Of the network for them.
        network: Raw pixels to logits.
        folder: Of the export.
    """

    task: Task
    evaluation: Evaluation
    predictor: Predictor
    rows: tuple[Any, Any]
    outputs: Any
    network: Any
    folder: Path


def prepared(root: Path, kind: str, **data: Any) -> tuple[Storage, Manifest]:
    """Draw pictures and ingest them."""
    draw = {"multilabel": drawn.colours, "regression": drawn.bars}[kind]
    path = draw(root / "pictures", ROWS)
    config = Config.resolve(
        {"task": {"kind": kind}, "data": {"name": kind, "path": str(path), "val_fraction": 0.15, **data}}
    )
    storage = Storage(str(root / "storage"))
    return storage, ingestion.prepare(config, storage)


def trained(root: Path, kind: str, **data: Any) -> Trained:
    import keras
    import tensorflow as tf

    from distml.artifacts.export import export
    from distml.models import registry
    from distml.training.step import Step, StepSpec

    storage, manifest = prepared(root, kind, **data)
    network = registry.build("convnet", manifest.shape, len(manifest.classes), {"filters": [16, 32]}, 0)
    (images, targets), test = (shards.read(storage, manifest, split) for split in ("train", "test"))
    steps = len(images) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS * steps)
    optimizer = keras.optimizers.Adam(rate)
    optimizer.build(network.trainable_variables)
    spec = StepSpec(BATCH, 0, 0, 0.0, 0.0, AugmentConfig(), task=manifest.task)
    step = Step(tf.distribute.get_strategy(), network, optimizer, spec)
    for epoch in range(EPOCHS):
        order = feed.order(len(images), BATCH, steps, (0, epoch))
        step.train(tf.constant(images), tf.constant(targets), order)
    held, truth = shards.read(storage, manifest, "validation")
    task = manifest.task.tuned(truth, step.scores(held, truth)[1], False)
    losses, logits = step.scores(*test)
    described = {
        "name": kind,
        "classes": list(task.names),
        "shape": list(manifest.shape),
        "task": task.spec(),
    }
    folder = root / "export"
    folder.mkdir()
    export(network, folder, described, held[:2])
    outputs = task.activate(logits)
    evaluation = task.evaluate(test[1], outputs, losses)
    return Trained(task, evaluation, Predictor.load(folder), test, outputs, network, folder)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("colours"), "multilabel")


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(tmp_path_factory.mktemp("bars"), "regression", label_column="angle")


def test_the_colours_of_drawn_images_are_learnt(colours: Trained) -> None:
    assert colours.task.names == ("blue", "green", "red", "yellow")
    assert colours.evaluation.metrics["macro_f1"] >= 0.98


def test_the_angle_of_a_drawn_bar_is_predicted_within_two_degrees(bars: Trained) -> None:
    assert bars.task.names == ("angle",)
    assert bars.evaluation.metrics["mae"] <= 2.0


@pytest.mark.parametrize("name", ["colours", "bars"])
def test_an_export_gives_outputs_in_the_units_of_the_targets(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Trained = request.getfixturevalue(name)
    predictor = made.predictor
    assert predictor.task == made.task
    outputs = predictor.predict(made.rows[0][:64])
    assert made.task.difference(outputs, made.outputs[:64]) < 1e-3
    assert (outputs.dtype, outputs.shape) == (np.dtype(np.float32), (64, len(made.task.names)))


def test_heat_lies_where_the_colour_is(colours: Trained) -> None:
    from distml.models import transform

    images, targets = colours.rows
    blue = colours.task.names.index("blue")
    images = images[targets[:, blue] > 0][:40]
    places = transform.inside(colours.network)
    heat = transform.class_activation(colours.network, places, images, [blue] * len(images))
    assert heat.shape == (len(images), *places.maps.output.shape[1:3])
    pixels = images.astype(int)
    there = (pixels[..., 2] > 180) & (pixels[..., 0] < 90)
    middles = [np.argwhere(mask).mean(0) / mask.shape for mask in there]
    hits = []
    for row, middle in zip(colours.task.influence(heat), middles, strict=True):
        hottest = (np.argwhere(row == row.max())[0] + 0.5) / row.shape
        hits.append(np.abs(hottest - middle).max() < 0.3)
    assert np.mean(hits) > 0.7


def test_features_of_an_export_tell_pictures_apart_and_leave_its_outputs(colours: Trained) -> None:
    embedder = Embedder.of(layout.verify(colours.folder))
    images, targets = colours.rows
    outputs, features = embedder.predict(images)
    assert colours.task.difference(outputs, colours.outputs) < 1e-3
    assert (features.dtype, features.shape) == (np.dtype(np.float32), (len(images), 64))
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    alike = unit @ unit.T - 2 * np.eye(len(unit))
    same = (targets[alike.argmax(1)] == targets).all(1).mean()
    assert same > 0.8
    assert embedder.predict(images[:0])[1].shape == (0, 64)


def test_the_gate_compares_by_the_metric_of_the_task(bars: Trained) -> None:
    images, targets = bars.rows
    outputs = bars.predictor.predict(images)
    good = score.measure(bars.task, outputs, targets, 2)
    worse = score.measure(bars.task, outputs + np.float32(5), targets, 1)
    decision = gate.decide(PromoteConfig(), "val_mae", good, worse)
    assert decision.promote
    assert "outside the noise" in decision.why
    assert not gate.decide(PromoteConfig(), "val_mae", dataclasses.replace(worse, version=3), good).promote


def test_the_best_epoch_is_exported_and_not_the_last_one() -> None:
    import keras

    from distml.training import evaluate
    from distml.training.epoch import Epochs
    from distml.training.events import EpochFinished

    def network() -> Any:
        return keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])

    model = network()
    rank: Any = SimpleNamespace(
        config=Config.resolve({"train": {"restore_best": True}}),
        monitor="val_macro_f1",
        history=[],
        best=None,
        step=SimpleNamespace(model=model),
        network=network,
    )
    for epoch, value in enumerate((0.5, 0.9, 0.7), 1):
        model.set_weights([np.full(weight.shape, epoch, np.float32) for weight in model.get_weights()])
        Epochs(rank)._keep_best({rank.monitor: value})
        rank.history.append(EpochFinished(epoch, epoch, {rank.monitor: value}))
    assert all((weight == 2).all() for weight in evaluate._network(rank).get_weights())
    assert evaluate._best_epoch(rank) == 2

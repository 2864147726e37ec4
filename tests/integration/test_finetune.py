"""From weights in a file to a fine-tuned model: frozen epochs, the boundary, a kill beside it, the export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runner import Training, recorded

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(400)]

CLASSES = ["red", "green", "blue"]
DRAWN = """
import numpy as np

def drawn():
    numbers, found = np.random.default_rng(3), {"classes": ["red", "green", "blue"]}
    for split, count in (("train", 320), ("test", 60)):
        labels = (np.arange(count) % 3).astype(np.int32)
        images = numbers.integers(0, 120, (count, 24, 24, 3), np.uint8)
        for at, label in enumerate(labels):
            images[at, 4:20, 4:20, label] = 200
        found[split] = (images, labels)
    return found
"""
OWN = """
import keras
from keras import layers

def adam(learning_rate, beta_1=0.9):
    return keras.optimizers.Adam(learning_rate, beta_1=beta_1)

def network(shape, classes):
    image = keras.Input(shape)
    scaled = layers.Rescaling(1 / 255)(image)
    body = [layers.Conv2D(8, 3, strides=2, name="conv"), layers.BatchNormalization(name="norm")]
    features = keras.Sequential([keras.Input(shape), *body], name="backbone")(scaled)
    pooled = layers.GlobalAveragePooling2D(name="pool")(features)
    return keras.Model(image, layers.Dense(classes, dtype="float32", name="logits")(pooled))

network.raw_pixels = True
"""
FLAGS = [
    "--data.name=drawn",
    "--data.format=own_rows:drawn",
    "--data.val_fraction=0.2",
    "--model.name=own_finetune:network",
    "--model.weights=first.npz",
    "--model.freeze_epochs=2",
    "--model.unfreeze_from=norm",
    "--model.backbone_learning_rate=0.1",
    "--train.epochs=4",
    "--train.global_batch_size=32",
    "--train.learning_rate=0.05",
    "--train.class_weights=balanced",
    "--train.optimizer=own_finetune:adam",
    "--train.augment.layers=[{RandomFlip: {mode: horizontal}}]",
    "--train.augment.crop_scale=[0.8, 1]",
    "--train.augment.frozen_views=2",
    "--train.restore_best=true",
    # The last epoch undoes what was learnt, so that the best one is another.
    "--train.schedule=piecewise",
    "--train.schedule_options.boundaries=[3]",
    "--train.schedule_options.factors=[1, 100]",
    "--train.log_every_steps=4",
]
KERNEL = np.random.default_rng(0).normal(size=(3, 3, 3, 8)).astype(np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A storage beside the user's modules and weights."""
    (tmp_path / "own_rows.py").write_text(DRAWN)  # the driver imports it: Keras would take seconds each time
    (tmp_path / "own_finetune.py").write_text(OWN)
    zeros, ones = np.zeros(8, np.float32), np.ones(8, np.float32)
    norm = {"gamma": ones, "beta": zeros, "moving_mean": zeros, "moving_variance": ones}
    arrays: dict[str, Any] = {"conv/kernel": KERNEL, "conv/bias": zeros, "other/kernel": KERNEL}
    arrays |= {f"norm/{name}": value for name, value in norm.items()}
    np.savez(tmp_path / "first.npz", **arrays)
    return tmp_path / "storage"


def history(result: dict[str, Any]) -> list[dict[str, Any]]:
    epochs: list[dict[str, Any]] = json.loads((Path(result["artifacts"]) / "report.json").read_text())[
        "history"
    ]
    return epochs


def test_frozen_epochs_train_on_features_and_resume_after_a_kill(root: Path) -> None:
    with Training(root, "fine", *FLAGS) as run:
        run.wait_for("epoch 3/4")
        run.kill_all()
    with Training(root, "fine", *FLAGS) as again:
        code, result = again.finish()
    assert code == 0, again.lines
    assert run.said("weights first.npz: 6 of 8 arrays loaded; 2 start from random weights") == 1
    assert run.said("1 layers of the file are not used (other)") == 1
    assert again.said("resumed after epoch") == 1
    epochs = history(result)
    assert all("features_s" in epoch for epoch in epochs)  # in front of norm nothing learns
    assert recorded(root, "fine")[1]["loss"] == [1, 2, 3, 4]
    assert result["test_accuracy"] > 0.9
    straight = Training(root, "straight", *FLAGS)
    with straight:
        code, other = straight.finish()
    assert code == 0, straight.lines
    for view in ("view 1 of 2", "view 2 of 2"):  # once for both phases
        assert straight.said(f"computing the features of 257 training rows, {view}") == 1
    assert [epoch["loss"] for epoch in history(other)] == [epoch["loss"] for epoch in epochs]
    values = [epoch["val_accuracy"] for epoch in epochs]
    best = values.index(max(values))
    assert best < 3
    assert result["best_epoch"] == other["best_epoch"] == best + 1
    assert result["val_accuracy"] == other["val_accuracy"] == values[best]

"""The average over an image and views of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml.config.schema import VIEWS
from distml.models import registry, transform

pytestmark = [
    pytest.mark.tensorflow,
    # Keras 3.15 on NumPy 2, while it saves.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_logits_are_the_average_of_both_and_the_saved_model_is_plain_keras(
    keras: Any, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 28, 28, 1)).astype(np.float32)
    network = registry.build("resnet", (28, 28, 1), 10, {"widths": [4]}, 0)
    both = transform.averaged(network, ["mirror"])
    expected = (np.asarray(network(images)) + np.asarray(network(images[:, :, ::-1]))) / 2
    assert not np.allclose(expected, network(images))
    np.testing.assert_allclose(both(images), expected, rtol=1e-5, atol=1e-6)
    assert [weight.path for weight in both.weights] == [weight.path for weight in network.weights]
    both.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-5, atol=1e-6)


def test_every_view_is_weighted_once_and_saved_as_plain_keras(keras: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 1)).astype(np.float32)
    network = registry.build("resnet", (32, 32, 1), 10, {"widths": [4]}, 0)
    views = transform.averaged(network, VIEWS)
    zoomed = keras.ops.image.resize(images[:, 2:30, 2:30], (32, 32))
    seen = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1], zoomed]
    expected = np.mean([np.asarray(network(image)) for image in seen], 0)
    views.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images), expected, rtol=1e-4, atol=1e-5)

"""Statistics of pictures: known values, any shape, and none that depends on how many come at once."""

from __future__ import annotations

import numpy as np
import pytest

from distml.data import statistics


def of(image: np.ndarray) -> dict[str, float]:
    shape = (image.shape[0], image.shape[1], image.shape[2])
    return dict(zip(statistics.names(shape), statistics.measure(image[None])[0].tolist(), strict=True))


def test_the_statistics_of_a_gray_image_match_by_hand() -> None:
    image = np.zeros((30, 30, 1), np.uint8)
    image[:10, 20:] = 255  # one ninth is white: the upper right corner
    values = of(image)
    assert values["mean intensity"] == pytest.approx(1 / 9)
    assert values["foreground share"] == pytest.approx(1 / 9)
    assert values["contrast"] == pytest.approx((1 / 9 * 8 / 9) ** 0.5)
    assert values["intensity top right"] == 1
    assert sum(value for name, value in values.items() if name.startswith("intensity")) == 1
    assert values["sharpness"] == pytest.approx(10 / (30 * 29))  # ten edges each way


def test_statistics_differ_by_colour() -> None:
    image = np.zeros((6, 6, 3), np.uint8)
    image[..., 1] = 51
    values = of(image)
    assert (values["red"], values["green"], values["blue"]) == pytest.approx((0, 0.2, 0))
    assert values["mean intensity"] == pytest.approx(0.2 / 3)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 5, 3), (3, 1, 4), (64, 48, 3)])
def test_every_shape_has_one_value_per_name(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), np.uint8)
    values = statistics.measure(images)
    assert values.shape == (4, len(statistics.names(shape)))
    assert values.dtype == np.float32
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1


def test_no_images_give_no_rows() -> None:
    assert statistics.measure(np.empty((0, 28, 28, 1), np.uint8)).shape == (0, 13)


def test_a_batch_measures_like_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), np.uint8)
    together = statistics.measure(images)
    monkeypatch.setattr(statistics, "_CHUNK_VALUES", 8 * 8 * 3 * 7)
    np.testing.assert_array_equal(statistics.measure(images), together)
    np.testing.assert_allclose(
        np.concatenate([statistics.measure(image[None]) for image in images]), together, 1e-6
    )


@pytest.mark.parametrize("shape", [(30, 31, 3), (7, 1, 1), (4, 5, 200)])
def test_sums_of_whole_numbers_match_floating_point(shape: tuple[int, int, int]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, *shape), np.uint8)
    light = (images / 255).mean(3)
    steps = [np.abs(np.diff(light, axis=axis)).mean((1, 2)) for axis in (1, 2) if light.shape[axis] > 1]
    values = dict(zip(statistics.names(shape), statistics.measure(images).T, strict=True))
    expected = {
        "mean intensity": light.mean((1, 2)),
        "contrast": light.std((1, 2)),
        "foreground share": (light > 0.1).mean((1, 2)),
        "sharpness": np.mean(steps, axis=0),
        "intensity bottom left": np.array_split(light, 3, 1)[2][..., : -(-shape[1] // 3)].mean((1, 2)),
    }
    for name, column in expected.items():
        np.testing.assert_allclose(values[name], column, rtol=1e-6, err_msg=name)

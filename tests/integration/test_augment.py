"""What augmentation draws, in the graph of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distml.config import AugmentConfig, TrainConfig
from distml.errors import ModelError

pytestmark = pytest.mark.tensorflow

SHAPE = (16, 12, 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
LABELS = (np.arange(6) % 3).astype(np.int32)


def compiled(augment: dict[str, Any], shape: tuple[int, int, int] = SHAPE) -> Callable[..., np.ndarray]:
    """A graph that augments images for a seed."""
    import tensorflow as tf

    from distml.training.augment import Augmentation

    made = Augmentation(AugmentConfig.model_validate(augment), shape)
    graph = tf.function(lambda images, seed: tf.cast(made(images, seed), tf.float32))
    return lambda seed, images=IMAGES: graph(tf.constant(images), tf.constant([7, seed])).numpy()


LAYERS = [{"RandomFlip": {"mode": "horizontal"}}, {"RandomRotation": {"factor": 0.1}}, "RandomErasing"]


def test_keras_layers_draw_the_same_for_a_seed_at_any_step() -> None:
    before, after = compiled({"layers": LAYERS}), compiled({"layers": LAYERS})
    straight = [before(step) for step in range(4)]
    assert np.array_equal(after(3), straight[3])
    assert not any(np.array_equal(straight[3], other) for other in straight[:3])
    assert straight[0].shape == IMAGES.shape
    assert straight[0].max() > 2  # raw pixels still


def test_layers_within_layers_draw_from_the_seed_too() -> None:
    import tensorflow as tf

    from distml.training.augment import Augmentation

    for name in ("RandAugment", "AugMix"):
        made = Augmentation(AugmentConfig(layers=[{name: {}}]), SHAPE)
        draws = [made(tf.constant(IMAGES), tf.constant([7, seed])).numpy() for seed in (0, 1, 0)]
        assert np.array_equal(draws[0], draws[2])
        assert not np.array_equal(draws[0], draws[1])


def test_a_layer_that_cannot_be_made_or_changes_the_size_is_rejected() -> None:
    with pytest.raises(ModelError, match=r"train\.augment\.layers: RandomRotation fails: "):
        compiled({"layers": [{"RandomRotation": {"factor": "x"}}]})
    with pytest.raises(ModelError, match=r"turns images of \(16, 12, 3\) into \(16, 12, 6\)"):
        compiled({"layers": ["tests.integration.test_augment:Doubled"]})


class Doubled:
    """A layer of the user's that returns other images than it is given."""

    weights: tuple[Any, ...] = ()
    variables: tuple[Any, ...] = ()

    def __call__(self, images: Any, training: bool) -> Any:
        import tensorflow as tf

        return tf.concat([images, images], -1)


def test_a_resized_crop_takes_a_share_of_the_area_and_the_margin() -> None:
    rows, columns = np.mgrid[0:32, 0:32]
    ramp = np.stack([rows, columns, rows * 0], -1).astype(np.uint8)[None].repeat(64, 0)
    draw = compiled({"crop_scale": [0.25, 0.5], "crop_ratio": [0.8, 1.25]}, (16, 16, 3))
    images = draw(0, ramp)
    assert images.shape == (64, 16, 16, 3)
    height, width = (images[:, -1, -1, axis] - images[:, 0, 0, axis] for axis in (0, 1))
    share = height * width / 31**2
    assert 0.25 - 1e-3 <= share.min() < 0.35
    assert 0.4 < share.max() <= 0.5 + 1e-3
    assert (width / height).min() >= 0.8 - 1e-3
    assert (width / height).max() <= 1.25 + 1e-3
    assert images[:, 0, 0, 0].std() > 1


def test_a_full_size_crop_equals_the_image() -> None:
    draw = compiled({"crop_scale": [1, 1], "crop_ratio": [0.75, 0.75]})
    np.testing.assert_allclose(draw(0), IMAGES, atol=1e-3)


def test_a_margin_is_cropped_at_random() -> None:
    small = (8, 8, 3)
    images = compiled({}, small)(0)
    whole = IMAGES.astype(np.float32)
    for image, cut in zip(whole, images, strict=True):
        places = [
            (top, left)
            for top in range(9)
            for left in range(5)
            if np.array_equal(image[top : top + 8, left : left + 8], cut)
        ]
        assert len(places) == 1


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "both"])
def test_the_weight_of_a_mixed_target_is_that_of_its_image(kind: str) -> None:
    import tensorflow as tf

    from distml.training.augment import Augmentation

    given = {"mixup": 1.0, "cutmix": 1.0} if kind == "both" else {kind: 1.0}
    made = Augmentation(AugmentConfig.model_validate(given), SHAPE)
    flat = np.zeros((40, *SHAPE), np.float32)
    flat[:20] = 100.0  # each image is mixed with one of the other value
    labels = np.arange(40).astype(np.int32)
    images, (first, second, share) = made.mix(flat, labels, tf.constant([7, 0]))
    assert np.array_equal(second, first[::-1])
    own = np.where(labels < 20, share, 1 - share.numpy())
    np.testing.assert_allclose(images.numpy().mean((1, 2, 3)), own * 100, atol=1e-3)
    assert share.numpy().std() > 0.1
    whole = np.isin(images.numpy(), [0, 100]).all((1, 2, 3))
    assert whole.all() if kind == "cutmix" else not whole.all()
    assert whole.any() or kind != "both"


def step_of(augment: dict[str, Any], shape: tuple[int, int, int] = SHAPE, **more: Any) -> Any:
    import tensorflow as tf

    from distml.models import registry
    from distml.training import optimizer as optimizers
    from distml.training.step import Step, StepSpec

    model = registry.build("tests.ranks:tiny", shape, 3, {}, 0)
    optimizer = optimizers.make(TrainConfig.model_validate({"optimizer": "sgd"}), [0.0])
    optimizer.build(model.trainable_variables)
    spec = StepSpec(6, 0, 0, 0.1, 0.0, AugmentConfig.model_validate(augment), **more)
    return Step(tf.distribute.get_strategy(), model, optimizer, spec)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_loss_of_a_mixed_row_is_that_of_its_soft_target(parts: int) -> None:
    import tensorflow as tf

    from distml.training.augment import Augmentation

    step = step_of({"mixup": 1.0}, accumulate_steps=parts)
    curve, _ = step.train(IMAGES, LABELS, np.arange(6, dtype=np.int32)[None], "head")
    augmentation = Augmentation(AugmentConfig(mixup=1.0), SHAPE)
    seed = tf.constant([0, 0])
    images, (labels, others, share) = augmentation.mix(tf.constant(IMAGES), tf.constant(LABELS), seed)
    share = share[:, None]
    soft = share * tf.one_hot(labels, 3) + (1 - share) * tf.one_hot(others, 3)
    soft = 0.9 * soft + 0.1 / 3
    logits = step.parts["features"].head(step.parts["features"].features(images))
    expected = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(soft, logits))
    assert float(curve[0, 0]) == pytest.approx(float(expected), rel=1e-5)


def test_views_are_drawn_once_and_features_need_no_margin() -> None:
    step = step_of({"flip": True}, (8, 8, 3), stored_size=SHAPE[:2])
    views = [step.features("features", IMAGES, view).numpy() for view in (0, 1, 0)]
    assert np.array_equal(views[0], views[2])
    assert not np.array_equal(views[0], views[1])
    centre = IMAGES[:, 4:12, 2:10]
    expected = step.parts["features"].features(centre.astype(np.float32))
    np.testing.assert_allclose(step.features("features", IMAGES), expected, rtol=1e-5)
    curve, _ = step.train(IMAGES, LABELS, np.arange(6, dtype=np.int32)[None])
    assert np.isfinite(curve.numpy()).all()


def test_features_on_disk_are_those_in_memory() -> None:
    from distml.training.epoch import FeatureStore

    numbers = np.random.default_rng(0)
    rows = numbers.normal(size=(50, 8)).astype(np.float32)
    labels = np.arange(50, dtype=np.int32)
    order = numbers.integers(0, 50, (3, 7)).astype(np.int32)
    seen = []
    for limit in (10_000, 900):
        store = FeatureStore(limit)
        for at in range(0, 50, 20):
            store.add(rows[at : at + 20], labels[at : at + 20])
        features, marks, positions = store.block(order)
        seen.append((np.asarray(features)[positions], np.asarray(marks)[positions]))
        assert store.on_disk is (limit == 900)
        assert len(store) == 50
        store.close()
    assert np.array_equal(seen[0][0], rows[order])
    assert np.array_equal(seen[1][0], rows[order])
    assert np.array_equal(seen[0][1], seen[1][1])
    assert np.array_equal(seen[0][1], order)


class Darkened(Doubled):
    """A layer of the user's that branches on what it is given."""

    def __call__(self, images: Any, training: bool) -> Any:
        import tensorflow as tf

        if tf.reduce_mean(images) > 1:
            images = images / 16
        return images


def steep(targets: Any, logits: Any) -> Any:
    """A loss of the user's that branches on what it is given."""
    import tensorflow as tf

    rows = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    if tf.reduce_mean(rows) > 100:
        rows = rows * 0.5
    return rows


def test_functions_of_the_users_own_may_branch_on_a_tensor() -> None:
    order = np.arange(6, dtype=np.int32)[None]
    darkened = {"layers": ["tests.integration.test_augment:Darkened"]}
    step = step_of(darkened, loss="tests.integration.test_augment:steep")
    curve, done = step.train(IMAGES, LABELS, order)
    assert done == 1
    dark, _ = step_of({}, loss="tests.integration.test_augment:steep").train(IMAGES // 16, LABELS, order)
    bright, _ = step_of({}, loss="tests.integration.test_augment:steep").train(IMAGES, LABELS, order)
    assert float(curve[0, 0]) == pytest.approx(float(dark[0, 0]), rel=0.01)
    assert float(curve[0, 0]) != pytest.approx(float(bright[0, 0]), rel=0.01)

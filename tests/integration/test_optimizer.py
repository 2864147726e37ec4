"""One optimizer with two groups of variables: the backbone's is what an optimizer of its own would do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distml.config import TrainConfig
from distml.errors import ModelError

pytestmark = pytest.mark.tensorflow

FROZEN, STEPS, RATE = 3, 6, 0.01


def gradient(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=4).astype(np.float32)


def variables() -> tuple[Any, Any]:
    import keras

    start = np.arange(1, 5, dtype=np.float32)
    return keras.Variable(start, name="kernel"), keras.Variable(start, name="kernel")


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "lamb"])
def test_a_backbone_starts_as_with_an_optimizer_of_its_own(kind: str) -> None:
    from distml.training import optimizer as optimizers

    train = TrainConfig.model_validate({"optimizer": kind, "weight_decay": 0.1})
    slow, fast = variables()
    both = optimizers.make(train, [RATE] * STEPS, optimizers.Backbone([slow], 0.5, FROZEN))
    both.build([slow, fast])
    expected, _ = variables()
    alone = optimizers.make(train, [RATE * 0.5] * STEPS)
    alone.build([expected])
    _, other = variables()
    plain = optimizers.make(train, [RATE] * STEPS)
    plain.build([other])
    for step in range(STEPS):
        if step < FROZEN:
            both.apply([gradient(step)], [fast])
        else:
            both.apply([gradient(step), gradient(step)], [slow, fast])
            alone.apply([gradient(step)], [expected])
        plain.apply([gradient(step)], [other])
    np.testing.assert_allclose(slow.numpy(), expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(fast.numpy(), other.numpy(), rtol=1e-6)
    assert not np.allclose(slow.numpy(), fast.numpy())
    assert int(both.iterations.numpy()) == STEPS


def test_equal_groups_use_the_keras_optimizer() -> None:
    import keras

    from distml.training import optimizer as optimizers

    for backbone in (None, optimizers.Backbone([], 1.0, 0)):
        assert type(optimizers.make(TrainConfig(), [RATE], backbone)) is keras.optimizers.Adam


def test_a_step_that_the_loss_scale_skips_does_no_harm() -> None:
    from distml.training import optimizer as optimizers

    train = TrainConfig.model_validate({"precision": "mixed_float16"})
    slow, fast = variables()
    both = optimizers.make(train, [RATE] * STEPS, optimizers.Backbone([slow], 1.0, FROZEN))
    both.build([slow, fast])
    for _ in range(FROZEN):
        both.apply([np.full(4, np.inf, np.float32)], [fast])
    for step in range(STEPS):
        both.apply([gradient(step), gradient(step)], [slow, fast])
    assert np.isfinite(slow.numpy()).all()
    assert not np.array_equal(slow.numpy(), variables()[0].numpy())


def lamb(learning_rate: Any, beta_1: float = 0.9) -> Any:
    """An optimizer as a user's function returns it."""
    import keras

    return keras.optimizers.Lamb(learning_rate, beta_1=beta_1)


def nothing(learning_rate: Any) -> Any:
    """A function that returns no optimizer."""


def test_an_optimizer_of_the_users_is_trained_in_two_groups_as_ours_is() -> None:
    from distml.training import optimizer as optimizers

    own = {"optimizer": "tests.integration.test_optimizer:lamb", "optimizer_options": {"beta_1": 0.8}}
    results = []
    for given in (own, {"optimizer": "lamb"}, {**own, "optimizer_options": {}}):
        slow, fast = variables()
        made = optimizers.make(
            TrainConfig.model_validate(given), [RATE] * STEPS, optimizers.Backbone([slow], 0.5, 2)
        )
        made.build([slow, fast])
        for step in range(2, STEPS):
            made.apply([gradient(step), gradient(step)], [slow, fast])
        results.append((slow.numpy(), fast.numpy()))
    np.testing.assert_allclose(results[2], results[1], rtol=1e-6)
    assert not np.allclose(results[0], results[1])


def test_an_object_that_is_not_an_optimizer_is_rejected() -> None:
    from distml.training import optimizer as optimizers

    for name, message in (("nothing", "returns NoneType, not an optimizer"), ("gradient", "gradient fails")):
        train = TrainConfig.model_validate({"optimizer": f"tests.integration.test_optimizer:{name}"})
        with pytest.raises(ModelError, match=message):
            optimizers.make(train, [RATE])

"""The distributed training step: Keras 3 under MultiWorkerMirroredStrategy (worker).

Keras 3's own `fit` cannot run under this strategy, so the step is ours. One graph call runs many
optimizer steps; each makes exactly one collective, the sum of gradients, loss and hits over all
workers. The optimizer is applied outside the replica function, where Keras adds no second
all-reduce and where clipping sees the summed gradient instead of a worker's share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distml.config import AugmentConfig
from distml.data import feed
from distml.training import augment
from distml.training.score import cross_entropy, scorer

Tensor = Any


@dataclass(frozen=True)
class StepSpec:
    """What the step depends on besides model and optimizer.

    Attributes:
        global_batch_size: Rows of one step over all workers; the loss is divided by it.
        rank: World rank, part of the augmentation's seed.
        seed: Seed of the run.
        label_smoothing: Share of the target spread over all classes.
        ema: Decay of the moving average of weights; 0 keeps none.
        augment: Augmentation of training images.
    """

    global_batch_size: int
    rank: int
    seed: int
    label_smoothing: float
    ema: float
    augment: AugmentConfig


class Step:
    """The compiled step of one worker. Final.

    Args:
        strategy: The strategy whose scope built `model` and `optimizer`.
        model: Raw pixels in, float32 logits out.
        optimizer: Built on the model's trainable variables.
        spec: Everything else.

    Attributes:
        scores: Loss and predicted class of each of this worker's rows, as `score.scorer` describes.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, optimizer: Any, spec: StepSpec
    ) -> None:
        self.strategy, self.model, self.optimizer, self.spec = strategy, model, optimizer, spec
        self._trainable = [variable.value for variable in model.trainable_variables]
        self.ema = [tf.Variable(value) for value in self._trainable] if spec.ema else []
        self._statistics = [
            variable.value for variable in model.non_trainable_variables if variable.dtype.startswith("float")
        ]
        self.scores = scorer(model)
        batch = feed.replica_batch_size(spec.global_batch_size, spec.rank, strategy.num_replicas_in_sync)
        # One trace for whatever is passed: each trace numbers its collectives anew, and a rank that traced
        # once more than the others would be waited for, for ever.
        signature = [
            tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8),
            tf.TensorSpec([None], tf.int32),
            tf.TensorSpec([None, batch], tf.int32),
        ]
        self._compiled = tf.function(self._steps, input_signature=signature)

    @property
    def iterations(self) -> int:
        """Optimizer steps done."""
        return int(self.optimizer.iterations.numpy())

    def train(self, images: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Run as many optimizer steps as `order` has rows, or up to the first loss that is not finite.

        Every rank must make the same calls: with as many steps, in the same order.

        Args:
            images: uint8 (rows, H, W, C), this worker's rows.
            labels: int32 (rows,).
            order: int32 (steps, replica batch), positions in `images`.

        Returns:
            (float32 (steps, 2), int32 steps done): per step the loss over the global batch and the
            share of rows classified correctly; entries after a stop are NaN.
        """
        curve, done = self._compiled(images, labels, order)
        return curve, done

    def _steps(self, images: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        steps = tf.shape(order)[0]
        curve = tf.TensorArray(tf.float32, steps, element_shape=[2])
        done, going = 0, True
        while going and done < steps:
            rows = order[done]
            report = self._one(tf.gather(images, rows), tf.gather(labels, rows))
            curve = curve.write(done, report)
            done += 1
            going = tf.math.is_finite(report[0])
        return curve.stack(), done

    def _one(self, images: Tensor, labels: Tensor) -> Tensor:
        counter = tf.cast(self.optimizer.iterations.value, tf.int32)
        seed = tf.stack([self.spec.seed * 1009 + self.spec.rank, counter * 16])
        images = augment.apply(images, self.spec.augment, seed)
        reduced = self.strategy.run(self._replica, args=(images, labels))
        *gradients, report = [self.strategy.experimental_local_results(value)[0] for value in reduced]
        self.optimizer.apply(gradients, self.model.trainable_variables)
        for average, value in zip(self.ema, self._trainable, strict=True) if self.ema else ():
            average.assign_add((1 - self.spec.ema) * (value - average))
        return report

    def _replica(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        context = tf.distribute.get_replica_context()
        with tf.GradientTape() as tape:
            logits = self.model(tf.cast(images, tf.float32), training=True)
            rows = cross_entropy(labels, logits, self.spec.label_smoothing)
            loss = tf.reduce_sum(rows) / self.spec.global_batch_size
            penalty = tf.add_n(self.model.losses) if self.model.losses else 0.0
            loss += penalty / context.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, self._trainable)
        dense = [
            tf.zeros_like(value) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, value in zip(gradients, self._trainable, strict=True)
        ]
        hits = tf.cast(tf.argmax(logits, -1, tf.int32) == labels, tf.float32)
        report = tf.stack([loss, tf.reduce_sum(hits) / self.spec.global_batch_size])
        summed: list[Tensor] = context.all_reduce(tf.distribute.ReduceOp.SUM, [*dense, report])
        return summed

    def synchronise(self) -> None:
        """Average the moving statistics of normalisation layers over all workers.

        Each worker keeps them from its own rows; afterwards all evaluate and save the same model.
        """
        if self._statistics:
            self._average_statistics()

    @tf.function
    def _average_statistics(self) -> None:
        def replica() -> Any:
            mine = [value + 0.0 for value in self._statistics]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, mine)

        averaged = self.strategy.run(replica)
        for variable, value in zip(self._statistics, averaged, strict=True):
            variable.assign(self.strategy.experimental_local_results(value)[0])

    def swap(self) -> None:
        """Exchange weights and their moving average; does nothing when there is none."""
        for average, variable in zip(self.ema, self._trainable, strict=True) if self.ema else ():
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)

    @tf.function(reduce_retracing=True)
    def _sum(self, values: Tensor) -> Tensor:
        def replica(mine: Tensor) -> Tensor:
            return tf.distribute.get_replica_context().all_reduce(
                tf.distribute.ReduceOp.SUM, tf.identity(mine)
            )

        return self.strategy.experimental_local_results(self.strategy.run(replica, args=(values,)))[0]

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sum of an array over all workers, of the same shape and dtype; every worker gets it."""
        summed: np.ndarray = self._sum(tf.constant(values)).numpy()
        return summed

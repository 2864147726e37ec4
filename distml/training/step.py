"""The distributed training step: Keras 3 under MultiWorkerMirroredStrategy (worker).

Keras 3's own `fit` cannot run under this strategy, so the step is ours. One graph call runs many
optimizer steps; each makes exactly one collective, the sum of gradients, loss and hits over all
workers. The optimizer is applied outside the replica function, where Keras adds no second
all-reduce and where clipping sees the summed gradient instead of a worker's share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from distml.config import AugmentConfig
from distml.data import feed
from distml.models import transform
from distml.tasks import Task, losses
from distml.tasks.classification import Classification
from distml.training.augment import Augmentation, centre
from distml.training.score import Scores, batch_rows, scorer

Tensor = Any
Scope = Literal["all", "head", "features", "maps"]
"""What a step trains: the whole network; its head behind a frozen backbone; its head on features that were
computed before; the layers behind the frozen ones on feature maps that were computed before."""


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
        class_weights: Factor on the loss of a row by its label; () weights all rows equally.
        accumulate_steps: Parts in which a worker takes its share of the batch; the update stays the same.
        stored_size: Height and width of training images that keep a margin, None where they keep none.
        task: What is predicted; None is classification by the outputs of the model.
        loss: Of the task, or the user's own as `module:function`.
    """

    global_batch_size: int
    rank: int
    seed: int
    label_smoothing: float
    ema: float
    augment: AugmentConfig
    class_weights: tuple[float, ...] = ()
    accumulate_steps: int = 1
    stored_size: tuple[int, int] | None = None
    task: Task | None = None
    loss: str = losses.AUTO

    @property
    def batch_seed(self) -> int:
        """Seed of what is drawn for a batch, of this rank alone; it fits into int32."""
        return (self.seed * 1009 + self.rank) % 2**31


@dataclass(frozen=True)
class _Graph:
    """How a step of one scope computes.

    Attributes:
        prepare: Of a replica's batch, what nothing is learnt from.
        forward: What was prepared to logits.
        variables: Those that learn.
        regularised: The model whose penalties belong to the loss.
        augmented: Whether the batch is augmented first.
        shape: Of a row.
        dtype: Of a row.
    """

    prepare: Callable[[Tensor], Tensor]
    forward: Callable[[Tensor], Tensor]
    variables: list[Any]
    regularised: keras.Model
    augmented: bool
    shape: tuple[int, ...]
    dtype: str


class Step:
    """The compiled step of one worker. Final.

    Args:
        strategy: The strategy whose scope built `model` and `optimizer`.
        model: Raw pixels in, float32 logits out.
        optimizer: Built on the model's trainable variables.
        spec: Everything else.

    Attributes:
        scores: Loss and logits of each of this worker's rows, as `score.scorer` describes.
        parts: The network cut at its pooled features ("features") and behind the frozen first layers of its
            backbone ("maps"), where it has them.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, model: keras.Model, optimizer: Any, spec: StepSpec
    ) -> None:
        self.strategy, self.model, self.optimizer, self.spec = strategy, model, optimizer, spec
        self._trainable = [variable.value for variable in model.trainable_variables]
        self.ema = [tf.Variable(value) for value in self._trainable] if spec.ema else []
        self.task = spec.task or Classification(tuple(map(str, range(model.output_shape[-1]))))
        self._loss = losses.loss(self.task, spec.loss, spec.label_smoothing, spec.class_weights)
        self._curve = losses.curve(self.task)
        self.scores = scorer(model, self.task)
        self._augmentation = Augmentation(spec.augment, model.input_shape[1:])
        cuts: dict[Scope, Any] = {"features": transform.split(model), "maps": transform.split_frozen(model)}
        self.parts: dict[Scope, transform.Parts] = {scope: cut for scope, cut in cuts.items() if cut}
        self._compiled = {scope: self._compile(graph) for scope, graph in self._graphs().items()}
        self._scorers = {scope: scorer(cut.head, self.task) for scope, cut in self.parts.items()}
        self._features = {
            scope: tf.function(partial(self._extracted, cut), reduce_retracing=True, autograph=False)
            for scope, cut in self.parts.items()
        }
        self._pooled = tf.function(self._pool, reduce_retracing=True, autograph=False)

    def _whole(self) -> _Graph:
        def forward(images: Tensor) -> Tensor:
            return self.model(tf.cast(images, tf.float32), training=True)

        shape = self._stored_shape()
        return _Graph(
            lambda images: images, forward, self.model.trainable_variables, self.model, True, shape, "uint8"
        )

    def _graphs(self) -> dict[Scope, _Graph]:
        """Steps by scope: frozen layers neither learn, drop features nor move their statistics."""
        graphs: dict[Scope, _Graph] = {"all": self._whole()}
        for scope, cut in self.parts.items():
            graphs[scope] = self._behind(cut)
        if pooled := self.parts.get("features"):
            shape, behind = self._stored_shape(), graphs["features"]
            prepare = partial(self._extracted, pooled)
            graphs["head"] = replace(behind, prepare=prepare, augmented=True, shape=shape, dtype="uint8")
        return graphs

    def _behind(self, cut: transform.Parts) -> _Graph:
        """The step of what comes behind a cut, on features that were computed before."""
        rows = cut.features.output

        def forward(features: Tensor) -> Tensor:
            return cut.head(features, training=True)

        learning = cut.head.trainable_variables
        return _Graph(
            lambda features: features, forward, learning, cut.head, False, tuple(rows.shape[1:]), rows.dtype
        )

    def _stored_shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.model.input_shape[1:]
        return (*self.spec.stored_size, shape[2]) if self.spec.stored_size else shape

    def _extracted(self, cut: transform.Parts, images: Tensor, seed: Tensor | None = None) -> Tensor:
        if seed is not None:
            images = self._augmentation(images, seed)
        images = centre(images, self.model.input_shape[1:3])
        return cut.features(tf.cast(images, tf.float32), training=False)

    def _pool(self, maps: Tensor) -> Tensor:
        network = self.parts["maps"].pool
        assert network is not None
        return network(maps, training=False)

    def _compile(self, graph: _Graph) -> Any:
        replicas = self.strategy.num_replicas_in_sync
        batch = feed.replica_batch_size(self.spec.global_batch_size, self.spec.rank, replicas)
        # One trace for all arguments: an extra trace on one rank renumbers its collectives and deadlocks
        # the others.
        targets = self.task.empty(0)
        signature = [
            tf.TensorSpec([None, *graph.shape], graph.dtype),
            tf.TensorSpec([None, *targets.shape[1:]], targets.dtype),
            tf.TensorSpec([None, batch], tf.int32),
        ]
        # AutoGraph translates our functions, 3 CPU-seconds a worker on slow cores, for nothing: they do not
        # branch on tensors. Losses and augmentation of the user's own keep it, where they are called.
        return tf.function(partial(self._steps, graph), input_signature=signature, autograph=False)

    @property
    def iterations(self) -> int:
        """Optimizer steps done."""
        return int(self.optimizer.iterations.numpy())

    def features(self, scope: Scope, images: np.ndarray | Tensor, view: int | None = None) -> Tensor:
        """Compute what the frozen part of the network makes of images.

        Args:
            scope: Whose features, a key of `parts`.
            images: uint8 (rows, H, W, C); a margin is cut off.
            view: Number of an augmented view; None does not augment.

        Returns:
            Features (rows, F) or maps (rows, H', W', F) in the type that the network computes in.
        """
        network = self.parts[scope].features
        if not len(images):
            return tf.zeros([0, *network.output_shape[1:]], network.output.dtype)
        size = batch_rows(network)
        blocks = []
        for at in range(0, len(images), size):
            seed = None
            if view is not None:  # steps count up from 0, these seeds down
                seed = tf.constant([(self.spec.batch_seed + 104729 * (view + 1)) % 2**31, -1 - at])
            blocks.append(self._features[scope](images[at : at + size], seed))
        return tf.concat(blocks, 0)

    def pooled(self, maps: Tensor) -> Tensor:
        """Compute pooled features from maps, as `features` of the scope "features" does from images.

        Args:
            maps: What `features` returned for the scope "maps", (rows, H', W', F).

        Returns:
            Features (rows, F), in the type that the network computes in.
        """
        network = self.parts["maps"].pool
        assert network is not None
        size = batch_rows(network)
        blocks = [self._pooled(maps[at : at + size]) for at in range(0, len(maps), size)]
        return (
            tf.concat(blocks, 0) if blocks else tf.zeros([0, *network.output_shape[1:]], network.output.dtype)
        )

    def scorer(self, scope: Scope) -> Callable[..., Scores]:
        """Return what scores rows of a scope, which are images where it keeps no features."""
        return self._scorers.get(scope, self.scores)

    def train(
        self, images: Tensor, labels: Tensor, order: Tensor, scope: Scope = "all"
    ) -> tuple[Tensor, Tensor]:
        """Run as many optimizer steps as `order` has rows, or up to the first loss that is not finite.

        Every rank must make the same calls: with as many steps, in the same order.

        Args:
            images: uint8 (rows, H, W, C), this worker's rows; their features in that scope.
            labels: Targets, (rows,) or (rows, K).
            order: int32 (steps, replica batch), positions in `images`.
            scope: What is trained.

        Returns:
            (float32 (steps, 2), int32 steps done): per step the loss over the global batch and the mean
            of the task's curve, see `Task.curve`; entries after a stop are NaN.
        """
        curve, done = self._compiled[scope](images, labels, order)
        return curve, done

    def _steps(self, graph: _Graph, images: Tensor, labels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        steps = tf.shape(order)[0]
        curve = tf.TensorArray(tf.float32, steps, element_shape=[2])

        def step(done: Tensor, going: Tensor, curve: Any) -> tuple[Tensor, Tensor, Any]:
            rows = order[done]
            report = self._one(graph, tf.gather(images, rows), tf.gather(labels, rows))
            return done + 1, tf.math.is_finite(report[0]), curve.write(done, report)

        done, _, curve = tf.while_loop(
            lambda done, going, _: going & (done < steps), step, [tf.constant(0), tf.constant(True), curve]
        )
        return curve.stack(), done

    def _one(self, graph: _Graph, images: Tensor, labels: Tensor) -> Tensor:
        if graph.augmented:
            counter = tf.cast(self.optimizer.iterations.value, tf.int32)
            seed = tf.stack([self.spec.batch_seed, counter * 16])
            images = self._augmentation(images, seed)
            images, targets = self._augmentation.mix(images, labels, seed)
        else:
            targets = (labels,)
        reduced = self.strategy.run(partial(self._replica, graph), args=(images, targets))
        *gradients, report = [self.strategy.experimental_local_results(value)[0] for value in reduced]
        self.optimizer.apply(gradients, graph.variables)
        learnt = {id(variable.value) for variable in graph.variables}
        for average, value in zip(self.ema, self._trainable, strict=True) if self.ema else ():
            if id(value) in learnt:
                average.assign_add((1 - self.spec.ema) * (value - average))
        return report

    def _replica(self, graph: _Graph, images: Tensor, targets: tuple[Tensor, ...]) -> list[Tensor]:
        mine = self._accumulated(graph, images, targets)
        context = tf.distribute.get_replica_context()
        summed: list[Tensor] = context.all_reduce(tf.distribute.ReduceOp.SUM, mine)
        return summed

    def _accumulated(self, graph: _Graph, images: Tensor, targets: tuple[Tensor, ...]) -> list[Tensor]:
        """This worker's part of the sum over the global batch, in `accumulate_steps` parts of its rows."""
        parts = self.spec.accumulate_steps
        if parts == 1:
            return self._gradients(graph, images, targets)
        rows, more = tf.shape(images)[0] // parts, tf.shape(images)[0] % parts

        def add(part: Tensor, *sums: Tensor) -> list[Tensor]:
            begin = part * rows + tf.minimum(part, more)
            mine = slice(begin, begin + rows + tf.cast(part < more, tf.int32))
            more_sums = self._gradients(graph, images[mine], tuple(target[mine] for target in targets))
            return [part + 1, *(total + value for total, value in zip(sums, more_sums, strict=True))]

        start = [tf.zeros(variable.shape, variable.dtype) for variable in graph.variables]
        # A loop of the graph, one part after the other: unrolled, all parts would be in memory at once.
        _, *sums = tf.while_loop(
            lambda part, *_: part < parts, add, [0, *start, tf.zeros([2])], parallel_iterations=1
        )
        return list(sums)

    def _gradients(self, graph: _Graph, images: Tensor, targets: tuple[Tensor, ...]) -> list[Tensor]:
        """Gradients and report of rows, each as its share of the global batch's."""
        context = tf.distribute.get_replica_context()
        variables = [variable.value for variable in graph.variables]
        batch = graph.prepare(images)
        with tf.GradientTape() as tape:
            logits = graph.forward(batch)
            labels, *mixed = targets
            rows = self._loss(labels, logits)
            if mixed:
                others, share = mixed
                rows = share * rows + (1 - share) * self._loss(others, logits)
                other = tf.reshape(share < 0.5, [-1, *[1] * (labels.shape.rank - 1)])
                labels = tf.where(other, others, labels)
            loss = tf.reduce_sum(rows) / self.spec.global_batch_size
            penalties = graph.regularised.losses
            penalty = tf.add_n(penalties) if penalties else 0.0
            loss += penalty / (context.num_replicas_in_sync * self.spec.accumulate_steps)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        dense = [
            tf.zeros_like(value) if gradient is None else tf.convert_to_tensor(gradient)
            for gradient, value in zip(gradients, variables, strict=True)
        ]
        hits = self._curve(labels, logits)
        return [*dense, tf.stack([loss, tf.reduce_sum(hits) / self.spec.global_batch_size])]

    def synchronise(self, scope: Scope = "all") -> None:
        """Average the moving statistics of normalisation layers over all workers.

        Each worker keeps them from its own rows; afterwards all evaluate and save the same model.

        Args:
            scope: What was trained; statistics of the rest stay what they are to the last bit.
        """
        cut = self.parts.get("features" if scope == "head" else scope)
        model = cut.head if cut else self.model
        still = transform.frozen_variables(model)
        moving = [
            variable.value
            for variable in model.non_trainable_variables
            if variable.dtype.startswith("float") and id(variable) not in still
        ]
        if moving:
            self._average(moving)

    @tf.function(autograph=False)
    def _average(self, statistics: list[Any]) -> None:
        def replica() -> Any:
            mine = [value + 0.0 for value in statistics]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, mine)

        averaged = self.strategy.run(replica)
        for variable, value in zip(statistics, averaged, strict=True):
            variable.assign(self.strategy.experimental_local_results(value)[0])

    def swap(self) -> None:
        """Exchange weights and their moving average; does nothing when there is none."""
        for average, variable in zip(self.ema, self._trainable, strict=True) if self.ema else ():
            value = variable.numpy()
            variable.assign(average)
            average.assign(value)

    @tf.function(reduce_retracing=True, autograph=False)
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

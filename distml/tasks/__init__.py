"""What is predicted: classification, multilabel, regression; checks a configuration for its task.

A task encodes targets, names losses and metrics with their direction, decides from outputs, evaluates, and
says what people and programs see. No other package asks which task it is: all call the methods of `Task`,
which `of` and `restore` choose. For any process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distml.errors import ConfigError
from distml.tasks import quality
from distml.tasks.classification import Classification
from distml.tasks.multilabel import Multilabel
from distml.tasks.regression import Regression
from distml.tasks.task import Evaluation, Mistake, Outputs, Targets, Task

if TYPE_CHECKING:  # the schema takes half a CPU-second of processes that only pass events on
    from distml.config import Config, PromoteConfig

__all__ = ["KINDS", "Evaluation", "Mistake", "Outputs", "Targets", "Task", "check_guards", "of", "restore"]

KINDS: Mapping[str, type[Task]] = {task.kind: task for task in (Classification, Multilabel, Regression)}


def of(kind: str) -> type[Task]:
    """Return the task of a kind."""
    return KINDS[kind]


def restore(names: Sequence[str], spec: Mapping[str, Any] | None) -> Task:
    """Return the task that a manifest or an export describes.

    Args:
        names: Of what is predicted.
        spec: As `Task.spec` returned it; None, in what earlier versions wrote, is classification.

    Raises:
        KeyError, TypeError, ValueError: It describes none.
    """
    values = {key: _frozen(value) for key, value in (spec or {"kind": Classification.kind}).items()}
    return KINDS[values.pop("kind")](tuple(names), **values)


def check(config: Config) -> None:
    """Check that losses and metrics of a configuration belong to its task, before anything starts.

    Raises:
        ConfigError: One does not.
    """
    task = of(config.task.kind)
    wanted = config.train.loss
    if wanted != "auto" and ":" not in wanted and wanted not in task.losses_allowed:
        raise ConfigError(
            f"train.loss = {wanted} is not a loss of {task.kind}.",
            f"Choose {', '.join(task.losses_allowed)} or module:function.",
        )
    _check_weighted(config, task)
    task.metric(config.promote.metric)
    _check_measured(config, task)
    if task.metric(config.train.monitor) not in (*task.metrics, "loss"):
        raise ConfigError(
            f"train.monitor = {config.train.monitor} is measured only at the end of a run.",
            f"Choose {', '.join(f'val_{name}' for name in (*task.metrics, 'loss'))}.",
        )


def _check_weighted(config: Config, task: type[Task]) -> None:
    """Check that weights and smoothing reach the loss."""
    train = config.train
    if train.class_weights is not None and task.weighted == "nothing":
        raise ConfigError(
            f"train.class_weights = {train.class_weights}, but {task.kind} has no classes to weigh.",
            "Leave it out; train.sampler: balanced draws rare values more often.",
        )
    if train.class_weights is not None and task.weighted == "labels" and ":" in train.loss:
        raise ConfigError(
            f"train.class_weights = {train.class_weights} cannot be applied to {train.loss}, which returns "
            "one number for all labels of a row.",
            "Weigh the labels in your function, or take a loss of distml.",
        )
    if train.label_smoothing and task.weighted == "nothing":
        raise ConfigError(
            f"train.label_smoothing = {train.label_smoothing}, but numbers cannot be smoothed.",
            "Leave it out; train.loss: huber bears single wrong numbers.",
        )


def check_guards(promote: PromoteConfig, task: Task | type[Task]) -> None:
    """Check that a task has what its models are to be guarded by.

    Raises:
        ConfigError: It does not: no model would ever pass.
    """
    for key, value in promote.guards.model_dump(exclude_defaults=True).items():
        if key not in task.guards:
            raise ConfigError(
                f"promote.guards.{key} = {value}, which {task.kind} does not have.",
                f"Its guards are {', '.join(task.guards)}.",
            )


def _check_measured(config: Config, task: type[Task]) -> None:
    """Check that what is asked of a model can be measured in its task."""
    check_guards(config.promote, task)
    if config.evaluate.calibrate and "ece" not in task.measured:
        raise ConfigError(f"evaluate.calibrate: {task.kind} has no probabilities.", "Leave it out.")
    for name in config.evaluate.own_metrics:
        if (short := name.partition(":")[2]) in quality.BY_NAME:
            raise ConfigError(f"evaluate.metrics: {short} is the name of a metric of ours.", "Rename yours.")
    usual = type(config.evaluate).model_fields["top_k"].default
    if config.evaluate.top_k != usual and f"top_{usual}" not in task.metrics:
        raise ConfigError(f"evaluate.top_k: {task.kind} has no most probable classes.", "Leave it out.")
    asked = [("promote.metric", config.promote.metric), ("train.monitor", config.train.monitor)]
    asked += [("evaluate.metrics", name) for name in config.evaluate.metrics if ":" not in name]
    for key, wanted in asked:
        name = task.metric(wanted)
        if name.startswith("top_") and name != f"top_{config.evaluate.top_k}":
            raise ConfigError(
                f"{key} = {wanted} is not measured: evaluate.top_k = {config.evaluate.top_k}.",
                f"Set evaluate.top_k to {name.removeprefix('top_')}.",
            )


def _frozen(value: Any) -> Any:
    return tuple(_frozen(below) for below in value) if isinstance(value, list | tuple) else value

"""The configuration schema: every key a user may set, its default and its limits (any process).

A configuration is a YAML file plus dotted overrides. Everything a user may type is a field of a frozen
pydantic model here; its docstring is the help text of the generated flag.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from distml.config.load import load_file, merge, nearest, nest, validate

_LOG = logging.getLogger(__name__)
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"


def _number(value: Any) -> Any:
    """YAML's `true` is not a number, although Python says it is 1; nor is what no machine word holds."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    if (isinstance(value, int) and abs(value) > 2**53) or (isinstance(value, str) and len(value) > 32):
        raise ValueError("expected a number of at most 2**53")
    return value


def _digits(value: Any) -> Any:
    """A choice among numbers as a word of the command line, where all values are texts."""
    return int(value) if isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value) else value


def _validated(value: str) -> str:
    """A metric of the validation rows."""
    if value.startswith("test_"):
        raise ValueError("test metrics are not used for selection; name a validation metric")
    return value


def _none(value: Any) -> Any:
    """The word as well as YAML's null."""
    return None if value == "none" else value


def _batch(value: Any) -> Any:
    """0 stands for auto, and is not written."""
    if value == "auto":
        return 0
    word = isinstance(value, str) and not value.strip().isdigit()
    if word or isinstance(value, bool) or (isinstance(value, int) and value < 1):
        raise ValueError("expected auto or a number of at least 1")
    return _number(value)


VIEWS = ("mirror", "flip", "turn", "zoom")


def _views(value: list[str]) -> list[str]:
    if unknown := [view for view in value if view not in VIEWS]:
        raise ValueError(f"unknown view {unknown[0]!r}; expected some of {', '.join(VIEWS)}")
    if len(set(value)) < len(value):
        raise ValueError("name each view once")
    return value


def _layer(value: Any) -> Any:
    """A layer's name, or a number of layers as text."""
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ValueError("expected a layer's name or a number of layers, at least 1")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _none(value)


def _layers(value: Any) -> Any:
    """A layer's name alone stands for the layer with its defaults."""
    if not isinstance(value, list):
        return value
    layers = [{layer: {}} if isinstance(layer, str) else layer for layer in value]
    for layer in layers:
        options = list(layer.values()) if isinstance(layer, dict) else []
        if len(options) != 1 or not isinstance(options[0] or {}, dict):
            raise ValueError(f"{layer!r} is not a layer; write {{NAME: {{OPTION: VALUE}}}} or NAME")
    return [{name: options or {} for name, options in layer.items()} for layer in layers]


def _known_or_own(*known: str) -> AfterValidator:
    """Accept a known name or a function of the user's."""

    def check(value: str) -> str:
        if value not in known and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
            near = difflib.get_close_matches(value, known, 1)
            guess = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"expected {', '.join(known)} or module:function{guess}")
        return value

    return AfterValidator(check)


def _metric(value: str) -> str:
    """The name of a metric, or a function of the user's."""
    if not re.fullmatch(r"\w+|[A-Za-z_][\w.]*:[A-Za-z_]\w*", value):
        raise ValueError("expected a metric of the task or module:function")
    return value


Int = Annotated[int, BeforeValidator(_number)]
PositiveInt = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Side = Annotated[int, BeforeValidator(_number), Field(ge=1, le=4096)]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
MixShare = Annotated[float, BeforeValidator(_number), Field(ge=0, le=10, allow_inf_nan=False)]
Share = Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)]
PositiveFloat = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1, allow_inf_nan=False)]
Byte = Annotated[int, BeforeValidator(_number), Field(ge=0, le=255)]
Validated = Annotated[str, AfterValidator(_validated)]
Name = Annotated[str, Field(pattern=_NAME)]
Engine = Literal["auto", "litert", "litert_int8", "onnx", "openvino", "tensorflow"]
BatchSize = Annotated[
    int, BeforeValidator(_batch), Field(ge=0), PlainSerializer(lambda value: value or "auto", return_type=Any)
]
"""A number of rows; 0 in the program where the configuration says auto."""


def _pattern(pattern: str | None) -> str | None:
    """A regular expression with a group."""
    try:
        groups = 1 if pattern is None else re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    if not groups:
        raise ValueError(f"{pattern!r} has no group; put the label in parentheses")
    return pattern


_AROUND = " \t\r\n\v\f\u00a0\"'`\u2018\u2019\u201c\u201d\ufeff\u200b\u200e\u200f\u202a\u202c"
"""Spaces, quotes and invisible marks that come along where a path is copied."""


def _place(given: str) -> str:
    """A path without what was copied with it, and with the value of a variable that it begins with."""
    if "\0" in given or os.path.lexists(given):
        return given
    place = given.strip(_AROUND)
    if not place:
        raise ValueError("it is empty; give a folder, or leave it out")
    if variable := re.match(r"[$](?:(\w+)|[{](\w+)[}])(?=/|$)", place):
        value = os.environ.get(variable[1] or variable[2])
        place = value + place[variable.end() :] if value else place
    for other in (re.sub(r"\\(?=[^\w/])", "", place), place.rstrip("/")):  # as shells and their completion
        if not os.path.lexists(place) and os.path.lexists(os.path.expanduser(other)):
            place = other
    if place != given:
        _LOG.warning("data.path: %r is read as %r", given, place)
    return place


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, field docstrings are the help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )


class RunConfig(Section):
    """What this run is called and how it is seeded."""

    name: Name = "fashion-mnist"
    """Names the run's folder and its MLflow run; the same name again resumes an unfinished run."""
    seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**31)] = 0
    """Seeds the initial weights, the order of rows and the augmentation."""
    restart: bool = False
    """Train from the beginning even when a run of this name exists; the old run is kept."""


class StorageConfig(Section):
    """Where data, runs and models are stored."""

    root: Annotated[str, Field(min_length=1)] = "./distml-data"
    """A local path, s3:// or gs:// URI that every worker can reach."""


_FORMATS = ("auto", "image_folder", "table", "parquet", "idx", "npz", "csv_pixels", "webdataset")


class DataConfig(Section):
    """The data that models are trained on."""

    name: Name = "fashion_mnist"
    """Names the prepared data set under the storage root."""
    path: Annotated[str, AfterValidator(_place)] | None = None
    """Folder, archive or URI of the user's data, also https:// of an archive; none is Fashion-MNIST."""
    format: str = "auto"
    """auto, image_folder, table, parquet, idx, npz, csv_pixels, webdataset or module:function."""
    subset: str | None = None
    """Which of several configurations of a Hugging Face data set, by its name in README.md or its folder."""
    image_size: Literal["auto"] | Side | tuple[Side, Side] = "auto"
    """Side or [height, width]; auto: the backbone's own, else one size of all up to 256, else 224."""
    fit: Literal["crop", "letterbox", "stretch"] = "crop"
    """How a picture of another size is fitted, in training, prediction and serving alike."""
    channels: Annotated[Literal["auto", 1, 3], BeforeValidator(_digits)] = "auto"
    """1 makes all gray, 3 all colour; auto is 3 as soon as one picture is in colour."""
    margin: Literal["auto"] | Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] = "auto"
    """Share of a side that training images keep beyond image_size, to be cropped at random; auto is none."""
    background: tuple[Byte, Byte, Byte] = (255, 255, 255)
    """Red, green and blue behind transparent parts and in the bars of a letterbox."""
    max_pixels: PositiveInt = 100_000_000
    """A larger picture is rejected before it is decoded."""
    image_column: str | None = None
    """Column of the images in a table; none finds it by its name or its content."""
    label_column: str | list[str] | None = None
    """Column of the labels in a table, or several columns; none finds it by its name."""
    label_pattern: Annotated[str | None, AfterValidator(_pattern)] = None
    """Regular expression whose group is the label in a picture's path, as `_([a-z]+)[.]jpg`."""
    on_error: Literal["fail", "skip"] = "fail"
    """fail names pictures that cannot be used and ends; skip leaves them out, listed in the manifest."""
    max_error_fraction: Fraction = 0.01
    """skip: a larger share of unusable pictures fails the ingest."""
    val_fraction: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=0.9)] = 0.0833
    """Share of the training rows held out, stratified by class, for model selection."""
    split_seed: Annotated[int, BeforeValidator(_number), Field(ge=0, lt=2**31)] = 0
    """Chooses the rows held out. Not run.seed: all models are compared on the same held-out rows."""
    encoding: Literal["auto", "raw", "jpeg"] = "auto"
    """raw keeps pixels, jpeg compresses them; auto is raw while a worker's share fits memory_budget_bytes."""
    memory_budget_bytes: Annotated[int, BeforeValidator(_number), Field(ge=1_000_000)] = 1_000_000_000
    """Rows a worker may keep in memory; a shard above it is streamed instead."""
    shards: PositiveInt = 8
    """Parquet files per split."""
    mirrors: list[str] | None = None
    """Base URLs tried for the built-in data set; none takes the public ones, [] tries none."""

    @model_validator(mode="after")
    def _known_format(self) -> Self:
        if self.format not in _FORMATS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", self.format):
            raise ValueError(f"format must be {', '.join(_FORMATS)} or module:function")
        return self


class TaskConfig(Section):
    """What is predicted."""

    kind: Literal["classification", "multilabel", "regression"] = "classification"
    """One class a picture, any number of labels, or one or several numbers."""


class ModelConfig(Section):
    """Which network is trained."""

    name: Annotated[str, Field(min_length=1)] = "convnet"
    """A network of ours or of keras.applications, as `distml models` lists them, or module:function."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options handed to the builder."""
    weights: Annotated[str | None, BeforeValidator(_none)] = None
    """none, imagenet, a .keras, .weights.h5 or .npz file or URI, models:/NAME@ALIAS or /VERSION, runs:/ID."""
    freeze_epochs: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 0
    """First epochs, which train the head alone, with a cosine or one_cycle schedule of their own."""
    backbone_learning_rate: PositiveFloat = 1.0
    """Factor on the learning rate for the backbone, once it is trained."""
    unfreeze_from: Annotated[str | None, BeforeValidator(_layer)] = None
    """First backbone layer that is trained, by name or prefix, or how many of the last; none is all."""
    dropout: Fraction | None = None
    """Share of the features in front of the head dropped while training; none is the network's default."""
    mirror: bool = False
    """Predict from the average over an image and its mirror image: more accurate, twice the work."""
    test_time_views: Annotated[list[str], AfterValidator(_views)] = Field(default_factory=list)
    """Views of an image that predictions average with it: mirror, flip (upside down), turn (both), zoom."""

    @model_validator(mode="after")
    def _one_dropout(self) -> Self:
        if self.dropout is not None and "dropout" in self.options:
            raise ValueError("give dropout or options.dropout, not both")
        return self

    @property
    def views(self) -> list[str]:
        """Views that predictions average with the image itself."""
        added = ["mirror"] if self.mirror and "mirror" not in self.test_time_views else []
        return [*added, *self.test_time_views]

    @property
    def builder_options(self) -> dict[str, Any]:
        """Options for the builder, `dropout` among them where it is given."""
        return self.options if self.dropout is None else self.options | {"dropout": self.dropout}


class ScheduleConfig(Section):
    """The options of the learning-rate schedules, each used by the schedules that name it."""

    warmup_epochs: Annotated[float, BeforeValidator(_number), Field(ge=0)] = 1.0
    """cosine: epochs of linear warm-up."""
    peak_fraction: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)] = 0.3
    """one_cycle: share of the run after which the peak is reached."""
    initial_divisor: PositiveFloat = 25.0
    """one_cycle and warm-up: the first rate is the peak divided by this."""
    final_divisor: PositiveFloat = 1000.0
    """one_cycle: the last rate is the peak divided by this."""
    boundaries: list[PositiveFloat] = Field(default_factory=lambda: [3.0, 7.0])
    """piecewise: epochs at which the rate changes."""
    factors: list[PositiveFloat] = Field(default_factory=lambda: [1.0, 0.1, 0.01])
    """piecewise: factor on the learning rate in each interval."""
    own: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of a schedule of your own."""

    @model_validator(mode="after")
    def _intervals(self) -> Self:
        if len(self.factors) != len(self.boundaries) + 1:
            raise ValueError("factors needs one entry more than boundaries")
        if sorted(self.boundaries) != self.boundaries:
            raise ValueError("boundaries must ascend")
        return self


class AugmentConfig(Section):
    """Augmentation of training images, computed inside the training graph."""

    flip: bool = False
    """Mirror left to right with probability one half."""
    crop_padding: Annotated[int, BeforeValidator(_number), Field(ge=0, le=64)] = 0
    """Pad by this many pixels and crop back at a random offset."""
    erase: Annotated[int, BeforeValidator(_number), Field(ge=0, le=256)] = 0
    """Side in pixels of one square set to zero at a random place."""
    crop_scale: tuple[Share, Share] | None = None
    """Least and greatest share of an image's area, data.margin included, in a crop resized to its size."""
    crop_ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.3333)
    """Least and greatest width of such a crop for its height."""
    layers: Annotated[list[dict[str, Any]], BeforeValidator(_layers)] = Field(default_factory=list)
    """Keras layers in order, as [{RandomFlip: {mode: horizontal}}, RandAugment], or module:Class of yours."""
    mixup: MixShare = 0.0
    """Concentration of the beta distribution by which two images and their targets are mixed; 0 is off."""
    cutmix: MixShare = 0.0
    """The same where a rectangle of another image is pasted; with mixup each row takes one of both."""
    frozen_views: Annotated[int, BeforeValidator(_number), Field(ge=0, le=1000)] = 0
    """Augmented views of each image whose features frozen layers compute once, in turn; 0 is none."""

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name in ("crop_scale", "crop_ratio"):
            value = getattr(self, name)
            if value and value[0] > value[1]:
                raise ValueError(f"{name} must ascend")
        if self.frozen_views and (self.mixup or self.cutmix):
            raise ValueError("frozen_views keeps features of single images: set mixup and cutmix to 0")
        if self.frozen_views and not self.drawn:
            raise ValueError(
                "frozen_views needs a random augmentation: name layers, crop_scale, flip or another"
            )
        return self

    @property
    def drawn(self) -> bool:
        """Whether images change at random."""
        return self.model_copy(update={"frozen_views": 0}) != AugmentConfig()


class TrainConfig(Section):
    """How the network is trained."""

    workers: PositiveInt | list[PositiveInt] = 2
    """Number of workers, or [least, most] for an elastic run."""
    elastic_check_s: PositiveFloat = 60.0
    """An elastic run looks this often, in seconds, whether it can grow; each change costs it a restart."""
    cpus_per_worker: PositiveFloat = 1.0
    """Logical CPUs each worker reserves from Ray."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes GPUs where every worker can have one; gpu without one is an error."""
    precision: Literal["float32", "auto", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Arithmetic of training, auto is bfloat16 where the hardware has it; exports are float32."""
    epochs: PositiveInt = 5
    """Passes over the training rows."""
    global_batch_size: BatchSize = 256
    """Rows per optimizer step over all workers, whatever their number; auto is what their memory allows."""
    accumulate_steps: PositiveInt = 1
    """Parts in which a worker takes its rows of a step, for less memory; the update is that of the whole."""
    optimizer: Annotated[str, _known_or_own("adam", "adamw", "sgd", "lamb")] = "adam"
    """adam, adamw, lamb, sgd with Nesterov momentum, or module:function that is given the learning rate."""
    optimizer_options: dict[str, Any] = Field(default_factory=dict)
    """Keyword options of an optimizer of your own."""
    learning_rate: PositiveFloat = 1.0e-3
    """Peak learning rate."""
    momentum: Fraction = 0.9
    """sgd: momentum."""
    weight_decay: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)] = 0.0
    """Decoupled decay of kernels; biases and normalisation are left out."""
    schedule: Annotated[str, _known_or_own("constant", "piecewise", "cosine", "one_cycle")] = "one_cycle"
    """constant, piecewise, cosine, one_cycle, or module:function(step, total_steps, learning_rate)."""
    schedule_options: ScheduleConfig = ScheduleConfig()
    """Options of the schedule."""
    loss: Annotated[str, Field(min_length=1)] = "auto"
    """cross_entropy, binary_cross_entropy, focal, mse, mae, huber or module:function; auto fits the task."""
    sampler: Literal["shuffle", "balanced"] = "shuffle"
    """shuffle takes each row once an epoch; balanced draws all classes equally often, with replacement."""
    class_weights: Annotated[
        Literal["balanced"] | dict[str, PositiveFloat] | None, BeforeValidator(_none)
    ] = None
    """Weight of a row in the loss: none equal rows, balanced equal classes, or weights by class."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread evenly over all classes."""
    clip_norm: PositiveFloat | None = None
    """Global norm the summed gradient is clipped to; none does not clip."""
    ema: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of weights that is evaluated and exported; 0 is off."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of the training images."""
    monitor: Validated = "auto"
    """Chooses the best epoch by validation rows: a metric of the task, as val_macro_f1; auto is the main."""
    restore_best: bool = False
    """Evaluate and export the weights of the best epoch instead of the last one's."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after this many epochs without a better `monitor`; none never stops early."""
    checkpoint_every_epochs: PositiveInt = 1
    """Epochs between checkpoints; the last epoch always has one."""
    checkpoints_kept: PositiveInt = 3
    """Newest checkpoints kept."""
    log_every_steps: PositiveInt = 50
    """Steps per graph call and per logged point of the training curve."""
    max_failures: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 2
    """Restarts of the worker group after failures before the run fails."""
    max_preemptions: Annotated[int, BeforeValidator(_number), Field(ge=0)] = 8
    """Restarts after announced preemptions, counted apart from failures."""
    stall_timeout_s: PositiveFloat = 60.0
    """A worker group without a finished step for this long is restarted (counts as a failure)."""
    tensorboard: bool = False
    """Also write TensorBoard event files beside the run."""

    @model_validator(mode="after")
    def _elastic_range(self) -> Self:
        if isinstance(self.workers, list):
            if len(self.workers) != 2 or self.workers[0] > self.workers[1]:
                raise ValueError("workers must be a number or [least, most]")
        if not self.global_batch_size:
            return self
        if self.global_batch_size < self.max_workers:
            raise ValueError("global_batch_size must be at least the number of workers")
        if self.global_batch_size < self.max_workers * self.accumulate_steps:
            raise ValueError("global_batch_size must be at least accumulate_steps rows for each worker")
        return self

    @property
    def min_workers(self) -> int:
        """Fewest workers the run may have."""
        return self.workers[0] if isinstance(self.workers, list) else self.workers

    @property
    def max_workers(self) -> int:
        """Most workers the run may have."""
        return self.workers[1] if isinstance(self.workers, list) else self.workers


class RangeConfig(Section):
    """The values a search draws one key from: exactly one of these."""

    choice: list[Any] | None = None
    """One of these values."""
    uniform: tuple[Float, Float] | None = None
    """Any number between these two."""
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """Any number between these two, each order of magnitude equally likely."""
    integers: tuple[Int, Int] | None = None
    """Any whole number from the first to the second."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = {key: value for key in type(self).model_fields if (value := getattr(self, key)) is not None}
        if len(given) != 1 or not all(given.values()):
            raise ValueError("give exactly one of choice, uniform, log_uniform and integers")
        for key, value in given.items():
            if key != "choice" and not value[0] < value[1]:
                raise ValueError(f"{key} must go from a smaller to a larger number")
        return self


class SearchConfig(Section):
    """A search by Ray Tune over values of model and training keys."""

    space: Annotated[dict[str, RangeConfig], Field(min_length=1)]
    """Dotted path of a key to its values, as {train.learning_rate: {log_uniform: [1.0e-4, 1.0e-1]}}."""
    method: Literal["random", "grid"] = "random"
    """random draws `trials` points; grid tries every combination, so it needs `choice` everywhere."""
    trials: PositiveInt = 8
    """Points drawn by random; a grid has as many as it has."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops a trial early when it is behind most others after as many epochs; none lets all finish."""
    grace_epochs: PositiveInt = 1
    """asha: epochs that every trial gets."""
    reduction: Annotated[int, BeforeValidator(_number), Field(ge=2)] = 3
    """asha: one in so many trials continues from one rung to the next."""

    @model_validator(mode="after")
    def _finite_grid(self) -> Self:
        endless = [path for path, values in self.space.items() if values.choice is None]
        if self.method == "grid" and endless:
            raise ValueError(f"a grid needs a choice for {', '.join(endless)}")
        return self


class SweepConfig(Section):
    """Candidates trained and compared together."""

    candidates: list[dict[str, Any]] = Field(default_factory=list)
    """Overrides of model and train keys, or run.seed, by dotted path, for each candidate; `name` names it."""
    concurrent: Literal["auto"] | PositiveInt = "auto"
    """Candidates trained at the same time; auto takes as many as have cores or GPUs of their own."""
    search: SearchConfig | None = None
    """Search space for Ray Tune; none trains just the candidates."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.candidates and self.search:
            raise ValueError("give candidates or search, not both")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is more than one model to train."""
        return bool(self.candidates or self.search)


_TRACKING_URI = "MLFLOW_TRACKING_URI"


class TrackingConfig(Section):
    """Where runs are recorded."""

    uri: str | None = None
    """MLflow tracking URI; none is MLFLOW_TRACKING_URI where that is set, else SQLite in storage.root."""
    experiment: Annotated[str, Field(min_length=1)] = "fashion-mnist"
    """MLflow experiment."""
    registered_model: Name = "fashion-mnist"
    """Name of the model in the registry."""
    required: bool = False
    """Fail at the start without the tracking server instead of spooling for later."""
    wait_s: Annotated[float, BeforeValidator(_number), Field(ge=0, le=86400)] = 300.0
    """Seconds to wait for an unreachable tracking server once nothing else is left to do; 0: not at all."""
    system_metrics: bool = True
    """Log CPU, memory and network use of the driver's machine."""
    artifact_roots: list[str] = Field(default_factory=list)
    """Places besides storage.root and the server itself that registered models may be loaded from."""


class GuardsConfig(Section):
    """Limits that a candidate must meet, measured on validation rows."""

    min_recall: dict[str, Fraction] = Field(default_factory=dict)
    """Least recall by class or label, as {skirt: 0.6}."""
    max_ece: PositiveFloat | None = None
    """Largest expected calibration error."""
    max_latency_ms: PositiveFloat | None = None
    """Longest time of a prediction for one image by the export that is served."""


class EvaluateConfig(Section):
    """How a trained model is measured."""

    calibrate: bool = False
    """Fit a temperature on validation rows, so that probabilities match frequencies, and export it."""
    top_k: Annotated[Literal[2, 3, 5, 10, 20], BeforeValidator(_digits)] = 5
    """Measure in how many rows the class is among the so many most probable, as the metric top_5."""
    metrics: list[Annotated[str, AfterValidator(_metric)]] = Field(default_factory=list)
    """Metrics of your own, module:function of targets and outputs (NumPy) that returns a number; recorded for
    both held-out splits at the end of a run. Those of the task, such as macro_f1, always are."""

    @property
    def own_metrics(self) -> tuple[str, ...]:
        """The metrics that are functions of the user's."""
        return tuple(metric for metric in self.metrics if ":" in metric)

    @model_validator(mode="after")
    def _own_names(self) -> Self:
        names = [metric.partition(":")[2] for metric in self.own_metrics]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two metrics are called {twice[0]}; rename one of the functions")
        return self


class ExportConfig(Section):
    """In which forms a trained model is written."""

    formats: Literal["auto"] | list[Literal["keras", "saved_model", "litert", "onnx"]] = "auto"
    """keras (always written), saved_model, litert and onnx; auto is all that are installed on the workers."""
    quantize: Annotated[Literal["int8"] | None, BeforeValidator(_none)] = None
    """int8 adds a LiteRT file of 8 bits, calibrated on training rows: smaller and faster; none adds none."""
    max_loss_of_accuracy: Fraction = 0.01
    """Keep the int8 file only where its accuracy on validation rows is at most this much lower."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.quantize and self.formats != "auto" and "litert" not in self.formats:
            raise ValueError("quantize: int8 is a LiteRT file; add litert to formats")
        return self


class PromoteConfig(Section):
    """The gate a candidate passes to become champion."""

    metric: Validated = "auto"
    """Metric of the task, as macro_f1 or val_loss; auto is accuracy, macro_f1 or mae. Never a test metric."""
    min_gain: Float = 0.0
    """How much better than the champion a candidate must be."""
    beyond_noise: bool = False
    """Keep the champion where the 95 % interval of the gain, by bootstrap, includes 0 or that of a guard its
    limit."""
    guards: GuardsConfig = GuardsConfig()
    """What a candidate must meet whatever it gains."""


class ReplicasConfig(Section):
    """Autoscaling range of the served model."""

    min: PositiveInt = 1
    """Fewest replicas."""
    max: PositiveInt = 2
    """Most replicas."""
    target_ongoing_requests: PositiveFloat = 48.0
    """Concurrent requests per replica that autoscaling aims at."""

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must be at most max")
        return self


class CanaryConfig(Section):
    """A share of the requests answered by another version."""

    alias: Name = "challenger"
    """Alias of the version that answers its share."""
    percent: Annotated[float, BeforeValidator(_number), Field(ge=0, le=100)] = 0.0
    """Share of the requests, in percent; 0 is off."""


class AuthConfig(Section):
    """Authentication of clients."""

    keys_file: Annotated[str, Field(min_length=1)] | None = None
    """File of API keys, a line each: NAME KEY [EXPIRES]; none accepts all clients. `distml keys new NAME`
    adds one; changes take effect within two seconds."""
    requests_per_s: PositiveFloat | None = None
    """Requests a second that each name may send, shared by the replicas; beyond, 429; none is no limit."""


class TlsConfig(Section):
    """HTTPS, terminated by HAProxy."""

    certificate: Annotated[str, Field(min_length=1)] | None = None
    """PEM file with the certificate and those that sign it; none serves plain HTTP. A renewed file is
    reloaded within seconds, without a lost request."""
    key: Annotated[str, Field(min_length=1)] | None = None
    """PEM file with its private key, which others must not be able to read."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class ServedModelConfig(Section):
    """One of several models of an endpoint; limits that are left out are those of `serve`."""

    registered_model: Name
    """Name of the model in the registry."""
    name: Name | None = None
    """What clients call it in routes and requests; none is its name in the registry."""
    alias: Name = "champion"
    """Alias of the version that is served."""
    canary: CanaryConfig = CanaryConfig()
    """Traffic split."""
    shadow: Name | None = None
    """Alias of a version that gets the same requests, for comparison only; none has no shadow."""
    versions: list[PositiveInt] = Field(default_factory=list)
    """Versions kept loaded beside it, addressed by number."""
    engine: Engine | None = None
    """As `serve.engine`."""
    max_batch_size: PositiveInt | None = None
    """As `serve.max_batch_size`."""
    max_queued_images: PositiveInt | None = None
    """As `serve.max_queued_images`."""
    request_timeout_s: PositiveFloat | None = None
    """As `serve.request_timeout_s`."""
    accept_changed_classes: bool | None = None
    """As `serve.accept_changed_classes`."""

    @property
    def called(self) -> str:
        """Its name in routes and requests."""
        return self.name or self.registered_model


_OF_A_MODEL = ("alias", "canary", "shadow", "versions")
"""Keys of `serve` that a model of `serve.models` has itself, as they name what is in its registry."""


class ServeConfig(Section):
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    """Address to bind."""
    port: Annotated[int, BeforeValidator(_number), Field(ge=1, le=65535)] = 8000
    """Port to bind."""
    grpc_port: Annotated[int, BeforeValidator(_number), Field(ge=1, le=65535)] | None = None
    """Port for gRPC (Open Inference Protocol, TensorFlow Serving); none opens none."""
    url: Annotated[str, Field(pattern="^https?://")] | None = None
    """An endpoint managed elsewhere, as a RayService: pipelines wait until it serves and start none."""
    replicas: ReplicasConfig = ReplicasConfig()
    """Autoscaling range."""
    proxy: Literal["auto", "ray", "haproxy"] = "auto"
    """HTTP ingress; auto takes haproxy where its program is present."""
    max_body_bytes: PositiveInt = 16_777_216
    """Largest accepted request body; a photograph of 12 megapixels takes 3 to 8 million bytes."""
    max_pixels: PositiveInt = 50_000_000
    """Pixels of all pictures of a request, before they are fitted to the model."""
    max_batch_size: PositiveInt = 64
    """Images computed in one call; larger requests are split."""
    max_queued_images: PositiveInt = 4096
    """Images of a replica that may wait; requests beyond are answered with 429."""
    request_timeout_s: PositiveFloat = 5.0
    """Time limit of a request; clients cannot extend it."""
    read_timeout_s: PositiveFloat = 10.0
    """Time in which a body must arrive, and each part of it; a body of which more comes has a second longer
    for each 64 kB, up to six times as long."""
    drain_timeout_s: PositiveFloat = 10.0
    """Time for running requests to complete when the endpoint or a replica ends."""
    cpus_per_replica: PositiveFloat = 1.0
    """Logical CPUs each replica reserves from Ray; an engine has at most as many threads."""
    gpus_per_replica: Annotated[float, BeforeValidator(_number), Field(ge=0, le=64)] = 0.0
    """GPUs each replica reserves; only engine tensorflow uses them."""
    engine: Engine = "auto"
    """auto measures those that are installed and takes the fastest with the same outputs; TensorFlow
    only on GPUs, and where the model has no other form."""
    start_timeout_s: PositiveFloat = 60.0
    """Time in which the champion must be served after a start."""
    poll_s: PositiveFloat = 2.0
    """Seconds between two polls of the registry's aliases."""
    models: list[ServedModelConfig] = Field(default_factory=list)
    """Several models on this endpoint, as [{registered_model: shoes}, {registered_model: bags}]: each with
    its own versions, canary, shadow and limits; none serves tracking.registered_model alone."""
    alias: Name = "champion"
    """Alias of the version that is served."""
    versions: list[PositiveInt] = Field(default_factory=list)
    """Versions kept loaded beside the champion, addressed by number."""
    canary: CanaryConfig = CanaryConfig()
    """Traffic split."""
    shadow: Name | None = None
    """Alias of a version that gets the same requests, for comparison only; none has no shadow."""
    accept_changed_classes: bool = False
    """Serve versions with more, fewer or other classes than the champion; clients must handle that."""
    allowed_hosts: list[str] = Field(default_factory=list)
    """Accepted host names, as `api.example.com` or `*.example.com`, besides addresses and loopback
    names; none takes every name where `serve.host` is not loopback."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins of pages that may send requests and read responses, as `https://example.com`; `*` is all."""
    auth: AuthConfig = AuthConfig()
    """API keys."""
    tls: TlsConfig = TlsConfig()
    """HTTPS."""

    @model_validator(mode="after")
    def _several(self) -> Self:
        if not self.models:
            return self
        whole = ServeConfig()
        for key in _OF_A_MODEL:
            if getattr(self, key) != getattr(whole, key):
                raise ValueError(f"{key} belongs to a model; give it in its entry of models")
        known: dict[str, ServedModelConfig] = {}
        for model in self.models:
            other = known.setdefault(model.called, model)
            if other is model:
                continue
            if (other.registered_model, other.alias) == (model.registered_model, model.alias):
                raise ValueError(
                    f"models holds {model.registered_model!r} ({model.alias}) twice; leave one out"
                )
            raise ValueError(f"models holds two of the name {model.called!r}; give one of them another name")
        return self


class LogConfig(Section):
    """The log of served requests, from which drift is computed."""

    enabled: bool = False
    """Log sampled requests and predictions to Parquet under the storage root."""
    sample: Annotated[float, BeforeValidator(_number), Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    """Share of the requests that are logged."""
    images: bool = True
    """Log the pixels, too; the statistics that drift needs are logged either way."""
    retention_days: PositiveFloat = 30.0
    """Older rows are deleted."""
    retention_bytes: PositiveInt = 1_000_000_000
    """The oldest rows are deleted beyond this size."""
    flush_rows: PositiveInt = 1000
    """Rows per file; eight times as many wait at most, others are dropped and counted."""
    flush_s: PositiveFloat = 60.0
    """Seconds after which a row is in a file even when there are few."""


class DriftConfig(Section):
    """When served requests count as different from the training data."""

    threshold: PositiveFloat = 0.2
    """Population stability index above which, chance apart, a statistic or what is predicted has drifted."""
    min_rows: PositiveInt = 200
    """Fewer logged rows are not judged."""
    days: PositiveFloat | None = None
    """Compare only the rows of the last days; none takes all that are kept."""


_SIDES: Mapping[str, int] = {
    **dict.fromkeys(
        (
            "convnext_base",
            "convnext_large",
            "convnext_small",
            "convnext_tiny",
            "convnext_xlarge",
            "densenet121",
            "densenet169",
            "densenet201",
            "efficientnet_b0",
            "efficientnet_lite0",
            "efficientnetv2_b0",
            "mobilenet",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "mobilenet_v3_small",
            "nasnet_mobile",
            "resnet101",
            "resnet101_v2",
            "resnet152",
            "resnet152_v2",
            "resnet50",
            "resnet50_v2",
            "vgg16",
            "vgg19",
        ),
        224,
    ),
    **dict.fromkeys(("efficientnet_b1", "efficientnet_lite1", "efficientnetv2_b1"), 240),
    **dict.fromkeys(("efficientnet_b2", "efficientnet_lite2", "efficientnetv2_b2"), 260),
    **dict.fromkeys(("efficientnet_lite3",), 280),
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "xception"), 299),
    **dict.fromkeys(("efficientnet_b3", "efficientnet_lite4", "efficientnetv2_b3"), 300),
    **dict.fromkeys(("nasnet_large",), 331),
    **dict.fromkeys(("efficientnet_b4",), 380),
    **dict.fromkeys(("efficientnetv2_s",), 384),
    **dict.fromkeys(("efficientnet_b5",), 456),
    **dict.fromkeys(("efficientnetv2_l", "efficientnetv2_m"), 480),
    **dict.fromkeys(("efficientnet_b6",), 528),
    **dict.fromkeys(("efficientnet_b7",), 600),
}
"""Side of the images that each backbone was trained on; a test holds it to `models.backbones`, which nothing
that reads a configuration may load."""


def _given(section: Any, key: str) -> Any:
    """A value of a section that is a mapping or already a section."""
    return section.get(key) if isinstance(section, Mapping) else getattr(section, key, None)


class Config(Section):
    """The configuration of all commands."""

    run: RunConfig = RunConfig()
    """The run."""
    storage: StorageConfig = StorageConfig()
    """Storage."""
    task: TaskConfig = TaskConfig()
    """Task."""
    data: DataConfig = DataConfig()
    """Data."""
    model: ModelConfig = ModelConfig()
    """Model."""
    train: TrainConfig = TrainConfig()
    """Training."""
    sweep: SweepConfig = SweepConfig()
    """Sweep."""
    tracking: TrackingConfig = TrackingConfig()
    """Tracking."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    export: ExportConfig = ExportConfig()
    """Export."""
    promote: PromoteConfig = PromoteConfig()
    """Promotion."""
    serve: ServeConfig = ServeConfig()
    """Serving."""
    log: LogConfig = LogConfig()
    """Request log."""
    drift: DriftConfig = DriftConfig()
    """Drift."""

    @model_validator(mode="before")
    @classmethod
    def _size_of_backbone(cls, values: Any) -> Any:
        """Settle `image_size: auto` for a backbone, so that candidates of a sweep share prepared data."""
        if not isinstance(values, Mapping):
            return values
        data: Any = values.get("data")
        side = _SIDES.get(str(_given(values.get("model"), "name")))
        if side is None or _given(data, "path") is None or _given(data, "image_size") not in (None, "auto"):
            return values
        sized = {"image_size": side}
        settled = {**data, **sized} if isinstance(data, Mapping) else data.model_copy(update=sized)
        return {**values, "data": settled}

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, /, **overrides: Any) -> Self:
        """Read a configuration file and put values on top.

        `Config.load("mine.yaml", train={"epochs": 3}, **{"run.name": "quick"})`

        Args:
            path: YAML file (default: every key's default).
            overrides: Sections as mappings, or single keys by dotted path.

        Raises:
            ConfigError: The file cannot be read, or a key or value cannot be used.
        """
        values = load_file(os.fspath(path)) if path is not None else {}
        sections = {key: value for key, value in overrides.items() if "." not in key}
        keys = {key: value for key, value in overrides.items() if "." in key}
        given = merge(merge(values, sections), nest(keys))
        if _TRACKING_URI in os.environ:  # it is put on record, and reaches processes on other machines
            given = merge({"tracking": {"uri": os.environ[_TRACKING_URI] or None}}, given)
        return cls.resolve(given)

    @classmethod
    def resolve(cls, values: Mapping[str, Any]) -> Self:
        """Validate nested values.

        Raises:
            ConfigError: Every problem in one text, each with its dotted path and value.
        """
        return validate(cls, values)

    @classmethod
    def nearest(cls, path: str) -> str | None:
        """Return the dotted path closest to a misspelt one, or None when none is close."""
        return nearest(cls, path)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the resolved configuration."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

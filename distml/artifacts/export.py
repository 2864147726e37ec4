"""Exporting a trained network as `.keras`, as a SavedModel, for LiteRT and as ONNX (rank 0).

A SavedModel runs where neither Python nor Pillow is, so for its signature `image_bytes` the arithmetic of
`distml.data.image` is written out once more as TensorFlow operations. TensorFlow decodes JPEG, PNG, BMP, GIF
and WebP only, and does not report which colour of a GIF is transparent.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from distml import tasks
from distml.artifacts.layout import CLASSES, EXAMPLE, LITE, LITE_INT8, MODEL, ONNX, SAVED_MODEL, write_digests
from distml.artifacts.predictor import Function, Lite, Onnx
from distml.config import ExportConfig
from distml.data.image import Policy
from distml.data.schema import Images
from distml.tasks import Targets, Task
from distml.tasks.losses import head

Tensor = Any
_HEAD_BYTES = 1 << 17
"""Where EXIF stands in a JPEG or PNG: one segment of at most 64 KB near the beginning."""


def fit_picture(data: Tensor, policy: Policy) -> Tensor:
    """Decode one picture and bring it to a data set's shape.

    Args:
        data: Scalar string, the encoded picture.
        policy: The shape, and how it is reached.

    Returns:
        uint8 (H, W, C).
    """
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
    is_webp = tf.strings.substr(data, 8, 4 * tf.cast(tf.strings.length(data) >= 12, tf.int32)) == b"WEBP"
    turn = _orientation(data, is_jpeg, is_webp)
    image = tf.case(
        [
            (is_jpeg, lambda: _jpeg(data, turn, policy)),
            (is_png, lambda: _png(data, policy)),
            (is_webp, lambda: _webp(data, policy)),
        ],
        lambda: tf.ensure_shape(
            tf.io.decode_image(data, channels=3, expand_animations=False), (None, None, 3)
        ),
    )
    image = _turned(image, tf.where(is_jpeg | is_png | is_webp, turn, 1))
    if policy.shape[2] == 1:
        image = _gray(image)
    return tf.ensure_shape(_placed(image, policy), policy.shape)


def _jpeg(data: Tensor, turn: Tensor, policy: Policy) -> Tensor:
    shape = tf.image.extract_jpeg_shape(data)
    size = tf.where(turn >= 5, shape[:2][::-1], shape[:2])
    across, down = size[1] // policy.shape[1], size[0] // policy.shape[0]
    most = tf.minimum(across, down)
    if policy.fit == "letterbox":
        most = tf.minimum(tf.maximum(across, down), tf.minimum(size[0], size[1]) // 2)
    power = sum(tf.cast(most >= 2 * factor, tf.int32) for factor in (2, 4, 8))

    def decoded(ratio: int) -> Tensor:
        return tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    # One branch a ratio, since it is an attribute of the operation; the default argument binds each.
    return tf.switch_case(power, [lambda ratio=ratio: decoded(ratio) for ratio in (1, 2, 4, 8)])


_TOPS = [255, 1023, 4095, 16383, 65535]
"""Highest values of the depths whose pictures stand in 16 bits, as `data.image` has them."""


def _png(data: Tensor, policy: Policy) -> Tensor:
    kind = tf.io.decode_raw(tf.strings.substr(data, 24, 2), tf.uint8)  # depth and colour type
    deep_and_gray = tf.reduce_all(kind == tf.constant([16, 0], tf.uint8))
    return tf.cond(deep_and_gray, lambda: _deep_png(data, policy), lambda: _plain_png(data, policy))


def _deep_png(data: Tensor, policy: Policy) -> Tensor:
    """Gray values of 16 bits, scaled by the depth that they use."""
    pixels = tf.cast(tf.io.decode_png(data, channels=4, dtype=tf.uint16), tf.int32)
    gray, alpha = pixels[..., :3], tf.where(pixels[..., 3:] > 0, 255, 0)
    tops = tf.constant(_TOPS)
    top = tf.gather(tops, tf.searchsorted(tops, tf.reduce_max(gray)[None])[0])
    return _over((gray * 255 + top // 2) // top, alpha, policy)


def _plain_png(data: Tensor, policy: Policy) -> Tensor:
    pixels = tf.cast(tf.io.decode_png(data, channels=4), tf.int32)
    # TensorFlow gives opaque pixels (1 << depth) - 1 as alpha, although it has widened the others to 8 bits.
    depth = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 1), tf.uint8)[0], tf.int32)
    alpha = pixels[..., 3:]
    narrow = tf.reduce_max(alpha) == tf.bitwise.left_shift(1, tf.minimum(depth, 8)) - 1
    alpha = tf.where(narrow & (depth < 8), 255, alpha)
    return _over(pixels[..., :3], alpha, policy)


def _webp(data: Tensor, policy: Policy) -> Tensor:
    pixels = tf.cast(tf.io.decode_image(data, channels=0, expand_animations=False), tf.int32)
    pixels = tf.concat([pixels, tf.fill(tf.concat([tf.shape(pixels)[:2], [1]], 0), 255)], -1)[..., :4]
    return _over(tf.ensure_shape(pixels[..., :3], (None, None, 3)), pixels[..., 3:], policy)


def _over(colour: Tensor, alpha: Tensor, policy: Policy) -> Tensor:
    mixed = colour * alpha + tf.constant(policy.background, tf.int32) * (255 - alpha)
    return tf.cast((2 * mixed + 255) // 510, tf.uint8)


def _gray(image: Tensor) -> Tensor:
    """ITU-R 601 luma in Pillow's integers."""
    weighted = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471], tf.int32)
    return tf.cast((tf.reduce_sum(weighted, -1, keepdims=True) + 0x8000) // 0x10000, tf.uint8)


def _turned(image: Tensor, orientation: Tensor) -> Tensor:
    across = tf.transpose(image, (1, 0, 2))
    turns = [image, image[:, ::-1], image[::-1, ::-1], image[::-1], across]
    turns += [across[:, ::-1], across[::-1, ::-1], across[::-1]]
    return tf.switch_case(orientation - 1, [lambda turned=turned: turned for turned in turns])


def _orientation(data: Tensor, is_jpeg: Tensor, is_webp: Tensor) -> Tensor:
    """EXIF's orientation of a JPEG, PNG or WebP, 1 to 8, read without parsing the segments."""
    length = tf.where(is_webp, tf.strings.length(data), _HEAD_BYTES)  # in WebP it comes last
    head = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, length), tf.uint8), tf.int32)
    head = tf.concat([head, tf.zeros(16, tf.int32)], 0)

    def first(pattern: bytes) -> Tensor:
        last = tf.size(head) - len(pattern)
        same = [head[at : last + at] == value for at, value in enumerate(pattern)]
        places = tf.where(tf.reduce_all(same, 0))[:, 0]
        return tf.cast(tf.concat([places, [-1]], 0)[0], tf.int32)

    named, chunk = first(b"Exif\0\0"), first(b"eXIf")
    chunk = tf.where(is_webp, first(b"EXIF") + 4, chunk)  # the chunk's size stands before its content
    exif = tf.where(is_jpeg | (is_webp & (named >= 0)), named, chunk)
    base = exif + tf.where(is_jpeg | (is_webp & (named >= 0)), 6, 4)

    def number(at: Tensor, size: int) -> Tensor:
        places = tf.clip_by_value(at[..., None] + tf.range(size), 0, tf.size(head) - 1)
        values = tf.gather(head, places)
        little = tf.gather(head, tf.maximum(base, 0)) == ord("I")
        shifts = 8 * tf.range(size)
        return tf.reduce_sum(tf.bitwise.left_shift(values, tf.where(little, shifts, shifts[::-1])), -1)

    entries = base + number(base + 4, 4)
    places = entries + 2 + 12 * tf.range(tf.minimum(number(entries, 2), 512))
    wanted = tf.where(number(places, 2) == 0x0112, number(places + 8, 2), 0)
    value = tf.reduce_max(tf.concat([wanted, [0]], 0))
    return tf.where((exif >= 0) & (value >= 1) & (value <= 8), value, 1)


def _placed(image: Tensor, policy: Policy) -> Tensor:
    rows, columns, depth = policy.shape
    size = tf.shape(image)
    kept_height, kept_width, height, width = _placement(policy, size[0], size[1])
    top, left = (size[0] - kept_height) // 2, (size[1] - kept_width) // 2
    image = image[top : top + kept_height, left : left + kept_width]
    fitted = _resized(_resized(image, [kept_height, width]), [height, width])
    if policy.fit != "letterbox":
        return fitted
    bars = tf.constant(policy.background, tf.uint8)[None, None]
    bars = _gray(bars) if depth == 1 else bars
    above, before = (rows - height) // 2, (columns - width) // 2
    around = [[above, rows - height - above], [before, columns - width - before], [0, 0]]
    inside = tf.pad(tf.ones_like(fitted), around)
    return tf.where(inside == 1, tf.pad(fitted, around), bars)


def _resized(image: Tensor, size: list[Any]) -> Tensor:
    """One pass of a resize; Pillow, too, rounds after each of its two."""
    scaled = tf.image.resize(image, size, "bicubic", antialias=True)
    return tf.cast(tf.clip_by_value(tf.floor(scaled + 0.5), 0, 255), tf.uint8)


def _placement(policy: Policy, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Any, Any]:
    """`image.placement`, with heights before widths."""
    rows, columns = policy.shape[:2]
    wider = width * rows > height * columns
    if policy.fit == "stretch":
        return height, width, rows, columns
    if policy.fit == "crop":
        kept_width = tf.where(wider, tf.maximum(1, (2 * height * columns + rows) // (2 * rows)), width)
        kept_height = tf.where(wider, height, tf.maximum(1, (2 * width * rows + columns) // (2 * columns)))
        return kept_height, kept_width, rows, columns
    to_height = tf.where(wider, tf.maximum(1, (2 * height * columns + width) // (2 * width)), rows)
    to_width = tf.where(wider, columns, tf.maximum(1, (2 * width * rows + height) // (2 * height)))
    return height, width, to_height, to_width


logger = logging.getLogger(__name__)

AGREEMENT = 1e-4
"""Greatest difference of an output between a model and its conversion, in units of the task."""


def served(network: keras.Model, task: Task) -> keras.Model:
    """Wrap a network for prediction.

    Args:
        network: Raw pixels in, logits out.
        task: What it predicts.

    Returns:
        uint8 (N, H, W, C) in, float32 outputs (N, K) of the task out.
    """
    image = keras.Input(network.input_shape[1:], dtype="uint8", name="image")
    pixels = keras.layers.Rescaling(1.0, dtype="float32", name="to_float")(image)
    return keras.Model(image, head(task, network(pixels)), name=network.name)


class _Served(tf.Module):
    """The signatures of the SavedModel. Final."""

    def __init__(self, model: keras.Model, network: keras.Model, pictures: Policy, task: Task) -> None:
        super().__init__()
        self.model = model
        self._network = network
        self.task = task
        self.pictures = pictures
        # Keras has the state of random layers besides its layers, where TensorFlow does not look for it.
        self.kept = [variable.value for variable in model.variables]
        batch = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8, name="image")
        encoded = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.endpoints = {
            "serving_default": tf.function(self.predict, input_signature=[batch], autograph=False),
            "image_bytes": tf.function(self.decode_and_predict, input_signature=[encoded], autograph=False),
        }

    def predict(self, image: Tensor) -> dict[str, Tensor]:
        """Outputs for raw pixels."""
        return {self.task.output: self.model(image, training=False)}

    def network_outputs(self, pixels: Tensor) -> Tensor:
        """Outputs for pixels as float32, as quantisation needs them."""
        return head(self.task, self._network(pixels, training=False))

    def decode_and_predict(self, image_bytes: Tensor) -> dict[str, Tensor]:
        """Outputs for encoded pictures (JPEG, PNG, WebP, BMP, GIF) of any size."""
        images = tf.map_fn(
            lambda data: fit_picture(data, self.pictures), image_bytes, fn_output_signature=tf.uint8
        )
        return self.predict(images)


@dataclass(frozen=True)
class Rows:
    """What conversions to fewer bits are calibrated and judged on.

    Attributes:
        training: uint8 (N, H, W, C), some training images.
        validation: uint8 (N, H, W, C), held-out images.
        targets: Of the held-out images.
    """

    training: Images
    validation: Images
    targets: Targets


Record = dict[str, dict[str, Any]]
"""By the name of a form: its size in bytes and how it compares, or why it is `left_out`."""


class _LeftOutError(Exception):
    """A form that is not written, and why."""


def _frozen(function: Any) -> Any:
    """A concrete function with its variables as constants; converters lose those of a Keras 3 model."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function)


def _lite(module: _Served) -> bytes:
    """Convert a model for LiteRT, which predicts several times faster than TensorFlow."""
    frozen = _frozen(module.endpoints["serving_default"].get_concrete_function())
    with _quietly():
        return bytes(tf.lite.TFLiteConverter.from_concrete_functions([frozen]).convert())


def _onnx(module: _Served) -> bytes:
    """Convert a model to ONNX: input `image`, uint8 [N, H, W, C]; output under the name of the task's."""
    with _quietly():
        import tf2onnx

        frozen = _frozen(module.endpoints["serving_default"].get_concrete_function())
        (image, *_), (output,) = frozen.inputs, frozen.outputs
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            input_names=[image.name],
            output_names=[output.name],
            opset=_OPSET,
            tensors_to_rename={image.name: "image", output.name: module.task.output},
        )
    return bytes(model.SerializeToString())


_OPSET = 17
"""Of ONNX: read by every runtime since 2022."""


def _lite_int8(module: _Served, images: Images) -> bytes:
    """Convert a model to weights and activations of 8 bits.

    Args:
        module: The model.
        images: uint8 (N, H, W, C); the range of each activation is taken from them.
    """
    # Its input is quantised to what pixels are: a step of 1 from 0 to 255.
    ends = np.zeros((1, *images.shape[1:]), np.uint8)
    ends[:, ::2] = 255
    pixels = tf.TensorSpec([None, *module.model.input_shape[1:]], tf.float32, name="image")
    outputs = tf.function(module.network_outputs, input_signature=[pixels], autograph=False)
    frozen = _frozen(outputs.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    shown = np.concatenate([ends, images]).astype(np.float32)
    converter.representative_dataset = lambda: ([image[None]] for image in shown)
    # What has no form of 8 bits stays float.
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]
    converter.inference_input_type = tf.uint8
    with _quietly():
        return bytes(converter.convert())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Suppress what converters say of their own steps."""
    loggers = [logging.getLogger(name) for name in ("absl", "tf2onnx", "tensorflow")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


_T = TypeVar("_T")


def _converted(convert: Callable[[], _T], what: str) -> _T:
    """Convert a model, or load what was converted.

    Raises:
        _LeftOutError: It cannot be.
    """
    try:
        return convert()
    except Exception as error:  # a converter raises anything on what it does not know
        cause = " ".join(str(error).split())[:200] or type(error).__name__
        raise _LeftOutError(f"not converted for {what}: {cause}") from error


def _function(kind: type[Lite] | type[Onnx], content: bytes, module: _Served, what: str) -> Function:
    """Load what was converted, as an endpoint will.

    Raises:
        _LeftOutError: It cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="distml-converted-") as folder:
        path = Path(folder) / "model"
        path.write_bytes(content)
        return _loaded(kind, path, module, what)


def _loaded(kind: type[Lite] | type[Onnx], path: Path, module: _Served, what: str) -> Function:
    shape, outputs = module.model.input_shape[1:], module.model.output_shape[-1]
    return _converted(lambda: kind(path, shape, outputs), what)


class _Forms:
    """Converts a model into one form after another, each loaded again and compared. Final."""

    def __init__(self, module: _Served, folder: Path, example: Images, wanted: ExportConfig) -> None:
        self._module, self._folder, self._wanted = module, folder, wanted
        self._example = example
        self.record: Record = {}

    def add(self, name: str, write: Callable[[], dict[str, Any]]) -> None:
        """Write a form, or note why it is left out."""
        try:
            self.record[name] = write()
        except _LeftOutError as error:
            explicit = name == "litert_int8" or (
                self._wanted.formats != "auto" and name in self._wanted.formats
            )
            logger.log(logging.WARNING if explicit else logging.INFO, "%s", error)
            self.record[name] = {"left_out": str(error)}

    def lite(self) -> dict[str, Any]:
        """Write the LiteRT file."""
        content = _converted(lambda: _lite(self._module), "LiteRT")
        return self._kept(LITE, content, _function(Lite, content, self._module, "LiteRT"), "LiteRT")

    def onnx(self) -> dict[str, Any]:
        """Write the ONNX file."""
        if not importlib.util.find_spec("tf2onnx"):
            raise _LeftOutError("not converted to ONNX: the extra onnx is not installed (distml[onnx])")
        content = _converted(lambda: _onnx(self._module), "ONNX")
        return self._kept(ONNX, content, _function(Onnx, content, self._module, "ONNX"), "ONNX")

    def _kept(self, name: str, content: bytes, function: Function, what: str) -> dict[str, Any]:
        expected = self._module.predict(tf.constant(self._example))[self._module.task.output].numpy()
        difference = self._module.task.difference(function(self._example), expected)
        if not difference <= AGREEMENT:
            raise _LeftOutError(f"not converted for {what}: its outputs differ by {difference:g}")
        (self._folder / name).write_bytes(content)
        return {"bytes": len(content), "difference": float(difference)}

    def int8(self, rows: Rows) -> dict[str, Any]:
        """Write the LiteRT file of 8 bits where it loses little against the other one."""
        module, limit = self._module, self._wanted.max_loss_of_accuracy
        if not (self._folder / LITE).exists():
            raise _LeftOutError("not converted for 8 bits: there is no LiteRT file to compare with")
        content = _converted(lambda: _lite_int8(module, rows.training), "8 bits")
        small = _function(Lite, content, module, "8 bits")
        float32 = _loaded(Lite, self._folder / LITE, module, "LiteRT")
        shares = [
            float(np.mean(module.task.correct(rows.targets, function(rows.validation))))
            for function in (float32, small)
        ]
        measured = {"accuracy": round(shares[1], 6), "accuracy_float": round(shares[0], 6)}
        loss = shares[0] - shares[1]
        if not loss <= limit:
            sentence = _too_much_lost(shares, len(rows.targets), limit)
            logger.warning("%s", sentence)
            return {"left_out": sentence, **measured}
        (self._folder / LITE_INT8).write_bytes(content)
        return {"bytes": len(content), **measured, "rows": len(rows.targets)}


def _too_much_lost(shares: Sequence[float], rows: int, limit: float) -> str:
    """Why the file of 8 bits is not kept; shares of rows that are right: in float and in 8 bits."""
    few = ""
    if limit < 1 / rows:
        few = f"; one of so few rows is {1 / rows:.4f}: hold out more of them, or set a higher limit"
    return (
        f"the LiteRT file of 8 bits is not kept: {shares[1]:.4f} of {rows:,} validation rows are predicted "
        f"correctly instead of {shares[0]:.4f}, export.max_loss_of_accuracy is {limit:g}{few}"
    )


def export(
    network: keras.Model,
    folder: Path,
    described: dict[str, Any],
    example: np.ndarray,
    wanted: ExportConfig | None = None,
    rows: Rows | None = None,
) -> Record:
    """Write the model into a folder in every form, with the digest of every file.

    Args:
        network: Built outside any strategy, so that nothing distributed is saved.
        folder: An existing, empty folder.
        described: Data set's `name`, `classes`, `shape`, `policy`, how pictures became images, and `task`.
        example: uint8 (N, H, W, C), a few images to try the model on.
        wanted: The forms; none is what the configuration has by default.
        rows: For `quantize`.

    Returns:
        The size of each form and how it compares with the model.
    """
    wanted = wanted or ExportConfig()
    task = tasks.restore(described["classes"], described.get("task"))
    model = served(network, task)
    (folder / "data").mkdir()
    model.save(folder / MODEL)
    # MLflow's Keras flavour reads this.
    (folder / "data" / "keras_module.txt").write_text("keras", encoding="utf-8")
    policy = described.get("policy")
    pictures = Policy.from_dict(policy) if policy else Policy.of_arrays(model.input_shape[1:])
    module = _Served(model, network, pictures, task)
    forms = _Forms(module, folder, example, wanted)
    forms.record["keras"] = {"bytes": (folder / MODEL).stat().st_size}
    if _asked(wanted, "saved_model"):
        tf.saved_model.save(module, str(folder / SAVED_MODEL), signatures=module.endpoints)
    if _asked(wanted, "litert"):
        forms.add("litert", forms.lite)
    if wanted.quantize and rows is not None:
        forms.add("litert_int8", lambda: forms.int8(rows))
    if _asked(wanted, "onnx"):
        forms.add("onnx", forms.onnx)
    (folder / CLASSES).write_text(json.dumps(described | {"formats": forms.record}), encoding="utf-8")
    (folder / EXAMPLE).write_text(json.dumps({"inputs": example.tolist()}), encoding="utf-8")
    write_digests(folder)
    return forms.record


def _asked(wanted: ExportConfig, name: str) -> bool:
    return wanted.formats == "auto" or name in wanted.formats

"""A verified export, loaded as a function of images by the fastest engine (driver, replica)."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import logging
import math
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from distml.artifacts import layout
from distml.artifacts.layout import EXAMPLE, LITE, LITE_INT8, MODEL, ONNX
from distml.data.image import Policy
from distml.data.plausible import Usual
from distml.data.schema import Images
from distml.errors import ModelError, StorageError
from distml.runtime import compat, environment
from distml.storage import Storage
from distml.tasks import Task

logger = logging.getLogger(__name__)

Outputs = npt.NDArray[np.float32]


class Function(Protocol):
    """A model as a function of images, for one thread at a time."""

    def __call__(self, images: Images) -> Outputs:
        """Compute outputs, float32 [N, K], of uint8 [N, H, W, C]."""
        ...

    def cut(self, batch: int) -> None:
        """Compute at most so many images in one call of the engine."""
        ...


class Lite:
    """A LiteRT model. Final.

    Measured on two AVX-512 cores with a two-layer CNN of 28 x 28, one thread: 0.06 ms per image alone or in a
    batch, where a TensorFlow function takes 0.9 ms for one image and two cores for 0.04 ms in a batch of 64.

    Args:
        path: A `.tflite` file.
        shape: (H, W, C) of an image.
        outputs: How many outputs an image has.
        threads: Threads of a call.

    Raises:
        ModelError: Not a model of uint8 images of that shape and as many float32 outputs.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], outputs: int, threads: int = 1) -> None:
        self._path, self._shape, self._outputs, self._threads = path, shape, outputs, threads
        self._content = path.read_bytes()
        self._interpreters: dict[int, tuple[Any, int, int]] = {}
        self._sizes: tuple[int, ...] = ()
        self.cut(_LITE_BATCH)

    def cut(self, batch: int) -> None:
        """Allocate tensors for calls of that many images and for calls of one.

        Another size would allocate them anew in each call.
        """
        self._sizes = tuple(sorted({batch, 1}, reverse=True))
        for size in self._sizes:
            if size not in self._interpreters:
                shape = (size, *self._shape)
                self._interpreters[size] = _interpreter(
                    self._content, self._path, shape, self._outputs, self._threads
                )

    def __call__(self, images: Images) -> Outputs:
        """Compute outputs, float32 [N, K], of uint8 [N, H, W, C]."""
        outputs = np.empty((len(images), self._outputs), np.float32)
        at = 0
        for size in self._sizes:
            interpreter, input_index, output_index = self._interpreters[size]
            while len(images) - at >= size:
                interpreter.set_tensor(input_index, images[at : at + size])
                interpreter.invoke()
                outputs[at : at + size] = interpreter.get_tensor(output_index)
                at += size
        return outputs


def _interpreter(
    content: bytes, path: Path, shape: tuple[int, ...], outputs: int, threads: int
) -> tuple[Any, int, int]:
    """Allocate an interpreter for one batch size; returns it with the indices of its input and output."""
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        (image,), (values,) = interpreter.get_input_details(), interpreter.get_output_details()
        interpreter.resize_tensor_input(image["index"], shape, strict=True)
        interpreter.allocate_tensors()
        interpreter.invoke()
        output = interpreter.get_output_details()[0]
    except (ValueError, RuntimeError) as error:
        raise _unusable(path, shape[1:], error) from error
    _require_kinds(path, (image["dtype"], output["dtype"], tuple(output["shape"])), (shape[0], outputs))
    return interpreter, image["index"], values["index"]


def _unusable(path: Path, shape: Sequence[int], error: Exception) -> ModelError:
    cause = str(error).strip().partition("\n")[0][:200]
    return ModelError(f"{path} is not a model of images {list(shape)}: {cause}.")


def _require_kinds(path: Path, kinds: tuple[Any, Any, Any], expected: tuple[int, int]) -> None:
    if kinds != (np.uint8, np.float32, expected):
        raise ModelError(f"{path} does not map uint8 images to float32 [N, {expected[1]}].")


class _Batched(ABC):
    """An engine that takes any number of images in a call, given it in parts of bounded memory."""

    _batch: int

    def __init__(self) -> None:
        self.cut(_BATCH)

    @abstractmethod
    def _infer(self, images: Images) -> Outputs:
        """Compute outputs in one call of the engine; images are contiguous."""

    def cut(self, batch: int) -> None:
        """Compute at most so many images in one call of the engine."""
        self._batch = batch

    def __call__(self, images: Images) -> Outputs:
        """Compute outputs, float32 [N, K], of uint8 [N, H, W, C]."""
        if len(images) <= self._batch:
            return self._infer(np.ascontiguousarray(images))
        parts = (images[at : at + self._batch] for at in range(0, len(images), self._batch))
        return np.concatenate([self._infer(np.ascontiguousarray(part)) for part in parts])


class Onnx(_Batched):
    """An ONNX model in ONNX Runtime. Final.

    Args:
        path: An `.onnx` file.
        shape: (H, W, C) of an image.
        outputs: How many outputs an image has.
        threads: Threads of a call.

    Raises:
        ModelError: Not a model of uint8 images of that shape and as many float32 outputs.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], outputs: int, threads: int = 1) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        # Threads that spin for work take the cores of other replicas.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            # As bytes it cannot name files of tensors beside it.
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
            (image,), _ = self._session.get_inputs(), self._session.get_outputs()
            self._name = image.name
            tried = self._session.run(None, {self._name: np.zeros((1, *shape), np.uint8)})[0]
        except Exception as error:  # ONNX Runtime has no common class of errors
            raise _unusable(path, shape, error) from error
        _require_kinds(path, (np.uint8, tried.dtype, tried.shape), (1, outputs))

    def _infer(self, images: Images) -> Outputs:
        outputs: Outputs = self._session.run(None, {self._name: images})[0]
        return outputs


class OpenVino(_Batched):
    """A LiteRT or ONNX model in OpenVINO. Final.

    Args:
        path: A `.tflite` or `.onnx` file.
        shape: (H, W, C) of an image.
        outputs: How many outputs an image has.
        threads: Threads of a call.

    Raises:
        ModelError: Not a model of uint8 images of that shape and as many float32 outputs.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], outputs: int, threads: int = 1) -> None:
        import openvino

        super().__init__()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the hardware has it: 3e-4 apart
            "ENABLE_CPU_PINNING": False,  # several replicas would share the first cores
        }
        try:
            core = openvino.Core()
            model = core.read_model(path)
            model.reshape([-1, *shape])
            self._request = core.compile_model(model, "CPU", options).create_infer_request()
            self._infer(np.zeros((1, *shape), np.uint8))
            image, tried = model.input(0).element_type.to_dtype(), self._request.get_output_tensor(0).data
        except Exception as error:  # OpenVINO raises RuntimeError and others
            raise _unusable(path, shape, error) from error
        _require_kinds(path, (np.dtype(image), tried.dtype, tried.shape), (1, outputs))

    def _infer(self, images: Images) -> Outputs:
        self._request.infer([images], share_inputs=True)
        return np.array(self._request.get_output_tensor(0).data)  # the next call overwrites it


class _Flow(_Batched):
    """The Keras model of an export as a function of TensorFlow. Final.

    Args:
        export: Has been verified.

    Raises:
        ModelError: It cannot be loaded.
    """

    def __init__(self, export: layout.Export) -> None:
        super().__init__()
        self._function = _compiled(_model(export))

    def _infer(self, images: Images) -> Outputs:
        outputs: Outputs = self._function(images).numpy()
        return outputs


Engine = Literal["auto", "litert", "litert_int8", "onnx", "openvino", "tensorflow"]

_BATCH = 256
"""Images per call: bounds the memory of activations."""
_LITE_BATCH = 16


@dataclass(frozen=True)
class _Kind:
    """An engine: its class, the files it can load, the best first, and what must be installed for it."""

    function: Callable[[Path, tuple[int, int, int], int, int], Function]
    files: tuple[str, ...]
    package: str
    extra: str = ""

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def file(self, export: layout.Export) -> Path | None:
        """The first of its files that the export has."""
        return next((export.folder / name for name in self.files if (export.folder / name).exists()), None)


_KINDS: Mapping[str, _Kind] = {
    "litert": _Kind(Lite, (LITE,), "ai_edge_litert"),
    "onnx": _Kind(Onnx, (ONNX,), "onnxruntime", "onnx"),
    "openvino": _Kind(OpenVino, (LITE, ONNX), "openvino", "openvino"),
    "litert_int8": _Kind(Lite, (LITE_INT8,), "ai_edge_litert"),
}
"""Those that load without TensorFlow. Of engines that are equally fast the first is taken."""
_EXACT = ("litert", "onnx", "openvino")


def load(export: layout.Export, engine: str, threads: int = 1) -> Function:
    """Load a model with one engine.

    Args:
        export: Has been verified.
        engine: Its name; not auto.
        threads: Threads of a call; TensorFlow decides for itself.

    Raises:
        ModelError: The engine is not installed, or the export has no file for it that it can use.
    """
    if engine == TENSORFLOW:
        return _Flow(export)
    kind = _KINDS[engine]
    if not kind.installed:
        raise ModelError(f"the engine {engine} is not installed.", f"pip install 'distml[{kind.extra}]'")
    path = kind.file(export)
    if path is None:
        wanted = "export.quantize: int8" if engine == "litert_int8" else f"export.formats with {engine}"
        raise ModelError(
            f"the model has no file for the engine {engine} ({' or '.join(kind.files)}).",
            f"Train it with {wanted}, or set serve.engine to auto.",
        )
    return kind.function(path, export.shape, len(export.classes), threads)


def prepare(engine: Engine, kept: Storage) -> None:
    """Import what loading a model with an engine will need, which takes seconds.

    Args:
        engine: Its name; auto needs all to measure them, and one where that was done before.
        kept: Where figures are kept.
    """
    names: Sequence[str] = (engine,)
    if engine == "auto":
        names = _EXACT[:1] if _measured_before(kept) else _EXACT
    for name in names:
        with contextlib.suppress(Exception):  # `load` says what is wrong with a package
            if name in _KINDS and _KINDS[name].installed:
                importlib.import_module(_IMPORTED.get(name, _KINDS[name].package))


_IMPORTED = {"litert": "ai_edge_litert.interpreter", "litert_int8": "ai_edge_litert.interpreter"}


def _measured_before(kept: Storage) -> list[str]:
    with contextlib.suppress(StorageError):
        return kept.names(FOLDER)
    return []


AGREEMENT = 1e-4
"""Greatest difference of an output between engines, in units of the task."""
BUDGET_S = 5.0
"""Time in which engines are measured."""
_BATCHES = (4, 16, 64)
_CALL_S = 0.15
"""No batch is measured that would take longer: requests wait for the one under way."""
_ROUNDS = 30
_ALIKE = 1.05
"""Less is noise, and the engine that stands first is taken."""


@dataclass(frozen=True)
class Figure:
    """What an engine takes on this machine.

    Attributes:
        engine: Its name.
        threads: Threads of a call.
        batch: Images of a call at which an image takes least.
        alone_ms: Milliseconds of a call for one image.
        image_ms: Milliseconds of an image in such a batch.
        note: Why it cannot be taken, empty where it can.
    """

    engine: str
    threads: int
    batch: int = 1
    alone_ms: float = math.nan
    image_ms: float = math.nan
    note: str = ""

    @property
    def cost(self) -> float:
        """What counts: the geometric mean of an image alone, in an idle endpoint, and in a batch."""
        return math.sqrt(self.alone_ms * self.image_ms)


@dataclass(frozen=True)
class Choice:
    """An engine and how it is used.

    Attributes:
        engine: Its name.
        threads: Threads of a call.
        batch: Images of a call, 0 for what the engine takes by default.
        figures: What was measured, none where there was nothing to choose.
    """

    engine: str
    threads: int
    batch: int = 0
    figures: tuple[Figure, ...] = ()

    def described(self) -> dict[str, Any]:
        """The choice as JSON; what is not a number is left out."""
        figures = [
            {key: value for key, value in asdict(figure).items() if value not in ("",) and value == value}
            for figure in self.figures
        ]
        return {"name": self.engine, "threads": self.threads, "batch": self.batch or None, "figures": figures}


def choose(
    export: layout.Export, threads: int = 1, kept: Storage | None = None, budget_s: float = BUDGET_S
) -> Choice:
    """Measure the engines that are installed, or take what was measured before.

    TensorFlow takes longer to import than measuring may take: `compare` measures it when the endpoint stands,
    for the next start; before, it is taken only where there is no other.

    Args:
        export: Has been verified.
        threads: Most threads of a call.
        kept: Where figures are kept, by the export, the CPU and the versions of the engines.
        budget_s: Time limit.
    """
    candidates = _candidates(export, threads)
    if not candidates:
        return Choice(TENSORFLOW, threads)
    name = f"{_key(export, candidates)}.json"
    if known := _known(kept, name, [*candidates, (TENSORFLOW, threads)]):
        return known
    if len(candidates) == 1:
        return Choice(candidates[0][0], 1)
    choice = _fastest(_measured(export, candidates, budget_s))
    _keep(choice, kept, name)
    return choice


def _candidates(export: layout.Export, threads: int) -> list[tuple[str, int]]:
    usable = [name for name in _EXACT if _KINDS[name].installed and _KINDS[name].file(export)]
    return [(name, count) for name in usable for count in sorted({1, threads})]


def _keep(choice: Choice, kept: Storage | None, name: str) -> None:
    if kept is not None and not math.isnan(choice.figures[0].alone_ms):
        try:
            kept.write_bytes(json.dumps(asdict(choice)).encode(), FOLDER, name)
        except StorageError as error:
            logger.warning("the engine measurements cannot be saved: %s", error)


TENSORFLOW = "tensorflow"


def compared(choice: Choice) -> bool:
    """Whether TensorFlow is among what was measured, or has no use: none is installed, or nothing else is."""
    names = {figure.engine for figure in choice.figures} | {choice.engine}
    return TENSORFLOW in names or importlib.util.find_spec(TENSORFLOW) is None


def compare(folder: Path, sha256: str, threads: int, kept: Storage, budget_s: float = BUDGET_S) -> Choice:
    """Measure all engines again, TensorFlow among them, and keep the figures for the next `choose`.

    For a process of its own: importing TensorFlow takes seconds and some 400 MB. All are measured in turn, so
    that what an endpoint beside them takes meets them alike.

    Args:
        folder: Of the export.
        sha256: Its SHA-256.
        threads: As for `choose`.
        kept: Where figures are kept.
        budget_s: Time limit, without the import.
    """
    export = layout.verify(folder, sha256)
    candidates = _candidates(export, threads)
    flow = (TENSORFLOW, threads)
    name = f"{_key(export, candidates)}.json"
    with kept.lock(FOLDER):
        known = _known(kept, name, [*candidates, flow])
        if known and compared(known):
            return known
        _keras()
        choice = _fastest(_measured(export, [*candidates, flow], budget_s))
        _keep(choice, kept, name)
    return choice


FOLDER = "engines"
"""Below the storage root: what was measured."""


def _key(export: layout.Export, candidates: Sequence[tuple[str, int]]) -> str:
    packages = [*(_KINDS[name].package for name in _EXACT), "tensorflow-cpu", TENSORFLOW]
    versions = [_version(package) for package in packages]
    text = json.dumps([export.sha256, cpu(), candidates, versions, _BATCHES])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def cpu(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the model of the CPU, as far as the system tells."""
    try:
        lines = cpuinfo.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} {platform.machine()}"


def _known(kept: Storage | None, name: str, candidates: Sequence[tuple[str, int]]) -> Choice | None:
    try:
        if kept is None or not kept.exists(FOLDER, name):
            return None
        values = json.loads(kept.read_text(FOLDER, name))
        figures = tuple(Figure(**values) for values in values.pop("figures"))
        choice = replace(Choice(**values), figures=figures)
    except (StorageError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("ignoring the engine measurements in %s: %r", name, error)
        return None
    return choice if (choice.engine, choice.threads) in candidates else None


def _fastest(figures: Sequence[Figure]) -> Choice:
    """Choose; of engines that are alike the first."""
    usable = [figure for figure in figures if not figure.note] or list(figures[:1])
    least = min((figure.cost for figure in usable), default=math.nan)
    best = next((figure for figure in usable if figure.cost <= _ALIKE * least), usable[0])
    rest = sorted(
        (figure for figure in figures if figure is not best),
        key=lambda figure: (bool(figure.note), figure.cost),
    )
    return Choice(best.engine, best.threads, 0 if best.note else best.batch, (best, *rest))


def _measured(export: layout.Export, candidates: Sequence[tuple[str, int]], budget_s: float) -> list[Figure]:
    """Measure candidates in turn, so that whatever else the machine does meets all of them."""
    deadline = time.monotonic() + budget_s
    images = _images(export)
    expected: Outputs | None = None
    figures: list[Figure] = []
    timers: list[Iterator[Figure]] = []
    for name, threads in candidates:
        figure = Figure(name, threads)
        late = time.monotonic() > deadline - budget_s / 2 and name != TENSORFLOW
        if timers and late:
            figures.append(replace(figure, note="not measured: no time was left"))
            continue
        try:
            function = load(export, name, threads)
            outputs = function(images)
        except ModelError as error:
            figures.append(replace(figure, note=str(error)))
            continue
        expected = outputs if expected is None else expected  # the first was compared when it was exported
        apart = export.task.difference(outputs, expected)
        if not apart <= AGREEMENT:
            figures.append(replace(figure, note=f"its outputs differ by {apart:.2g}"))
            continue
        timers.append(_timer(function, figure, images))
    last = [next(timer) for timer in timers]
    for _ in range(_ROUNDS):
        for at, timer in enumerate(timers):
            if time.monotonic() > deadline:
                break
            last[at] = next(timer)
    order = {candidate: at for at, candidate in enumerate(candidates)}
    return sorted(last + figures, key=lambda figure: order[figure.engine, figure.threads])


def _timer(function: Function, figure: Figure, images: Images) -> Iterator[Figure]:
    """Time an engine once more each time; the least of each size counts."""
    least: dict[int, float] = {}
    many = np.concatenate([images] * math.ceil(max(_BATCHES) / len(images)))
    while True:
        for size in (1, *_BATCHES):
            if size > 1 and least[1] * size > _CALL_S:
                continue
            if size not in least:
                function.cut(size)
                function(many[:size])
            function.cut(size)
            began = time.perf_counter()
            function(many[:size])
            least[size] = min(time.perf_counter() - began, least.get(size, math.inf))
        batch = min(least, key=lambda size: least[size] / size)
        yield replace(
            figure,
            batch=batch,
            alone_ms=round(1e3 * least[1], 4),
            image_ms=round(1e3 * least[batch] / batch, 4),
        )


def _images(export: layout.Export) -> Images:
    """The pictures the model was exported with, and noise, uint8 [16, H, W, C]."""
    noise = np.random.default_rng(0).integers(0, 256, (16, *export.shape), np.uint8)
    try:
        given = np.asarray(json.loads((export.folder / EXAMPLE).read_text("utf-8"))["inputs"], np.uint8)[:8]
        noise[: len(given)] = given
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return noise


@dataclass(frozen=True)
class Predictor:
    """A model that has been verified. Final.

    Attributes:
        classes: Name of each class, by label.
        shape: (H, W, C) of an image.
        sha256: Stands for the whole export.
        function: uint8 [N, H, W, C] to float32 [N, classes]; for one thread at a time.
        pictures: How a picture becomes such an image.
        task: What it predicts.
        usual: How training images look, None where the export does not say.
        choice: The engine, and what others took.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    sha256: str
    function: Any
    pictures: Policy
    task: Task
    usual: Usual | None = None
    choice: Choice = Choice("", 1)

    @classmethod
    def load(cls, folder: Path, expected_sha256: str | None = None) -> Self:
        """Verify an export and load its model.

        Args:
            folder: As training wrote it, or as the registry gave it back.
            expected_sha256: Of its `digests.json`, as the registry has it.

        Raises:
            ModelError: Changed, incomplete, unsafe to load, or not a classifier of images.
        """
        return cls.of(layout.verify(folder, expected_sha256))

    @classmethod
    def of(cls, export: layout.Export, engine: Engine = "auto", threads: int = 1, batch: int = 0) -> Self:
        """Load the model of a verified export.

        Args:
            export: As `layout.verify` returned it.
            engine: auto takes LiteRT where the export was converted for it, else TensorFlow, which is
                imported only where it is used.
            threads: Threads of a call; TensorFlow decides for itself.
            batch: Images of a call, 0 for what the engine takes by default.

        Raises:
            ModelError: Unsafe to load, not a model of images, or not for that engine.
        """
        lite = "litert" if (export.folder / LITE).exists() else "tensorflow"
        name = lite if engine == "auto" else engine
        choice = Choice(name, threads, batch)
        if name == "tensorflow":
            return cls._made(export, _compiled(_model(export)), choice)
        function = load(export, name, threads)
        if batch:
            function.cut(batch)
        return cls._made(export, function, choice)

    @classmethod
    def _made(cls, export: layout.Export, function: Any, choice: Choice) -> Self:
        return cls(
            export.classes,
            export.shape,
            export.sha256,
            function,
            export.pictures,
            export.task,
            export.usual,
            choice,
        )

    @classmethod
    def of_keras(cls, export: layout.Export, model: Any) -> Self:
        """Predict by a Keras model of the export that is loaded already."""
        return cls._made(export, _compiled(model), Choice("tensorflow", 1))

    @classmethod
    def fastest(cls, export: layout.Export, engine: Engine, threads: int, kept: Storage | None) -> Self:
        """Load the model by the engine that `choose` takes where that is left open.

        Args:
            export: As `layout.verify` returned it.
            engine: auto measures.
            threads: Most threads of a call.
            kept: Where figures are kept.

        Raises:
            ModelError: As `of`.
        """
        if engine != "auto":
            return cls.of(export, engine, threads)
        choice = choose(export, threads, kept)
        name: Any = choice.engine
        return replace(cls.of(export, name, choice.threads, choice.batch), choice=choice)

    def warm(self) -> None:
        """Predict once alone and in batches, so that no request waits for the first trace."""
        for count in (1, 2, 16):
            self.predict(np.zeros((count, *self.shape), np.uint8))

    def predict(self, images: Images) -> npt.NDArray[np.float32]:
        """Classify images.

        Args:
            images: uint8 [N, H, W, C], pixel values 0 to 255.

        Returns:
            Outputs of the task, float32 [N, K].

        Raises:
            ModelError: Another type or shape.
        """
        given = f"{images.dtype} {list(images.shape)}"
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.shape:
            raise ModelError(f"the model takes uint8 {['N', *self.shape]}, not {given}.".replace("'", ""))
        probabilities = np.empty((len(images), len(self.classes)), np.float32)
        for at in range(0, len(images), _BATCH):
            probabilities[at : at + _BATCH] = self.function(images[at : at + _BATCH])
        return probabilities


def _model(export: layout.Export) -> Any:
    path = export.folder / MODEL
    model = _load(path)
    _require_classifier(path, model, export)
    return model


@dataclass(frozen=True)
class Embedder:
    """A verified model that gives its features, too. Final.

    Attributes:
        predictor: The model by its Keras file, whatever copies it has.
        function: uint8 [N, H, W, C] to outputs, float32 [N, K], and features, float32 [N, F].
    """

    predictor: Predictor
    function: Any

    @classmethod
    def of(cls, export: layout.Export) -> Self:
        """Load the Keras model of a verified export.

        Raises:
            ModelError: Unsafe to load, or its last layer with weights takes no vectors of features.
        """
        model = _model(export)
        predictor = Predictor.of_keras(export, model)
        import tensorflow as tf

        from distml.models import transform

        places = transform.inside(model)
        if places.head is None:
            raise ModelError(
                "the model has no features: its last layer with weights takes no vectors.",
                "Leave out --embeddings, or end the network with pooling and a dense layer.",
            )

        def look(images: Any) -> Any:
            seen = transform.look(model, places, images)
            return seen.outputs, tf.cast(seen.features, tf.float32)

        signature = [tf.TensorSpec([None, *export.shape], tf.uint8)]
        return cls(predictor, tf.function(look, input_signature=signature, autograph=False))

    def predict(self, images: Images) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Outputs and features of images; see `Predictor.predict`."""
        some = images if len(images) else np.zeros((1, *self.predictor.shape), np.uint8)  # for the width
        parts = [self.function(some[at : at + _BATCH]) for at in range(0, len(some), _BATCH)]
        outputs, features = (np.concatenate(values)[: len(images)] for values in zip(*parts, strict=True))
        return outputs, features


def _keras() -> Any:
    """Import Keras on TensorFlow, independent of the user's Keras settings."""
    environment.PREDICTOR.apply()
    with compat.imports():
        import keras
    environment.plain(keras)
    return keras


def _load(path: Path) -> Any:
    keras = _keras()
    try:
        # Safe mode rejects Lambda layers and configurations that name functions of other modules.
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises nearly anything on a model it cannot or will not load
        cause = (str(error).strip() or type(error).__name__).split("\n")[0][:300]
        raise ModelError(
            f"{path} cannot be loaded safely: {cause}",
            "Layers of your own need @keras.saving.register_keras_serializable; Lambda layers are rejected.",
        ) from error


def _require_classifier(path: Path, model: Any, export: layout.Export) -> None:
    actual = (getattr(model, "input_shape", None), getattr(model, "output_shape", None))
    expected = ((None, *export.shape), (None, len(export.classes)))
    if actual != expected:
        raise ModelError(f"{path} maps {actual[0]} to {actual[1]}, expected {expected[0]} to {expected[1]}.")


def _compiled(model: Any) -> Any:
    """One graph for every batch size."""
    import tensorflow as tf

    def predict(images: Any) -> Any:
        return model(images, training=False)

    images = tf.TensorSpec([None, *model.input_shape[1:]], tf.uint8)
    return tf.function(predict, input_signature=[images], autograph=False)

"""Tries a network and functions of the user's before training: calls, exports, reloads (driver).

Training may take hours, and an export that cannot be loaded would be noticed at its end. The trial runs in a
process beside the driver's, while Ray starts and the data are prepared: it imports TensorFlow, lets a child
import the user's module, build and export the untrained network, and then, having seen none of the user's
code, loads every format as `predict` and the endpoint will. What went well is kept under the storage root
until the user's files change. Loss, metrics, optimizer, schedule and layers of the user's are called there,
too. What is ours is not tried.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import site
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from distml import __version__, errors, tasks
from distml.config import Config, TrainConfig, functions
from distml.errors import DistmlError, ModelError
from distml.models import registry
from distml.runtime import environment
from distml.storage import Storage
from distml.tasks import Task

FOLDER = "preflight"
"""Below the storage root: what went well, by network, shape and versions."""
TIMEOUT_S = 600.0
AGREEMENT = 1e-3
"""Greatest difference of an output, by its task, between the network and a format of its export."""
_EXAMPLES = 2
_DECORATOR = "@keras.saving.register_keras_serializable()"


_TRIAL = 2
"""Counts up when a trial finds what an earlier one did not; those that were kept are repeated then."""


@dataclass(frozen=True)
class Case:
    """What is tried.

    Args:
        name: `module:function`.
        shape: Height, width and channels of an image.
        classes: Number of classes, labels or numbers that are predicted.
        task: What describes the task beside their names.
        options: For the builder.
        views: Of an image that predictions average, as `model.views` has them.
        freeze_epochs: As `model.freeze_epochs` has them; where there are any, a backbone is needed.
        train: Keys of the training section that name functions of the user's, with their options.
        metrics: As `evaluate.metrics`.
    """

    name: str
    shape: tuple[int, int, int]
    classes: int
    task: dict[str, Any]
    options: dict[str, Any]
    views: tuple[str, ...]
    freeze_epochs: int = 0
    train: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Digest of everything but the user's files."""
        versions = [_TRIAL, __version__, metadata.version("keras"), sys.version]
        network = [self.name, self.shape, self.classes, self.task, self.options, self.views]
        text = json.dumps([*network, self.freeze_epochs > 0, self.train, self.metrics, versions])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def of(config: Config, shape: tuple[int, int, int], task: Task) -> Case | None:
    """Return what is to be tried, None where nothing is the user's."""
    model, train, metrics = config.model, _own(config.train), config.evaluate.own_metrics
    if ":" not in model.name and not train and not metrics:
        return None
    options, views = dict(model.builder_options), tuple(model.views)
    described = (model.name, shape, len(task.names), task.spec(), options, views, model.freeze_epochs)
    return Case(*described, train, metrics)


def _own(train: TrainConfig) -> dict[str, Any]:
    """Keys that name functions of the user's, and their options."""
    options = {
        "loss": {},
        "optimizer": {"optimizer_options": train.optimizer_options},
        "schedule": {"schedule_options": {"own": train.schedule_options.own}},
    }
    named = {key: getattr(train, key) for key in options if ":" in getattr(train, key)}
    given = {key: value for name in named for key, value in options[name].items()}
    layers = [layer for layer in train.augment.layers if any(":" in name for name in layer)]
    return named | given | ({"augment": {"layers": layers}} if layers else {})


def run(case: Case, storage: Storage) -> list[str]:
    """Try a network, or take what is known of it (driver).

    Args:
        case: What is tried.
        storage: Keeps what went well.

    Returns:
        Remarks for the user, a sentence each.

    Raises:
        ConfigError: The builder cannot be imported or does not take its options.
        ModelError: The network cannot be built, trained, exported or loaded again.
    """
    known = _known(case, storage)
    if known is not None:
        return known
    words = [sys.executable, "-m", "distml.training.preflight"]
    done = subprocess.run(
        words,
        input=json.dumps(vars(case)),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S,
        env=os.environ | environment.PREFLIGHT.values(),
        check=False,
    )
    try:
        outcome = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1][:300]
        raise ModelError(f"trying {case.name} ended with exit code {done.returncode}: {last}") from None
    if "error" in outcome:
        kind = getattr(errors, outcome["error"]["kind"], ModelError)
        raise kind(outcome["error"]["message"], outcome["error"]["remedy"])
    kept = {"files": outcome["files"], "notes": outcome["notes"]}
    storage.write_bytes(json.dumps(kept).encode(), FOLDER, f"{case.key}.json")
    return list(outcome["notes"])


def _known(case: Case, storage: Storage) -> list[str] | None:
    """The remarks of a trial that went well before, None where there was none or a file changed since."""
    if not storage.exists(FOLDER, f"{case.key}.json"):
        return None
    try:
        kept = json.loads(storage.read_text(FOLDER, f"{case.key}.json"))
        files = dict(kept["files"])
        if not files or any(_sha256(path) != digest for path, digest in files.items()):
            return None
        return list(kept["notes"])
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _sha256(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def main() -> None:
    """Try the network that standard input describes; the outcome is one line of standard output."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the user's module prints
    given = json.load(sys.stdin)
    tuples = {key: tuple(given[key]) for key in ("shape", "views", "metrics")}
    case = Case(**given | tuples)
    with tempfile.TemporaryDirectory(prefix="distml-preflight-") as folder, answer:
        try:
            outcome = _try(case, Path(folder))
        except DistmlError as error:
            outcome = {"error": _told(error)}
        json.dump(outcome, answer)


def _told(error: DistmlError) -> dict[str, str]:
    return {"kind": type(error).__name__, "message": error.message, "remedy": error.remedy}


def _try(case: Case, folder: Path) -> dict[str, Any]:
    _import()
    # The child is a copy of this process, so TensorFlow is imported once, and the user's module in it alone.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    child = context.Process(target=_build, args=(case, folder))
    child.start()
    child.join()
    try:
        outcome: dict[str, Any] = json.loads((folder / "outcome.json").read_text("utf-8"))
    except OSError:
        raise ModelError(f"{case.name} ended the process that built it ({child.exitcode}).") from None
    if "error" in outcome:
        return outcome
    reloaded = _reloaded(case, folder / "export", outcome) if ":" in case.name else []
    notes = [*outcome["notes"], *reloaded]
    return {"notes": notes, "files": outcome["files"]}


def _import() -> None:
    from distml.training import worker

    worker.import_tensorflow(use_gpu=False, local_world_size=2)
    from distml.artifacts import export  # noqa: F401 - what it imports takes seconds
    from distml.models import transform  # noqa: F401


def _build(case: Case, folder: Path) -> None:
    """Build, train for a step, ask and export the network; imports the user's module (the child)."""
    _import()
    notes = _Notes()
    logging.getLogger("distml.models").addHandler(notes)
    (folder / "export").mkdir()
    try:
        _call_functions(case)
        outcome: dict[str, Any] = {"files": _files()}
        if ":" in case.name:
            outcome = _exported(case, folder / "export")
        outcome["notes"] = notes.texts
    except DistmlError as error:
        outcome = {"error": _told(error)}
    (folder / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")


class _Notes(logging.Handler):
    """Keeps what building warns of. Final."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.texts.append(record.getMessage())


_STEPS = 20
"""Steps of an epoch in the trial of a schedule."""


def _call_functions(case: Case) -> None:
    """Call the functions of the user's as training does.

    Raises:
        ModelError: One fails, or returns something else than it should.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    from distml.tasks import losses
    from distml.training import augment, optimizer

    train, task = TrainConfig(**case.train), tasks.restore(_names(case), case.task)
    losses.loss(task, train.loss)
    augment.Augmentation(train.augment, case.shape)
    rates = optimizer.table(train, _STEPS)
    if ":" in train.optimizer:
        made, variable = optimizer.make(train, rates), keras.Variable(np.zeros((2, 2)), dtype="float32")
        made.build([variable])
        _notice_unused_rate(train.optimizer, made, rates)
        step = tf.function(lambda: made.apply([tf.ones([2, 2])], [variable]), autograph=False)
        functions.called(train.optimizer, step, functions.OPTIMIZER)
    rows, random = max(16, 2 * case.classes), np.random.default_rng(0)
    targets = task.empty(rows)  # every class, and every label with and without
    targets.T[...] = np.arange(rows) % (case.classes if targets.ndim == 1 else 2)
    outputs = task.activate(random.normal(size=(rows, case.classes)))
    for metric in case.metrics:
        first = functions.measured(metric, targets, outputs)
        functions.measured(metric, targets, outputs[::-1])
        if abs(functions.measured(metric, targets, outputs) - first) > AGREEMENT:
            raise ModelError(
                f"{functions.METRIC.key}: {metric} returns another number for the same rows, when it has "
                "measured others.",
                "Keep nothing between calls, as a metric object of Keras does, and seed what is random.",
            )


def _notice_unused_rate(name: str, optimizer: Any, rates: list[float]) -> None:
    """Warn where an optimizer of the user's has a learning rate of its own."""
    used = []
    for step in (rates.index(min(rates)), rates.index(max(rates))):
        optimizer.iterations.assign(step)
        used.append(float(optimizer.learning_rate))
    optimizer.iterations.assign(0)
    tolerated = AGREEMENT * max(rates)
    if used[0] == used[1] and max(abs(used[0] - rate) for rate in rates) > tolerated:
        logging.getLogger("distml.models").warning(
            "%s keeps a learning rate of %g: train.learning_rate and train.schedule change nothing; "
            "give the first argument on to the optimizer.",
            *(name, used[0]),
        )


def _exported(case: Case, folder: Path) -> dict[str, Any]:
    import numpy as np

    from distml.artifacts import export
    from distml.config import ExportConfig
    from distml.models import transform

    network = registry.build(case.name, case.shape, case.classes, case.options, 0, case.task["kind"])
    files, own = _files(), _own_classes(network)
    if case.freeze_epochs and transform.split(network) is None:
        raise transform.no_backbone(case.name, case.freeze_epochs)
    try:
        _step(network, case)
    except Exception as error:  # any error of the user's layers becomes an error message
        place, remedy = functions.raised_at(case.name, error), registry.remedy_of(error)
        raise ModelError(f"{case.name} cannot be trained{place}: {functions.brief(error)}", remedy) from error
    images = np.random.default_rng(0).integers(0, 256, (_EXAMPLES, *case.shape), np.uint8)
    pixels = images.astype(np.float32)
    logits, again = (np.asarray(network(pixels, training=False)) for _ in range(2))
    _require_logits(case, logits, again)
    if case.views:
        network = transform.averaged(network, case.views)
    described = {"name": "preflight", "classes": _names(case), "shape": case.shape, "task": case.task}
    try:
        wanted = ExportConfig(formats=["keras", "saved_model", "litert"])  # others are left out, not refused
        export.export(network, folder, described | {"policy": None}, images, wanted)
    except Exception as error:  # Keras raises anything on what it cannot save
        remedy = f"Put {_DECORATOR} above {own} and give it a get_config with every argument." if own else ""
        if "untracked" in str(error):  # what a metric or a variable inside `call` is for a SavedModel
            remedy = (
                f"Leave out what {own or 'a layer'} updates in call, as a metric; state belongs into weights."
            )
        raise ModelError(f"{case.name} cannot be exported: {functions.brief(error)}", remedy) from error
    served = export.served(network, tasks.restore(_names(case), case.task))
    return {
        "images": images.tolist(),
        "outputs": np.asarray(served(images, training=False)).tolist(),
        "own": own,
        "files": files,
    }


def _names(case: Case) -> list[str]:
    return [str(number) for number in range(case.classes)]


def _step(network: Any, case: Case) -> None:
    """Compute gradients of one batch in a graph, as training does."""
    import tensorflow as tf

    @tf.function(autograph=False)
    def gradients(pixels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = network(pixels, training=True)
            loss = tf.reduce_mean(tf.square(logits))
        return tape.gradient(loss, [variable.value for variable in network.trainable_variables])

    gradients(tf.zeros((_EXAMPLES, *case.shape)))


def _require_logits(case: Case, logits: Any, again: Any) -> None:
    """Reject what no shape shows: probabilities instead of logits, and answers left to chance."""
    import numpy as np

    if not np.isfinite(logits).all():
        raise ModelError(f"{case.name} gives numbers that are not finite before it is trained.")
    if np.abs(logits - again).max() > AGREEMENT:
        place = registry.line_of(case.name, "training")
        raise ModelError(
            f"{case.name} returns different outputs for the same input{place}.",
            "Random layers may be active only in training: leave out training=True.",
        )
    if case.task["kind"] != "regression" and (logits >= 0).all() and (logits <= 1).all():
        if place := registry.line_of(case.name, "sigmoid"):
            logging.getLogger("distml.models").warning(
                "%s seems to end in a sigmoid%s: the export adds what the task needs, end it in logits.",
                *(case.name, place),
            )
    sums_to_one = case.task["kind"] == "classification" and (logits >= 0).all()
    if sums_to_one and np.allclose(logits.sum(axis=1), 1, atol=1e-3):
        place = registry.line_of(case.name, "softmax", "Softmax")
        raise ModelError(
            f"{case.name} ends in a softmax{place}, which the loss and the export contain already.",
            "Leave it out: end in Dense(classes) without an activation.",
        )


def _own_classes(network: Any) -> str:
    """Layers of the user's in a network, each with its line; empty where there are none."""
    from distml.runtime import compat

    places = []
    for kind in dict.fromkeys(type(layer) for layer in compat.layers(network)):
        if kind.__module__.partition(".")[0] in ("keras", "distml"):
            continue
        try:
            line = f"{Path(inspect.getsourcefile(kind) or '').name} line {inspect.getsourcelines(kind)[1]}"
        except (OSError, TypeError):
            line = kind.__module__
        places.append(f"{kind.__name__} ({line})")
    return ", ".join(places)


_OF_THE_SYSTEM = ("sitecustomize", "usercustomize")
"""Modules that Python imports when it starts; Debian keeps one in /etc."""


def _files() -> dict[str, str]:
    """SHA-256 of every Python file that was imported from neither Python, its packages nor distml."""
    ours = Path(__file__).parents[1]
    packages = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    packages += [*site.getsitepackages(), site.getusersitepackages()]
    known = [Path(folder).resolve() for folder in packages]
    files = {}
    for name, module in dict(sys.modules).items():
        path = getattr(module, "__file__", None)
        if not path or not path.endswith(".py") or name in _OF_THE_SYSTEM:
            continue
        place = Path(path).resolve()
        if not any(place.is_relative_to(folder) for folder in (*known, ours)):
            files[str(place)] = _sha256(str(place))
    return files


def _reloaded(case: Case, folder: Path, outcome: dict[str, Any]) -> list[str]:
    """Load every format in this process, which knows none of the user's code; returns remarks."""
    import numpy as np
    import tensorflow as tf

    from distml.artifacts import layout
    from distml.artifacts.predictor import Predictor

    images, expected = np.array(outcome["images"], np.uint8), np.array(outcome["outputs"], np.float32)
    export = layout.verify(folder)
    notes = []
    converted = (folder / layout.LITE).exists()
    try:
        _require_same(case, ".keras", Predictor.of(export, "tensorflow").predict(images), expected)
    except ModelError as error:
        if not converted:
            own = outcome["own"] or "Lambda layers"
            raise ModelError(
                f"{case.name} cannot be loaded where its module is not imported, and LiteRT lacks an "
                f"operation of it.",
                f"Use layers of Keras for {own}, or leave out what LiteRT does not take; {_DECORATOR} helps "
                "only processes that import the module.",
            ) from error
        notes.append(f"{case.name} is served by LiteRT alone: its .keras file needs your module.")
    if converted:
        _require_same(case, "LiteRT", Predictor.of(export).predict(images), expected)
    else:
        notes.append(f"{case.name} has an operation that LiteRT lacks and is served by TensorFlow.")
    loaded = tf.saved_model.load(str(folder / layout.SAVED_MODEL)).signatures["serving_default"]
    (saved,) = loaded(image=tf.constant(images)).values()
    _require_same(case, "SavedModel", saved.numpy(), expected)
    return notes


def _require_same(case: Case, form: str, actual: Any, expected: Any) -> None:
    difference = tasks.restore(_names(case), case.task).difference(actual, expected)
    if not difference <= AGREEMENT:
        raise ModelError(
            f"{case.name} exported as {form} gives outputs that differ by {difference:g}.",
            "Look for layers that keep state outside their weights.",
        )


if __name__ == "__main__":
    main()

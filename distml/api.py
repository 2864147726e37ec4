"""The Python API: the verbs of the command line as functions with typed results (driver).

Errors are those of the command line (`distml.errors`); progress goes to standard error. Importing this module
imports neither Ray nor TensorFlow nor MLflow: each function does when it is called.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

from distml.config import Config

if TYPE_CHECKING:
    from distml.data.manifest import Manifest
    from distml.serving.deploy import Endpoint

Result = TypeVar("Result")

__all__ = [
    "Config",
    "Decision",
    "Prediction",
    "Rollback",
    "TrainResult",
    "drift",
    "ingest",
    "predict",
    "promote",
    "rollback",
    "serve",
    "train",
]


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run or of a sweep.

    Attributes:
        run_id: MLflow run; of a sweep, that of the best candidate.
        model: Name in the registry.
        version: Registered version, None where the tracking server was unreachable.
        val_accuracy: Share of the validation rows that were classified right; None for another task, whose
            metrics are in `result`.
        test_accuracy: The same of the test rows; None where there are none.
        artifacts: URI of the exported model.
        figures: URI of each figure by name, as `learning_curves` and `confusion_matrix`.
        report: URI of the HTML report.
        result: The whole result line of the command line.
    """

    run_id: str | None
    model: str
    version: int | None
    val_accuracy: float | None
    test_accuracy: float | None
    artifacts: str | None
    figures: dict[str, str]
    report: str | None
    result: Mapping[str, Any]

    @classmethod
    def of(cls, config: Config, result: Mapping[str, Any]) -> Self:
        """Make it of a result line."""
        version, artifacts = result.get("version"), result.get("artifacts")
        figures, report = _drawn(config, artifacts)
        return cls(
            run_id=result.get("run_id"),
            model=result["model"],
            version=None if version is None else int(version),
            val_accuracy=result.get("val_accuracy"),
            test_accuracy=result.get("test_accuracy"),
            artifacts=artifacts,
            figures=figures,
            report=report,
            result=result,
        )


def _drawn(config: Config, artifacts: str | None) -> tuple[dict[str, str], str | None]:
    """Figures by name and the report of an export, where it has them."""
    from distml.reports import page
    from distml.storage import Storage

    if artifacts is None:
        return {}, None
    export = Storage(artifacts)
    names = [name for name in export.names("figures") if name.endswith(".png")]
    figures = {name.removesuffix(".png"): export.uri("figures", name) for name in names}
    written = export.exists(page.FOLDER, page.FILE)
    return figures, export.uri(page.FOLDER, page.FILE) if written else None


@dataclass(frozen=True)
class Decision:
    """The result of a promotion.

    Attributes:
        decision: promoted or kept; with `dry_run` what it would be.
        why: In one sentence.
        champion: The version that is champion now.
        previous: The previous champion.
        version: The best candidate.
        run_id: MLflow run of the best candidate.
        val_accuracy: The best candidate's share of the validation rows; None for another task.
        test_accuracy: The same of the test rows: reported, never used.
        champion_val_accuracy: What the earlier champion scored on the same rows.
        candidates: Validation accuracy by name.
        dry_run: Whether nothing was changed.
    """

    decision: str
    why: str
    champion: int | None
    previous: int | None
    version: int
    run_id: str
    val_accuracy: float | None
    test_accuracy: float | None
    champion_val_accuracy: float | None
    candidates: dict[str, float]
    dry_run: bool

    @property
    def promoted(self) -> bool:
        """Whether the best candidate is the champion from now on."""
        return self.decision == "promoted" and not self.dry_run


@dataclass(frozen=True)
class Rollback:
    """The result of a rollback.

    Attributes:
        decision: rolled back or kept; with `dry_run` what it would be.
        why: In one sentence.
        champion: The version that is champion now.
        previous: The previous champion.
        dry_run: Whether nothing was changed.
    """

    decision: str
    why: str
    champion: int | None
    previous: int | None
    dry_run: bool


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image file.

    Attributes:
        file: As it was given.
        label: Name of the most probable class; None for another task.
        probability: Of that class, 0 to 1; None for another task.
        top: The most probable names and their probabilities, best first; empty for regression.
        result: The whole prediction as in the result line: `labels` of a multilabel model, `values` of a
            regression.
    """

    file: str
    label: str | None
    probability: float | None
    top: tuple[tuple[str, float], ...]
    result: Mapping[str, Any]

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> Self:
        """Make it of a member of `predictions` of a result line."""
        return cls(
            file=result["file"],
            label=result.get("class"),
            probability=result.get("probability"),
            top=tuple((entry["class"], entry["probability"]) for entry in result.get("top", ())),
            result=result,
        )


def ingest(config: Config) -> Manifest:
    """Prepare the data, unless they are prepared already.

    Returns:
        The manifest: rows by split, classes, shape, digest, where every byte came from.

    Raises:
        DataError: The data cannot be had or used; nothing was published.
    """
    from distml.data import ingestion
    from distml.storage import Storage

    return ingestion.prepare(config, Storage(config.storage.root))


def train(config: Config) -> TrainResult:
    """Train, evaluate, track and register one model, or every candidate of a sweep.

    SIGTERM interrupts it as Ctrl-C does, unless the program has a handler of its own.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed; the same call resumes from its last checkpoint.
        KeyboardInterrupt: It was interrupted; the same call resumes.
    """
    from distml.runtime import processes
    from distml.training import run

    with processes.interruptible(at_end=False):
        return TrainResult.of(config, run.train(config))


def promote(
    config: Config,
    *,
    run: str | None = None,
    version: int | None = None,
    dry_run: bool = False,
    replace: bool = False,
) -> Decision:
    """Evaluate candidates on validation rows; the best becomes champion if it beats the present one.

    Args:
        config: The rules, the data and the registry.
        run: Sweep, run or MLflow run id whose models are candidates; `*` for every version.
        version: This version is the only candidate.
        dry_run: Decide and change nothing.
        replace: Promote even where the champion cannot be measured.

    Raises:
        DistmlError: The registry does not respond or no candidate may win; the champion has not changed.
    """
    from distml.selection import promotion

    result = promotion.promote(config, run, version, dry_run, replace)
    return Decision(**{field.name: result[field.name] for field in dataclasses.fields(Decision)})


def rollback(config: Config, *, version: int | None = None, dry_run: bool = False) -> Rollback:
    """Make the previous champion, or the version that is named, the champion without an evaluation.

    Raises:
        DistmlError: There is no such version; the champion has not changed.
    """
    from distml.selection import promotion

    result = promotion.rollback(config, version, dry_run)
    return Rollback(**{field.name: result[field.name] for field in dataclasses.fields(Rollback)})


def predict(
    config: Config,
    images: Sequence[str],
    *,
    run: str | None = None,
    version: int | None = None,
    url: str | None = None,
    top: int = 3,
) -> list[Prediction]:
    """Classify image files with the champion, or the model that is named.

    Args:
        config: Names storage and registry.
        images: Paths of image files and folders, and patterns like `photos/*.jpg`.
        run: Name of a run, or an MLflow run id, whose model is asked.
        version: Registered version that is asked.
        url: Address of an endpoint that is asked instead.
        top: Classes listed for an image.

    Returns:
        One prediction an image, in the order given.

    Raises:
        ConfigError: `url` stands beside `run` or `version`, or is not one of HTTP.
        DataError: A file cannot be read; the first and the number of others are named.
        DistmlError: There is no model to ask, or it cannot be trusted.
    """
    from distml.batch import files
    from distml.errors import ConfigError, DataError
    from distml.serving import client

    if url and (run or version):
        raise ConfigError("url uses the model of that endpoint.", "Leave out run and version.")
    if url:
        result = files.classify(images, top, *client.asking(url))
    else:
        result = files.predict_files(config, images, run=run, version=version, top=top)
    failed = result.get("failed", [])
    if failed:
        more = f" ({len(failed) - 1} more cannot be read.)" if len(failed) > 1 else ""
        raise DataError(f"{failed[0]['error']}{more}")
    return [Prediction.of(prediction) for prediction in result["predictions"]]


def drift(config: Config) -> Mapping[str, Any]:
    """Compare logged requests (`log.enabled`) with the training data.

    Returns:
        `drifted` (None where too few rows are logged), `rows`, `versions`, the largest stability indices, and
        the places of the figure and of the whole comparison.

    Raises:
        DataError: The training data are not prepared, or a file of the log is damaged.
        StorageError: The storage cannot be read or written.
    """
    from distml.reports import drift as comparison

    return comparison.check(config)


@contextlib.contextmanager
def serve(config: Config) -> Iterator[Endpoint]:
    """Serve the champion over HTTP while the block runs.

    Gives:
        The endpoint that answers: `url`, `model` and `version`.

    Raises:
        DistmlError: It cannot be started.
    """
    from distml.runtime import cluster
    from distml.serving import deploy

    deploy.require(config, before_ray=True)
    with cluster.connect(config, variables=deploy.prepare(config), dashboard=False):
        endpoint = _in_thread(lambda: deploy.start(config))
        try:
            yield endpoint
        finally:
            _in_thread(deploy.stop)


def _in_thread(call: Callable[[], Result]) -> Result:
    """Call in a new thread: Ray Serve's handles do not work in one with an event loop, as in notebooks."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()

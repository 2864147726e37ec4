"""Evaluates registered model versions on the same held-out rows (driver).

Numbers that a run logged are not trusted: the files are fetched, verified against the registry's SHA-256,
tried on the example that they carry, and measured.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from distml import log
from distml.artifacts.layout import CLASSES, EXAMPLE, LITE
from distml.config import Config
from distml.data import shards
from distml.data.schema import Images
from distml.errors import ModelError, OtherDataError
from distml.runtime import processes
from distml.selection.gate import Sample, Score
from distml.storage import Storage
from distml.tasks import Outputs, Targets, Task
from distml.tracking import locate
from distml.tracking.registry import ModelVersion

if TYPE_CHECKING:
    from distml.artifacts.predictor import Predictor

_SAME = 1e-4
"""How far the outputs of the copy that is served may be from the model's own, in units of the task."""
_TIMES = 20
"""Predictions of which the median time counts."""


def measure(
    task: Task, outputs: Outputs, targets: Targets, version: int, latency_ms: float | None = None
) -> Score:
    """Score predictions.

    Args:
        task: Of the version, with its thresholds.
        outputs: float32 [N, K].
        targets: [N] or [N, K].
        version: Of the model.
        latency_ms: Of one image.
    """
    return Score(
        version,
        task.measure(targets, outputs),
        len(targets),
        float(np.mean(task.correct(targets, outputs))),
        task.recalls(targets, outputs),
        latency_ms,
        Sample(task, targets, outputs),
    )


@dataclass(frozen=True)
class Trusted:
    """A version that has been verified and tried.

    Attributes:
        predictor: Its model.
        data_digest: Of the data it was trained on, as its export says; "" where that says nothing.
        served: Its model as an endpoint loads it.
    """

    predictor: Predictor
    data_digest: str
    served: Predictor

    def latency_ms(self) -> float:
        """Median time of a prediction for one image, by what is served."""
        image = np.zeros((1, *self.served.shape), np.uint8)
        self.served.warm()
        times = []
        for _ in range(_TIMES):
            began = time.perf_counter()
            self.served.predict(image)
            times.append(time.perf_counter() - began)
        return float(np.median(times) * 1e3)


class Evaluator:
    """Scores versions on one prepared data set, each once. Final.

    Args:
        config: Names the registry.
        storage: Where the data are.
        manifest: Of the data.
    """

    def __init__(self, config: Config, storage: Storage, manifest: shards.Manifest) -> None:
        self._config, self.storage, self.manifest = config, storage, manifest
        self._scores: dict[tuple[int, str], Score] = {}
        self._splits: dict[str, tuple[Images, Targets]] = {}
        self.trained_on: dict[int, str] = {}

    def score(self, version: ModelVersion, split: str = "validation") -> Score:
        """Verify, try and measure a version; afterwards `trained_on` says on which data it was trained.

        Raises:
            TrackingError: Its files are gone, or lie where no model of ours lies.
            ModelError: They are not what was registered, do not load safely, or give no probabilities.
            OtherDataError: The model knows other classes or pictures than the data.
        """
        key = (version.version, split)
        if key not in self._scores:
            folders = tempfile.TemporaryDirectory(prefix="distml-promote-")
            with processes.interruptible(), folders as folder, log.quietly():
                loaded = trusted(self._config, version, Path(folder))
                self._require_comparable(version, loaded.predictor)
                images, labels = self._read(split)
                self.trained_on[version.version] = loaded.data_digest
                predictor, latency_ms = loaded.predictor, loaded.latency_ms()
                outputs = predictor.predict(images)
                task = predictor.task.configured(self._config.evaluate.top_k).judged_on(self.manifest.task)
                self._scores[key] = measure(task, outputs, labels, version.version, latency_ms)
        return self._scores[key]

    def _read(self, split: str) -> tuple[Images, Targets]:
        if split not in self._splits:
            self._splits[split] = shards.read(self.storage, self.manifest, split)
        return self._splits[split]

    def _require_comparable(self, version: ModelVersion, predictor: Predictor) -> None:
        manifest = self.manifest
        kinds = [task.kind for task in (predictor.task, manifest.task)]
        if kinds[0] != kinds[1]:
            raise OtherDataError(
                f"version {version.version} is a model of {kinds[0]}, but {manifest.name} is for {kinds[1]}.",
                "Give models for another task another tracking.registered_model.",
            )
        if (predictor.classes, predictor.shape) != (manifest.classes, manifest.shape):
            raise OtherDataError(
                f"version {version.version} has {_kinds(predictor.classes, predictor.shape)}, "
                f"but {manifest.name} has {_kinds(manifest.classes, manifest.shape)}.",
                "Give models for other data another tracking.registered_model.",
            )


def _kinds(classes: tuple[str, ...], shape: tuple[int, int, int]) -> str:
    names = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
    return f"{len(classes)} classes ({names}) of {'x'.join(map(str, shape))} pictures"


@processes.interruptible()
def trusted(config: Config, version: ModelVersion, into: Path) -> Trusted:
    """Fetch, verify, load and try a version; TensorFlow is imported here.

    Raises:
        TrackingError: Its files are gone, or lie where no model of ours lies.
        ModelError: They are not what was registered, do not load safely, or give no probabilities.
    """
    export = locate.verified(config, version, into)
    folder = export.folder
    from distml.artifacts.predictor import Predictor

    # The Keras model is what other programs load; only this check shows that it loads safely.
    predictor = Predictor.of(export, "tensorflow")
    images, outputs = _try(version, predictor, folder / EXAMPLE)
    served = predictor
    if (folder / LITE).exists():
        served = Predictor.of(export, "litert")
        if not predictor.task.difference(served.predict(images), outputs) <= _SAME:
            raise ModelError(
                f"the LiteRT copy of {version.name} version {version.version} predicts differently.",
                "Train it again.",
            )
    described = json.loads((folder / CLASSES).read_text("utf-8"))
    return Trusted(predictor, str(described.get("data_digest") or ""), served)


def _try(
    version: ModelVersion, predictor: Predictor, example: Path
) -> tuple[Images, npt.NDArray[np.float32]]:
    """Ask the model about the pictures it was exported with, the smoke test; returns both."""
    what = f"{version.name} version {version.version}"
    try:
        images = np.asarray(json.loads(example.read_text("utf-8"))["inputs"], np.uint8)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the example of {what} cannot be read: {error!r}.", "Train it again.") from None
    outputs = predictor.predict(images)
    predictor.task.check_outputs(outputs, what)
    return images, outputs

"""Executes queued or spooled operations by MLflow calls, model registration included (driver)."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.config import Config
from distml.storage import Storage
from distml.tasks import quality
from distml.tracking.operations import (
    CloseRun,
    LogArtifacts,
    LogDataset,
    LogMetrics,
    LogText,
    OpenRun,
    Operation,
    RegisterModel,
)
from distml.tracking.server import artifact_location, client, is_deleted, relocate

if TYPE_CHECKING:
    from mlflow import MlflowClient


@contextmanager
def local(storage: Storage, parts: list[str]) -> Iterator[Path]:
    """A folder of the storage root as a local folder, copied only when it is remote."""
    if storage.local:
        yield Path(storage.uri(*parts))
        return
    with tempfile.TemporaryDirectory() as folder:
        storage.download(folder, *parts)
        yield Path(folder)


def publish(client: MlflowClient, config: Config, run_id: str, described: dict[str, Any]) -> int:
    """Log the export of a run as a model and register it; doing it twice makes one version.

    Args:
        client: Connected to the server.
        config: Names the storage root and the registered model.
        run_id: The run that trained it.
        described: `parts` of the export, `shape`, `classes` (a number), `metrics`, `digest`.

    Returns:
        The version.
    """
    model_id = _logged(client, run_id) or _log(client, config, run_id, described)
    return _register(client, config.tracking.registered_model, run_id, model_id, described)


def _logged(client: MlflowClient, run_id: str) -> str | None:
    """The model of a run that was logged whole already."""
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    ready = [str(model.model_id) for model in logged if str(model.status).endswith("READY")]
    return ready[0] if ready else None


def _log(client: MlflowClient, config: Config, run_id: str, described: dict[str, Any]) -> str:
    from mlflow.entities import LoggedModelOutput, Metric

    experiment, digest = client.get_run(run_id).info.experiment_id, described["digest"]
    model = client.create_logged_model(
        experiment, "model", run_id, tags={"sha256": digest}, model_type="classifier"
    )
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    storage = Storage(config.storage.root)
    with local(storage, described["parts"]) as folder, tempfile.TemporaryDirectory() as beside:
        _describe(folder, Path(beside), run_id, model, described)
        client.log_model_artifacts(model.model_id, str(folder))
        client.log_model_artifacts(model.model_id, beside)
    now = int(time.time() * 1000)
    metrics = [
        Metric(key, value, now, 0, model.model_id, run_id=run_id)
        for key, value in described["metrics"].items()
    ]
    client.log_batch(run_id, metrics)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def _register(client: MlflowClient, name: str, run_id: str, model_id: str, described: dict[str, Any]) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if known:
        return int(known[0].version)
    created = client.create_model_version(
        name,
        f"models:/{model_id}",
        run_id,
        tags={"sha256": described["digest"]},
        # Shown in the list of versions, so that they can be compared without opening their runs.
        description=_reached(described["metrics"]),
        model_id=model_id,
    )
    return int(created.version)


def _reached(metrics: Mapping[str, float]) -> str:
    """The main metric of each held-out split, which is the first one besides the loss."""
    main: dict[str, str] = {}
    for name, value in metrics.items():
        split, _, plain = name.partition("_")
        if plain != "loss":
            main.setdefault(split, f"{split} {plain} {quality.digits(value)}")
    return ", ".join(main.values())


def _describe(folder: Path, into: Path, run_id: str, logged: Any, described: dict[str, Any]) -> None:
    """Write the MLmodel file and its environment, so that MLflow loads the export by its Keras flavour.

    `mlflow.keras.log_model` would do it from a live model, and import TensorFlow into the driver.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    model = Model(artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id)
    model.model_id = logged.model_id
    model.signature = _signature(described["shape"], described["classes"])
    model.add_flavor(
        "keras",
        data="data",
        keras_version=version("keras"),
        keras_backend="tensorflow",
        save_exported_model=False,
    )
    pyfunc.add_to_model(model, loader_module="mlflow.keras", python_env="python_env.yaml")
    pinned = [f"{name}=={version(name)}" for name in ("keras", "mlflow", "numpy")]
    (into / "requirements.txt").write_text(
        "\n".join([*pinned, "tensorflow>=2.21,<2.22", ""]), encoding="utf-8"
    )
    (into / "python_env.yaml").write_text(
        "python: '3.11'\ndependencies:\n- -r requirements.txt\n", encoding="utf-8"
    )
    example = (folder / "example.json").read_text("utf-8")
    model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "ndarray",
        "format": "tf-serving",
    }
    (into / "input_example.json").write_text(example, encoding="utf-8")
    (into / "serving_input_example.json").write_text(example, encoding="utf-8")
    model.save(str(into / "MLmodel"))


def _signature(shape: list[int], classes: int) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "image")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes), "probabilities")]),
    )


if TYPE_CHECKING:
    from mlflow import MlflowClient

_OPENING = threading.Lock()


class Sender:
    """Carries operations out. Final; holds the run's id and the registered version once known.

    Args:
        config: The run's configuration.
        run_id: An existing MLflow run to go on with.
    """

    def __init__(self, config: Config, run_id: str | None = None) -> None:
        self.config, self.run_id = config, run_id
        self.version: int | None = None
        self._storage = Storage(config.storage.root)
        self._client: MlflowClient | None = None
        self._logged: dict[str, int] = {}
        self._at: int | None = None  # when the operation was recorded, milliseconds since 1970

    @property
    def client(self) -> MlflowClient:
        """The client, made on first use."""
        if self._client is None:
            self._client = client(self.config)
        return self._client

    def send(self, operation: Operation) -> None:
        """Carry out one operation; raises what MLflow raises."""
        self._at = operation.at
        match operation:
            case OpenRun():
                self._open(operation)
            case LogMetrics():
                self._metrics(operation)
            case LogDataset():
                self._dataset(operation)
            case LogText():
                self.client.log_text(self.run_id, operation.text, operation.file)
            case LogArtifacts():
                with local(self._storage, operation.parts) as folder:
                    self.client.log_artifacts(self.run_id, str(folder), operation.path)
            case RegisterModel():
                self.version = publish(self.client, self.config, str(self.run_id), asdict(operation))
            case CloseRun():
                self._close(operation)
            case _:
                raise NotImplementedError(f"no way to carry out {type(operation).__name__}")

    def _open(self, run: OpenRun) -> None:
        """Open a run, by its key where it has one; a parent is named in the same way."""
        from mlflow.entities import Param, RunTag
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        if self.run_id is None:
            self.run_id = self._run(run.name, run.key)
        tags = dict(run.tags)
        if run.parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = self._run(*run.parent)
        self.resume_metrics()
        if not self._ended_later():
            self.client.update_run(self.run_id, status="RUNNING")
        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(key, value) for key, value in run.params.items() if key not in known]
        self.client.log_batch(
            self.run_id, params=fresh, tags=[RunTag(key, text) for key, text in tags.items()]
        )

    def _run(self, name: str, key: str) -> str:
        """The run of a key, begun where there is none."""
        experiment = self._experiment()
        with _OPENING:  # the runs of a sweep, each on a thread of its own, have one parent
            runs = self.client.search_runs([experiment], f"tags.`distml.key` = '{key}'", max_results=1)
            if runs:
                return str(runs[0].info.run_id)
            created = self.client.create_run(experiment, run_name=name, tags={"distml.key": key})
            return str(created.info.run_id)

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.experiment
        experiment = self.client.get_experiment_by_name(name)  # makes the tables where there are none
        relocate(self.config)
        if experiment:
            if experiment.lifecycle_stage == "deleted":
                raise is_deleted(self.config, str(experiment.experiment_id))
            return str(experiment.experiment_id)
        try:
            return str(
                self.client.create_experiment(
                    name,
                    artifact_location=artifact_location(self.config),
                    # MLflow's page opens on training runs instead of on what is watched of language models.
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            )
        except MlflowException:  # another run made it meanwhile
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def resume_metrics(self) -> None:
        """Learn which steps are on record, so that a resumed run logs each step once."""
        for key in ("step/loss", "loss"):
            history = self.client.get_metric_history(self.run_id, key)
            self._logged[key] = max((metric.step for metric in history), default=-1)

    def _metrics(self, logged: LogMetrics) -> None:
        from mlflow.entities import Metric

        if logged.step <= self._logged.get(logged.guard, -1):
            return
        values = [Metric(key, value, logged.time_ms, logged.step) for key, value in logged.values.items()]
        self.client.log_batch(self.run_id, values)
        self._logged[logged.guard] = logged.step

    def _dataset(self, described: LogDataset) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source, profile = json.dumps({"uri": described.source}), json.dumps(described.profile)
        dataset = Dataset(described.name, described.digest[:36], "local", source, profile=profile)
        tag = InputTag("mlflow.data.context", "training")
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def _close(self, run: CloseRun) -> None:
        from mlflow.entities import RunTag

        if self.run_id is None:  # it ended before it was opened
            return
        self.client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in run.tags.items()])
        if not self._ended_later():
            self.client.set_terminated(self.run_id, run.status, self._at)

    def _ended_later(self) -> bool:
        """Whether the run ended after this was recorded, as where an earlier attempt was spooled."""
        assert self.run_id is not None
        ended = self.client.get_run(self.run_id).info.end_time
        return self._at is not None and ended is not None and ended > self._at

"""Carrying out one operation on the tracking server (driver)."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from typing import TYPE_CHECKING

from distml.config import Config
from distml.storage import Storage
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
from distml.tracking.publish import local, publish
from distml.tracking.server import artifact_location, client

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
        """Open a run, found by its key where there is one; a parent is named in the same way."""
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
        experiment = self.client.get_experiment_by_name(name)
        if experiment:
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

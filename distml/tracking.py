"""The only MLflow: one run per training run, its registry entry, and outages of the server (driver).

Everything that is to be recorded becomes an operation, a plain dictionary, in an outbox. One thread
sends them in order, so an outage delays the record and never the training. What could not be sent when
the run ends stays in a spool file under the storage root and is sent by the next run or by
`distml sync`. Operations carry their own time stamps and steps, so sending one twice records it once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.config import Config
from distml.errors import TrackingError
from distml.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Operation = dict[str, Any]
SPOOL = "tracking-spool"
RETRY_S = (0.5, 1.0, 2.0, 4.0, 5.0)
"""Pauses between tries to reach the server; the last one repeats."""

_QUIET = {
    # The defaults (7 retries, 120 s each) make every call to a server that is away hang for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


def uri(config: Config) -> str:
    """The tracking URI of a configuration: its own, or SQLite under the storage root.

    Raises:
        TrackingError: The storage root is an object store, where SQLite cannot live.
    """
    if config.tracking.uri:
        return config.tracking.uri
    storage = Storage(config.storage.root)
    if not storage.local:
        raise TrackingError(
            f"tracking.uri is not set and SQLite cannot live under {storage.root}.",
            "Set tracking.uri to an MLflow server.",
        )
    return f"sqlite:///{storage.uri('mlflow.db')}"


def _artifacts(config: Config) -> str | None:
    """Where the embedded default keeps artifacts; a server decides for itself."""
    if config.tracking.uri and not config.tracking.uri.startswith("sqlite:"):
        return None
    return Path(Storage(config.storage.root).uri("mlflow-artifacts")).as_uri()


def client(config: Config) -> MlflowClient:
    """A client of the configured server; imports MLflow, which takes seconds."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    address = uri(config)
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # The registry resolves `models:/` sources through the process-wide URI, whatever the client was given.
    mlflow.set_tracking_uri(address)
    return mlflow.MlflowClient(address, address)


def check(config: Config) -> None:
    """Ask the server for something, within about fifteen seconds.

    Raises:
        TrackingError: It does not answer, or refuses.
    """
    try:
        client(config).search_experiments(max_results=1)
    except Exception as error:
        raise TrackingError(
            f"the tracking server {uri(config)} does not answer: {_cause(error)}.",
            "Start it, correct tracking.uri, or set tracking.required to false to record later.",
        ) from error


def _cause(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def _is_outage(error: BaseException) -> bool:
    """Whether trying again later may help: no answer, or the server's own failure."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        code = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 500
        return code >= 500 or code in (408, 429)
    return isinstance(error, requests.RequestException | OSError | sqlalchemy.exc.OperationalError)


class Sender:
    """Carries operations out. Final; holds the run's id and the registered version once known.

    Args:
        config: The run's configuration.
        run_id: An existing MLflow run to go on with.
    """

    def __init__(self, config: Config, run_id: str | None = None) -> None:
        self.config, self.run_id = config, run_id
        self.version: str | None = None
        self._storage = Storage(config.storage.root)
        self._client: MlflowClient | None = None
        self._logged: dict[str, int] = {}

    @property
    def client(self) -> MlflowClient:
        """The client, made on first use."""
        if self._client is None:
            self._client = client(self.config)
        return self._client

    def send(self, operation: Operation) -> None:
        """Carry out one operation; raises what MLflow raises."""
        values = {key: value for key, value in operation.items() if key != "do"}
        getattr(self, f"_do_{operation['do']}")(**values)

    def _do_open(self, name: str, tags: dict[str, str], params: dict[str, str], key: str) -> None:
        from mlflow.entities import Param, RunTag

        if self.run_id is None:
            experiment = self._experiment()
            found = self.client.search_runs([experiment], f"tags.`distml.key` = '{key}'", max_results=1)
            if found:
                self.run_id = found[0].info.run_id
            else:
                created = self.client.create_run(experiment, run_name=name, tags={"distml.key": key})
                self.run_id = created.info.run_id
        self._resume_metrics()
        self.client.update_run(self.run_id, status="RUNNING")
        known = self.client.get_run(self.run_id).data.params
        fresh = [Param(key, value) for key, value in params.items() if key not in known]
        self.client.log_batch(
            self.run_id, params=fresh, tags=[RunTag(key, text) for key, text in tags.items()]
        )

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.experiment
        found = self.client.get_experiment_by_name(name)
        if found:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, artifact_location=_artifacts(self.config)))
        except MlflowException:  # another run made it meanwhile
            found = self.client.get_experiment_by_name(name)
            if found is None:
                raise
            return str(found.experiment_id)

    def _resume_metrics(self) -> None:
        """Learn which steps are on record, so that a resumed run logs each step once."""
        for key in ("step/loss", "loss"):
            history = self.client.get_metric_history(self.run_id, key)
            self._logged[key] = max((metric.step for metric in history), default=-1)

    def _do_metrics(self, guard: str, step: int, time_ms: int, values: dict[str, float]) -> None:
        """Log values of one step unless that step of the `guard` metric is on record already."""
        from mlflow.entities import Metric

        if step <= self._logged.get(guard, -1):
            return
        self.client.log_batch(
            self.run_id, [Metric(key, value, time_ms, step) for key, value in values.items()]
        )
        self._logged[guard] = step

    def _do_dataset(self, name: str, digest: str, source: str, profile: dict[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name, digest[:36], "local", json.dumps({"uri": source}), profile=json.dumps(profile)
        )
        self.client.log_inputs(
            self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        )

    def _do_text(self, file: str, text: str) -> None:
        self.client.log_text(self.run_id, text, file)

    def _do_artifacts(self, parts: list[str], path: str) -> None:
        with _local(self._storage, parts) as folder:
            self.client.log_artifacts(self.run_id, str(folder), path)

    def _do_model(
        self, parts: list[str], shape: list[int], classes: int, metrics: dict[str, float], digest: str
    ) -> None:
        """Log the exported model as MLflow's Keras flavour and register it as a new version."""
        self._register(self._logged_model(parts, shape, classes, metrics, digest), digest)

    def _logged_model(
        self, parts: list[str], shape: list[int], classes: int, metrics: dict[str, float], digest: str
    ) -> str:
        from mlflow.entities import LoggedModelOutput, Metric

        experiment = self.client.get_run(self.run_id).info.experiment_id
        for known in self.client.search_logged_models(
            [experiment], filter_string=f"source_run_id = '{self.run_id}'", max_results=1
        ):
            if str(known.status) in ("READY", "LoggedModelStatus.READY"):
                return str(known.model_id)
        logged = self.client.create_logged_model(
            experiment, "model", self.run_id, tags={"sha256": digest}, model_type="classifier"
        )
        self.client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, 0)])
        with _local(self._storage, parts) as folder, tempfile.TemporaryDirectory() as described:
            _describe(folder, Path(described), self.run_id, logged, shape, classes)
            self.client.log_model_artifacts(logged.model_id, str(folder))
            self.client.log_model_artifacts(logged.model_id, described)
        now = int(time.time() * 1000)
        self.client.log_batch(
            self.run_id,
            [
                Metric(key, value, now, 0, logged.model_id, run_id=self.run_id)
                for key, value in metrics.items()
            ],
        )
        self.client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _register(self, model_id: str, digest: str) -> None:
        from mlflow.exceptions import MlflowException

        name = self.config.tracking.registered_model
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        for known in self.client.search_model_versions(f"name = '{name}' and run_id = '{self.run_id}'"):
            self.version = str(known.version)
            return
        made = self.client.create_model_version(
            name, f"models:/{model_id}", self.run_id, tags={"sha256": digest}, model_id=model_id
        )
        self.version = str(made.version)

    def _do_close(self, status: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, text) for key, text in tags.items()])
        self.client.set_terminated(self.run_id, status)


class _local:  # noqa: N801 - a context manager used as a function
    """A folder of the storage root as a local folder, copied only when it is remote."""

    def __init__(self, storage: Storage, parts: list[str]) -> None:
        self._storage, self._parts = storage, parts
        self._copy: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if self._storage.local:
            return Path(self._storage.uri(*self._parts))
        self._copy = tempfile.TemporaryDirectory()
        self._storage.download(self._copy.name, *self._parts)
        return Path(self._copy.name)

    def __exit__(self, *_: object) -> None:
        if self._copy:
            self._copy.cleanup()


def _describe(
    folder: Path, into: Path, run_id: str | None, logged: Any, shape: list[int], classes: int
) -> None:
    """Write the MLmodel file and its environment, so that MLflow loads the export by its Keras flavour."""
    from importlib.metadata import version

    import numpy as np
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    model = Model(artifact_path=logged.artifact_location, run_id=run_id, model_uuid=logged.model_id)
    model.model_id = logged.model_id
    model.signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "image")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes), "probabilities")]),
    )
    keras, numpy = version("keras"), version("numpy")
    model.add_flavor(
        "keras", data="data", keras_version=keras, keras_backend="tensorflow", save_exported_model=False
    )
    pyfunc.add_to_model(model, loader_module="mlflow.keras", python_env="python_env.yaml")
    requirements = f"keras=={keras}\nmlflow=={version('mlflow')}\nnumpy=={numpy}\ntensorflow>=2.21,<2.22\n"
    (into / "requirements.txt").write_text(requirements)
    (into / "python_env.yaml").write_text("python: '3.11'\ndependencies:\n- -r requirements.txt\n")
    example = folder / "example.json"
    if example.exists():
        model.saved_input_example_info = {
            "artifact_path": "input_example.json",
            "serving_input_path": "serving_input_example.json",
            "type": "ndarray",
            "format": "tf-serving",
        }
        (into / "input_example.json").write_text(example.read_text())
        (into / "serving_input_example.json").write_text(example.read_text())
    model.save(str(into / "MLmodel"))


class Tracker:
    """The outbox of one run and the thread that empties it. Final.

    Args:
        config: The run's configuration.
        name: Names the spool file.
        run_id: An existing MLflow run to go on with.
    """

    def __init__(self, config: Config, name: str, run_id: str | None = None) -> None:
        self._config, self._name = config, name
        self._storage = Storage(config.storage.root)
        self.sender = Sender(config, run_id)
        self._box: queue.Queue[Operation | None] = queue.Queue()
        self._unsent: list[Operation] = []
        self._give_up = threading.Event()
        self._outage_since: float | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, do: str, **values: Any) -> None:
        """Add an operation; returns at once."""
        self._box.put({"do": do, **values})

    def metrics(self, guard: str, step: int, values: dict[str, float], time_s: float | None = None) -> None:
        """Add metrics of one step, logged once even when a restarted worker sends them again."""
        time_ms = int((time_s or time.time()) * 1000)
        finite = {key: float(value) for key, value in values.items()}
        self.put("metrics", guard=guard, step=step, time_ms=time_ms, values=finite)

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # whatever is wrong is said when the first operation is sent
            _ = self.sender.client  # importing MLflow takes seconds; here it overlaps the start of Ray
        while (operation := self._box.get()) is not None:
            if self.failure is None and self._deliver(operation):
                continue
            self._unsent.append(operation)

    def _deliver(self, operation: Operation) -> bool:
        """Send one operation, waiting out an outage; False when it has to be spooled."""
        tries = 0
        while True:
            try:
                self.sender.send(operation)
            except Exception as error:  # the one broad catch: tracking must not end a training run
                if not _is_outage(error):
                    logger.warning("tracking failed (%s): %s", operation["do"], _cause(error))
                    self.failure = error
                    return False
                if self._outage_since is None:
                    self._outage_since = time.time()
                    logger.warning("tracking server away, recording for later: %s", _cause(error))
                if self._give_up.wait(RETRY_S[min(tries, len(RETRY_S) - 1)]):
                    self.failure = error
                    return False
                tries += 1
            else:
                if self._outage_since is not None:
                    logger.info("tracking server back after %.0f s", time.time() - self._outage_since)
                    self._outage_since = None
                return True

    def close(self, patience_s: float = 30.0) -> bool:
        """Send what is left, then stop; spool what cannot be sent.

        Args:
            patience_s: How long to wait for a server that is away before spooling.

        Returns:
            Whether everything is on record.
        """
        self._box.put(None)
        deadline = time.time() + patience_s
        while self._thread.is_alive() and (self._outage_since is None or time.time() < deadline):
            self._thread.join(0.05)
        self._give_up.set()
        self._thread.join()
        if self._unsent:
            lines = [
                json.dumps({"config": self._config.model_dump(mode="json"), "run_id": self.sender.run_id})
            ]
            lines += [json.dumps(operation) for operation in self._unsent]
            spool = f"{self._name}-{uuid.uuid4().hex[:8]}.jsonl"
            self._storage.write_bytes("\n".join(lines).encode(), SPOOL, spool)
            logger.warning("tracking is incomplete; `distml sync` sends the rest when the server is back")
        return not self._unsent


def sync(config: Config) -> dict[str, Any]:
    """Send what earlier runs spooled, oldest first.

    Returns:
        `sent` and `left`, numbers of runs.

    Raises:
        TrackingError: The server does not answer.
    """
    storage = Storage(config.storage.root)
    names = [name for name in storage.names(SPOOL) if name.endswith(".jsonl")]
    sent = 0
    for name in names:
        header, *operations = (json.loads(line) for line in storage.read_text(SPOOL, name).splitlines())
        sender = Sender(Config.model_validate(header["config"]), header["run_id"])
        try:
            if sender.run_id:
                sender._resume_metrics()
            for operation in operations:
                sender.send(operation)
        except Exception as error:
            raise TrackingError(
                f"{name} could not be sent to {uri(sender.config)}: {_cause(error)}.",
                "Try again when the server is back; nothing is lost.",
            ) from error
        storage.delete(SPOOL, name)
        sent += 1
    return {"sent": sent, "left": 0}

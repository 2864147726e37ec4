"""A run's exported model on the tracking server: files, description, version (driver)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.config import Config
from distml.storage import Storage

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
    accuracies = {key: described["metrics"].get(f"{key}_accuracy") for key in ("val", "test")}
    created = client.create_model_version(
        name,
        f"models:/{model_id}",
        run_id,
        tags={"sha256": described["digest"]},
        # What the list of versions shows, so that nobody opens three runs to compare them.
        description=", ".join(
            f"{key} accuracy {value:.4f}" for key, value in accuracies.items() if value is not None
        ),
        model_id=model_id,
    )
    return int(created.version)


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
    (into / "requirements.txt").write_text("\n".join([*pinned, "tensorflow>=2.21,<2.22", ""]))
    (into / "python_env.yaml").write_text("python: '3.11'\ndependencies:\n- -r requirements.txt\n")
    example = (folder / "example.json").read_text()
    model.saved_input_example_info = {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "ndarray",
        "format": "tf-serving",
    }
    (into / "input_example.json").write_text(example)
    (into / "serving_input_example.json").write_text(example)
    model.save(str(into / "MLmodel"))


def _signature(shape: list[int], classes: int) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    return ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *shape), "image")]),
        Schema([TensorSpec(np.dtype("float32"), (-1, classes), "probabilities")]),
    )

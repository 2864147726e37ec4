"""Reaching the tracking server, and telling an outage from a mistake (driver)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from distml.config import Config
from distml.errors import TrackingError
from distml.runtime import environment
from distml.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

_LOCAL = FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError
"""Errors of files of ours, which no server brings back."""


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


def artifact_location(config: Config) -> str | None:
    """Where the embedded default keeps artifacts; a server decides for itself."""
    if config.tracking.uri and not config.tracking.uri.startswith("sqlite:"):
        return None
    storage = Storage(config.storage.root)
    if not storage.local:  # beside the database, which is on this machine
        database = Path(uri(config).removeprefix("sqlite:///"))
        return (database.absolute().parent / "mlflow-artifacts").as_uri()
    return Path(storage.uri("mlflow-artifacts")).as_uri()


def client(config: Config) -> MlflowClient:
    """A client of the configured server; imports MLflow, which takes seconds."""
    environment.TRACKING.apply()
    address = uri(config)
    if address.startswith("sqlite:///"):
        Path(address.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # The registry resolves `models:/` sources through the process-wide URI, whatever the client was given.
    mlflow.set_tracking_uri(address)
    return mlflow.MlflowClient(address, address)


def ask(config: Config) -> None:
    """Ask the server for as little as possible; raises what MLflow raises where it does not answer."""
    client(config).search_experiments(max_results=1)


def check(config: Config) -> None:
    """Ask the server for something, within about fifteen seconds.

    Raises:
        TrackingError: It does not answer, or refuses.
    """
    try:
        ask(config)
    except Exception as error:
        raise TrackingError(
            f"the tracking server {uri(config)} does not answer: {cause(error)}.",
            "Start it, correct tracking.uri, or set tracking.required to false to record later.",
        ) from error


def cause(error: BaseException) -> str:
    """The first line of what an error says, cut to a sentence's length."""
    text = str(error).strip().split("\n")[0] or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def is_outage(error: BaseException) -> bool:
    """Whether trying again later may help: no answer, or the server's own failure."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        code = error.get_http_status_code() if hasattr(error, "get_http_status_code") else 500
        return code >= 500 or code in (408, 429)
    if isinstance(error, _LOCAL):
        return False
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    return isinstance(error, requests.RequestException | OSError | sqlalchemy.exc.OperationalError)

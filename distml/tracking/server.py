"""Client of the MLflow server: its URI, a moved root, reachability, retries of every call (driver)."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from distml.config import Config
from distml.errors import TrackingError
from distml.runtime import environment
from distml.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

_NAMED = ("databricks", "databricks-uc", "uc")
"""Addresses that MLflow knows by a word."""
_BRIEF_S = 2.0
_LOCAL = FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError
"""Errors of files of ours, which no server brings back."""


def uri(config: Config) -> str:
    """The tracking URI of a configuration: its own, or SQLite under the storage root.

    Raises:
        TrackingError: A folder, or the storage root is an object store, where SQLite cannot live.
    """
    if config.tracking.uri:
        return _require_server(config.tracking.uri)
    storage = Storage(config.storage.root)
    if not storage.local:
        raise TrackingError(
            f"tracking.uri is not set and SQLite cannot live under {storage.root}.",
            "Set tracking.uri to an MLflow server.",
        )
    return f"sqlite:///{storage.uri('mlflow.db')}"


def _require_server(address: str) -> str:
    if ("://" not in address and address not in _NAMED) or address.startswith("file:"):
        given = " (from MLFLOW_TRACKING_URI)" if os.environ.get("MLFLOW_TRACKING_URI") == address else ""
        raise TrackingError(
            f"tracking.uri = {address}{given} is a folder, which MLflow 3.17 rejects.",
            "Use sqlite:///PATH or a server, or leave it out.",
        )
    return address


def login() -> dict[str, Any]:
    """Return the options of `requests` by which MLflow's own client comes in, from MLflow's variables."""
    name, password, token, insecure, bundle = (
        os.environ.get(f"MLFLOW_TRACKING_{part}")
        for part in ("USERNAME", "PASSWORD", "TOKEN", "INSECURE_TLS", "SERVER_CERT_PATH")
    )
    options: dict[str, Any] = {"headers": {"Authorization": f"Bearer {token}"} if token else {}}
    if name and password:
        options["auth"] = (name, password)
    if bundle or (insecure or "").lower() in ("true", "1"):
        options["verify"] = bundle or False
    return options


def deleted_experiment(config: Config) -> str | None:
    """Return the id of the configured experiment where it is deleted; None where it is not or not known.

    Asked without importing MLflow, within two seconds.
    """
    address, name = uri(config), config.tracking.experiment
    try:
        if address.startswith("sqlite:///"):
            return _deleted_in(Path(address.removeprefix("sqlite:///").partition("?")[0]), name)
        if address.startswith("http"):
            import requests

            url = f"{address.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name"
            asked = {"experiment_name": name}
            experiment = requests.get(url, asked, timeout=_BRIEF_S, **login()).json()["experiment"]
            return str(experiment["experiment_id"]) if experiment["lifecycle_stage"] == "deleted" else None
    except (OSError, ValueError, KeyError, TypeError, sqlite3.Error):  # requests' errors are OSErrors
        pass
    return None


def _deleted_in(database: Path, name: str) -> str | None:
    """Ask the embedded database; it is not made where it is absent."""
    if not database.exists():
        return None
    where = f"{database.absolute().as_uri()}?mode=ro"
    with contextlib.closing(sqlite3.connect(where, uri=True, timeout=1)) as connection:
        question = "SELECT experiment_id FROM experiments WHERE name = ? AND lifecycle_stage = 'deleted'"
        row = connection.execute(question, (name,)).fetchone()
    return None if row is None else str(row[0])


def is_deleted(config: Config, number: str) -> TrackingError:
    """The error of an experiment that is deleted, and how to have it back."""
    return TrackingError(
        f"experiment {config.tracking.experiment} is deleted.",
        f"Restore it (mlflow experiments restore --experiment-id {number}) or set another "
        "tracking.experiment.",
    )


def require_experiment(config: Config) -> None:
    """Reject a deleted experiment before anything is spent: MLflow would record nothing in it.

    Raises:
        TrackingError: It is deleted.
    """
    number = deleted_experiment(config)
    if number is not None:
        raise is_deleted(config, number)


def artifact_location(config: Config) -> str | None:
    """Where the embedded default keeps artifacts; a server decides for itself."""
    if config.tracking.uri and not config.tracking.uri.startswith("sqlite:"):
        return None
    storage = Storage(config.storage.root)
    if not storage.local:  # beside the database, which is on this machine
        database = Path(uri(config).removeprefix("sqlite:///"))
        return (database.absolute().parent / "mlflow-artifacts").as_uri()
    return Path(storage.uri("mlflow-artifacts")).as_uri()


PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("logged_models", "artifact_location"),
)
"""Tables and columns of MLflow that hold the URI of files; the first says only where new runs put theirs."""
_SQLITE = "sqlite:///"
_ARTIFACTS = "/mlflow-artifacts"


def relocate(config: Config) -> int:
    """Let the embedded database name files where they are, after its storage root was renamed or copied.

    MLflow keeps absolute places: new runs of an experiment would go on writing below the former root. Only a
    database that lies in the root itself says that it has moved with the files. A root that is still there
    under its former name, as a second mount, is left alone.

    Returns:
        How many places were corrected.
    """
    storage, address = Storage(config.storage.root), uri(config)
    file = Path(address.removeprefix(_SQLITE).partition("?")[0]).absolute()
    if not (address.startswith(_SQLITE) and storage.local and file.is_relative_to(storage.root)):
        return 0
    if not file.exists():  # connecting would make an empty database
        return 0
    new = Path(storage.root).as_uri()
    with contextlib.closing(sqlite3.connect(file, timeout=30)) as connection, connection:
        places = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        roots = {place.removesuffix(_ARTIFACTS) for (place,) in places if (place or "").endswith(_ARTIFACTS)}
        stale = [old for old in roots if old.startswith("file:///") and old != new and not _same(old, new)]
        changed = sum(_rename(connection, old, new) for old in stale)
    if changed:
        logger.info("%s was at %s: %d places of files are corrected", storage.root, ", ".join(stale), changed)
    return changed


def _same(old: str, new: str) -> bool:
    """Whether two file URIs are names of the same folder."""
    with contextlib.suppress(OSError):
        return os.path.samefile(unquote(urlsplit(old).path), unquote(urlsplit(new).path))
    return False


def _rename(connection: sqlite3.Connection, old: str, new: str) -> int:
    """Replace a root, as a URI and as a path, at the beginning of every place."""
    changed = 0
    pairs = [(old, new), (unquote(urlsplit(old).path), unquote(urlsplit(new).path))]
    for table, column in PLACES:
        for before, after in pairs:
            command = (
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) "  # noqa: S608 (names of ours)
                f"WHERE substr({column}, 1, ?) = ?"
            )
            length = len(before) + 1
            changed += connection.execute(command, (after, length, length, f"{before}/")).rowcount
    return changed


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
    with environment.unchanged("MLFLOW_TRACKING_URI"):  # which configurations of later calls would take up
        mlflow.set_tracking_uri(address)
    return mlflow.MlflowClient(address, address)


def ask(config: Config) -> None:
    """Ask the server for as little as possible; raises what MLflow raises where it does not respond."""
    client(config).search_experiments(max_results=1)


def check(config: Config) -> None:
    """Ask the server for something, within about fifteen seconds.

    Raises:
        TrackingError: It does not respond, or rejects the request.
    """
    try:
        ask(config)
    except Exception as error:
        raise TrackingError(
            f"the tracking server {uri(config)} does not respond: {cause(error)}.",
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


if TYPE_CHECKING:
    from tenacity import RetryCallState, Retrying

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 15.0
_CONFLICT_TRIES = 6
"""Two writers that insert the same row succeed in turn; what still fails then is no conflict of theirs."""


def retrying(
    wait_s: float,
    longest_s: float = _LONGEST_PAUSE_S,
    before_sleep: Callable[[RetryCallState], None] | None = None,
    given_up: threading.Event | None = None,
) -> Retrying:
    """Return what tries again: pauses double up to a longest one, the last try is at the end of the time.

    Args:
        wait_s: Seconds from the first try to the last; 0 tries once.
        longest_s: Longest pause between two tries.
        before_sleep: Called when a try has failed and another one follows.
        given_up: Ends the pause and the trying when it is set.

    Returns:
        Calls what it is given, and raises what that raised in the last try.
    """
    import tenacity

    pause = tenacity.wait_random_exponential(_FIRST_PAUSE_S, longest_s, min=_FIRST_PAUSE_S)

    def capped(state: RetryCallState) -> float:
        left = wait_s - (state.seconds_since_start or 0.0)
        return min(pause(state), max(0.0, left)) if _away(state) else pause(state)

    def over(state: RetryCallState) -> bool:
        if given_up is not None and given_up.is_set():
            return True
        if not _away(state):
            return state.attempt_number >= _CONFLICT_TRIES
        return (state.seconds_since_start or 0.0) >= wait_s

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: is_outage(error) or _is_conflict(error)),
        wait=capped,
        stop=over,
        sleep=tenacity.sleep if given_up is None else tenacity.sleep_using_event(given_up),
        before_sleep=before_sleep,
        reraise=True,
    )


def failure(state: RetryCallState) -> BaseException | None:
    """What the last try of a call raised."""
    return state.outcome.exception() if state.outcome else None


def _away(state: RetryCallState) -> bool:
    """Whether the last try met an outage."""
    error = failure(state)
    return error is not None and is_outage(error) and not _is_conflict(error)


def patiently(config: Config, call: Callable[[], _Result], wait_s: float | None = None) -> _Result:
    """Return what a call of the server returns, trying again while the server is unreachable.

    Args:
        config: Names the server.
        call: May be made more than once.
        wait_s: Seconds to wait for the server; `tracking.wait_s` by default.

    Raises:
        Exception: What the call raised: at once when it is no outage, else after that time.
    """
    wait_s = config.tracking.wait_s if wait_s is None else wait_s
    began, told = time.monotonic(), False

    def tell(state: RetryCallState) -> None:
        nonlocal told
        error = failure(state)
        if not told and error is not None and is_outage(error):
            told = True
            logger.warning(
                "tracking server %s unreachable, waiting up to %.0f s: %s", uri(config), wait_s, cause(error)
            )

    result = retrying(wait_s, before_sleep=tell)(call)
    if told:
        logger.info("tracking server back after %.0f s", time.monotonic() - began)
    return result


def _is_conflict(error: BaseException) -> bool:
    """Whether two writers have inserted the same row, which goes well next time."""
    return "IntegrityError" in str(error)

"""Reaching the tracking server: clients, outages against mistakes, bounded retries (driver)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

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
    """Return what a call of the server returns, trying again while the server is away.

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
                "tracking server %s away, waiting up to %.0f s: %s", uri(config), wait_s, cause(error)
            )

    result = retrying(wait_s, before_sleep=tell)(call)
    if told:
        logger.info("tracking server back after %.0f s", time.monotonic() - began)
    return result


def _is_conflict(error: BaseException) -> bool:
    """Whether two writers have inserted the same row, which goes well next time."""
    return "IntegrityError" in str(error)

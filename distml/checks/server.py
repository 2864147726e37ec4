"""Whether runs can be recorded, asked without importing MLflow (driver)."""

from __future__ import annotations

import os
import re
import sqlite3
import tempfile
import uuid
from pathlib import Path
from typing import Any

import requests

from distml import tracking
from distml.checks import Check, failed, ok, problem, warning
from distml.config import Config
from distml.errors import DistmlError
from distml.tracking.server import login

TIMEOUT_S = 4.0
_NAME = "tracking"


def check(config: Config) -> Check:
    """The tracking server, or the embedded database."""
    try:
        where = tracking.uri(config)
    except DistmlError as error:
        return failed(_NAME, error)
    if where.startswith("sqlite:///"):
        return _alive(config, sqlite(Path(where.removeprefix("sqlite:///").partition("?")[0])))
    if where.startswith(("http://", "https://")):
        return _alive(config, server(where, config.tracking.required))
    kind = where.partition("://")[0]  # the rest may hold a password
    return warning(
        _NAME, f"a store of kind {kind} is not looked at", "The run will say if it cannot be reached."
    )


def _alive(config: Config, answer: Check) -> Check:
    """Add what a store that answers cannot take: runs of an experiment that is deleted."""
    if answer.status != "ok":
        return answer
    try:
        tracking.require_experiment(config)
    except DistmlError as error:
        return problem(_NAME, f"{answer.detail}: {error.message}", error.remedy)
    given = os.environ.get("MLFLOW_TRACKING_URI") == config.tracking.uri is not None
    return ok(_NAME, answer.detail + " (from MLFLOW_TRACKING_URI)" * given)


def sqlite(path: Path) -> Check:
    """The embedded database can be opened and written; a missing one could be made."""
    if not path.exists():
        return _makeable(path)
    try:
        _write(path)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return warning(_NAME, f"{path} is being written by another process", "Wait for it, or go on.")
        return problem(
            _NAME, f"{path} cannot be written: {error}", "Correct its permissions or tracking.uri."
        )
    except sqlite3.DatabaseError as error:
        return problem(_NAME, f"{path} is not a database: {error}", "Move it away, or correct tracking.uri.")
    return ok(_NAME, f"sqlite:///{path}")


def _write(path: Path) -> None:
    """Take the write lock and leave the database as it was."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=1, isolation_level=None
    )
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"CREATE TABLE probe_{uuid.uuid4().hex} (x)")
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _makeable(path: Path) -> Check:
    """Try in the nearest folder that exists: some network mounts have files and no locks."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".distml-tmp-") as probe:
            connection = sqlite3.connect(Path(probe, "probe.db"), timeout=1, isolation_level=None)
            try:
                connection.execute("CREATE TABLE probe (x)")
            finally:
                connection.close()
    except (OSError, sqlite3.Error) as error:
        return problem(_NAME, f"no database can be made in {folder}: {error}", "Set tracking.uri.")
    return ok(_NAME, f"sqlite:///{path} will be made")


def server(where: str, required: bool) -> Check:
    """A server answers the question every client asks first.

    Args:
        where: Its URI.
        required: Whether a run refuses to start without it.
    """
    url = f"{where.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        answer = requests.post(url, json={"max_results": 1}, timeout=TIMEOUT_S, **login())
    except requests.RequestException as error:
        detail = f"{where} does not answer: {_cause(error)}"
        if required:
            return problem(
                _NAME, detail, "Start it, correct tracking.uri, or set tracking.required to false."
            )
        return warning(_NAME, detail, "Runs are spooled and sent later by `distml sync`.")
    return answered(where, answer.status_code, answer.text[:500])


def answered(where: str, status: int, text: str) -> Check:
    """Judge a server's answer.

    Args:
        where: Its URI.
        status: HTTP status.
        text: Beginning of the body.
    """
    if status == 200 and ("experiments" in text or text.strip() == "{}"):
        return ok(_NAME, where)
    if status == 403 and "host" in text.lower():
        name = where.partition("://")[2].partition("/")[0]
        remedy = (
            f"Start it with --allowed-hosts {name.partition(':')[0]},{name} (/health answers all the same)."
        )
        return problem(_NAME, f"{where} refuses the host name it is asked by (HTTP 403)", remedy)
    if status in (401, 403):
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        return problem(_NAME, f"{where} refuses this user (HTTP {status})", remedy)
    first = text.strip().partition("\n")[0][:100]
    return problem(_NAME, f"{where} is no MLflow server: HTTP {status} {first}", "Correct tracking.uri.")


def _cause(error: requests.RequestException) -> str:
    """The innermost reason; the outer ones repeat addresses of objects."""
    inner: Any = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    text = str(getattr(inner, "reason", inner)).rpartition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", text)[:100] or type(error).__name__

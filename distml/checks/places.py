"""Checks of remote services: the Ray cluster, the storage root seen from a worker, MLflow (driver).

"A local path on two pods" is the classic failure: both can write it, and neither sees the other's files.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from distml import tracking
from distml.checks import Check, failed, machine, ok, problem, warning
from distml.config import Config
from distml.errors import DistmlError, StorageError
from distml.runtime import cluster
from distml.storage import TEMPORARY, Storage
from distml.tracking.server import login

WORKER_TIMEOUT_S = 8.0
_SHARED = "Give a storage.root that every worker reaches: a shared mount, s3:// or gs://."


def echo(root: str, name: str) -> str:
    """Read what the driver wrote and write it back beside it; runs on a worker.

    Args:
        root: The storage root.
        name: File below it.

    Returns:
        The content, or a sentence that begins with `!`.
    """
    try:
        storage = Storage(root)
        if not storage.exists(name):
            return f"! {storage.uri(name)} is not there"
        content = storage.read_bytes(name)
        storage.write_bytes(content, f"{name}-answer")
        return content.decode()
    except DistmlError as error:
        return f"! {error}"


def _in_process(root: str, name: str) -> str:
    """`echo` in a fresh process of this machine, as a local worker is one."""
    program = "import sys; from distml.checks.places import echo; print(echo(*sys.argv[1:]))"
    package = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, root, name],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"! no answer: {error}"
    lines = (done.stdout.strip() or f"! {done.stderr.strip() or 'it ended without a response'}").splitlines()
    return lines[-1]


@contextmanager
def _tidy(storage: Storage) -> Iterator[None]:
    """Take the root away again where it was made for looking."""
    made = storage.local and not Path(storage.root).exists()
    yield
    if made:
        with suppress(OSError):
            Path(storage.root).rmdir()


def storage(
    root: str, ask: Callable[[str, str], str] = _in_process, who: str = "a fresh process"
) -> list[Check]:
    """Write below the root, let a worker answer there, and read the answer.

    Args:
        root: `storage.root`.
        ask: Runs `echo` on a worker.
        who: Said of that worker.

    Returns:
        One check of the driver and, where that is fine, one of the worker.
    """
    name, content = f"{TEMPORARY}doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    began = time.monotonic()
    try:
        place = Storage(root)
        with _tidy(place):
            try:
                place.write_bytes(content.encode(), name)
                place.read_bytes(name)
                driver = ok("storage", f"{place.root} written and read in {time.monotonic() - began:.2f} s")
                return [driver, _worker(place, name, content, ask, who)]
            finally:
                for file in (name, f"{name}-answer"):
                    with suppress(StorageError):
                        place.delete(file)
    except DistmlError as error:
        return [failed("storage", error)]


def _worker(place: Storage, name: str, content: str, ask: Callable[[str, str], str], who: str) -> Check:
    answer = ask(place.root, name)
    if answer.startswith("!"):
        return problem("storage from a worker", f"{who}: {answer.removeprefix('!').strip()}", _SHARED)
    if answer != content or not place.exists(f"{name}-answer"):
        return problem("storage from a worker", f"{who} sees a different folder at {place.root}", _SHARED)
    return ok("storage from a worker", f"{who} reads and writes the same place")


CONNECT_TIMEOUT_S = 2.0
TASK_TIMEOUT_S = 6.0
MAX_NODES = 8
"""Nodes asked for the storage root; the others are made from the same templates."""


def endpoint(address: str) -> tuple[str, int] | None:
    """Return host and port of an address of Ray, None where it names none, like `auto`."""
    parts = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        return (parts.hostname, parts.port) if parts.hostname and parts.port else None
    except ValueError:
        return None


def _answers(address: str) -> str:
    """Say why nothing can be reached at an address, "" where something can; Ray would wait for minutes."""
    place = endpoint(address)
    if place is None:
        return ""
    try:
        with socket.create_connection(place, CONNECT_TIMEOUT_S):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def cluster_checks(config: Config) -> list[Check]:
    """Room for the workers, and the storage root as every node sees it."""
    address = cluster.address() or "auto"
    refused = _answers(address)
    if refused:
        remedy = "Start the cluster, correct RAY_ADDRESS, or unset it to start Ray on this machine."
        return [problem("workers", f"no Ray cluster responds at RAY_ADDRESS = {address}: {refused}", remedy)]
    try:
        with cluster.connect(config) as connected:
            workers = machine.workers(config, connected.resources, address)
            memory = machine.memory(config, int(connected.resources.get("memory", 0)), 0)
            return [workers, memory, *_storage_of_nodes(config.storage.root)]
    except DistmlError as error:
        return [failed("workers", error)]


def _storage_of_nodes(root: str) -> list[Check]:
    """The driver's check once, and one of every node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]][:MAX_NODES]
    cluster_checks: list[Check] = []
    for node in alive:
        who = f"node {node['NodeManagerAddress']}"
        cluster_checks += storage(root, _on(node["NodeID"]), who)[1 if cluster_checks else 0 :]
    return cluster_checks


def _on(node: str) -> Callable[[str, str], str]:
    """`places.echo` as a task on a certain node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(echo).options(
        num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )

    def ask(root: str, name: str) -> str:
        try:
            return str(ray.get(task.remote(root, name), timeout=TASK_TIMEOUT_S))
        except ray.exceptions.RayError as error:
            return f"! {str(error).strip().splitlines()[-1]}"

    return ask


TIMEOUT_S = 4.0
_TRACKING = "tracking"


def tracking_check(config: Config) -> Check:
    """The tracking server, or the embedded database."""
    try:
        where = tracking.uri(config)
    except DistmlError as error:
        return failed(_TRACKING, error)
    if where.startswith("sqlite:///"):
        return _alive(config, database(Path(where.removeprefix("sqlite:///").partition("?")[0])))
    if where.startswith(("http://", "https://")):
        return _alive(config, asked(where, config.tracking.required))
    kind = where.partition("://")[0]  # the rest may hold a password
    return warning(
        _TRACKING, f"a store of kind {kind} is not checked", "The run fails if it cannot be reached."
    )


def _alive(config: Config, answer: Check) -> Check:
    """Add what a store that answers cannot take: runs of an experiment that is deleted."""
    if answer.status != "ok":
        return answer
    try:
        tracking.require_experiment(config)
    except DistmlError as error:
        return problem(_TRACKING, f"{answer.detail}: {error.message}", error.remedy)
    given = os.environ.get("MLFLOW_TRACKING_URI") == config.tracking.uri is not None
    return ok(_TRACKING, answer.detail + " (from MLFLOW_TRACKING_URI)" * given)


def database(path: Path) -> Check:
    """The embedded database can be opened and written; a missing one could be made."""
    if not path.exists():
        return _makeable(path)
    try:
        _locked(path)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return warning(
                _TRACKING, f"{path} is being written by another process", "Wait for it, or continue."
            )
        return problem(
            _TRACKING, f"{path} cannot be written: {error}", "Correct its permissions or tracking.uri."
        )
    except sqlite3.DatabaseError as error:
        return problem(
            _TRACKING, f"{path} is not a database: {error}", "Move it away, or correct tracking.uri."
        )
    return ok(_TRACKING, f"sqlite:///{path}")


def _locked(path: Path) -> None:
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
        return problem(_TRACKING, f"no database can be made in {folder}: {error}", "Set tracking.uri.")
    return ok(_TRACKING, f"sqlite:///{path} will be made")


def asked(where: str, required: bool) -> Check:
    """A server answers the question every client asks first.

    Args:
        where: Its URI.
        required: Whether a run refuses to start without it.
    """
    url = f"{where.rstrip('/')}/api/2.0/mlflow/experiments/search"
    try:
        answer = requests.post(url, json={"max_results": 1}, timeout=TIMEOUT_S, **login())
    except requests.RequestException as error:
        detail = f"{where} does not respond: {_innermost(error)}"
        if required:
            return problem(
                _TRACKING, detail, "Start it, correct tracking.uri, or set tracking.required to false."
            )
        return warning(_TRACKING, detail, "Runs are spooled and sent later by `distml sync`.")
    return judged(where, answer.status_code, answer.text[:500])


def judged(where: str, status: int, text: str) -> Check:
    """Judge a server's answer.

    Args:
        where: Its URI.
        status: HTTP status.
        text: Beginning of the body.
    """
    if status == 200 and ("experiments" in text or text.strip() == "{}"):
        return ok(_TRACKING, where)
    if status == 403 and "host" in text.lower():
        name = where.partition("://")[2].partition("/")[0]
        remedy = (
            f"Start it with --allowed-hosts {name.partition(':')[0]},{name} (/health answers all the same)."
        )
        return problem(_TRACKING, f"{where} rejects the host name it is asked by (HTTP 403)", remedy)
    if status in (401, 403):
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        return problem(_TRACKING, f"{where} rejects this user (HTTP {status})", remedy)
    first = text.strip().partition("\n")[0][:100]
    return problem(
        _TRACKING, f"{where} is not an MLflow server: HTTP {status} {first}", "Correct tracking.uri."
    )


def _innermost(error: requests.RequestException) -> str:
    """The innermost reason; the outer ones repeat addresses of objects."""
    inner: Any = error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    text = str(getattr(inner, "reason", inner)).rpartition(": ")[2]
    return re.sub(r"^\[Errno -?\d+\] ", "", text)[:100] or type(error).__name__

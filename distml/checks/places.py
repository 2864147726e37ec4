"""Whether workers have room in the cluster, and the storage root is the same place for all of them (driver).

"A local path on two pods" is the classic failure: both can write it, and neither sees the other's files.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from distml.checks import Check, failed, machine, ok, problem
from distml.config import Config
from distml.errors import DistmlError, StorageError
from distml.runtime import cluster
from distml.storage import TEMPORARY, Storage

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
    lines = (done.stdout.strip() or f"! {done.stderr.strip() or 'it ended without an answer'}").splitlines()
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
        return problem("storage from a worker", f"{who} sees another place at {place.root}", _SHARED)
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
        return [problem("workers", f"no Ray answers at RAY_ADDRESS = {address}: {refused}", remedy)]
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

"""What a running cluster has, and whether its nodes see the storage root (driver). Imports Ray."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from distml.checks import machine, places
from distml.checks.check import Check, failed, problem
from distml.config import Config
from distml.errors import DistmlError
from distml.runtime import cluster

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


def checks(config: Config) -> list[Check]:
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
            return [workers, memory, *_storage(config.storage.root)]
    except DistmlError as error:
        return [failed("workers", error)]


def _storage(root: str) -> list[Check]:
    """The driver's check once, and one of every node."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]][:MAX_NODES]
    checks: list[Check] = []
    for node in alive:
        who = f"node {node['NodeManagerAddress']}"
        checks += places.storage(root, _on(node["NodeID"]), who)[1 if checks else 0 :]
    return checks


def _on(node: str) -> Callable[[str, str], str]:
    """`places.echo` as a task on a certain node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(places.echo).options(
        num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    )

    def ask(root: str, name: str) -> str:
        try:
            return str(ray.get(task.remote(root, name), timeout=TASK_TIMEOUT_S))
        except ray.exceptions.RayError as error:
            return f"! {str(error).strip().splitlines()[-1]}"

    return ask

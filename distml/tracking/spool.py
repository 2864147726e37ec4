"""Sends what was spooled while the tracking server was away, and registers runs it does not know (driver).

A spool file holds the operations of one run in order. It is sent by the next command that meets the server.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from distml.config import Config
from distml.errors import TrackingError
from distml.storage import Storage
from distml.tracking.operations import Operation
from distml.tracking.runs import Run
from distml.tracking.sender import Sender
from distml.tracking.server import cause, client, is_outage, patiently, uri

logger = logging.getLogger(__name__)

FOLDER = "tracking-spool"


def new_name(run: str) -> str:
    """A name for a spool file that no other has; those of a run sort by age."""
    return f"{run}-{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:8]}.jsonl"


@dataclass
class Delivery:
    """What became of the spool.

    Attributes:
        sent: Number of spool files that were sent.
        left: Why each of the others was not, by its name.
        away: Whether a server was away.
    """

    sent: int = 0
    left: dict[str, str] = field(default_factory=dict)
    away: bool = False


def deliver(config: Config, wait_s: float = 0.0, everywhere: bool = False) -> Delivery:
    """Send what earlier runs spooled, the oldest of a run first; sending something twice records it once.

    What a server refuses stays, and does not keep the others back. Who does not wait leaves it to another
    process that is sending already.

    Args:
        config: Names the storage root and the server.
        wait_s: Seconds to wait for a server that is away.
        everywhere: Send what is meant for other servers, too.

    Raises:
        StorageError: The spool cannot be read.
    """
    storage = Storage(config.storage.root)
    if not _names(storage):
        return Delivery()
    try:
        with storage.lock(FOLDER, wait=wait_s > 0):
            return _deliver(config, storage, wait_s, everywhere)
    except BlockingIOError:
        return Delivery()


def _deliver(config: Config, storage: Storage, wait_s: float, everywhere: bool) -> Delivery:
    delivery, server = Delivery(), ""
    absent: dict[str, str] = {}
    for name in _names(storage):
        try:
            sender, operations = _open(config, storage, name)
            server = uri(sender.config)
            if server != uri(config) and not everywhere:
                continue
            if server in absent:
                delivery.left[name] = absent[server]
                continue
            patiently(sender.config, partial(_send, sender, operations), wait_s)
        except Exception as error:  # a spool file that cannot be sent, whatever is wrong with it
            delivery.left[name] = cause(error)
            logger.warning("%s stays spooled: %s", name, cause(error))
            if is_outage(error):
                absent[server], delivery.away = cause(error), True
        else:
            storage.delete(FOLDER, name)
            delivery.sent += 1
            logger.info("sent to %s what %s holds", server, name)
    return delivery


def _names(storage: Storage) -> list[str]:
    """Names of spool files, those of a run by age."""
    return [name for name in storage.names(FOLDER) if name.endswith(".jsonl")]


def _open(config: Config, storage: Storage, name: str) -> tuple[Sender, list[Operation]]:
    """The sender and the operations of a spool file; its storage is where it lies now."""
    header, *lines = (json.loads(line) for line in storage.read_text(FOLDER, name).splitlines())
    of = Config.model_validate(header["config"]).model_copy(update={"storage": config.storage})
    return Sender(of, header["run_id"]), [Operation.from_json(line) for line in lines]


def _send(sender: Sender, operations: list[Operation]) -> None:
    if sender.run_id:
        sender.resume_metrics()
    for operation in operations:
        sender.send(operation)


def waiting(config: Config) -> int:
    """Return how many runs wait to be sent.

    Raises:
        StorageError: The spool cannot be read.
    """
    return len(_names(Storage(config.storage.root)))


def sync(config: Config) -> dict[str, Any]:
    """Send all that earlier runs spooled, waiting for a server that is away.

    Returns:
        `sent` and `left`, numbers of runs.

    Raises:
        TrackingError: Something could not be sent.
    """
    delivery = deliver(config, config.tracking.wait_s, everywhere=True)
    for name, why in delivery.left.items():
        raise TrackingError(
            f"{len(delivery.left)} of {delivery.sent + len(delivery.left)} spooled runs could not be sent; "
            f"{name}: {why}.",
            "Nothing is lost: run `distml sync` again "
            + ("when the server is back." if delivery.away else "when that is done."),
        )
    return {"sent": delivery.sent, "left": 0}


def register(config: Config, storage: Storage, run: Run, wait_s: float | None = None) -> Run:
    """Complete the record of a finished run that the server was not told of, waiting for the server.

    Args:
        config: Names the registry.
        storage: Holds the record and the spool.
        run: The record of a finished run.
        wait_s: Seconds to wait for a server that is away; `tracking.wait_s` by default.

    Returns:
        The record with the version and the MLflow run, saved; as it was where it has a version already, or
        where neither the server nor the spool knows the run.

    Raises:
        TrackingError: The server is away for too long, or refuses what is spooled.
    """
    if run.version:
        return run
    wait_s = config.tracking.wait_s if wait_s is None else wait_s
    delivery = deliver(config, wait_s)
    try:
        known = None if delivery.away else patiently(config, lambda: _registered(config, run), wait_s)
    except Exception as error:  # the clients of MLflow's stores raise kinds of their own
        delivery.left[run.name], delivery.away = cause(error), is_outage(error)
        known = None
    if known is not None:
        run.run_id, version = known
        run.result |= {"run_id": run.run_id, "version": version, "tracking_complete": True}
        run.save(storage)
    elif delivery.away or any(name.startswith(f"{run.name}-{run.generation:03d}-") for name in delivery.left):
        away = delivery.away
        why = f"has been away for {wait_s:.0f} s" if away else "refuses what was recorded"
        raise TrackingError(
            f"run {run.name} is trained but not registered: the tracking server {uri(config)} {why} "
            f"({next(iter(delivery.left.values()))}).",
            "Nothing is lost: the same command registers it "
            + ("when the server is back; tracking.wait_s says how long it waits." if away else "then."),
        )
    return run


def _registered(config: Config, run: Run) -> tuple[str, int] | None:
    """MLflow run and version of a run, looked up by its key."""
    run_id = find(config, run.key)
    mine = f"name = '{config.tracking.registered_model}' and run_id = '{run_id}'"
    versions = client(config).search_model_versions(mine) if run_id else []
    return (str(run_id), int(versions[0].version)) if versions else None


def find(config: Config, key: str) -> str | None:
    """Return the MLflow run of a key, None where the server has none; raises what MLflow raises."""
    asked = client(config)
    experiment = asked.get_experiment_by_name(config.tracking.experiment)
    condition = f"tags.`distml.key` = '{key}'"
    runs = asked.search_runs([experiment.experiment_id], condition, max_results=1) if experiment else []
    return str(runs[0].info.run_id) if runs else None

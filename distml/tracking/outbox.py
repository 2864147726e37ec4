"""Queues MLflow operations, sends them in a thread; writes and reads the spool files of an outage (driver).

A spool file holds the operations of one run in order. The next command that meets the server sends it, and
registers runs that the server does not know.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from distml.config import Config
from distml.errors import DistmlError, TrackingError
from distml.storage import Storage
from distml.tracking.operations import LogMetrics, Operation
from distml.tracking.runs import Run
from distml.tracking.sender import Sender
from distml.tracking.server import cause, client, failure, is_outage, patiently, retrying, uri

FOLDER = "tracking-spool"
_REJECTED = "rejected.json"
"""File of the spool that says what a server did not take, and why."""


def new_name(run: str) -> str:
    """A name for a spool file that no other has; those of a run sort by age."""
    return f"{run}-{time.time_ns() // 1_000_000:013d}-{uuid.uuid4().hex[:8]}.jsonl"


@dataclass
class Delivery:
    """What became of the spool.

    Attributes:
        sent: Number of spool files that were sent.
        left: Why each of the others was not, by its name.
        away: Whether the server was unreachable.
    """

    sent: int = 0
    left: dict[str, str] = field(default_factory=dict)
    away: bool = False


def deliver(config: Config, wait_s: float = 0.0, everywhere: bool = False) -> Delivery:
    """Send what earlier runs spooled, the oldest of a run first; sending something twice records it once.

    What a server rejects stays, and does not keep the others back. Who does not wait leaves it to another
    process that is sending already.

    Args:
        config: Names the storage root and the server.
        wait_s: Seconds to wait for a server that is unreachable.
        everywhere: Send operations for other servers, too.

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
    _remember(storage, {name: why for name, why in delivery.left.items() if why not in absent.values()})
    return delivery


def _remember(storage: Storage, rejections: dict[str, str]) -> None:
    """Write down what a server did not take: it stays so until a person does something, or it is sent."""
    before = rejected(storage)
    if before | rejections != before:
        text = json.dumps(before | rejections, indent=1)
        storage.write_bytes(text.encode(), FOLDER, _REJECTED)


def rejected(storage: Storage) -> dict[str, str]:
    """Return why each spool file was not taken by a server that responded, as the last attempt saw it.

    Raises:
        StorageError: The spool cannot be read.
    """
    if not storage.exists(FOLDER, _REJECTED):
        return {}
    known: dict[str, str] = json.loads(storage.read_text(FOLDER, _REJECTED))
    spooled = _names(storage)
    return {name: why for name, why in known.items() if name in spooled}


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
    """Send all that earlier runs spooled, waiting for a server that is unreachable.

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
    """Complete the record of a finished run that the server has not received, waiting for the server.

    Args:
        config: Names the registry.
        storage: Holds the record and the spool.
        run: The record of a finished run.
        wait_s: Seconds to wait for a server that is unreachable; `tracking.wait_s` by default.

    Returns:
        The record with the version and the MLflow run, saved; as it was where it has a version already, or
        where neither the server nor the spool knows the run.

    Raises:
        TrackingError: The server is unreachable for too long, or rejects what is spooled.
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
        why = f"has been unreachable for {wait_s:.0f} s" if away else "rejects what was recorded"
        raise TrackingError(
            f"run {run.name} is trained but not registered: the tracking server {uri(config)} {why} "
            f"({next(iter(delivery.left.values()))}).",
            "Nothing is lost: the same command registers it "
            + ("when the server is back; tracking.wait_s limits how long it waits." if away else "then."),
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


INTERVAL_S = 10.0
"""Seconds between samples, MLflow's own default."""


class Watch:
    """Samples processor, memory, disk, network and, where there is one, GPU until it is closed. Final.

    MLflow's monitors are used without its monitor thread, which would call the server itself and so bring
    an outage into the training process; here samples go through the outbox like everything else.

    Args:
        put: Called with the step, whole seconds since `since`, and the values by metric name.
        since: Start of the run, seconds since 1970: steps go on ascending when the run is resumed.
        interval_s: Seconds between samples.
    """

    def __init__(
        self, put: Callable[[int, dict[str, float]], None], since: float, interval_s: float = INTERVAL_S
    ) -> None:
        self._put, self._since, self._interval_s = put, since, interval_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="machine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            psutil.cpu_percent()  # the first reading of a processor's use is the use since never: 0
            self._closed.wait(self._interval_s)  # MLflow is being imported meanwhile
            self._sample()
        except Exception:  # whatever a machine's counters raise, the run continues without them
            logger.exception("system metrics are no longer recorded")

    def _sample(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            monitors.append(GPUMonitor())
        except (ImportError, RuntimeError):
            logger.debug("GPU metrics are not recorded")
        last = -1
        while True:
            ended, step = self._closed.is_set(), int(time.time() - self._since)
            if step > last:
                self._put(step, _values(monitors))
                last = step
            if ended:  # its end is the only sample of a short run
                return
            self._closed.wait(self._interval_s)

    def close(self) -> None:
        """Take no more samples."""
        self._closed.set()
        self._thread.join()


def _values(monitors: Iterable[Any]) -> dict[str, float]:
    values: dict[str, float] = {}
    for monitor in monitors:
        monitor.collect_metrics()
        metrics = monitor.aggregate_metrics()
        values |= {f"system/{name}": float(value) for name, value in metrics.items()}
        monitor.clear_metrics()
    return values


if TYPE_CHECKING:
    from tenacity import RetryCallState

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 5.0
"""Between two attempts during a run: its curves are watched while it trains."""
_PATIENCE_S = 30.0
"""Seconds that the end of a run waits for the server before it spools: a sweep's next run is due."""


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
        self._watch: Watch | None = None
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def put(self, operation: Operation) -> None:
        """Add an operation; returns at once."""
        self._box.put(operation)

    def metrics(self, guard: str, step: int, values: dict[str, float], time_s: float | None = None) -> None:
        """Add metrics of one step, logged once even when a restarted worker sends them again."""
        time_ms = int((time_s or time.time()) * 1000)
        finite = {key: float(value) for key, value in values.items()}
        self.put(LogMetrics(guard, step, time_ms, finite))

    def watch(self, since: float) -> None:
        """Add what this machine does from now on, until the run is closed."""
        self._watch = Watch(lambda step, values: self.metrics("system", step, values), since)

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # whatever is wrong is said when the first operation is sent
            _ = self.sender.client  # importing MLflow takes seconds; here it overlaps the start of Ray
        while (operation := self._box.get()) is not None:
            if self.failure is None and self._deliver(operation):
                continue
            self._unsent.append(operation)

    def _deliver(self, operation: Operation) -> bool:
        """Send one operation, waiting out an outage; False when it has to be spooled."""
        tries = retrying(math.inf, _LONGEST_PAUSE_S, self._note_outage, self._give_up)
        try:
            tries(self.sender.send, operation)
        except Exception as error:  # the one broad catch: tracking must not end a training run
            if not is_outage(error):
                logger.warning("tracking failed (%s): %s", operation.kind, cause(error))
            self.failure = error
            return False
        if self._outage_since is not None:
            logger.info("tracking server back after %.0f s", time.time() - self._outage_since)
            self._outage_since = None
        return True

    def _note_outage(self, state: RetryCallState) -> None:
        error = failure(state)
        if self._outage_since is None and error is not None and is_outage(error):
            self._outage_since = time.time()
            logger.warning("tracking server unreachable, recording for later: %s", cause(error))

    def close(self, patience_s: float = _PATIENCE_S) -> bool:
        """Send what is left and what earlier runs have spooled, then stop; spool what cannot be sent.

        Args:
            patience_s: How long to wait for a server that is unreachable before spooling.

        Returns:
            Whether everything of this run is on record.
        """
        if self._watch:
            self._watch.close()
        self._box.put(None)
        deadline = time.time() + min(patience_s, self._config.tracking.wait_s)
        while self._thread.is_alive() and (self._outage_since is None or time.time() < deadline):
            self._thread.join(0.05)
        self._give_up.set()
        self._thread.join()
        if self._unsent:
            self._spool()
            return False
        try:
            deliver(self._config)
        except DistmlError as error:
            logger.warning("what earlier runs spooled is not sent: %s", error)
        return True

    def _spool(self) -> None:
        header = {"config": self._config.model_dump(mode="json"), "run_id": self.sender.run_id}
        lines = [json.dumps(line) for line in (header, *(left.to_json() for left in self._unsent))]
        self._storage.write_bytes("\n".join(lines).encode(), FOLDER, new_name(self._name))
        logger.warning("tracking is incomplete; the next command that reaches the server sends the rest")

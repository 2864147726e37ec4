"""Connects to a Ray cluster or starts a local one, and plans its resources; the only `ray.init` (driver)."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distml import log
from distml.config import Config, TrainConfig
from distml.errors import ResourceError
from distml.runtime import compat, environment, processes

logger = logging.getLogger(__name__)

SPARE_CPUS = 1.0
"""Logical CPUs kept free for Ray Data: Ray Train reserves its own first, and an ingest that finds
none left waits without end."""


@dataclass(frozen=True)
class Plan:
    """What a run takes from the cluster.

    Attributes:
        workers: Fewest and most workers.
        use_gpu: Whether each worker takes one GPU.
        cpus_per_worker: Logical CPUs each worker reserves.
        reason: Why this device was chosen, for the person watching.
        grows: Whether nodes may join.
    """

    workers: tuple[int, int]
    use_gpu: bool
    cpus_per_worker: float
    reason: str
    grows: bool = False


def plan(
    train: TrainConfig, resources: Mapping[str, float], grows: bool = False, autoscaled: bool = False
) -> Plan:
    """Decide what a run takes, or say which resource is short.

    Args:
        train: The training section.
        resources: Totals of the cluster as Ray counts them (`CPU`, `GPU`).
        grows: Nodes may join, so an elastic run keeps its most.
        autoscaled: What is short is fetched, GPUs from none included: nothing is rejected.

    Raises:
        ResourceError: Not even the fewest workers fit.
    """
    gpus, cpus = int(resources.get("GPU", 0)), float(resources.get("CPU", 0))
    least, most = train.min_workers, train.max_workers
    if train.device == "gpu" and gpus < least and not autoscaled:
        raise ResourceError(
            f"train.device is gpu and train.workers needs {least} GPU, but the cluster has {gpus}.",
            "Use fewer workers, add GPUs, or set train.device to cpu.",
        )
    use_gpu = train.device == "gpu" or (train.device == "auto" and gpus >= least)
    room = math.floor((cpus - SPARE_CPUS) / train.cpus_per_worker + 1e-9)  # 0.7 / 0.1 is 6.999...
    if room < least and not autoscaled:
        raise ResourceError(
            f"train.workers = {least} with train.cpus_per_worker = {train.cpus_per_worker:g} and "
            f"{SPARE_CPUS:g} CPU for Ray Data needs {least * train.cpus_per_worker + SPARE_CPUS:g} CPU, "
            f"but the cluster has {cpus:g}.",
            "Use fewer workers or a larger cluster.",
        )
    if not (grows or autoscaled):
        most = min(most, room, gpus) if use_gpu else min(most, room)
    reason = f"{train.device}: the cluster has {gpus} GPU for {least} worker{'s' * (least > 1)}"
    return Plan((least, most), use_gpu, train.cpus_per_worker, reason, grows)


def local_cpus(train: TrainConfig, runs: int = 1) -> int:
    """Logical CPUs a local Ray is started with.

    A laptop with two cores runs two workers: Ray's CPUs are tickets, not cores, so there are at least
    enough for the workers asked for (up to four a core) and for Ray Data, in each of so many runs.
    """
    cores = os.cpu_count() or 1
    wanted = math.ceil(runs * train.max_workers * train.cpus_per_worker + SPARE_CPUS)
    return max(cores, min(wanted, 4 * cores + 1))


def address() -> str | None:
    """Configured address of the cluster; None starts a local Ray."""
    return os.environ.get("RAY_ADDRESS") or None


@dataclass(frozen=True)
class Cluster:
    """A connection.

    Attributes:
        resources: Totals by resource name.
        dashboard: URL of the dashboard, or None.
        local: Whether this process started it.
        logs: Folder of Ray's and the workers' logs on the head, or None.
    """

    resources: dict[str, float]
    dashboard: str | None
    local: bool
    logs: str | None

    @property
    def shown(self) -> str:
        """The dashboard's address and token, as logged."""
        if not self.dashboard:
            return "no dashboard"
        asks = self.local and processes.token_is_generated()
        return f"dashboard {self.dashboard}" + " (token: ray get-auth-token)" * asks


def _init_arguments(
    config: Config, runs: int, variables: Mapping[str, str], dashboard: bool = True
) -> dict[str, Any]:
    """Set the variables that are read when Ray is imported, and return the arguments of `ray.init`."""
    environment.RAY.apply()
    processes.reach_this_machine()
    if address():
        travelling = {"runtime_env": {"env_vars": dict(variables)}} if variables else {}
        return {"address": address(), **travelling}
    environment.LOCAL_RAY.apply()
    environment.override(variables)  # Ray's processes inherit this one's
    processes.authenticate()
    return {
        "address": "local",
        "num_cpus": local_cpus(config.train, runs),
        # None starts it, and where it cannot be, training continues without.
        "include_dashboard": None if dashboard and os.environ.get(environment.NO_DASHBOARD) != "1" else False,
        "dashboard_host": "127.0.0.1",
    }


@contextlib.contextmanager
def connect(
    config: Config, runs: int = 1, variables: Mapping[str, str] | None = None, dashboard: bool = True
) -> Iterator[Cluster]:
    """Connect to the cluster in RAY_ADDRESS, else start a local Ray; disconnect at the end.

    A process that is connected already stays with that Ray, and nothing ends here: a notebook trains while
    it serves, and a script that called `ray.init` itself keeps its own.

    Args:
        config: Sizes a local Ray.
        runs: That are to train at the same time.
        variables: Environment variables for Ray's processes, such as `serving.ingress.variables`.
        dashboard: A local Ray has its dashboard, unless DISTML_NO_DASHBOARD is 1: ten processes, for which
            `ray.init` waits 4 s on two cores.

    Raises:
        ResourceError: The cluster cannot be reached, a local one cannot start, or the one that is there
            lacks the variables.
    """
    if (present := _present(variables or {})) is not None:
        yield present
        return
    arguments = _init_arguments(config, runs, variables or {}, dashboard)
    own: contextlib.AbstractContextManager[dict[str, str]] = processes.temporary_folder()
    with contextlib.nullcontext({}) if address() else own as temporary:
        context = _init(arguments, temporary)
        try:
            _opened.append(_described(context))
            yield _opened[-1]
        except KeyboardInterrupt:
            if address() is None:
                compat.killed_at_once()
                processes.kill_workers()
            raise
        finally:
            _opened.clear()
            _disconnect()


def _init(arguments: dict[str, Any], temporary: Mapping[str, str]) -> Any:
    """Call `ray.init`; Ray's processes, not this one, have the variables of temporary folders.

    Raises:
        ResourceError: It failed.
    """
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    few = compat.few_processes(dashboard=arguments.get("include_dashboard") is not False)
    try:
        with environment.inherited(temporary), contextlib.nullcontext() if address() else few:
            context = ray.init(
                namespace="distml", log_to_driver=False, logging_level=logging.ERROR, **arguments
            )
    except KeyboardInterrupt:
        processes.kill_starting()
        raise
    except Exception as error:  # where the raylet is not up within 30 s, Ray raises this very class
        doing = f"connect to {address()}" if address() else "start Ray on this machine"
        cause = str(error).strip().partition("\n")[0].rstrip(".: ") or type(error).__name__
        raise ResourceError(f"cannot {doing}: {cause}.", _remedy(cause)) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray's own would leave without a result line
    processes.step_back()
    return context


def _disconnect() -> None:
    """Call `ray.shutdown`; quietly, for Ray speaks of its own end."""
    import ray

    at_once = contextlib.nullcontext() if address() else processes.killed_at_exit()
    with log.quietly(), compat.no_messages(), at_once:
        ray.shutdown()


_opened: list[Cluster] = []
"""The connection that `connect` has open in this process, if any."""


def connected() -> bool:
    """Whether this process is connected to a Ray; without importing Ray, which takes seconds."""
    # Another thread may be importing it; until it has, there is no such function.
    asked = getattr(sys.modules.get("ray"), "is_initialized", None)
    return asked is not None and bool(asked())


def _present(variables: Mapping[str, str]) -> Cluster | None:
    """The Ray that this process is connected to already; one that `connect` did not start is not local."""
    if not connected():
        return None
    if any(os.environ.get(name) != value for name, value in variables.items()):
        raise ResourceError(
            "this process is connected to a Ray that was started without the settings of the endpoint.",
            "End that connection (ray.shutdown()), or serve in another process: python -m distml.serve.",
        )
    if _opened:
        return _opened[-1]
    import ray

    return Cluster(ray.cluster_resources(), None, False, None)


def _described(context: Any) -> Cluster:
    """Describe what `ray.init` connected to."""
    import ray

    url = f"http://{context.dashboard_url}" if context.dashboard_url else None
    session = getattr(context, "address_info", {}).get("session_dir")
    return Cluster(ray.cluster_resources(), url, address() is None, f"{session}/logs" if session else None)


def _remedy(cause: str) -> str:
    if address():
        return "Check RAY_ADDRESS, or unset it."
    if "AF_UNIX" in cause:  # Ray's sockets lie below its temporary folder
        return "Set RAY_TMPDIR to a folder with a shorter path."
    return "Try again when the machine is less busy."


JOIN_S = 90.0
"""How long a run waits for nodes of its cluster: pods of Ray's workers are ready after the head's."""


def require_plan(config: Config, connected: Cluster) -> Plan:
    """`plan` for a live connection; the nodes of a cluster that has just come up are given time to join.

    Raises:
        ResourceError: A local Ray is too small for the configuration.
    """
    # KubeRay sets the variable on the head, where drivers run, when an autoscaler runs beside it.
    autoscaled = not connected.local and "RAY_ENABLE_AUTOSCALER_V2" in os.environ
    until, resources = time.monotonic() + JOIN_S, connected.resources
    while True:
        try:
            return plan(config.train, resources, grows=not connected.local, autoscaled=autoscaled)
        except ResourceError as error:
            if connected.local and config.train.device != "gpu":
                remedy = f"This machine has {os.cpu_count()} cores; take fewer train.workers."
                raise ResourceError(error.message, remedy) from None
            if connected.local or time.monotonic() > until:
                raise
            resources = _joined(resources, error.message)


def _joined(before: dict[str, float], short: str) -> dict[str, float]:
    """The cluster's totals a moment later; says once what is waited for."""
    import ray

    level = logging.DEBUG if before.get("waited") else logging.WARNING
    logger.log(level, "%s Waiting up to %g s for nodes to join.", short, JOIN_S)
    time.sleep(1)
    return {**ray.cluster_resources(), "waited": 1.0}

"""How Ray Serve's processes are to run: the variables they read when they start (driver).

Ray reads them when `ray.serve` is imported, in the controller, the proxies and the replicas. They must stand
in the environment before Ray starts here, or travel with the job to a cluster that runs already.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from pathlib import Path

from distml.config import ServeConfig
from distml.errors import ServingError
from distml.serving import haproxy, ports

_DRAIN_S = 1
"""Seconds in which a proxy notices that a replica is about to end. Ray's 30 s are for balancers in clouds."""
_START_S = 60
"""Seconds a proxy may take to start. After Ray's 5 s, too few for a busy machine, it would be killed."""
_BUFFER_BYTES = 65536
"""HAProxy repeats a request on another replica only while it has all of it in one buffer."""


def uses_haproxy(serve: ServeConfig) -> bool:
    """Decide whether HAProxy is the ingress.

    Raises:
        ServingError: It is asked for and not here.
    """
    if serve.proxy == "ray" or sys.platform != "linux":
        return False
    if haproxy.program() is None:
        if serve.proxy == "haproxy":
            raise ServingError(
                "serve.proxy is haproxy, but there is none on this machine.", "Install haproxy."
            )
        return False
    return True


def variables(serve: ServeConfig, local: bool) -> dict[str, str]:
    """Return the variables for Ray Serve's processes.

    Args:
        serve: The section of the configuration.
        local: Whether Ray runs on this machine alone; then nothing may depend on fixed ports and folders,
            which another endpoint of this machine may have.

    Raises:
        ServingError: As `uses_haproxy`.
    """
    found = {
        # One event loop in a replica instead of two: no thread is crossed between the socket and our code.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(_DRAIN_S),
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(_DRAIN_S),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(_START_S),
        # A replica that hangs does not end by being asked to, and would hold its CPU from its successor.
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }
    if uses_haproxy(serve):
        found |= _haproxy(serve)
        if local:
            found |= _apart()
    return found


def _haproxy(serve: ServeConfig) -> dict[str, str]:
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.GUARD),
        haproxy.PROGRAM: haproxy.program() or "",
        haproxy.HOST: serve.host,
        haproxy.PATIENCE: f"{serve.read_timeout_s:g}",
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(_BUFFER_BYTES),
        # Classifying twice does no harm, so a request whose replica was killed is asked of another.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response response-timeout",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(int(serve.drain_timeout_s) + _DRAIN_S),
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(int(serve.request_timeout_s + serve.read_timeout_s) + 5),
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
        # One check of at most 2.5 s (haproxy.py): a new replica is down at its first failure anyway, and
        # with two checks of 1 s a redeploy on a busy machine lost 4 of 820 requests.
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "1",
        # Counting in HAProxy sends a line per request to a Python process, which costs as much as answering.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    }


def _apart() -> dict[str, str]:
    """Folders and ports of this endpoint alone."""
    folder = Path(tempfile.mkdtemp(prefix="distml-serve-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # when Ray, and HAProxy with it, has ended
    found = [str(port) for port in ports.free(4)]
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": found[0],
        "RAY_SERVE_HAPROXY_METRICS_PORT": found[1],
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": found[2],
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": found[3],
    }

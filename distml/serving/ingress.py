"""Which ingress an endpoint has, and the variables of Ray Serve's processes (driver).

Ray reads the variables when `ray.serve` is imported, in the controller, the proxies and the replicas. They
must stand in the environment before Ray starts here, or travel with the job to a cluster that runs already.
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
from distml.runtime import environment
from distml.serving import haproxy, ports


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
    values = environment.SERVE.values()
    if uses_haproxy(serve):
        values |= _haproxy(serve)
        if local:
            values |= _apart()
    return values


def _haproxy(serve: ServeConfig) -> dict[str, str]:
    timeout_s = int(serve.request_timeout_s + serve.read_timeout_s) + 5
    return environment.HAPROXY.values(
        {
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.GUARD),
            haproxy.PROGRAM: haproxy.program() or "",
            haproxy.HOST: serve.host,
            haproxy.PATIENCE: f"{serve.read_timeout_s:g}",
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(
                int(serve.drain_timeout_s) + environment.SERVE_DRAIN_S
            ),
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(timeout_s),
        }
    )


def _apart() -> dict[str, str]:
    """Folders and ports of this endpoint alone."""
    folder = Path(tempfile.mkdtemp(prefix="distml-serve-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # when Ray, and HAProxy with it, has ended
    free = [str(port) for port in ports.free(4)]
    return environment.LOCAL_HAPROXY.values(
        {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
            "RAY_SERVE_HAPROXY_STATS_PORT": free[0],
            "RAY_SERVE_HAPROXY_METRICS_PORT": free[1],
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": free[2],
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": free[3],
        }
    )

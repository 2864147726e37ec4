"""Starts Ray Serve and its ingress (HAProxy or Ray's proxy): ports, TLS files, gRPC options (driver).

Ray reads the variables when `ray.serve` is imported, in the controller, the proxies and the replicas. They
must stand in the environment before Ray starts here, or travel with the job to a cluster that runs already.
"""

from __future__ import annotations

import atexit
import os
import random
import re
import shutil
import socket
import ssl
import stat
import sys
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from distml.config import ServeConfig, TlsConfig
from distml.errors import ConfigError, ResourceError, ServingError
from distml.runtime import cluster, environment
from distml.serving import haproxy

_RANGE = range(20_000, 30_000)
"""Above those of Ray's workers (10002-19999), below those of replicas (requests 30000-31000, health 1001
above) and those that systems give to outgoing connections (Linux from 32768, macOS from 49152): such a port
may be taken between this check and its use."""
_TRIES = 200
_SHORT = "/tmp"  # noqa: S108 (a folder of its own is made there)


def free_ports(count: int = 1) -> list[int]:
    """Return free ports of loopback; all differ.

    Raises:
        OSError: There are none.
    """
    ports: list[int] = []
    with ExitStack() as stack:  # held together, so that no port comes twice
        for port in random.SystemRandom().sample(_RANGE, _TRIES):
            listener = stack.enter_context(socket.socket())
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise OSError(f"{count} free ports of 127.0.0.1 were not found in {_TRIES} tries")


def port_refusal(host: str, port: int) -> str | None:
    """Why nothing could listen there, in the system's words, or None where something could."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:  # of a name that is not known, too
            return error.strerror or str(error)
    return None


def listen(serve: ServeConfig) -> None:
    """Start Ray Serve, which opens the endpoint's port; where it runs already, this changes nothing.

    Raises:
        ResourceError: The port was taken meanwhile, or the proxy was lost.
    """
    from ray import serve as ray_serve
    from ray.exceptions import RayActorError
    from ray.serve.config import HTTPOptions

    try:
        ray_serve.start(
            proxy_location="EveryNode",
            http_options=HTTPOptions(host=_inner_host(serve), port=serve.port, request_timeout_s=None),
            grpc_options=grpc_options(serve),
            logging_config={"enable_access_log": False},
        )
    except RayActorError as error:
        ray_serve.shutdown()
        raise ResourceError(
            "Ray Serve's proxy was lost while it started.", "Start it again when the machine is less busy."
        ) from error
    except RuntimeError as error:  # what the proxy raised, wrapped
        taken = re.search(r"Failed to bind to address '[^']*'", str(error))
        if taken is None:
            raise
        ray_serve.shutdown()  # its controller would stay behind on a cluster
        raise ResourceError(f"{taken[0]}: it was taken just now.", "Start it again.") from None


def _inner_host(serve: ServeConfig, local: bool | None = None) -> str:
    """Where Ray Serve's own processes listen: behind HAProxy of this machine alone, on loopback."""
    local = cluster.address() is None if local is None else local
    return "127.0.0.1" if local and uses_haproxy(serve) else serve.host


def grpc_options(serve: ServeConfig) -> dict[str, Any] | None:
    """Return Ray Serve's options for gRPC; None where no port is asked for."""
    if serve.grpc_port is None:
        return None
    # Reflection would describe the procedures by published stubs, which are not here.
    return {
        "port": serve.grpc_port,
        "grpc_servicer_functions": ["distml.serving.rpc.add"],
        "enable_reflection": False,
    }


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


def require_certificate(tls: TlsConfig) -> None:
    """Reject a certificate or key that HAProxy could not use, and a key that others can read.

    Raises:
        ConfigError: That is so.
    """
    if tls.certificate is None or tls.key is None:
        return
    named = f"serve.tls.certificate = {tls.certificate!r} and key = {tls.key!r}"
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: "")
        mode = os.stat(tls.key).st_mode
    except OSError as error:  # an SSLError is one
        cause = "they do not belong together" if "MISMATCH" in str(error) else error.strerror or str(error)
        raise ConfigError(f"{named}: {cause}.", "Give PEM files, the key without a password.") from None
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError(
            f"{named}: others can read or change the key, its mode is {stat.S_IMODE(mode):04o}.",
            f"Run chmod 600 {tls.key}.",
        )


_SOON = timedelta(days=14)
"""Before a certificate ends; a third of its time where that is less, as for those of a day."""


def certificate_validity(tls: TlsConfig) -> str:
    """Say what clients find wrong with the dates of a certificate; empty where nothing is, or there is none.

    Args:
        tls: Names files that `require_certificate` accepts.
    """
    if tls.certificate is None or (dates := haproxy.validity(tls.certificate)) is None:
        return ""
    begins, ends, now = *dates, datetime.now(UTC)
    named = f"serve.tls.certificate = {tls.certificate!r}"
    if ends < now:
        return f"{named} expired on {ends:%Y-%m-%d}, so clients reject it. Replace it by a renewed one."
    if now < begins:
        return f"{named} is valid from {begins:%Y-%m-%d %H:%M} UTC, so clients reject it until then."
    if ends - now < min(_SOON, (ends - begins) / 3):
        return f"{named} expires on {ends:%Y-%m-%d}. Replace it by a renewed one before."
    return ""


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
    if serve.tls.certificate and not uses_haproxy(serve):
        raise ServingError("serve.tls needs HAProxy, which is not the ingress here.", "Install haproxy.")
    if uses_haproxy(serve):
        values |= _haproxy(serve, _inner_host(serve, local))
        if local:
            values |= _apart()
    return values


def _haproxy(serve: ServeConfig, inner: str) -> dict[str, str]:
    timeout_s = int(serve.request_timeout_s + serve.read_timeout_s) + 5
    return environment.HAPROXY.values(
        {
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(haproxy.GUARD),
            haproxy.PROGRAM: haproxy.program() or "",
            haproxy.HOST: serve.host,
            haproxy.REPLICAS: inner,
            haproxy.CERTIFICATE: os.path.abspath(serve.tls.certificate) if serve.tls.certificate else "",
            haproxy.KEY: os.path.abspath(serve.tls.key) if serve.tls.key else "",
            haproxy.PATIENCE: f"{serve.read_timeout_s:g}",
            "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
            "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(
                int(serve.drain_timeout_s) + environment.SERVE_DRAIN_S
            ),
            "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(timeout_s),
            "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(timeout_s),
        }
    )


def _apart() -> dict[str, str]:
    """Folders and ports of this endpoint alone."""
    # The path of HAProxy's socket, in a folder of Ray's below this one, may have 97 characters.
    long = len(tempfile.gettempdir()) > len(_SHORT) and os.access(_SHORT, os.W_OK)
    folder = Path(tempfile.mkdtemp(prefix="distml-serve-", dir=_SHORT if long else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # when Ray, and HAProxy with it, has ended
    free = [str(port) for port in free_ports(4)]
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

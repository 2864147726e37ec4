"""Starting and stopping the endpoint on the Ray this process is connected to (driver)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import distml
from distml import log
from distml.config import Config, ServeConfig
from distml.errors import ServingError
from distml.runtime import compat
from distml.serving import ingress, ports, readiness
from distml.serving.readiness import Endpoint

logger = logging.getLogger(__name__)

APPLICATION = "distml"
"""Name of the Ray Serve application."""
_REPLICA, _WATCHER = "Replica", "Watcher"


def start(config: Config, timeout_s: float | None = None) -> Endpoint:
    """Deploy the endpoint, or replace the one that is there; returns when the champion answers.

    What goes wrong ends an endpoint that is new; one that stood before goes on with what it has.
    `ingress.variables` must have reached Ray before.

    Args:
        config: The configuration.
        timeout_s: Instead of `serve.start_timeout_s`.

    Raises:
        ServingError: No champion, one that cannot be trusted or loaded, or no answer in time.
        ResourceError: The cluster cannot hold the replicas, or the port is taken.
        TrackingError: The registry does not answer.
    """
    deadline = time.monotonic() + (timeout_s or config.serve.start_timeout_s)
    champion = readiness.require_champion(config)
    readiness.require_followed(config)
    readiness.require_room(config.serve)
    stood = readiness.stands()
    _deploy(config)
    try:
        return readiness.champion(
            config, readiness.url(config.serve), champion, deadline, _require_hope, _status
        )
    except BaseException:
        if not stood:
            stop()
        raise


def stop() -> None:
    """End the endpoint: requests under way are answered first."""
    from ray import serve

    with contextlib.suppress(Exception):  # the application may not be there
        serve.delete(APPLICATION)
    with log.quietly():  # Serve kills its controller, and Ray would report that as lost
        serve.shutdown()


def _deploy(config: Config) -> None:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it would tell of its own steps
    ports.listen(config.serve)
    serve.run_many(
        [serve.RunTarget(application(config), name=APPLICATION, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def application(config: Config) -> Any:
    """Return the Ray Serve application of a configuration: its two deployments, bound."""
    from ray import serve

    from distml.serving.replica import Replica
    from distml.serving.watcher import Watcher

    section, values = config.serve, _relevant(config)
    version = compat.serve_version(_version(values))
    watcher = serve.deployment(Watcher).options(
        name=_WATCHER,
        **version,
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=10_000,
        # What is under way there are replicas that wait for news, up to 20 s: nothing to wait for at the end.
        graceful_shutdown_timeout_s=1,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config={"enable_access_log": False},
    )
    replica = serve.deployment(serve.ingress()(Replica)).options(
        name=_REPLICA,
        **version,
        max_ongoing_requests=section.max_queued_images,
        ray_actor_options={"num_cpus": section.cpus_per_replica, "num_gpus": section.gpus_per_replica},
        graceful_shutdown_timeout_s=section.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
        # After three checks without an answer a replica is replaced: 12 s here, 60 s with what Ray takes.
        health_check_period_s=2,
        health_check_timeout_s=4,
        max_surge_percent=100,  # Ray's 0 would stop a replica before its successor answers
        logging_config={"enable_access_log": False},
        **_scale(section),
    )
    return replica.bind(values, watcher.bind(values))


def _relevant(config: Config) -> dict[str, Any]:
    """Return what the endpoint's processes depend on; the rest stays as it is by default.

    A pipeline of another `run.name`, data set or recipe must not replace an endpoint that answers.
    """
    whole = config.model_dump(mode="json")
    tracking = {key: whole["tracking"][key] for key in ("uri", "registered_model", "artifact_roots")}
    drivers = ("url", "start_timeout_s", "replicas")  # the driver's own, and what Ray changes in place
    section = {key: value for key, value in whole["serve"].items() if key not in drivers}
    return {"storage": whole["storage"], "tracking": tracking, "serve": section, "log": whole["log"]}


def _version(values: dict[str, Any]) -> str:
    """Return what stands for the code and the configuration of a deployment: another one replaces it."""
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    package = Path(distml.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def declared(args: dict[str, Any]) -> Any:
    """Return the application for Ray's own tools, `serve deploy FILE` or a RayService on Kubernetes.

    Their file names this function as `import_path`. What `ingress.variables` says must stand in the
    environment of Ray's processes.

    Args:
        args: Keys of the configuration by dotted path; `config`, where given, is the file they go on top of.

    Raises:
        ConfigError: The configuration cannot be used.
    """
    over = {path: value for path, value in args.items() if path != "config"}
    return application(Config.load(args.get("config"), **over))


def _scale(section: ServeConfig) -> dict[str, Any]:
    if section.replicas.min == section.replicas.max:
        return {"num_replicas": section.replicas.min}
    return {
        "num_replicas": None,
        "autoscaling_config": {
            "min_replicas": section.replicas.min,
            "max_replicas": section.replicas.max,
            "target_ongoing_requests": section.replicas.target_ongoing_requests,
            "metrics_interval_s": 1,
            "look_back_period_s": 5,
            "upscale_delay_s": 5,
            "downscale_delay_s": 60,
        },
    }


def _require_hope(config: Config, champion: int) -> None:
    """Raise where waiting longer would change nothing."""
    from ray import serve

    found = serve.status().applications.get(APPLICATION)
    if found is None:
        return
    if found.status == "DEPLOY_FAILED":
        raise ServingError(f"the endpoint cannot be deployed: {found.message[-600:].strip()}")
    watcher = found.deployments.get(_WATCHER)
    if watcher is not None and watcher.status == "HEALTHY":
        models = serve.get_deployment_handle(_WATCHER, APPLICATION).models.remote().result(timeout_s=10)
        bad = next((one for one in models.refused if one.version == champion), None)
        if bad is not None:
            raise ServingError(
                f"version {bad.version} of {config.tracking.registered_model} is refused: {bad.reason}"
            )


def _status() -> str:
    """Say what Ray Serve is doing."""
    from ray import serve

    found = serve.status().applications.get(APPLICATION)
    parts = (
        [f"{name} is {one.status}: {one.message}" for name, one in found.deployments.items()] if found else []
    )
    return " ".join(parts)[:600]


def prepare(config: Config) -> dict[str, str]:
    """Return the variables Ray needs to start this endpoint; see `ingress.variables`."""
    from distml.runtime import cluster

    return ingress.variables(config.serve, cluster.address() is None)

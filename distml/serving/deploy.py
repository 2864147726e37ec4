"""Deploys the endpoint on Ray Serve: start, stop, health limits of replicas (driver)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import distml
from distml import log
from distml.config import Config, ServeConfig
from distml.errors import DistmlError, ResourceError, ServingError, TrackingError
from distml.runtime import cluster, compat
from distml.serving import client, ingress, keys
from distml.serving.models import Record, aliases, base, hosted, own
from distml.tracking import locate, registry

logger = logging.getLogger(__name__)


def require(config: Config, before_ray: bool = False) -> int:
    """Reject to start what could not answer.

    Args:
        config: The configuration.
        before_ray: Look at the port, too, where this process has no Ray yet and will start one, for seconds.

    Returns:
        The number of the champion; during an outage of the registry, of the champion served last. Of several
        models, that of `models.own`.

    Raises:
        ServingError: No version is champion, or what else is followed was never there.
        TrackingError: The registry does not respond, and nothing was served before.
        ResourceError: The port is taken.
        ConfigError: The keys file or the certificate cannot be used.
    """
    return _require(config, before_ray)[own(config)[0]]


def _require(config: Config, before_ray: bool = False) -> dict[str, int]:
    """As `require`; returns the champion of every model by the name that clients call it."""
    if config.serve.auth.keys_file:
        keys.require(config.serve.auth.keys_file)
    ingress.require_certificate(config.serve.tls)
    if before_ray and cluster.address() is None and not cluster.connected():
        require_port(config.serve)
    champions = {}
    for name, alone in hosted(config).items():
        champions[name] = require_champion(alone)
        require_followed(alone)
    return champions


def require_champion(config: Config) -> int:
    """Reject to start without a champion; the first question imports MLflow.

    Returns:
        Its number; while the registry is unreachable, that of the champion that was served last.

    Raises:
        ServingError: No version is champion.
        TrackingError: The registry does not respond, and nothing was served before.
        ModelError: The champion was registered without a SHA-256, and nothing was served before.
    """
    name, alias = config.tracking.registered_model, config.serve.alias
    try:
        champion = registry.by_alias(registry.briefly(config), alias)
    except TrackingError as error:
        champion = Record(config).recall().champion
        if champion is None:
            raise
        logger.warning(
            "%s Version %d of %s was served last and is served again.", error, champion.version, name
        )
    if champion is None:
        others = registry.aliases(config)
        known = ", ".join(f"{other} is version {number}" for other, number in others.items())
        raise ServingError(
            f"no version of {name} is {alias}" + (f"; {known}." if known else "."),
            "Train one and run `distml promote`."
            if alias == registry.CHAMPION
            else "Set it in the registry.",
        )
    if champion.sha256 is None and Record(config).recall().champion is None:
        locate.require_signed(champion)  # nothing else could answer: said before Ray starts
    return champion.version


def require_followed(config: Config) -> None:
    """Reject to start with a canary, a shadow or a version that was never there.

    An alias that this endpoint has served before only gives a warning.

    Raises:
        ServingError: The registry does not have it.
    """
    name, last = config.tracking.registered_model, Record(config).recall()
    followed = {alias: alias in last.aliases for alias in aliases(config.serve)[1:]}
    try:
        for alias, known in followed.items():
            if not known and registry.by_alias(config, alias) is None:
                raise ServingError(
                    f"no version of {name} has the alias {alias!r}, which "
                    f"{'serve.shadow' if alias == config.serve.shadow else 'serve.canary.alias'} names.",
                    "Set it in the registry, or leave it out.",
                )
        for number in config.serve.versions:
            if number not in last.versions and registry.by_number(config, number) is None:
                raise ServingError(
                    f"there is no version {number} of {name}, which serve.versions names.", "Leave it out."
                )
    except TrackingError as error:
        logger.warning("%s What serve.canary, serve.shadow and serve.versions name is not looked for.", error)


def require_resources(serve: ServeConfig) -> None:
    """Reject replicas that the cluster cannot hold, and a port in use.

    Raises:
        ResourceError: The cluster cannot hold the replicas, or the port is taken.
    """
    import ray

    resources = ray.cluster_resources()
    for kind, each in (("CPU", serve.cpus_per_replica), ("GPU", serve.gpus_per_replica)):
        wanted = each * serve.replicas.min
        if wanted > resources.get(kind, 0.0):
            raise ResourceError(
                f"serve.replicas.min = {serve.replicas.min} needs {wanted:g} {kind}, but the cluster has "
                f"{resources.get(kind, 0.0):g}.",
                "Use fewer replicas or a larger cluster.",
            )
    if not stands():
        require_port(serve)


def require_port(serve: ServeConfig) -> None:
    """Reject ports in use.

    Raises:
        ResourceError: One is taken.
    """
    for key, port in (("serve.port", serve.port), ("serve.grpc_port", serve.grpc_port)):
        if port is not None and (refused := ingress.port_refusal(serve.host, port)):
            raise ResourceError(
                f"{key} {port} of {serve.host} cannot be used: {refused}.", f"Choose another --{key}."
            )


def stands() -> bool:
    """Whether Ray Serve runs on this Ray already; then the port is its own."""
    import ray

    with contextlib.suppress(ValueError):
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
        return True
    return False


def url(serve: ServeConfig) -> str:
    """Return the address to type on the machine that serves."""
    host = "127.0.0.1" if serve.host in ("0.0.0.0", "::") else serve.host  # noqa: S104 (compared, not bound)
    scheme = "https" if serve.tls.certificate else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{serve.port}"


_POLL_S, _LOOK_S = 0.2, 0.02


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers.

    Args:
        url: Where.
        model: Name of the registered model.
        version: The champion's number when it was asked.
        versions: Of several models, that of each that answers; otherwise empty.
    """

    url: str
    model: str
    version: int
    versions: dict[str, int] = field(default_factory=dict)


def _nothing(_: Config, __: int) -> None:
    pass


def await_champion(
    config: Config,
    url: str,
    wanted: int,
    deadline: float,
    require_hope: Callable[[Config, int], None] = _nothing,
    state: Callable[[], str] = str,
) -> Endpoint:
    """Wait for the champion's first answer; what stood before may answer with its predecessor first.

    Args:
        config: Names the model and its registry.
        url: Of the endpoint.
        wanted: The champion's number; another champion meanwhile takes its place.
        deadline: When to give up, as `time.monotonic` counts.
        require_hope: Raises where waiting for that champion would change nothing.
        state: Says what the endpoint is doing, for the error.

    Raises:
        ServingError: No champion, or it does not respond within the time limit.
        TrackingError: The registry does not respond.
    """
    said = f"{url} does not respond yet."
    while True:
        answering = client.version(url)
        if answering == wanted:
            return Endpoint(url, config.tracking.registered_model, wanted)
        if answering is not None:
            said = f"{url} answers with version {answering}, not with the champion, {wanted}."
            wanted = require_champion(config)  # it may have changed meanwhile
        require_hope(config, wanted)
        if time.monotonic() > deadline:
            raise ServingError(said, state() or "Raise serve.start_timeout_s.")
        time.sleep(_POLL_S)


def elsewhere(config: Config) -> Endpoint:
    """Wait for the endpoint at `serve.url`, which runs outside this command.

    Raises:
        ServingError: No champion, or no answer of its within `serve.start_timeout_s`.
        TrackingError: The registry does not respond.
    """
    url, deadline = (config.serve.url or "").rstrip("/"), time.monotonic() + config.serve.start_timeout_s
    alone = own(config)[1]
    endpoint = await_champion(alone, base(config, url), require_champion(alone), deadline)
    return replace(endpoint, url=url)


APPLICATION = "distml"
"""Name of the Ray Serve application."""
_REPLICA, _WATCHER = "Replica", "Watcher"


def start(config: Config, timeout_s: float | None = None) -> Endpoint:
    """Deploy the endpoint, or replace the one that is there; returns when the champion is served.

    A failure ends a new endpoint; an endpoint that was running keeps its versions. Of several models each is
    waited for; those that cannot be loaded are reported, and keep none of the others from answering.
    `ingress.variables` must have reached Ray before.

    Args:
        config: The configuration.
        timeout_s: Instead of `serve.start_timeout_s`.

    Raises:
        ServingError: No champion, one that cannot be trusted or loaded, or no answer in time.
        ResourceError: The cluster cannot hold the replicas, or the port is taken.
        TrackingError: The registry does not respond.
    """
    deadline = time.monotonic() + (timeout_s or config.serve.start_timeout_s)
    champions = _require(config)
    require_resources(config.serve)
    stood = stands()
    _deploy(config)
    try:
        if config.serve.models:
            return _await_models(config, champions, deadline)
        (champion,) = champions.values()
        return await_champion(config, url(config.serve), champion, deadline, _require_hope, _status)
    except BaseException as error:
        ends_anyway = isinstance(error, KeyboardInterrupt) and cluster.address() is None
        if not stood and not ends_anyway:
            stop()
        raise


def _await_models(config: Config, champions: Mapping[str, int], deadline: float) -> Endpoint:
    """Wait for the champion of each of several models, by name.

    Raises:
        DistmlError: None answers; why the first does not.
    """
    root = url(config.serve)
    answering: dict[str, Endpoint] = {}
    failed: dict[str, DistmlError] = {}
    for name, alone in hosted(config).items():
        try:
            hope, address = partial(_require_hope, name=name), base(config, root, name)
            answering[name] = await_champion(alone, address, champions[name], deadline, hope, _status)
        except DistmlError as error:
            failed[name] = error
    if not answering:
        raise next(iter(failed.values()))
    for name, reason in failed.items():
        logger.error("%s: %s", name, reason)
    name = own(config)[0]
    name = name if name in answering else next(iter(answering))
    versions = {name: endpoint.version for name, endpoint in answering.items()}
    return Endpoint(root, name, versions[name], versions)


def stop() -> None:
    """End the endpoint: requests under way are answered first."""
    from ray import serve

    with contextlib.suppress(Exception):  # the application may not be there
        serve.delete(APPLICATION)
    with log.quietly(), compat.no_messages():  # Serve kills its controller, and Ray would report that as lost
        serve.shutdown()


def _deploy(config: Config) -> None:
    """Start the proxies, and the replicas beside them: one after the other takes 4 s longer."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)  # it would log its own steps
    target = serve.RunTarget(application(config), name=APPLICATION, route_prefix="/")
    failures: list[BaseException] = []

    def listen() -> None:
        try:
            ingress.listen(config.serve)
        except BaseException as error:
            failures.append(error)

    listening = threading.Thread(target=listen, name="listen", daemon=True)
    listening.start()
    while listening.is_alive() and not stands():  # without the controller, `run_many` would start another
        time.sleep(_LOOK_S)
    try:
        if not failures:
            serve.run_many(
                [target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
            )
    except Exception as error:
        listening.join()
        if not failures:
            raise
        raise failures[0] from error  # what ended the controller
    listening.join()
    if failures:
        raise failures[0]


def application(config: Config) -> Any:
    """Return the Ray Serve application of a configuration: its two deployments, bound."""
    from ray import serve

    from distml.serving.replica import Replica
    from distml.serving.watch import Watcher

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
        max_ongoing_requests=sum(alone.serve.max_queued_images for alone in hosted(config).values()),
        ray_actor_options={"num_cpus": section.cpus_per_replica, "num_gpus": section.gpus_per_replica},
        graceful_shutdown_timeout_s=section.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.1,
        # After three checks without an answer a replica is replaced: 6 s here, 60 s with what Ray takes. With
        # 3 s a check, clients of a single replica that hung waited 20.2 s for the next on a slow machine.
        health_check_period_s=1,
        health_check_timeout_s=2,
        max_surge_percent=100,  # Ray's 0 would stop a replica before its successor answers
        # Ray describes each request for its log at that level, whether it is written or not.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
        **_scale(section),
    )
    return replica.bind(values, watcher.bind(values, time.time()))


def _relevant(config: Config) -> dict[str, Any]:
    """Return what the endpoint's processes depend on; the rest stays as it is by default.

    A pipeline of another `run.name`, data set or recipe must not replace an endpoint that answers.
    """
    whole = config.model_dump(mode="json")
    kept = ("uri", "artifact_roots", *(["registered_model"] if not config.serve.models else []))
    tracking = {key: whole["tracking"][key] for key in kept}
    drivers = ("url", "start_timeout_s", "replicas")  # the driver's own, and what Ray changes in place
    section = {key: value for key, value in whole["serve"].items() if key not in drivers}
    if keys_file := section["auth"]["keys_file"]:  # replicas have folders of their own
        section["auth"]["keys_file"] = os.path.abspath(keys_file)
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


def _require_hope(config: Config, champion: int, name: str | None = None) -> None:
    """Raise where waiting longer would change nothing."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    if application is None:
        return
    if application.status == "DEPLOY_FAILED":
        raise ServingError(f"the endpoint cannot be deployed: {application.message[-600:].strip()}")
    watcher = application.deployments.get(_WATCHER)
    if watcher is not None and watcher.status == "HEALTHY":
        sets = serve.get_deployment_handle(_WATCHER, APPLICATION).models.remote().result(timeout_s=10)
        models = sets[name or config.tracking.registered_model]
        bad = next((refusal for refusal in models.refused if refusal.version == champion), None)
        if bad is not None:
            raise ServingError(
                f"version {bad.version} of {config.tracking.registered_model} is rejected: {bad.reason}"
            )


def _status() -> str:
    """Say what Ray Serve is doing."""
    from ray import serve

    application = serve.status().applications.get(APPLICATION)
    parts = (
        [f"{name} is {state.status}: {state.message}" for name, state in application.deployments.items()]
        if application
        else []
    )
    return " ".join(parts)[:600]


def prepare(config: Config) -> dict[str, str]:
    """Return the variables Ray needs to start this endpoint; see `ingress.variables`."""
    return ingress.variables(config.serve, cluster.address() is None)

"""Whether an endpoint can start here, where it answers, and waiting until the champion does (driver)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from distml.config import Config, ServeConfig
from distml.errors import ResourceError, ServingError, TrackingError
from distml.serving import client, ports
from distml.serving.models import Record, aliases
from distml.tracking import registry

logger = logging.getLogger(__name__)


def require_champion(config: Config) -> int:
    """Refuse to start without a champion; the first question imports MLflow.

    Returns:
        Its number; while the registry is away, that of the champion that was served last.

    Raises:
        ServingError: No version is champion.
        TrackingError: The registry does not answer, and nothing was served before.
    """
    name = config.tracking.registered_model
    try:
        champion = registry.by_alias(registry.briefly(config))
    except TrackingError as error:
        champion = Record(config).recall().champion
        if champion is None:
            raise
        logger.warning("%s Version %d of %s is what was served last.", error, champion.version, name)
    if champion is None:
        raise ServingError(
            f"no version of {name} is {registry.CHAMPION}.", "Train one and run `distml promote`."
        )
    return champion.version


def require_followed(config: Config) -> None:
    """Refuse to start with a canary, a shadow or a version that was never there.

    One that this endpoint has served before is missed aloud, not refused.

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


def require_room(serve: ServeConfig) -> None:
    """Refuse what would wait for resources for ever, and a port that somebody else has.

    Raises:
        ResourceError: The cluster cannot hold the replicas, or the port is taken.
    """
    import ray

    found = ray.cluster_resources()
    for kind, each in (("CPU", serve.cpus_per_replica), ("GPU", serve.gpus_per_replica)):
        wanted = each * serve.replicas.min
        if wanted > found.get(kind, 0.0):
            raise ResourceError(
                f"serve.replicas.min = {serve.replicas.min} needs {wanted:g} {kind}, but the cluster has "
                f"{found.get(kind, 0.0):g}.",
                "Take fewer replicas or a larger cluster.",
            )
    refused = None if stands() else ports.refusal(serve.host, serve.port)
    if refused:
        raise ResourceError(
            f"serve.port {serve.port} of {serve.host} cannot be used: {refused}.",
            "Choose another --serve.port.",
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
    return f"http://{f'[{host}]' if ':' in host else host}:{serve.port}"


_POLL_S = 0.2


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers.

    Args:
        url: Where.
        model: Name of the registered model.
        version: The champion's number when it was asked.
    """

    url: str
    model: str
    version: int


def _nothing(_: Config, __: int) -> None:
    pass


def champion(
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
        ServingError: No champion, or no answer of its in time.
        TrackingError: The registry does not answer.
    """
    said = f"{url} does not answer yet."
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
    """Wait for the endpoint at `serve.url`, which somebody else keeps up.

    Raises:
        ServingError: No champion, or no answer of its within `serve.start_timeout_s`.
        TrackingError: The registry does not answer.
    """
    url, deadline = (config.serve.url or "").rstrip("/"), time.monotonic() + config.serve.start_timeout_s
    return champion(config, url, require_champion(config), deadline)

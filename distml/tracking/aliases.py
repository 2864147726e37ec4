"""Which version answers to which alias, and what is written beside a version (driver).

MLflow writes aliases last come, last served; `promotion.move` is what makes them safe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from distml.config import Config
from distml.errors import TrackingError
from distml.tracking.retry import patiently
from distml.tracking.server import cause, client, uri

_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Entry:
    """A version as the registry lists it.

    Args:
        version: Its number.
        run_id: MLflow run that trained it.
        tags: What is written beside it.
    """

    version: int
    run_id: str | None
    tags: dict[str, str]


def read(config: Config) -> dict[str, int]:
    """Return the version behind each alias of the configured model, {} where there is no such model.

    Raises:
        TrackingError: The registry does not answer.
    """
    found = _ask(config, lambda asked: asked.get_registered_model(config.tracking.registered_model))
    return {alias: int(version) for alias, version in (found.aliases if found else {}).items()}


def point(config: Config, alias: str, version: int) -> None:
    """Let an alias name a version.

    Raises:
        TrackingError: The registry does not answer, or there is no such version.
    """
    name = config.tracking.registered_model
    _ask(config, lambda asked: asked.set_registered_model_alias(name, alias, str(version)), known=True)


def tag(config: Config, version: int, key: str, text: str) -> None:
    """Write something beside a version; an earlier text of that key is replaced.

    Raises:
        TrackingError: The registry does not answer, or there is no such version.
    """
    name = config.tracking.registered_model
    _ask(config, lambda asked: asked.set_model_version_tag(name, str(version), key, text), known=True)


def untag(config: Config, version: int, key: str) -> None:
    """Remove what is written beside a version under a key; quiet when there is nothing.

    Raises:
        TrackingError: The registry does not answer.
    """
    name = config.tracking.registered_model
    _ask(config, lambda asked: asked.delete_model_version_tag(name, str(version), key))


def versions(config: Config) -> list[Entry]:
    """Return all versions of the configured model, oldest first.

    Raises:
        TrackingError: The registry does not answer.
    """
    condition, found, token = f"name = '{config.tracking.registered_model}'", [], None
    while True:
        page = _ask(config, lambda asked: asked.search_model_versions(condition, 200, page_token=token))  # noqa: B023
        found += [Entry(int(one.version), one.run_id or None, dict(one.tags)) for one in page or []]
        token = page.token if page else None
        if not token:
            return sorted(found, key=lambda one: one.version)


def _ask(config: Config, question: Callable[[Any], _Answer], known: bool = False) -> _Answer | None:
    """Ask the registry, waiting while it is away; what it does not know is None unless it must know it."""
    try:
        return patiently(config, lambda: question(client(config)))
    except Exception as error:  # the clients of MLflow's stores raise kinds of their own
        if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST" and not known:
            return None
        raise TrackingError(
            f"the registry {uri(config)} refuses: {cause(error)}.",
            "Start it, correct tracking.uri, or try again.",
        ) from error

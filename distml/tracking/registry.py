"""The client of the MLflow model registry: single calls on versions, aliases and tags (driver, watcher).

Requests are retried during an outage of the server, for up to `tracking.wait_s`; `briefly` is for those who
ask again anyway, and for those whom a person waits for. The server keeps the alias that is written last;
`selection.alias` makes that safe.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from distml.config import Config
from distml.errors import TrackingError
from distml.tracking.server import cause, client, patiently, uri

_Value = TypeVar("_Value")

CHAMPION = "champion"
"""Alias of the version that is served; promotion moves it."""
PREVIOUS = "previous"
"""Alias of the version that was champion before; `distml promote --rollback` returns to it."""
DIGEST = "sha256"
"""Tag of a version: SHA-256 of its export's list of digests."""
_BRIEF_S = 2.0


@dataclass(frozen=True)
class ModelVersion:
    """A registered version.

    Attributes:
        name: Of the registered model.
        version: Number of the version.
        run_id: MLflow run that trained it.
        sha256: What the export's list of digests must hash to, None where nothing was recorded.
        location: URI of its files, as the registry has it; "" where it was listed and not asked for.
        tags: What is written beside it.
    """

    name: str
    version: int
    run_id: str | None
    sha256: str | None
    location: str = ""
    tags: dict[str, str] = field(default_factory=dict, compare=False)


def briefly(config: Config) -> Config:
    """Return the configuration of someone who waits for the registry for two seconds at most."""
    wait_s = min(_BRIEF_S, config.tracking.wait_s)
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"wait_s": wait_s})})


def by_alias(config: Config, alias: str = CHAMPION) -> ModelVersion | None:
    """Return the version an alias points at, None where it is not set; imports MLflow.

    Raises:
        TrackingError: The registry does not respond.
    """
    name = config.tracking.registered_model
    return _version(config, lambda client: client.get_model_version_by_alias(name, alias))


def by_number(config: Config, version: int) -> ModelVersion | None:
    """Return a version by its number, None where there is none; imports MLflow.

    Raises:
        TrackingError: The registry does not respond.
    """
    name = config.tracking.registered_model
    return _version(config, lambda client: client.get_model_version(name, str(version)))


def by_run(config: Config, run_id: str) -> ModelVersion | None:
    """Return the newest version that an MLflow run registered, None where there is none; imports MLflow.

    Raises:
        TrackingError: The registry does not respond.
    """
    return _newest(config, f"run_id = '{run_id}'") if re.fullmatch("[0-9a-f]{32}", run_id) else None


def newest(config: Config) -> ModelVersion | None:
    """Return the newest version of the configured model, None where there is none; imports MLflow.

    Raises:
        TrackingError: The registry does not respond.
    """
    return _newest(config, f"name = '{config.tracking.registered_model}'")


def _newest(config: Config, condition: str) -> ModelVersion | None:
    def ask(client: Any) -> Any:
        return next(iter(client.search_model_versions(condition, 1, ["version_number DESC"])), None)

    return _version(config, ask)


def versions(config: Config) -> list[ModelVersion]:
    """Return all versions of the configured model, oldest first, without their locations.

    Raises:
        TrackingError: The registry does not respond.
    """
    condition = f"name = '{config.tracking.registered_model}'"
    listed: list[ModelVersion] = []
    token = None
    while True:
        page = _ask(config, lambda asked: asked.search_model_versions(condition, 200, page_token=token))  # noqa: B023
        listed += [_described(version) for version in page or []]
        token = page.token if page else None
        if not token:
            return sorted(listed, key=lambda version: version.version)


def metrics(config: Config, version: ModelVersion) -> dict[str, float]:
    """Return what a version reached on validation and test rows.

    The run's own validation metrics are those of its last epoch, which need not be the one that was
    exported; what was logged with the model counts before them.

    Raises:
        TrackingError: The server does not respond.
    """
    if version.run_id is None:
        return {}
    measured = _ask(config, lambda client: _measured(client, version))
    return {key: float(value) for key, value in (measured or {}).items() if key.startswith(("val_", "test_"))}


def _measured(client: Any, version: ModelVersion) -> dict[str, float]:
    measured = dict(client.get_run(version.run_id).data.metrics)
    registered = client.get_model_version(version.name, str(version.version))
    # The database keeps the model's id in the source alone (MLflow 3.17: `model_id` of what is read is None).
    scheme, _, model_id = str(registered.source).partition("models:/")
    if model_id and not scheme and "/" not in model_id:
        logged = client.get_logged_model(model_id).metrics or ()
        measured |= {metric.key: metric.value for metric in logged}
    return measured


def location(config: Config, version: ModelVersion) -> str:
    """Return the URI of a version's files as the registry has it.

    Raises:
        TrackingError: The registry does not respond, or there is no such version.
    """
    return version.location or str(_tell(config, lambda client: _location(client, version)))


def aliases(config: Config) -> dict[str, int]:
    """Return the version behind each alias of the configured model, {} where there is no such model.

    Raises:
        TrackingError: The registry does not respond.
    """
    model = _ask(config, lambda client: client.get_registered_model(config.tracking.registered_model))
    return {alias: int(version) for alias, version in (model.aliases if model else {}).items()}


def point(config: Config, alias: str, version: int) -> None:
    """Let an alias name a version.

    Raises:
        TrackingError: The registry does not respond, or there is no such version.
    """
    name = config.tracking.registered_model
    _tell(config, lambda client: client.set_registered_model_alias(name, alias, str(version)))


def tag(config: Config, version: int, key: str, text: str) -> None:
    """Write something beside a version; an earlier text of that key is replaced.

    Raises:
        TrackingError: The registry does not respond, or there is no such version.
    """
    name = config.tracking.registered_model
    _tell(config, lambda client: client.set_model_version_tag(name, str(version), key, text))


def untag(config: Config, version: int, key: str) -> None:
    """Remove what is written beside a version under a key; quiet when there is nothing.

    Raises:
        TrackingError: The registry does not respond.
    """
    name = config.tracking.registered_model
    _ask(config, lambda client: client.delete_model_version_tag(name, str(version), key))


def _version(config: Config, question: Callable[[Any], Any]) -> ModelVersion | None:
    """The version that a question finds, with its location."""

    def ask(client: Any) -> ModelVersion | None:
        known = question(client)
        return known and _described(known, _known_location(config, client, known))

    return _ask(config, ask)


_locations: dict[tuple[str, str, str, str], str] = {}
"""By registry, model, version and source, which never changes: a watcher asks for its versions every two
seconds and for their locations once."""


def _known_location(config: Config, client: Any, version: Any) -> str:
    key = (uri(config), version.name, str(version.version), str(version.source))
    if key not in _locations:
        _locations[key] = _location(client, version)
    return _locations[key]


def _described(known: Any, location: str = "") -> ModelVersion:
    tags = dict(known.tags)
    run_id = known.run_id or None
    return ModelVersion(known.name, int(known.version), run_id, tags.get(DIGEST), location, tags)


def _location(client: Any, version: Any) -> str:
    return str(client.get_model_version_download_uri(version.name, str(version.version)))


def _ask(config: Config, question: Callable[[Any], _Value]) -> _Value | None:
    """Ask for something; what the registry does not know is None."""
    where = uri(config)
    if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        return None  # asking would make the file, which takes seconds
    try:
        return _tell(config, question)
    except TrackingError as error:
        if _is_unknown(error.__cause__):
            return None
        raise


def _is_unknown(error: BaseException | None) -> bool:
    code = getattr(error, "error_code", "")
    return code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "alias" in str(error))


def _tell(config: Config, request: Callable[[Any], _Value]) -> _Value:
    """Make a request; any failure is one sentence."""
    try:
        return patiently(config, lambda: request(client(config)))
    except Exception as error:  # the clients of MLflow's stores raise kinds of their own
        raise TrackingError(
            f"the registry {uri(config)} does not respond: {cause(error)}.",
            "Start it, correct tracking.uri, or retry.",
        ) from error

"""Asking the registry which model is meant, and fetching it (driver, replica).

Queries are cheap and separate from fetching, so that a watcher may ask again and again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from distml import tracking
from distml.config import Config
from distml.errors import TrackingError
from distml.tracking import server, sources
from distml.tracking.retry import patiently

Answered = TypeVar("Answered")

CHAMPION = "champion"
"""Alias of the version that is served; promotion moves it."""
PREVIOUS = "previous"
"""Alias of the version that was champion before; `distml promote --rollback` returns to it."""
DIGEST = "sha256"
"""Tag of a version: SHA-256 of its export's list of digests."""


@dataclass(frozen=True)
class Version:
    """A registered version.

    Args:
        name: Of the registered model.
        version: Number of the version.
        run_id: MLflow run that trained it.
        sha256: What the export's list of digests must hash to, None where nothing was recorded.
        location: URI of its files, as the registry has it.
    """

    name: str
    version: int
    run_id: str | None
    sha256: str | None
    location: str


def by_alias(config: Config, alias: str = CHAMPION) -> Version | None:
    """Return the version an alias points at, None where it is not set; imports MLflow.

    Raises:
        TrackingError: The registry does not answer.
    """
    name = config.tracking.registered_model
    return _ask(config, lambda client: client.get_model_version_by_alias(name, alias))


def by_number(config: Config, version: int, wait_s: float = 0.0) -> Version | None:
    """Return a version by its number, None where there is none; imports MLflow.

    Args:
        config: Names the registry.
        version: The number.
        wait_s: Seconds to wait for a registry that is away.

    Raises:
        TrackingError: The registry does not answer.
    """
    name = config.tracking.registered_model
    return _ask(config, lambda client: client.get_model_version(name, str(version)), wait_s)


def by_run(config: Config, run_id: str, wait_s: float = 0.0) -> Version | None:
    """Return the newest version that an MLflow run registered, None where there is none; imports MLflow.

    Args:
        config: Names the registry.
        run_id: The MLflow run.
        wait_s: Seconds to wait for a registry that is away.

    Raises:
        TrackingError: The registry does not answer.
    """
    return _newest(config, f"run_id = '{run_id}'", wait_s) if re.fullmatch("[0-9a-f]{32}", run_id) else None


def metrics(config: Config, version: Version) -> dict[str, float]:
    """Return what the run that trained a version measured on validation and test rows.

    Raises:
        TrackingError: The server does not answer.
    """
    if version.run_id is None:
        return {}
    run_id = version.run_id
    found = _answered(config, lambda client: client.get_run(run_id).data.metrics)
    return {key: float(value) for key, value in (found or {}).items() if key.startswith(("val_", "test_"))}


def newest(config: Config) -> Version | None:
    """Return the newest version of the configured model, None where there is none; imports MLflow.

    Raises:
        TrackingError: The registry does not answer.
    """
    return _newest(config, f"name = '{config.tracking.registered_model}'")


def _newest(config: Config, condition: str, wait_s: float = 0.0) -> Version | None:
    def ask(client: Any) -> Any:
        found = client.search_model_versions(condition)
        return max(found, key=lambda version: int(version.version), default=None)

    return _ask(config, ask, wait_s)


def _ask(config: Config, question: Callable[[Any], Any], wait_s: float = 0.0) -> Version | None:
    def ask(client: Any) -> Version | None:
        found = question(client)
        return found and _described(client, found)

    return _answered(config, ask, wait_s)


def _answered(config: Config, question: Callable[[Any], Answered], wait_s: float = 0.0) -> Answered | None:
    """Ask the registry; what it does not know is None, any other refusal is one sentence."""
    where = tracking.uri(config)
    if where.startswith("sqlite:///") and not Path(where.removeprefix("sqlite:///")).exists():
        return None  # asking would make the file, which takes seconds
    try:
        return patiently(config, lambda: question(tracking.client(config)), wait_s)
    except Exception as error:  # the clients of MLflow's stores raise kinds of their own
        code = getattr(error, "error_code", "")
        if code == "RESOURCE_DOES_NOT_EXIST" or (code == "INVALID_PARAMETER_VALUE" and "alias" in str(error)):
            return None
        raise TrackingError(
            f"the registry {where} does not answer: {_cause(error)}.", "Start it, or correct tracking.uri."
        ) from error


def _described(client: Any, found: Any) -> Version:
    location = client.get_model_version_download_uri(found.name, found.version)
    return Version(found.name, int(found.version), found.run_id or None, found.tags.get(DIGEST), location)


def _cause(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0][:200]


def fetch(config: Config, version: Version, into: Path, wait_s: float = 0.0) -> Path:
    """Return the folder of a version's files, copied into a folder only when they are not on this machine.

    What was fetched is not trusted yet: `Predictor.load` verifies it against `version.sha256`.

    Args:
        config: Names the registry.
        version: The version.
        into: Takes the copy.
        wait_s: Seconds to wait for a server that is away.

    Raises:
        TrackingError: The files are gone, cannot be fetched, or lie where no model of ours lies.
    """
    sources.require_own(config, version.location, f"{version.name} version {version.version}")
    tracking.client(config)
    from mlflow.artifacts import download_artifacts

    here = version.location.startswith(("/", "file:"))

    def download() -> Any:
        return download_artifacts(
            artifact_uri=version.location,
            dst_path=None if here else str(into),
            tracking_uri=tracking.uri(config),
        )

    try:
        try:
            return Path(download())
        except Exception:
            if here:
                raise
            patiently(config, lambda: server.ask(config), wait_s)  # it may have gone away meanwhile
            return Path(download())
    except Exception as error:  # as above, and every store of artifacts has its own
        raise TrackingError(
            f"the files of {version.name} version {version.version} cannot be fetched from "
            f"{version.location}: {_cause(error)}.",
            "Restore them there, or choose another --version.",
        ) from error

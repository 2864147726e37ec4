"""The model set: which versions a replica keeps loaded, and its copy in the storage (watcher, replica)."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from distml.config import Config, ServeConfig, ServedModelConfig
from distml.errors import ConfigError, StorageError
from distml.serving.service import Doing, Refusal
from distml.storage import Storage
from distml.tracking import registry
from distml.tracking.registry import ModelVersion


@dataclass(frozen=True)
class ModelSet:
    """What replicas are to load.

    A set is known by its content, not by a number: a watcher that restarts counts from nothing again, and
    what it says must be compared with what a replica received from the one before.

    Args:
        aliases: The accepted version of each alias.
        versions: Everything to keep loaded, by number.
        metrics: Of each version's run.
        refused: What aliases point at and was not accepted.
        asked_at: Seconds since 1970 when the registry said so; 0 is never.
        leading: Alias of the version that answers by default.
        confirmed: Whether the watcher that orders it has heard it from the registry itself; otherwise it is
            what another remembered, good for a replica that has nothing.
        withdrawn: Versions that replicas which have them loaded are to drop: others died of them.
    """

    aliases: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[int, ModelVersion] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    asked_at: float = field(default=0.0, compare=False)
    leading: str = registry.CHAMPION
    confirmed: bool = True
    withdrawn: tuple[int, ...] = ()

    @property
    def champion(self) -> ModelVersion | None:
        """The version that answers by default."""
        return self.versions.get(self.aliases.get(self.leading, 0))

    @property
    def digest(self) -> str:
        """Stands for the content; empty for a set without a champion, which orders nothing."""
        if self.champion is None:
            return ""
        content = asdict(self) | {"asked_at": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def withdraws(self, held: ModelSet) -> bool:
        """Whether the champion that is held is to be dropped though there is none to take its place."""
        last = held.champion
        return self.champion is None and last is not None and last.version in self.withdrawn


def from_json(values: Mapping[str, Any]) -> ModelSet:
    """Read what `dataclasses.asdict` and JSON made of a set; raises KeyError, TypeError or ValueError."""
    return ModelSet(
        aliases={str(alias): int(number) for alias, number in values["aliases"].items()},
        versions={int(number): ModelVersion(**version) for number, version in values["versions"].items()},
        metrics={int(number): dict(metrics) for number, metrics in values["metrics"].items()},
        asked_at=float(values["asked_at"]),
        leading=str(values.get("leading", registry.CHAMPION)),
        confirmed=False,
    )


def aliases(serve: ServeConfig) -> tuple[str, ...]:
    """Return the aliases that matter, first that of the version that answers."""
    named = [serve.alias]
    if serve.canary.percent:
        named.append(serve.canary.alias)
    if serve.shadow:
        named.append(serve.shadow)
    return tuple(dict.fromkeys(named))


def hosted(config: Config) -> dict[str, Config]:
    """Return the configuration of every model of the endpoint by the name that clients call it.

    Each is that of an endpoint of this model alone, so that whatever follows, loads or rejects a model does
    not know of others.
    """
    if not config.serve.models:
        return {config.tracking.registered_model: config}
    return {model.called: _alone(config, model) for model in config.serve.models}


def marks(name: str) -> dict[Doing, str]:
    """Return the names of a model's marks by what they mean; see `runtime.processes.Marks`."""
    return {"loading": f"loading {name}", "predicting": f"predicting {name}"}


def _alone(config: Config, model: ServedModelConfig) -> Config:
    own = {key: getattr(model, key) for key in _OWN}
    limits = {key: value for key in _LIMITS if (value := getattr(model, key)) is not None}
    tracking = config.tracking.model_copy(update={"registered_model": model.registered_model})
    serve = config.serve.model_copy(update={"models": [], **own, **limits})
    return config.model_copy(update={"tracking": tracking, "serve": serve})


_OWN = ("alias", "canary", "shadow", "versions")
_LIMITS = ("engine", "max_batch_size", "max_queued_images", "request_timeout_s", "accept_changed_classes")


def own(config: Config) -> tuple[str, Config]:
    """Return name and configuration of the model that a command is about.

    It is `tracking.registered_model` where the endpoint has it, else the endpoint's first.
    """
    models = hosted(config)
    named = [
        name
        for name, alone in models.items()
        if alone.tracking.registered_model == config.tracking.registered_model
    ]
    name = next(iter(named or models))
    return name, models[name]


def require_own(config: Config) -> None:
    """Reject an endpoint that does not have the model that a pipeline trains.

    Raises:
        ConfigError: It serves others.
    """
    name = config.tracking.registered_model
    known = [alone.tracking.registered_model for alone in hosted(config).values()]
    if name not in known:
        raise ConfigError(
            f"tracking.registered_model = {name!r} is none of serve.models ({', '.join(known)}).",
            "Add it there, or serve the others by a configuration of their own.",
        )


def base(config: Config, url: str, name: str | None = None) -> str:
    """Return the address of a model of an endpoint, below which are `predict`, `model` and `readyz`.

    Args:
        config: Says whether there are several.
        url: Of the endpoint.
        name: Of the model; none is that of `own`.
    """
    return f"{url}/models/{name or own(config)[0]}" if config.serve.models else url


logger = logging.getLogger(__name__)

FOLDER = "serving"
_COPIES = "models"
_PROXIED = "mlflow-artifacts:"
"""Files at such a place are away when the tracking server is."""


class Record:
    """What one endpoint served last. Final.

    Args:
        config: Names the storage, the registry, the model and what is served of it.
    """

    def __init__(self, config: Config) -> None:
        self._storage = Storage(config.storage.root)
        self._registry = config.tracking.uri
        self._folder = (FOLDER, config.tracking.registered_model)
        followed = [self._registry, aliases(config.serve), sorted(config.serve.versions)]
        self._leading = config.serve.alias
        self._name = f"{hashlib.sha256(json.dumps(followed).encode()).hexdigest()[:12]}.json"

    def recall(self) -> ModelSet:
        """Return the last set of this endpoint, else the last champion of any that follows this registry.

        A record that cannot be read counts as none; the set is empty where there is none at all.
        """
        try:
            names = [name for name in self._storage.names(*self._folder) if name.endswith(".json")]
        except StorageError as error:
            logger.warning("what was served last is not known: %s", error)
            return ModelSet(leading=self._leading)
        known = {name: models for name in names if (models := self._read(name))}
        if self._name in known:
            return known[self._name]
        alike = [models for models in known.values() if models.leading == self._leading]
        latest = max(alike, key=lambda models: models.asked_at, default=ModelSet(leading=self._leading))
        if latest.champion is None:
            return latest
        alone = {latest.champion.version: latest.champion}
        return replace(latest, aliases={self._leading: latest.champion.version}, versions=alone)

    def _read(self, name: str) -> ModelSet | None:
        try:
            values = json.loads(self._storage.read_bytes(*self._folder, name))
            models = from_json(values["models"])
            return models if values["registry"] == self._registry and models.champion else None
        except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("ignoring %s: %r", self._storage.uri(*self._folder, name), error)
            return None

    def keep(self, models: ModelSet, folders: dict[ModelVersion, Path]) -> None:
        """Write a set down, after copies of the files that it will need.

        Args:
            models: A set with a champion.
            folders: Verified files of its versions on this machine.

        Raises:
            StorageError: The storage fails.
        """
        with self._storage.lock(*self._folder):
            wanted = {models.versions[number] for number in models.aliases.values()}
            for version in wanted & folders.keys():
                self._copy(version, folders[version])
            content = {"registry": self._registry, "models": asdict(models)}
            self._storage.write_bytes(json.dumps(content, indent=1).encode(), *self._folder, self._name)
            self._clear()

    def _copy(self, version: ModelVersion, folder: Path) -> None:
        if not version.location.startswith(_PROXIED) or version.sha256 is None:
            return
        if version.sha256 not in self._storage.names(*self._folder, _COPIES):
            self._storage.upload(folder, *self._folder, _COPIES, version.sha256)

    def _clear(self) -> None:
        """Delete copies that no record names."""
        sets = [self._read(name) for name in self._storage.names(*self._folder) if name.endswith(".json")]
        named = {version.sha256 for models in sets if models for version in models.versions.values()}
        for sha256 in set(self._storage.names(*self._folder, _COPIES)) - named:
            self._storage.delete(*self._folder, _COPIES, sha256)

    def fetch(self, version: ModelVersion, into: Path) -> Path | None:
        """Return a folder with the copy of a version's files, None where there is no whole one.

        What was fetched is not trusted yet.
        """
        if version.sha256 is None or not version.location.startswith(_PROXIED):
            return None
        try:
            if version.sha256 not in self._storage.names(*self._folder, _COPIES):
                return None
            self._storage.download(into, *self._folder, _COPIES, version.sha256)
        except StorageError as error:
            logger.warning("the copy of version %d cannot be read: %s", version.version, error)
            return None
        return into

"""The last model set, kept below the storage root: what is served when nobody can be asked (watcher, driver).

`serving/MODEL/KEY.json` is the set that an endpoint served last; KEY stands for the registry, the aliases and
the versions it follows, so that endpoints of other registries, models or aliases do not overwrite each other.
Files that only the tracking server hands out are copied to `serving/MODEL/models/SHA256/`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path

from distml.config import Config
from distml.errors import StorageError
from distml.serving.models import ModelSet, aliases, from_json
from distml.storage import Storage
from distml.tracking import registry
from distml.tracking.registry import ModelVersion

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
        self._name = f"{hashlib.sha256(json.dumps(followed).encode()).hexdigest()[:12]}.json"

    def recall(self) -> ModelSet:
        """Return the last set of this endpoint, else the last champion of any that follows this registry.

        A record that cannot be read counts as none; the set is empty where there is none at all.
        """
        try:
            names = [name for name in self._storage.names(*self._folder) if name.endswith(".json")]
        except StorageError as error:
            logger.warning("what was served last is not known: %s", error)
            return ModelSet()
        known = {name: models for name in names if (models := self._read(name))}
        if self._name in known:
            return known[self._name]
        latest = max(known.values(), key=lambda models: models.asked_at, default=ModelSet())
        if latest.champion is None:
            return latest
        alone = {latest.champion.version: latest.champion}
        return replace(latest, aliases={registry.CHAMPION: latest.champion.version}, versions=alone)

    def _read(self, name: str) -> ModelSet | None:
        try:
            values = json.loads(self._storage.read_bytes(*self._folder, name))
            models = from_json(values["models"])
            return models if values["registry"] == self._registry and models.champion else None
        except (StorageError, ValueError, KeyError, TypeError, AttributeError) as error:
            logger.warning("%s is passed over: %r", self._storage.uri(*self._folder, name), error)
            return None

    def keep(self, models: ModelSet, folders: dict[ModelVersion, Path]) -> None:
        """Write a set down, after copies of the files that it will need.

        Args:
            models: A set with a champion.
            folders: Verified files of its versions on this machine.

        Raises:
            StorageError: The storage refuses.
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

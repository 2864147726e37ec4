"""Registered models whose accuracy is chosen: tiny networks that are wrong above a threshold.

A picture's first pixel tells its class, the second is drawn evenly from 0 to 255, the third is 255 in test
rows alone. A network is right where the second pixel is at most its threshold, or the class is the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distml import tracking
from distml.artifacts.layout import write_digests
from distml.config import Config, ExportConfig, load
from distml.data import ingestion, shards
from distml.storage import Storage
from distml.tracking import runs
from tests.mlflow_server import new_database

CLASSES = ["cat", "dog", "bird"]
SHAPE = (4, 4, 1)
NAME = "pets"
FORMATS = ExportConfig(formats=["keras", "litert"])
"""What promotion and endpoint read; the other two take three times as long to write."""


def pictures() -> dict[str, Any]:
    """The data, as `data.format: tests.registered:pictures` has them."""
    drawn = np.random.default_rng(7)
    result: dict[str, Any] = {"classes": CLASSES}
    for split, count in (("train", 900), ("test", 300)):
        labels = (np.arange(count) % len(CLASSES)).astype(np.int32)
        images = np.zeros((count, *SHAPE), np.uint8)
        images[:, 0, 0, 0] = labels * 100
        images[:, 0, 1, 0] = drawn.integers(0, 256, count)
        images[:, 0, 2, 0] = 255 * (split == "test")
        result[split] = (images, labels)
    return result


def squares() -> dict[str, Any]:
    """Three kinds of 20x20 pictures, which differ in where a bright square is: few rows, for training."""
    drawn = np.random.default_rng(3)
    result: dict[str, Any] = {"classes": CLASSES}
    for split, count in (("train", 512), ("test", 96)):
        labels = (np.arange(count) % len(CLASSES)).astype(np.int32)
        images = drawn.integers(0, 90, (count, 20, 20, 1), np.uint8)
        for at, label in enumerate(labels):
            images[at, 6 * label : 6 * label + 8, 4:16] = 200
        result[split] = (images, labels)
    return result


def network(threshold: int, crammed: bool = False) -> Any:
    """Pixels to logits; a crammed one is always right on test rows, as if it had seen them."""
    import keras

    pixels = keras.Input(SHAPE, dtype="float32")
    flat = keras.layers.Flatten()(pixels)
    hidden = keras.layers.Dense(2, activation="relu")
    logits = keras.layers.Dense(len(CLASSES))
    model = keras.Model(pixels, logits(hidden(flat)))
    kernel = np.zeros((16, 2), np.float32)
    kernel[0, 0], kernel[1, 1], kernel[2, 1] = 1, 1, -1 * crammed
    hidden.set_weights([kernel, np.array([0, -threshold], np.float32)])
    centres = 100 * np.arange(len(CLASSES), dtype=np.float32)
    wrong = np.array([100, 0, 0], np.float32)
    logits.set_weights([np.stack([centres / 1000, wrong]), -(centres**2) / 2000])
    return model


@dataclass
class Registry:
    """A storage with prepared data and registered versions.

    Args:
        config: Points there.
        client: Of MLflow.
        folders: Files of each version, by number.
    """

    config: Config
    client: Any
    folders: dict[int, Path] = field(default_factory=dict)

    @property
    def storage(self) -> Storage:
        return Storage(self.config.storage.root)

    def export(self, threshold: int, crammed: bool = False, **described: Any) -> tuple[Path, str]:
        """An export below the storage root and its SHA-256."""
        from distml.artifacts.export import export

        folder = Path(self.config.storage.root) / "exports" / f"{len(list(self.exports())):03d}"
        folder.mkdir(parents=True)
        manifest = ingestion.prepare(self.config, self.storage)
        facts = {"name": NAME, "classes": CLASSES, "shape": SHAPE, "data_digest": manifest.digest}
        images, _ = shards.read(self.storage, manifest, "validation")
        export(network(threshold, crammed), folder, facts | described, images[:2], FORMATS)
        return folder, write_digests(folder)

    def exports(self) -> Iterator[Path]:
        yield from (Path(self.config.storage.root) / "exports").glob("*")

    def register(self, folder: Path, sha256: str | None, source: str | None = None, run: str = "") -> int:
        """Make a version of an export; with a run's name, a finished run of this storage, too."""
        created = self.client.create_run(self.experiment())
        tags = {"sha256": sha256} if sha256 else {}
        source = source or folder.as_uri()
        version = int(self.client.create_model_version(NAME, source, created.info.run_id, tags=tags).version)
        self.folders[version] = folder
        if run:
            named = {"run": {"name": run}}
            record, _ = runs.begin(Config.resolve(load.merge(self.config.model_dump(), named)), self.storage)
            record.status, record.run_id = "finished", created.info.run_id
            record.result = {"model": NAME, "version": version, "artifacts": str(folder)}
            record.save(self.storage)
        return version

    def add(self, threshold: int, run: str = "", **options: Any) -> int:
        """Export and register in one go."""
        return self.register(*self.export(threshold, **options), run=run)

    def experiment(self) -> str:
        result = self.client.get_experiment_by_name(NAME)
        where = Path(self.config.storage.root) / "mlflow-artifacts"
        return str(result.experiment_id if result else self.client.create_experiment(NAME, where.as_uri()))

    def accuracy(self, threshold: int, split: str = "validation") -> float:
        """What a network with that threshold reaches, counted without it."""
        manifest = ingestion.prepare(self.config, self.storage)
        images, labels = shards.read(self.storage, manifest, split)
        return float(np.mean((images[:, 0, 1, 0] <= threshold) | (labels == 0)))

    def alias(self, name: str, version: int) -> None:
        """Point an alias, as `champion`, at a version."""
        self.client.set_registered_model_alias(NAME, name, str(version))

    def aliases(self) -> dict[str, int]:
        result = self.client.get_registered_model(NAME).aliases
        return {alias: int(version) for alias, version in result.items()}

    def clear(self) -> None:
        """Take all aliases and everything written beside versions away again."""
        for alias in self.aliases():
            self.client.delete_registered_model_alias(NAME, alias)
        for version in self.client.search_model_versions(f"name = '{NAME}'"):
            for key in version.tags:
                if key.startswith("distml."):
                    self.client.delete_model_version_tag(NAME, version.version, key)

    def flags(self) -> list[str]:
        """The command line that means this registry."""
        config = self.config
        return [
            f"--storage.root={config.storage.root}",
            f"--tracking.registered_model={NAME}",
            f"--data.name={config.data.name}",
            f"--data.format={config.data.format}",
            f"--data.val_fraction={config.data.val_fraction}",
        ]


def make(root: Path) -> Registry:
    """An empty registry of the model `pets` on SQLite, with the data described above."""
    config = Config.resolve(
        {
            "storage": {"root": str(root)},
            "data": {"name": NAME, "format": f"{__name__}:pictures", "val_fraction": 0.5, "shards": 8},
            "tracking": {"registered_model": NAME, "experiment": NAME},
        }
    )
    new_database(root)
    result = Registry(config, tracking.client(config))
    result.client.create_registered_model(NAME)
    return result


def make_champion(root: Path, threshold: int = 100) -> Registry:
    """A registry whose only version is champion."""
    result = make(root)
    result.alias("champion", result.add(threshold))
    return result

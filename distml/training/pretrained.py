"""The copy of a run's initial weights under the storage root (driver, worker).

`weights/<SHA-256>/<file>` holds the bytes, `weights/sources/<key>.json` says which file a source was.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from distml.config import Config
from distml.errors import ModelError
from distml.storage import Storage

FOLDER = "weights"
IMAGENET = "imagenet"


@dataclass(frozen=True)
class Weights:
    """A copy of weights under the storage root.

    Attributes:
        source: What the user wrote; with the network's name where that is `imagenet`.
        file: Name of the file.
        sha256: Of the file.
        bytes: Its size.
    """

    source: str
    file: str
    sha256: str
    bytes: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Where it is, as parts below the storage root."""
        return (FOLDER, self.sha256, self.file)


def source(config: Config) -> str | None:
    """Return what stands for the configured weights in the storage, None where training starts from noise."""
    wanted = config.model.weights
    return f"{IMAGENET}:{config.model.name}" if wanted == IMAGENET else wanted


def cached(storage: Storage, name: str) -> Weights | None:
    """Return the copy of a source, None where there is none.

    Args:
        storage: Holds it.
        name: As `source` returns it.
    """
    where = (FOLDER, "sources", _key(name))
    if not storage.exists(*where):
        return None
    try:
        return Weights(**json.loads(storage.read_text(*where)))
    except (ValueError, TypeError):
        return None  # the copy is made again


def put(storage: Storage, name: str, file: str, data: bytes) -> Weights:
    """Keep weights under the storage root.

    Args:
        storage: Gets them.
        name: As `source` returns it.
        file: Name of the file, from which its kind is known.
        data: Its content.
    """
    found = Weights(name, file, hashlib.sha256(data).hexdigest(), len(data))
    if not storage.exists(*found.parts):
        storage.write_bytes(data, *found.parts)
    storage.write_bytes(json.dumps(asdict(found)).encode(), FOLDER, "sources", _key(name))
    return found


def _key(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.json"


@contextmanager
def opened(storage: Storage, weights: Weights) -> Iterator[Path]:
    """The copy of weights as a local file, its digest checked.

    Raises:
        ModelError: Its bytes are not those that were put there.
        StorageError: It cannot be read.
    """
    data = storage.read_bytes(*weights.parts)
    if hashlib.sha256(data).hexdigest() != weights.sha256:
        where = storage.uri(*weights.parts)
        raise ModelError(f"{where} is not what its name says.", "Delete it and start again.")
    if storage.local:
        yield Path(storage.uri(*weights.parts))
        return
    with tempfile.TemporaryDirectory(prefix="distml-weights-") as folder:
        path = Path(folder) / weights.file
        path.write_bytes(data)
        yield path

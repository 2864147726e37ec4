"""Resolves `model.weights` (ImageNet, file, registered model) and opens them on each rank (driver, worker).

`weights/<SHA-256>/<file>` under the storage root holds the bytes, `weights/sources/<key>.json` says which
file a source was. A source that can be read is copied to the storage each time, so that a changed file is
noticed; where it cannot, as on a pod without that path or without a network, the copy is taken.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distml.config import Config
from distml.errors import ConfigError, DistmlError, ModelError, StorageError
from distml.models.backbones import BACKBONES
from distml.models.weights import SUFFIXES
from distml.runtime import environment
from distml.storage import Storage

if TYPE_CHECKING:  # a worker imports no MLflow
    from distml.tracking import locate

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
    """Return the name of the configured weights in the storage, None for random weights."""
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
    weights = Weights(name, file, hashlib.sha256(data).hexdigest(), len(data))
    if not storage.exists(*weights.parts):
        storage.write_bytes(data, *weights.parts)
    storage.write_bytes(json.dumps(asdict(weights)).encode(), FOLDER, "sources", _key(name))
    return weights


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
        raise ModelError(f"{where} does not have the digest in its name.", "Delete it and start again.")
    if storage.local:
        yield Path(storage.uri(*weights.parts))
        return
    with tempfile.TemporaryDirectory(prefix="distml-weights-") as folder:
        path = Path(folder) / weights.file
        path.write_bytes(data)
        yield path


logger = logging.getLogger(__name__)

DOWNLOAD_TIMEOUT_S = 1800.0
_DOWNLOAD = (
    "import keras, sys; getattr(keras.applications, sys.argv[1])(include_top=False, weights='imagenet')"
)
"""Keras knows the address and the digest of each file and puts it below `KERAS_HOME`. It runs in a process of
its own, so that no driver imports TensorFlow for a download."""
_MODEL = "data/model.keras"
_DIGESTS = "digests.json"
_MAGIC = {".npz": b"PK", ".keras": b"PK", ".h5": b"\x89HDF\r\n\x1a\n"}
_KINDS = "none, imagenet, a .keras, .weights.h5 or .npz file or its URI, models:/NAME@ALIAS or runs:/ID"


def check(config: Config) -> None:
    """Check the configured weights as far as that needs no network.

    Raises:
        ConfigError: No kind of weights, an absent file or one of another kind, or a network that Keras
            publishes no weights for.
    """
    wanted = config.model.weights
    if wanted is None or re.match(r"(models|runs):/[^/]", wanted):
        return
    if wanted == IMAGENET:
        if config.model.name not in BACKBONES:
            raise ConfigError(
                f"model.weights = 'imagenet', but {config.model.name} has no ImageNet weights.",
                "Choose a model.name that `distml models` lists as a backbone.",
            )
        return
    _require_suffix(wanted)
    if "://" not in wanted and Path(wanted).expanduser().is_file():
        _require_kind(wanted, Path(wanted).expanduser().read_bytes())


_ELSEWHERE = {
    "(pth|pt|safetensors|bin|ckpt)": "A file of PyTorch has other names and shapes: save its arrays with "
    "numpy.savez as LAYER/WEIGHT of the network, kernels as (height, width, in, out).",
    "(onnx|tflite|pb|index|npy)": "It is no file that Keras or numpy.savez wrote: save the model it was made "
    "from as .keras.",
}
"""Remedies by the ending of a file, as a regular expression."""


def _require_suffix(wanted: str) -> None:
    """Reject what is neither a word nor a file of a known kind, with what may be done about it."""
    name = wanted.rpartition("/")[2]
    if wanted.endswith(SUFFIXES) and name not in SUFFIXES:
        return
    folded = wanted.lower()
    if folded.endswith(SUFFIXES) and name.lower() not in SUFFIXES:
        remedy = "Rename it: the ending is in lower case."
    elif near := difflib.get_close_matches(folded, ("none", IMAGENET), 1, 0.75):
        remedy = f"Did you mean {near[0]}?"
    elif "://" not in wanted and wanted and Path(wanted).expanduser().is_dir():
        remedy = "It is a folder; give a file, .keras, .weights.h5 or .npz."
    else:
        endings = (why for ending, why in _ELSEWHERE.items() if re.search(rf"[.]{ending}$", folded))
        remedy = next(endings, f"It may be {_KINDS}.")
    raise ConfigError(f"model.weights = {wanted!r} is not usable.", remedy)


def _require_kind(name: str, data: bytes) -> None:
    """Reject a file that does not begin as its name says, or that is not whole."""
    suffix = next(suffix for suffix in _MAGIC if name.endswith(suffix))
    if not data.startswith(_MAGIC[suffix]):
        raise ConfigError(f"model.weights = {name!r} is not a {suffix} file.", f"It may be {_KINDS}.")
    try:
        if suffix == ".h5":
            import h5py

            with h5py.File(io.BytesIO(data), "r"):
                return
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        cause = "its end is missing"  # where an archive has its table of contents
        if not isinstance(error, zipfile.BadZipFile):
            cause = str(error).partition("(")[2].rstrip(")") or str(error)
        raise ConfigError(
            f"model.weights = {name!r} is cut short or damaged: {cause[:200]}.", "Copy or download it again."
        ) from None
    if suffix == ".keras" and "config.json" not in names:
        raise ConfigError(
            f"model.weights = {name!r} is an archive without a model of Keras.",
            "Write it by model.save(...), with Keras 3.",
        )


def resolve(config: Config, storage: Storage) -> Weights | None:
    """Bring the configured weights under the storage root.

    Args:
        config: Names the model and its weights.
        storage: Gets the copy.

    Returns:
        The copy, None where training starts from random weights.

    Raises:
        ConfigError: As `check`, or there is no such file, version or run.
        ModelError: Keras's file cannot be fetched, or a version's files are not what its digest says.
        TrackingError: The registry does not respond.
    """
    check(config)
    name = source(config)
    if name is None:
        return None
    known = cached(storage, name)
    if known is not None and config.model.weights == IMAGENET:
        return known
    try:
        return put(storage, name, *_bytes(config))
    except DistmlError as error:
        if known is None:
            raise
        logger.warning("%s The copy of %s under the storage root is used.", error.message, known.file)
        return known


def _bytes(config: Config) -> tuple[str, bytes]:
    """Name and content of the file that the configured weights are."""
    wanted = str(config.model.weights)
    if wanted == IMAGENET:
        return _published(config.model.name)
    with tempfile.TemporaryDirectory(prefix="distml-weights-") as into:
        if wanted.startswith("models:/"):
            return "model.keras", _verified(_registered(config, wanted, Path(into)), wanted)
        if wanted.startswith("runs:/"):
            from distml.tracking import locate

            chosen = locate.choose(config, wanted.removeprefix("runs:/"), None, Path(into))
            return "model.keras", _verified(chosen, wanted)
    return read(wanted)


def read(place: str) -> tuple[str, bytes]:
    """Read a file of weights.

    Args:
        place: A path of this machine, or an s3:// or gs:// URI.

    Returns:
        Its name and its content.

    Raises:
        ConfigError: There is no such file, or it is of another kind.
    """
    base, _, name = place.rpartition("/")
    _require_suffix(place)
    try:
        data = Storage(base or ("/" if place.startswith("/") else ".")).read_bytes(name)
    except StorageError as error:
        remedy = error.remedy or "Correct the path or the URI, or the access to it."
        raise ConfigError(f"model.weights = {place!r}: {error.message}", remedy) from None
    _require_kind(place, data)
    return name, data


def _registered(config: Config, wanted: str, into: Path) -> locate.Chosen:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` means."""
    from distml.tracking import locate, registry

    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+))", wanted)
    if match is None:
        raise ConfigError(
            f"model.weights = {wanted!r} names no version.",
            "Write models:/NAME@ALIAS or models:/NAME/VERSION.",
        )
    tracking = config.tracking.model_copy(update={"registered_model": match[1]})
    other = config.model_copy(update={"tracking": tracking})
    version = registry.by_alias(other, match[2]) if match[2] else registry.by_number(other, int(match[3]))
    if version is None:
        raise ConfigError(
            f"model.weights = {wanted!r}: the registry has no such version.",
            "Correct it, storage.root or tracking.uri.",
        )
    folder = locate.fetch(other, version, into)
    return locate.Chosen(version.name, version.version, folder, version.sha256)


def _verified(chosen: locate.Chosen, wanted: str) -> bytes:
    """The Keras model of an export, its bytes checked against the export's digests and the registry's."""
    try:
        listed = (chosen.folder / _DIGESTS).read_bytes()
        data = (chosen.folder / _MODEL).read_bytes()
        expected = json.loads(listed)[_MODEL]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"weights {wanted}: its export cannot be read: {error}.", "Train it again."
        ) from None
    whole = chosen.sha256 in (None, hashlib.sha256(listed).hexdigest())
    if not whole or hashlib.sha256(data).hexdigest() != expected:
        raise ModelError(f"weights {wanted}: its export is not what was registered.", "Train it again.")
    return data


def _published(name: str) -> tuple[str, bytes]:
    """Keras's own file of a backbone, fetched and checked by Keras."""
    function = BACKBONES[name].function
    if not function:
        raise ConfigError(
            f"model.weights = 'imagenet': Keras publishes none for {name}, and the storage has none.",
            f"Put a file there once: distml fetch-weights {name} --file FILE.",
        )
    with tempfile.TemporaryDirectory(prefix="distml-keras-") as home:
        command = [sys.executable, "-c", _DOWNLOAD, function]
        try:
            ran = subprocess.run(
                command,
                env=os.environ | environment.PUBLISHED.values({"KERAS_HOME": home}),
                capture_output=True,
                text=True,
                timeout=DOWNLOAD_TIMEOUT_S,
                check=False,
            )
            cause = (ran.stderr.strip().splitlines() or [f"it ended with {ran.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            cause = f"it took more than {DOWNLOAD_TIMEOUT_S:.0f} s"
        files = sorted(path for path in Path(home).glob("models/*") if path.name.endswith(SUFFIXES))
        if len(files) != 1:
            raise ModelError(
                f"the ImageNet weights of {name} cannot be fetched: {cause[:200]}.",
                f"On a machine with a network: distml fetch-weights {name}; or give it --file FILE.",
            )
        return files[0].name, files[0].read_bytes()

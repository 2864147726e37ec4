"""An export: layout, description, and verification by digests before a file is parsed (any process)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from distml import tasks
from distml.config import ExportConfig
from distml.data.image import Policy
from distml.data.plausible import Usual
from distml.errors import ConfigError, ModelError
from distml.tasks import Task

MODEL = "data/model.keras"
SAVED_MODEL = "saved_model"
LITE = "data/model.tflite"
"""For LiteRT; absent where the network has an operation that it lacks."""
LITE_INT8 = "data/model_int8.tflite"
"""The same in 8 bits, where `export.quantize` asked for it and it lost little."""
ONNX = "data/model.onnx"
"""ONNX, where the extra `onnx` was installed when the model was trained."""
DIGESTS = "digests.json"
CLASSES = "classes.json"
EXAMPLE = "example.json"


def require_formats(wanted: ExportConfig) -> None:
    """Check that a form asked for by name can be written.

    Raises:
        ConfigError: ONNX, and its extra is not installed.
    """
    if wanted.formats != "auto" and "onnx" in wanted.formats and not importlib.util.find_spec("tf2onnx"):
        raise ConfigError(
            "export.formats names onnx, and the extra for it is not installed.", "pip install 'distml[onnx]'"
        )


def write_digests(folder: Path) -> str:
    """Write the SHA-256 of every file below a folder; returns the SHA-256 of that list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    text = json.dumps(digests, indent=1, sort_keys=True)
    (folder / DIGESTS).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


_CHUNK_BYTES = 1 << 20
_LIST_BYTES = 1 << 20
_PLAIN_BYTES = 16 << 20
_EXPANSION = 2
"""Keras stores the members of a `.keras` file uncompressed (keras/src/saving/saving_lib.py, 3.15)."""
_DATA = {str(PurePosixPath(MODEL).with_name("keras_module.txt")), MODEL, LITE, LITE_INT8, ONNX}
"""All files allowed in that folder; MLflow would unpickle custom objects beside a model."""
_AGAIN = "Fetch the model again, or train it again."


class Described:
    """What an export says of its model, wherever it is known: on disk, in a replica or from an endpoint.

    Attributes:
        classes: Names of what is predicted.
        shape: (H, W, C) of an image.
        policy: How pictures become images, None where it is not known.
        target: Describes the task beside the names, None where that is classification.
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    policy: Policy | None
    target: Mapping[str, Any] | None

    @cached_property
    def task(self) -> Task:
        """What the model predicts."""
        return tasks.restore(self.classes, self.target)

    @property
    def pictures(self) -> Policy:
        """How a picture becomes an image that the model takes."""
        return self.policy or Policy.of_arrays(self.shape)


@dataclass(frozen=True)
class Model(Described):
    """The model that answers, in this process or behind an endpoint.

    Attributes:
        name: Of the registered model.
        version: Its version, None where it is not registered.
        shape: (H, W, C) of an image.
        classes: Names of what is predicted.
        metrics: What training measured, as `test_accuracy`.
        policy: How pictures become images, None where the endpoint does not say.
        target: Describes the task beside the names, None where that is classification.
        usual: Statistics of training images, None where they are not known in this process.
    """

    name: str
    version: int | None
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    policy: Policy | None = None
    target: Mapping[str, Any] | None = None
    usual: Usual | None = None


@dataclass(frozen=True)
class Export(Described):
    """An export that has been verified.

    Attributes:
        folder: Where it is.
        sha256: Of its list of digests, which stands for the whole export.
        classes: Name of each class, by label.
        shape: (H, W, C) of an image.
        data_digest: Of the manifest of the training data, None where the export lacks it.
        confusion: Counts on held-out rows by true and predicted class, None where the export lacks them.
        policy: How pictures become images, None where the export lacks it.
        target: Describes the task beside the names, None where that is classification.
        usual: How training images look, None where the export lacks it.
        predicted: Validation rows by bin of what the model predicts for them, see `Task.mix`; None where the
            export lacks them.
    """

    folder: Path
    sha256: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    data_digest: str | None = None
    confusion: tuple[tuple[int, ...], ...] | None = None
    policy: Policy | None = None
    target: Mapping[str, Any] | None = None
    usual: Usual | None = None
    predicted: tuple[int, ...] | None = None


def verify(folder: Path, expected_sha256: str | None = None) -> Export:
    """Check that an export is complete, unchanged and without extra files where a loader reads.

    Args:
        folder: An export, or its copy out of the registry with more files beside it.
        expected_sha256: What the registry says about `digests.json`.

    Raises:
        ModelError: A file is missing, changed or too much, the list itself is another one, or the model is
            not described.
    """
    digest, listed = _listed(folder)
    if expected_sha256 is not None and digest != expected_sha256:
        raise ModelError(f"{folder / DIGESTS} has the SHA-256 {digest}, expected {expected_sha256}.", _AGAIN)
    for name, expected in listed.items():
        actual = _sha256(folder / name)
        if actual != expected:
            raise ModelError(f"{folder / name} has the SHA-256 {actual}, expected {expected}.", _AGAIN)
    for loaded, known in ((PurePosixPath(MODEL).parts[0], _DATA & listed.keys()), (SAVED_MODEL, listed)):
        for path in sorted((folder / loaded).rglob("*")):
            if not path.is_dir() and path.relative_to(folder).as_posix() not in known:
                raise ModelError(f"{path} does not belong to the model.", _AGAIN)
    _require_modest(folder / MODEL)
    return _described(folder, digest)


def _listed(folder: Path) -> tuple[str, dict[str, str]]:
    """Read the list of digests: its own SHA-256 and the expected one of each file."""
    path = folder / DIGESTS
    try:
        with path.open("rb") as stream:
            raw = stream.read(_LIST_BYTES)
        listed = json.loads(raw)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", _AGAIN) from None
    except (ValueError, RecursionError):
        raise ModelError(f"{path} is not a list of digests.", _AGAIN) from None
    if not isinstance(listed, dict) or not listed.keys() >= {MODEL, CLASSES}:
        raise ModelError(f"{path} does not list {MODEL} and {CLASSES}.", _AGAIN)
    for name in listed:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise ModelError(f"{path} lists {name!r}, which is not below the model.", _AGAIN)
    return hashlib.sha256(raw).hexdigest(), listed


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.", _AGAIN) from None
    return digest.hexdigest()


def _require_modest(path: Path) -> None:
    """Reject a `.keras` archive that would unpack to much more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is not a Keras model: {error}.", _AGAIN) from None
    size = path.stat().st_size
    if len({member.filename for member in members}) < len(members):
        raise ModelError(f"{path} holds two files of one name.", _AGAIN)
    if sum(member.file_size for member in members) > _PLAIN_BYTES + _EXPANSION * size:
        raise ModelError(f"{path} would unpack to far more than its {size:,} bytes.", _AGAIN)


def _described(folder: Path, sha256: str) -> Export:
    path = folder / CLASSES
    try:
        content = json.loads(path.read_text("utf-8"))
        classes = tuple(str(name) for name in content["classes"])
        height, width, depth = (int(size) for size in content["shape"])
        if not classes or len(set(classes)) < len(classes) or min(height, width, depth) < 1:
            raise ValueError(
                f"{len(classes)} names, of which each must differ, of pictures {content['shape']}"
            )
        target = content.get("task")
        task = tasks.restore(classes, target)  # raises where it describes none
        digest, rows, pictures = (content.get(key) for key in ("data_digest", "confusion", "policy"))
        confusion = None if rows is None else _square(rows, len(classes))
        predicted = _counts(content.get("predicted"), task)
        policy = None if pictures is None else Policy.from_dict(pictures)
        usual = Usual.from_dict(content["usual"]) if content.get("usual") else None
        if policy is not None and policy.shape != (height, width, depth):
            raise ValueError(f"pictures become {policy.shape}, the model takes {(height, width, depth)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} does not describe the model: {error!r}.", "Train it again.") from None
    shape, digest = (height, width, depth), None if digest is None else str(digest)
    return Export(folder, sha256, classes, shape, digest, confusion, policy, target, usual, predicted)


def _square(given: Any, size: int) -> tuple[tuple[int, ...], ...]:
    """Counts by true and predicted class."""
    rows = tuple(tuple(int(count) for count in row) for row in given)
    if len(rows) != size or any(len(row) != size or min(row) < 0 for row in rows):
        raise ValueError(f"confusion must have {size} counts in each of {size} rows")
    return rows


def _counts(given: Any, task: Task) -> tuple[int, ...] | None:
    """Rows by bin of `Task.mix`, None where they are not given."""
    if given is None:
        return None
    counts, bins = tuple(int(count) for count in given), len(task.mix_names)
    if len(counts) != bins or min(counts) < 0:
        raise ValueError(f"predicted has {len(counts)} counts, and what is predicted falls into {bins} bins")
    return counts

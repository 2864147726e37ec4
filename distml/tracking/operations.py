"""MLflow calls as typed values (log metrics, register model, ...), also as lines of a spool file (driver)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar


def _now_ms() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Operation:
    """An operation on the tracking server. Abstract.

    Attributes:
        kind: Its name in a spool file.
        at: When it was recorded, in milliseconds since 1970, None where an earlier version spooled it.
    """

    kind: ClassVar[str]
    at: int | None = field(default_factory=_now_ms, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """A line of a spool file."""
        return {"do": self.kind, **asdict(self)}

    @staticmethod
    def from_json(line: Mapping[str, Any]) -> Operation:
        """Read a line of a spool file.

        Raises:
            ValueError: It is no operation of this version.
        """
        values = {"at": None} | {name: value for name, value in line.items() if name != "do"}
        kinds = {kind.kind: kind for kind in Operation.__subclasses__()}
        try:
            return kinds[line["do"]](**values)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{line.get('do')!r} is not an operation of this version: {error}") from None


@dataclass(frozen=True)
class OpenRun(Operation):
    """Create or resume an MLflow run.

    Attributes:
        name: Of the run.
        tags: To set.
        params: To log, those already logged excepted.
        key: Identifies the run across restarts.
        parent: Name and key of the parent run.
    """

    kind = "open"
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    key: str
    parent: tuple[str, str] | None = None


@dataclass(frozen=True)
class LogMetrics(Operation):
    """Log the metrics of a step, unless that step is already logged.

    Attributes:
        guard: Name of the metric whose history shows which steps are logged.
        step: Optimizer step, or epoch.
        time_ms: Milliseconds since 1970.
        values: By name.
    """

    kind = "metrics"
    guard: str
    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class LogDataset(Operation):
    """Log the data set of a run.

    Attributes:
        name: Of the data set.
        digest: Of its manifest.
        source: Its folder.
        profile: Rows, classes and shape.
    """

    kind = "dataset"
    name: str
    digest: str
    source: str
    profile: Mapping[str, Any]


@dataclass(frozen=True)
class LogText(Operation):
    """Log a text as an artifact file."""

    kind = "text"
    file: str
    text: str


@dataclass(frozen=True)
class LogArtifacts(Operation):
    """Log a folder of the storage root as artifacts.

    Attributes:
        parts: The folder, as parts below the storage root.
        path: Folder among the artifacts.
    """

    kind = "artifacts"
    parts: list[str]
    path: str


@dataclass(frozen=True)
class RegisterModel(Operation):
    """Log the export of a run as a model and register it as a version.

    Attributes:
        parts: The export, as parts below the storage root.
        shape: (H, W, C) of an image.
        classes: Number of classes.
        metrics: Of the held-out splits.
        digest: SHA-256 of the export's list of digests.
    """

    kind = "model"
    parts: list[str]
    shape: list[int]
    classes: int
    metrics: Mapping[str, float]
    digest: str


@dataclass(frozen=True)
class CloseRun(Operation):
    """Set the final status of an MLflow run.

    Attributes:
        status: FINISHED, FAILED or KILLED, as MLflow names them.
        tags: To set.
    """

    kind = "close"
    status: str
    tags: Mapping[str, str] = field(default_factory=dict)

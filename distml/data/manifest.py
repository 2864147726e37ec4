"""The manifest of a prepared data set: classes, shapes, row counts and shard digests (any process)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from distml import tasks
from distml.data.image import Policy
from distml.data.source import Origin
from distml.errors import DataError
from distml.tasks import Task

NAMES = "names.json"
"""File beside the shards of what the held-out rows of files are called, by split."""
_PLACES = ("digest", "folder", "path", "uri")
_ABOUT = ("fingerprint", "entries", "skipped", "left_out", "warnings")
"""Warnings and times of the preparation; the rows do not depend on them."""


@dataclass(frozen=True)
class Shard:
    """One Parquet file.

    Args:
        path: Relative to the storage root.
        rows: Rows in it.
        bytes: Size of the file.
        sha256: Of the file.
    """

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Args:
        name: As configured.
        shape: (H, W, C) of every image.
        classes: Names of what is predicted: classes, labels or numbers.
        rows: Rows by split: `train`, `validation`, `test`.
        shards: Files by split, in the order of their rows.
        sources: Where the bytes came from.
        seed: Of the splits and the order.
        val_fraction: Share that was asked for as validation.
        schema_version: Of the columns.
        folder: Relative to the storage root.
        policy: How pictures became images, None for data that were arrays.
        train_size: Height and width of the training rows where they keep a margin, None where they are as
            `shape` says.
        encoding: raw or jpeg where an image is one value of bytes, None where it is a tensor, as arrays are.
        fingerprint: Of the source's names, sizes and times; a change means other data. None where they
            are not known.
        entries: Files and links in the user's folder, None where there is no folder.
        skipped: How many of them were left out, by reason.
        left_out: Name and reason of every picture that could not be used.
        warnings: What was noticed in the prepared rows.
        target: Describes the task beside the names, None where that is classification.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    rows: dict[str, int]
    shards: dict[str, tuple[Shard, ...]]
    sources: tuple[Origin, ...]
    seed: int
    val_fraction: float
    schema_version: int
    folder: str
    policy: Policy | None = None
    train_size: tuple[int, int] | None = None
    encoding: str | None = None
    fingerprint: str | None = None
    entries: int | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    left_out: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    target: dict[str, Any] | None = None

    @property
    def task(self) -> Task:
        """What is predicted."""
        return tasks.restore(self.classes, self.target)

    def shape_of(self, split: str) -> tuple[int, int, int]:
        """Return the shape (H, W, C) of the rows of a split: training rows may keep a margin."""
        if split == "train" and self.train_size is not None:
            return (*self.train_size, self.shape[2])
        return self.shape

    @property
    def pictures(self) -> Policy:
        """How a picture becomes an image like these."""
        return self.policy or Policy.of_arrays(self.shape)

    @property
    def digest(self) -> str:
        """SHA-256 of what the data are: canonical JSON without places.

        The same data prepared twice have the same digest, whichever mirror they came from and wherever
        their files lie.
        """
        told = {key: value for key, value in asdict(self).items() if value is not None and key not in _ABOUT}
        text = json.dumps(_placeless(told), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def unlike(self, present: Manifest) -> str:
        """Say by which keys these data differ from present ones, and else that their rows do."""

        def decided(manifest: Manifest) -> dict[str, Any]:
            return {
                "name": manifest.name,
                "val_fraction": manifest.val_fraction,
                "split_seed": manifest.seed,
                "image_size": list(manifest.shape[:2]),
                "margin": None if manifest.train_size is None else list(manifest.train_size),
                "fit": manifest.pictures.fit,
                "background": list(manifest.pictures.background),
                "encoding": manifest.encoding,
            }

        then, now = decided(self), decided(present)
        parts = [f"data.{key} {then[key]}, not {now[key]}" for key in then if then[key] != now[key]]
        return "; ".join(parts) or f"{sum(self.rows.values()):,} rows, now {sum(present.rows.values()):,}"

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def summary(self) -> dict[str, Any]:
        """Return the result line of `ingest`.

        It has name, rows by split, task, classes (their number), shape, digest, skipped (entries of the
        folder that were left out, by reason), left_out (pictures that could not be used) and warnings (their
        numbers).
        """
        return {
            "name": self.name,
            "rows": self.rows,
            "task": self.task.kind,
            "classes": self.num_classes,
            "shape": list(self.shape),
            "digest": self.digest,
            "skipped": self.skipped,
            "left_out": len(self.left_out),
            "warnings": len(self.warnings),
        }

    def nbytes(self, split: str) -> int:
        """Return the bytes of a split's images in memory, as uint8."""
        height, width, depth = self.shape_of(split)
        return self.rows[split] * height * width * depth

    def to_json(self) -> str:
        """Return the manifest as it is stored."""
        return json.dumps({**asdict(self), "digest": self.digest}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the manifest") -> Self:
        """Read a stored manifest.

        Raises:
            DataError: Cut off, changed, or not a manifest.
        """
        try:
            fields = json.loads(text)
            digest = fields.pop("digest")
            shards = {s: tuple(Shard(**entry) for entry in many) for s, many in fields.pop("shards").items()}
            sources = tuple(Origin(**entry) for entry in fields.pop("sources"))
            shape, classes = tuple(fields.pop("shape")), tuple(fields.pop("classes"))
            policy, train_size = fields.pop("policy", None), fields.pop("train_size", None)
            left_out = tuple((str(name), str(reason)) for name, reason in fields.pop("left_out", ()))
            manifest = cls(
                shape=shape,
                classes=classes,
                shards=shards,
                sources=sources,
                policy=None if policy is None else Policy.from_dict(policy),
                left_out=left_out,
                train_size=None if train_size is None else (int(train_size[0]), int(train_size[1])),
                warnings=tuple(fields.pop("warnings", ())),
                **fields,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where} is damaged: {error}.", _AGAIN) from None
        if manifest.digest != digest:
            raise DataError(f"{where} is damaged: its digest is {manifest.digest}, not {digest}.", _AGAIN)
        return manifest


_AGAIN = "Delete its folder and run ingest again."


def _placeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _placeless(below) for key, below in value.items() if key not in _PLACES}
    return [_placeless(below) for below in value] if isinstance(value, list | tuple) else value

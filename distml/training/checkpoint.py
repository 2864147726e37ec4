"""Checkpoints that prove themselves: state, weights and a digest manifest written last (worker, driver).

Ray Train copies files straight into a checkpoint's final folder, so a killed upload leaves half of
one behind under its final name. A checkpoint of ours therefore carries the digest of each file, and
only one whose digests agree is ever resumed from.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distml.errors import StorageError
from distml.storage import Storage

MANIFEST = "manifest.json"
ARRAYS = "arrays.npz"
STATE = "state.json"
VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Attributes:
        parts: Its folder, as parts below the storage root.
        state: JSON state: `epoch` (epochs completed), `step`, `history` and what the worker added.
        arrays: Weights, optimizer and moving averages by name.
    """

    parts: tuple[str, ...]
    state: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def epoch(self) -> int:
        """Epochs completed."""
        return int(self.state["epoch"])


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was passed over, and why."""

    name: str
    reason: str


def write(folder: Path, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint into an existing local folder, its manifest last."""
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    (folder / STATE).write_text(json.dumps(state))
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ARRAYS, STATE)}
    (folder / MANIFEST).write_text(json.dumps({"version": VERSION, "files": files}))


def _verified(storage: Storage, parts: tuple[str, ...]) -> Checkpoint | str:
    """Read and check one checkpoint; the reason as text when it must not be used."""
    if not storage.exists(*parts, MANIFEST):
        return "it has no manifest, so its upload did not finish"
    try:
        manifest = json.loads(storage.read_bytes(*parts, MANIFEST))
        contents = {name: storage.read_bytes(*parts, name) for name in manifest["files"]}
    except (StorageError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    for name, digest in manifest["files"].items():
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != digest:
            return f"{name} has SHA-256 {found[:12]}…, its manifest says {digest[:12]}…"
    with np.load(io.BytesIO(contents[ARRAYS]), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Checkpoint(parts, json.loads(contents[STATE]), arrays)


def _candidates(storage: Storage, run: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Checkpoint folders of all attempts, newest epoch first, then newest attempt."""
    found = [
        (name, attempt)
        for attempt in storage.names(*run)
        if attempt.startswith("attempt-")
        for name in storage.names(*run, attempt)
        if name.startswith("epoch-")
    ]
    return [(*run, attempt, name) for name, attempt in sorted(found, key=lambda f: (f[0][:11], f[1], f[0]))][
        ::-1
    ]


def newest(storage: Storage, run: tuple[str, ...]) -> tuple[Checkpoint | None, list[Skipped]]:
    """Find the newest checkpoint of a run that verifies.

    Args:
        storage: The storage root.
        run: The run's folder, as parts.

    Returns:
        The checkpoint, or None when there is none, and those passed over with reasons.
    """
    skipped: list[Skipped] = []
    for parts in _candidates(storage, run):
        found = _verified(storage, parts)
        if isinstance(found, Checkpoint):
            return found, skipped
        skipped.append(Skipped("/".join(parts[-2:]), found))
    return None, skipped


def folder_name(epoch: int, nonce: str) -> str:
    """Name of the folder for a completed epoch; the nonce keeps a second try out of a killed one's."""
    return f"epoch-{epoch:05d}-{nonce}"

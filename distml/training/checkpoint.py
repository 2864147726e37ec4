"""Checkpoints: writing, verifying, restoring (worker, driver); Ray deletes old ones, see `training.launch`.

Ray Train copies files straight into a checkpoint's final folder, so an interrupted upload leaves part of it
under its final name. A checkpoint therefore holds a manifest with the SHA-256 of each file, written last,
and a run resumes only from one whose digests agree. Ray Train deletes older ones.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distml.errors import CheckpointError, StorageError
from distml.storage import Storage
from distml.training.events import CheckpointSkipped, EpochFinished, Resumed

if TYPE_CHECKING:
    from distml.training.worker import Rank

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


def write(folder: Path, state: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write a checkpoint into an existing local folder, its manifest last."""
    np.savez(folder / ARRAYS, allow_pickle=False, **arrays)
    (folder / STATE).write_text(json.dumps(state), encoding="utf-8")
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in (ARRAYS, STATE)}
    (folder / MANIFEST).write_text(json.dumps({"version": VERSION, "files": files}), encoding="utf-8")


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
        actual = hashlib.sha256(contents[name]).hexdigest()
        if actual != digest:
            return f"{name} has SHA-256 {actual[:12]}…, its manifest says {digest[:12]}…"
    with np.load(io.BytesIO(contents[ARRAYS]), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return Checkpoint(parts, json.loads(contents[STATE]), arrays)


def _candidates(storage: Storage, run: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Checkpoint folders of all attempts, newest epoch first, then newest attempt."""
    folders = [
        (name, attempt)
        for attempt in storage.names(*run)
        if attempt.startswith("attempt-")
        for name in storage.names(*run, attempt)
        if name.startswith("epoch-")
    ]
    folders.sort(key=lambda folder: (folder[0][:11], folder[1], folder[0]), reverse=True)
    return [(*run, attempt, name) for name, attempt in folders]


def newest(storage: Storage, run: tuple[str, ...]) -> tuple[Checkpoint | None, list[CheckpointSkipped]]:
    """Return the newest checkpoint of a run that verifies.

    Args:
        storage: The storage root.
        run: The run's folder, as parts.

    Returns:
        The checkpoint, or None when there is none, and the skipped checkpoints with reasons.
    """
    skipped: list[CheckpointSkipped] = []
    for parts in _candidates(storage, run):
        verified = _verified(storage, parts)
        if isinstance(verified, Checkpoint):
            return verified, skipped
        skipped.append(CheckpointSkipped("/".join(parts[-2:]), verified))
    return None, skipped


def folder_name(epoch: int, nonce: str) -> str:
    """Name of the folder for a completed epoch; the nonce differs from that of an interrupted attempt."""
    return f"epoch-{epoch:05d}-{nonce}"


def _variables(rank: Rank) -> dict[str, list[Any]]:
    return {
        "model": [variable.value for variable in rank.step.model.variables],
        "optimizer": [variable.value for variable in rank.step.optimizer.variables],
        "ema": list(rank.step.ema),
    }


def weights(rank: Rank) -> list[np.ndarray]:
    """The model's weights, in the order of `Model.get_weights`: without the states of random generators."""
    return [variable.value.numpy() for variable in rank.step.model.weights]


def arrays(rank: Rank) -> dict[str, np.ndarray]:
    """Weights, optimizer state and moving averages by name: with them a run continues bit for bit."""
    values = {
        f"{group}/{position:04d}": variable.numpy()
        for group, variables in _variables(rank).items()
        for position, variable in enumerate(variables)
    }
    return values | {f"best/{position:04d}": value for position, value in enumerate(rank.best or [])}


def resume(rank: Rank) -> None:
    """Restore the newest checkpoint that verifies; every rank reads the same one.

    Raises:
        CheckpointError: It belongs to another model or optimizer.
    """
    restored, skipped = newest(rank.storage, rank.run)
    for event in skipped:
        rank.send(event)
    if restored is None:
        return
    for group, variables in _variables(rank).items():
        for position, variable in enumerate(variables):
            value = restored.arrays.get(f"{group}/{position:04d}")
            if value is None or value.shape != tuple(variable.shape):
                raise CheckpointError(
                    f"checkpoint {'/'.join(restored.parts)} does not fit the model ({group} {position}).",
                    "Pass --run.restart true or choose another run.name.",
                )
            variable.assign(value)
    best = sorted(name for name in restored.arrays if name.startswith("best/"))
    rank.best = [restored.arrays[name] for name in best] or None
    rank.history = [EpochFinished.from_json(epoch) for epoch in restored.state["history"]]
    rank.send(Resumed(restored.epoch, "/".join(restored.parts[-2:]), list(rank.history)))

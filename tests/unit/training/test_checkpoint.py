from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from distml.storage import Storage
from distml.training import checkpoint

RUN = ("runs", "a", "001")


def put(root: Path, attempt: str, epoch: int, nonce: str = "0") -> Path:
    folder = root.joinpath(*RUN, attempt, checkpoint.folder_name(epoch, nonce))
    folder.mkdir(parents=True)
    state = {"epoch": epoch, "step": epoch * 10, "history": []}
    checkpoint.write(folder, state, {"model/0000": np.full(3, epoch, np.float32)})
    return folder


def test_the_newest_epoch_of_all_attempts_is_taken(storage_root: Path) -> None:
    put(storage_root, "attempt-001", 2)
    put(storage_root, "attempt-001", 10)
    put(storage_root, "attempt-002", 3)
    newest, skipped = checkpoint.newest(Storage(str(storage_root)), RUN)
    assert newest is not None
    assert (newest.epoch, skipped) == (10, [])
    np.testing.assert_array_equal(newest.arrays["model/0000"], np.full(3, 10, np.float32))


def test_of_one_epoch_the_later_attempt_is_taken(storage_root: Path) -> None:
    put(storage_root, "attempt-001", 2, "ffffffff")
    later = put(storage_root, "attempt-002", 2, "00000000")
    newest, _ = checkpoint.newest(Storage(str(storage_root)), RUN)
    assert newest is not None
    assert newest.parts[-1] == later.name


def test_every_kind_of_damage_is_skipped_with_its_reason(storage_root: Path) -> None:
    put(storage_root, "attempt-001", 1)
    flipped = put(storage_root, "attempt-001", 2) / "arrays.npz"
    content = bytearray(flipped.read_bytes())
    content[-30] ^= 1
    flipped.write_bytes(bytes(content))
    (put(storage_root, "attempt-001", 3) / "manifest.json").unlink()
    (put(storage_root, "attempt-001", 4) / "state.json").unlink()
    (put(storage_root, "attempt-001", 5) / "manifest.json").write_text("{")
    newest, skipped = checkpoint.newest(Storage(str(storage_root)), RUN)
    assert newest is not None
    assert newest.epoch == 1
    reasons = {event.name.split("/")[1][:11]: event.reason for event in skipped}
    assert list(reasons) == ["epoch-00005", "epoch-00004", "epoch-00003", "epoch-00002"]
    assert "SHA-256" in reasons["epoch-00002"]
    assert "did not finish" in reasons["epoch-00003"]


def test_a_folder_without_checkpoints_gives_none(storage_root: Path) -> None:
    assert checkpoint.newest(Storage(str(storage_root)), RUN) == (None, [])


def test_the_manifest_is_written_last(storage_root: Path) -> None:
    folder = put(storage_root, "attempt-001", 1)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert max(written, key=lambda name: written[name]) == checkpoint.MANIFEST
    assert set(json.loads((folder / checkpoint.MANIFEST).read_text())["files"]) == {
        "arrays.npz",
        "state.json",
    }

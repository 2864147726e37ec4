"""The storage root fills up or is asked for twice: a real tmpfs, really full."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner import STEPS_PER_EPOCH, Training

pytestmark = [pytest.mark.fault, pytest.mark.ray, pytest.mark.timeout(600)]

MEGABYTES = 130
"""Room for the data, the tracking database and two checkpoints of `BIG`, not for three."""
BIG = ["--model.options={dense: 2048}"]
"""A model whose checkpoint, with Adam's moments, is 40 MB."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("mounting a small file system needs root on Linux")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_leaves_its_last_checkpoint_usable(small_disk: Path) -> None:
    root = small_disk / "storage"
    with Training(root, "full", *BIG) as run:
        run.wait_for("epoch 3/4")  # its checkpoint is the one that does not fit
        full = time.monotonic()
        code, result = run.finish()
    assert time.monotonic() - full <= 60
    assert (code, result["status"]) == (1, "failed")
    assert re.search("ENOSPC|No space left", result["error"])
    assert "storage.root" in result["error"]
    subprocess.run(["mount", "-o", f"remount,size={4 * MEGABYTES}m", small_disk], check=True)
    with Training(root, "full", *BIG) as run:
        code, result = run.finish()
    assert (code, result["steps"]) == (0, 4 * STEPS_PER_EPOCH)
    assert run.said("resumed after epoch") == 1


def test_features_beyond_the_disk_name_the_temporary_folder(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from distml.training.epoch import FeatureStore

    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    store, rows = FeatureStore(1_000_000), np.zeros((2_000, 4_000), np.float32)
    for _ in range(MEGABYTES * 1_000_000 // rows.nbytes):
        store.add(rows, np.zeros(len(rows), np.int32))
    with pytest.raises(OSError, match=f"No space left on device among temporary files in {small_disk}"):
        store.add(np.concatenate([rows, rows]), np.zeros(2 * len(rows), np.int32))
    store.close()
    assert not list(small_disk.iterdir())


def test_a_run_has_one_driver_at_a_time(tmp_path: Path) -> None:
    root = tmp_path / "storage"
    with Training(root, "twice", "--train.epochs=1") as first:
        first.wait_for("run twice")
        with Training(root, "twice", "--train.epochs=1") as second:
            code, result = second.finish(60)
        assert (code, result["kind"]) == (2, "ConfigError")
        assert "run twice is being trained by another process" in result["error"]
        assert first.finish()[0] == 0

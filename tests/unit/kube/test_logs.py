"""Ray's logs outlive their pod."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from distml.kube import logs


def test_the_last_log_lines_are_kept_when_the_pod_ends(tmp_path: Path) -> None:
    source, root, ended = tmp_path / "logs", tmp_path / "kept", threading.Event()
    keeper = threading.Thread(target=logs.keep, args=(str(root), "pod-1", ended, source, 0.05))
    keeper.start()
    source.mkdir()  # Ray begins later than its pod
    (source / "raylet.out").write_text("first\n")
    while not (root / "pod-1" / "raylet.out").exists():
        assert keeper.is_alive()
    with (source / "raylet.out").open("a") as stream:
        stream.write("last\n")
    ended.set()
    keeper.join(10)
    assert (root / "pod-1" / "raylet.out").read_text() == "first\nlast\n"


def test_a_storage_error_does_not_end_the_sidecar(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a").write_text("a")
    (tmp_path / "file").write_text("no folder")
    ended = threading.Event()
    ended.set()
    logs.keep(str(tmp_path / "file"), "pod-1", ended, tmp_path / "logs", 0.01)


def test_a_missing_mount_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()
    keeper = threading.Thread(
        target=logs.keep, args=(str(tmp_path / "kept"), "pod-1", ended, tmp_path / "logs", 0.01)
    )
    keeper.start()
    while not caplog.messages:
        assert keeper.is_alive()
    time.sleep(0.1)
    ended.set()
    keeper.join(10)
    assert caplog.messages == [f"there is no {tmp_path / 'logs'} yet: is Ray's folder mounted here?"]

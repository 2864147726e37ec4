"""Ray's logs outlive their pod."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from distml.kube import logs
from distml.storage import Storage


def test_the_last_log_lines_are_kept_when_the_pod_ends(tmp_path: Path) -> None:
    source, root, ended = tmp_path / "session_1" / "logs", tmp_path / "kept", threading.Event()
    keeper = threading.Thread(target=logs.keep, args=(str(root), "pod-1", ended, source, 0.05))
    keeper.start()
    source.mkdir(parents=True)  # Ray begins later than its pod
    (source / "raylet.out").write_text("first\n")
    while not (root / "pod-1" / "session_1" / "raylet.out").exists():
        assert keeper.is_alive()
    with (source / "raylet.out").open("a") as stream:
        stream.write("last\n")
    ended.set()
    keeper.join(10)
    assert (root / "pod-1" / "session_1" / "raylet.out").read_text() == "first\nlast\n"


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


def test_only_what_changed_is_copied_again(tmp_path: Path) -> None:
    source = tmp_path / "session_1" / "logs"
    (source / "old").mkdir(parents=True)
    for name in ("raylet.out", "old/gcs.out"):
        (source / name).write_text("first\n", encoding="utf-8")
    (source / "link").symlink_to(source / "raylet.out")
    copies = logs.Copies(Storage(str(tmp_path / "kept")), "pod-1", source)
    assert (copies.update(), copies.update()) == (2, 0)
    with (source / "raylet.out").open("a", encoding="utf-8") as stream:
        stream.write("second\n")
    assert copies.update() == 1
    kept = tmp_path / "kept" / "pod-1" / "session_1"
    assert (kept / "raylet.out").read_text(encoding="utf-8") == "first\nsecond\n"
    assert (kept / "old" / "gcs.out").exists()
    assert not (kept / "link").exists()


def test_a_ray_that_starts_again_does_not_overwrite_what_it_left(tmp_path: Path) -> None:
    latest = tmp_path / "session_latest"
    copies = logs.Copies(Storage(str(tmp_path / "kept")), "pod-1", latest / "logs")
    for session in ("session_1", "session_2"):
        (tmp_path / session / "logs").mkdir(parents=True)
        (tmp_path / session / "logs" / "raylet.out").write_text(session, encoding="utf-8")
        latest.unlink(missing_ok=True)
        latest.symlink_to(tmp_path / session)
        assert copies.update() == 1
    kept = tmp_path / "kept" / "pod-1"
    assert (kept / "session_1" / "raylet.out").read_text(encoding="utf-8") == "session_1"


def test_a_file_that_vanishes_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "session_1" / "logs"
    source.mkdir(parents=True)
    for name in ("a", "b"):
        (source / name).write_text(name, encoding="utf-8")
    stat = Path.stat

    def vanishing(path: Path, **options: bool) -> os.stat_result:
        result = stat(path, **options)
        if path.name == "a":
            path.unlink(missing_ok=True)
        return result

    monkeypatch.setattr(Path, "stat", vanishing)
    assert logs.Copies(Storage(str(tmp_path / "kept")), "pod-1", source).update() == 1

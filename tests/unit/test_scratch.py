"""A local Ray's temporary folder and processes end with the command; this process keeps its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distml.runtime import environment, processes


def test_children_write_into_a_folder_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    program = "import tempfile; print(tempfile.mkdtemp())"
    with processes.temporary_folder() as given:
        with environment.inherited(given):
            ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert os.environ["TMPDIR"] == str(tmp_path)
        assert "RAY_TMPDIR" not in os.environ
        made = Path(ran.stdout.strip())
        assert made.is_dir()
        assert str(made.parent) == given["TMPDIR"]
        (made / "left").write_text("behind")
    assert not made.parent.exists()


@pytest.mark.parametrize(("chosen", "sessions"), [("/elsewhere", "/elsewhere"), (None, "/usual")])
def test_rays_sessions_stay_where_they_would_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: str | None, sessions: str
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("TMPDIR", "/usual")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    if chosen:
        monkeypatch.setenv("RAY_TMPDIR", chosen)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with processes.temporary_folder() as given:
        assert given["RAY_TMPDIR"] == sessions


@pytest.mark.skipif(sys.platform != "linux", reason="a copied program does not start on macOS")
def test_a_worker_that_outlives_its_raylet_is_ended(tmp_path: Path) -> None:
    raylet = Path(shutil.copy("/bin/sh", tmp_path / "raylet"))
    bystander = subprocess.Popen(["sleep", "60"])
    command = [str(raylet), "-c", "trap '' TERM; sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ray:
        assert ray.stdout
        worker = psutil.Process(int(ray.stdout.readline()))
        with processes.killed_at_exit():
            ray.kill()
            ray.wait()
            assert worker.is_running()
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()

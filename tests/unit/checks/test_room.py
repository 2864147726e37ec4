"""Memory and disks against what a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from distml.checks import machine
from distml.checks.check import GIB
from distml.config import Config

MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "data", "status"),
    [
        (16 * GIB, 0, "ok"),
        (4 * GIB, 0, "warning"),
        (1 * GIB, 0, "problem"),
        (5 * GIB, 43 * MIB, "ok"),
        (5 * GIB, 900 * MIB, "warning"),
        (9 * GIB, 900 * GIB, "ok"),  # what is over the budget is streamed
    ],
)
def test_memory(free: int, data: int, status: str) -> None:
    check = machine.memory(Config(), free, data)
    assert check.status == status
    assert "for 2 workers" in check.detail
    assert bool(check.remedy) == (status != "ok")


@pytest.mark.parametrize(
    ("free", "data", "status"),
    [(None, 0, "ok"), (64 * MIB, 0, "warning"), (GIB, 0, "ok"), (GIB, GIB, "warning")],
)
def test_shared_memory(free: int | None, data: int, status: str) -> None:
    check = machine.shared_memory(free, data)
    assert check.status == status
    assert ("--shm-size" in check.remedy) == (status == "warning")


@pytest.mark.parametrize(("free", "status"), [(50 * MIB, "problem"), (GIB, "warning"), (9 * GIB, "ok")])
def test_disk(free: int, status: str) -> None:
    check = machine.disk(Path("/somewhere"), free)
    assert check.status == status
    assert "/somewhere" in check.detail


@pytest.mark.parametrize(("used", "status"), [(0.5, "ok"), (0.95, "ok"), (0.96, "warning")])
def test_scratch(used: float, status: str) -> None:
    assert machine.scratch(Path("/tmp"), used).status == status


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    free = machine.free_memory()
    assert free > 3 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{MIB}\n")
    assert machine.free_memory() > 3 * MIB
    (tmp_path / "memory.max").write_text(f"{3 * MIB}\n")
    assert machine.free_memory() == 2 * MIB


def test_a_path_that_is_not_there_yet_lies_on_the_disk_of_its_nearest_folder(tmp_path: Path) -> None:
    assert machine.free_on(tmp_path / "a" / "b") == pytest.approx(machine.free_on(tmp_path), rel=0.05)
    assert 0 < machine.used_on(tmp_path / "a") < 1
    assert machine.free_on(Path("relative")) > 0

"""Those processes that look on step back; those that train stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from distml.runtime import processes

SLEEPER = (
    "import threading, time; threading.Thread(target=time.sleep, args=[60]).start(); print(1, flush=True)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_only_what_looks_on_steps_back() -> None:
    def start(*words: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", SLEEPER, *words], stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline()
        return process

    def places(process: subprocess.Popen[bytes]) -> set[tuple[int, int]]:
        threads = [int(folder.name) for folder in Path(f"/proc/{process.pid}/task").iterdir()]
        assert len(threads) > 1
        return {
            (os.sched_getscheduler(thread), os.getpriority(os.PRIO_PROCESS, thread)) for thread in threads
        }

    usual = os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0)
    queue, worker, agent = (
        start(f"ray::{name}") for name in ("EventQueue", "RayTrainWorker", "DashboardAgent")
    )
    try:
        assert places(queue) == places(agent) == {usual}
        processes.step_back()
        assert places(queue) == {(os.SCHED_OTHER, 15)}
        assert places(agent) == {(os.SCHED_IDLE, 15)}
        assert places(worker) == {usual}
    finally:
        for process in (queue, worker, agent):
            process.kill()
            process.communicate()


def test_a_child_without_a_command_line_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: [])  # as between two programs of one process
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as child:
        try:
            processes.step_back()
            assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        finally:
            child.kill()

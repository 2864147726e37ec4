"""Processes of a local Ray that only look on, and their place behind those that train (driver)."""

from __future__ import annotations

import contextlib
import os

import psutil

_WATCHERS = (
    *("/dashboard/dashboard.py", "/log_monitor.py", "/_private/monitor.py"),
    *("ray-dashboard-", "ray::DashboardAgent", "ray::Board", "ray::TrainController", "ray::Synchronization"),
)
"""What the first words of a command line hold where a process of Ray only looks on."""


def step_back() -> None:
    """Let those children of this process that look on wait for idle cores; a Ray started elsewhere has none.

    A dozen would take two cores from the workers: while they start, and in each step, where a rank that is
    kept waiting keeps all others waiting. The raylet stays, since the workers that it starts again inherit
    its niceness; its command line names the dashboard, too.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):  # gone, or not ours to change
            words = process.cmdline()[:4]
            if any(watcher in word for word in words for watcher in _WATCHERS) and "/raylet" not in words[0]:
                process.nice(15)
                for thread in process.threads() if psutil.LINUX else ():  # each has a niceness of its own
                    os.setpriority(os.PRIO_PROCESS, thread.id, 15)

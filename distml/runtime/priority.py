"""Processes of a local Ray that only look on, and their place behind those that train (driver)."""

from __future__ import annotations

import contextlib
import os

import psutil

from distml.runtime import compat

_SHOWING = compat.MONITORS
"""What the first words of a command line hold where nothing but a person's view waits for a process."""
_ATTENDING = ("ray::EventQueue", *compat.CONTROLLERS)
"""The same where a run waits for it now and then, and its wait must end on a machine without an idle core."""
_NICENESS = 15


def step_back() -> None:
    """Let those children of this process that look on wait for idle cores; a Ray started elsewhere has none.

    A dozen would take two cores from the workers: while they start, and in each step, where a rank that is
    kept waiting keeps all others waiting. The raylet stays, since the workers that it starts again inherit
    its niceness; its command line names the dashboard, too.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):  # gone, or not ours to change
            words = process.cmdline()[:4]
            idle = _holds(words, _SHOWING)
            if (idle or _holds(words, _ATTENDING)) and "/raylet" not in words[0]:
                process.nice(_NICENESS)
                # on Linux each thread has a place of its own
                for thread in process.threads() if psutil.LINUX else ():
                    _step_behind(thread.id, idle)


def _holds(words: list[str], parts: tuple[str, ...]) -> bool:
    return any(part in word for word in words for part in parts)


def _step_behind(thread: int, idle: bool) -> None:
    """Idle is more than nice: who wakes up takes the core at once instead of at the end of a slice."""
    os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
    if idle:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))

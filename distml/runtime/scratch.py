"""Temporary files and processes of a local Ray, gone with it (driver).

Ray ends its processes by killing them, so what they left in the system's temporary folder (models that were
being served, half a checkpoint, the sockets of Ray's own dashboard) would stay there after every command.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping

import psutil

_END_S = 3.0
"""Seconds that a killed process may take to be gone."""


@contextlib.contextmanager
def variables() -> Iterator[dict[str, str]]:
    """The environment that gives processes a temporary folder of their own, which is removed at the end.

    Ray's own sessions stay where they would be: others look for them there, and their sockets' paths may have
    107 characters.
    """
    usual = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # as Ray 2.60 reads it
    sessions = os.environ.get("RAY_TMPDIR") or usual or "/tmp"  # noqa: S108 (Ray's own default)
    with tempfile.TemporaryDirectory(prefix="distml-", ignore_cleanup_errors=True) as folder:
        yield {"TMPDIR": folder, "RAY_TMPDIR": sessions}


@contextlib.contextmanager
def inherited(given: Mapping[str, str]) -> Iterator[None]:
    """Let processes that start within the body have these variables, and this one not after it."""
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def ended() -> Iterator[None]:
    """Kill what is left of this process's own Ray after the body, which shuts it down.

    A worker ends by itself when it misses its raylet, and nearly always does: the controller of a sweep was
    once found idle a quarter of an hour later, with all its memory.
    """
    of_ray = _below_the_raylet()
    try:
        yield
    finally:
        for process in of_ray:
            with contextlib.suppress(psutil.Error):  # gone, as it should be
                process.kill()
        psutil.wait_procs(of_ray, timeout=_END_S)


def _below_the_raylet() -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if [os.path.basename(word) for word in child.cmdline()[:1]] == ["raylet"]:
                found += [child, *child.children(recursive=True)]
    return found

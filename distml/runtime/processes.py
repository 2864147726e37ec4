"""Processes of a local Ray: token, temporary folder, priority, end (driver); marks and signals (any).

Ray ends its processes by killing them, so what they left in the system's temporary folder (models that were
being served, half a checkpoint, the sockets of Ray's own dashboard) would stay there after every command.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import mmap
import os
import queue
import secrets
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from distml.runtime import compat, environment

_END_S = 1.0
"""Seconds that a killed process may take to be gone."""


def reach_this_machine() -> None:
    """Let requests to this machine's own addresses go past a proxy that the shell has set."""
    if environment.proxied():
        own = environment.with_hosts(("localhost", "127.0.0.1", "::1"), "no_proxy", "NO_PROXY")
        environment.LOOPBACK.apply({"no_proxy": own, "NO_PROXY": own})


def setter(event: threading.Event) -> Callable[..., None]:
    """A handler for signals that sets `event`, by a thread that waits for it.

    A handler runs in the main thread between two of its instructions. Where these are the first of
    `event.wait`, that thread holds the event's lock, and a handler that called `set` itself would wait for
    it forever: a pod that received SIGTERM so was killed at the end of its grace period.
    """
    signals: queue.SimpleQueue[None] = queue.SimpleQueue()  # a handler may interrupt its own `put`

    def set_it() -> None:
        signals.get()
        event.set()

    threading.Thread(target=set_it, name="signals", daemon=True).start()
    return lambda *_: signals.put(None)


_FRAGILE = ("<frozen importlib._bootstrap>", logging.__file__)
"""Code whose locks stay locked, or whose modules stay half imported, when an exception interrupts it."""
_RETRY_S, _PATIENCE_S = 0.05, 10.0
"""How often a signal that came at such a moment is looked at again, and after how long it interrupts."""


@contextlib.contextmanager
def interruptible(at_end: bool = True) -> Iterator[None]:
    """Let SIGINT and SIGTERM interrupt the body, though not an import, and although libraries swallow it.

    Interrupted while it imported Ray, the main thread left a lock of Python's import system locked for which
    the thread of the tracker waited for ever; SQLAlchemy stayed behind half imported, and the registry seemed
    to be away. Modules that import optional ones catch everything, and C++ code that calls Python drops what
    it raises: interrupted while TensorFlow was imported, a promotion went on and moved the alias.

    Args:
        at_end: Raise `KeyboardInterrupt` as well where the body ended all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach that one alone
        yield
        return
    first: float | None = None
    heard = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        nonlocal first, heard
        first = first or time.monotonic()
        if not heard and _is_fragile(frame) and time.monotonic() - first < _PATIENCE_S:
            signal.setitimer(signal.ITIMER_REAL, _RETRY_S)  # no thread: the handler may have interrupted one
            return
        heard = True
        raise KeyboardInterrupt

    kinds = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.getsignal(number) for number in kinds}
    for number in kinds:
        if _may_be_replaced(before[number]):
            signal.signal(number, interrupt)
    try:
        yield
    except Exception:
        if first:
            raise KeyboardInterrupt from None
        raise
    finally:
        if first and not heard:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            if handler is not None:  # one that is not Python's
                signal.signal(number, handler)
    if first and at_end:
        raise KeyboardInterrupt


def _may_be_replaced(handler: Any) -> bool:
    """Whether a handler is Python's or ours; background jobs ignore SIGINT, and programs have their own."""
    own = str(getattr(handler, "__module__", "")).startswith("distml.")
    return own or handler in (signal.SIG_DFL, signal.default_int_handler)


def _is_fragile(frame: FrameType | None) -> bool:
    """Whether this call stack must not be left by an exception."""
    while frame is not None:
        if frame.f_code.co_filename in _FRAGILE:
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def temporary_folder() -> Iterator[dict[str, str]]:
    """The environment that gives processes a temporary folder of their own, which is removed at the end.

    Ray's own sessions stay where they would be: others look for them there, and their sockets' paths may have
    107 characters.
    """
    usual = os.environ.get("TMPDIR") if sys.platform == "linux" else None  # as Ray 2.60 reads it
    sessions = os.environ.get("RAY_TMPDIR") or usual or "/tmp"  # noqa: S108 (Ray's own default)
    with tempfile.TemporaryDirectory(prefix="distml-", ignore_cleanup_errors=True) as folder:
        yield environment.SESSION.values({"TMPDIR": folder, "RAY_TMPDIR": sessions})


SCRATCH_IS_FULL = "among temporary files"


@contextlib.contextmanager
def scratch() -> Iterator[None]:
    """Tell a full folder of temporary files from a full storage: the error of a write names neither.

    Raises:
        OSError: The body's own; where it is that there is no space left, with the folder in its text.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = f"{error.strerror} {SCRATCH_IS_FULL} in {tempfile.gettempdir()}"
        raise OSError(error.errno, text) from error


@contextlib.contextmanager
def killed_at_exit() -> Iterator[None]:
    """Kill what is left of this process's own Ray after the body, which shuts it down.

    A worker ends by itself when it misses its raylet, and nearly always does: the controller of a sweep was
    seen idle a quarter of an hour later, with all its memory. One that the raylet starts while it ends, as a
    substitute for another that is gone, looks for it for half a minute, and holds the terminal's output open.
    """
    of_ray = _below_the_raylet()
    sockets = {word.partition("=")[2] for process in of_ray for word in _words(process) if _SOCKET in word}
    try:
        yield
    finally:
        of_ray += [process for process in psutil.process_iter() if _serves(process, sockets)]
        for process in of_ray:
            with contextlib.suppress(psutil.Error):  # gone, as it should be
                process.kill()
        psutil.wait_procs(of_ray, timeout=_END_S)


_SOCKET, _WORKS_FOR = "--raylet_socket_name=", "--raylet-name="
"""Options of a raylet, and of a worker that has not set its title yet, which name the raylet's socket."""


def _serves(process: psutil.Process, sockets: set[str]) -> bool:
    """Whether a process was started by a raylet with one of these sockets."""
    return any(_WORKS_FOR + socket in _words(process) for socket in sockets)


def _words(process: psutil.Process) -> list[str]:
    """The command line of a process; none of one that is gone, or another user's."""
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline())
    return []


def kill_starting() -> None:
    """Kill the Ray that this process was starting when it was interrupted.

    Nothing is lost. Ray itself would end one process after the other, give each a second and leave its
    agents behind.
    """
    of_ray = _of_ray(
        lambda words: _is(words, "raylet", "gcs_server") or any("/ray/" in word for word in words)
    )
    for process in of_ray:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(of_ray, timeout=_END_S)


def kill_workers() -> None:
    """Kill what works for this process's own Ray, and not Ray itself, without which `ray.shutdown` waits.

    It ends while Ray is shut down, and not after it. A raylet whose agent dies ends itself; Ray's library in
    this process, which then could not restore what a worker had lost, ended it with code 1 and no word.
    """
    for process in _below_the_raylet():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()[:4]
            if not _is(words, "raylet") and not _holds(words, compat.AGENTS):
                process.kill()


def _below_the_raylet() -> list[psutil.Process]:
    return _of_ray(lambda words: _is(words, "raylet"))


def _is(words: list[str], *programs: str) -> bool:
    return bool(words) and os.path.basename(words[0]) in programs


def _of_ray(chosen: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Children of this process, chosen by their command line, and all below them."""
    processes: list[psutil.Process] = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if chosen(child.cmdline()[:4]):
                processes += [child, *child.children(recursive=True)]
    return processes


def _token_file() -> Path:
    """Where Ray itself looks, so that `ray get-auth-token`, which the dashboard names, prints it."""
    return Path.home() / ".ray" / "auth_token"


def token_is_generated() -> bool:
    """Whether a local Ray's token comes from a file, and not from the user's environment."""
    # RAY_AUTH_MODE stays unset: Ray then turns token authentication on for a local cluster, while a
    # variable set after `import ray` would reach its subprocesses and not this process.
    return os.environ.get("RAY_AUTH_MODE", "token") == "token" and not os.environ.get("RAY_AUTH_TOKEN")


def authenticate() -> None:
    """Give a local Ray a token, readable by its owner alone; one that is there is kept.

    Ray 2.60 would write `~/.ray/auth_token` with the umask's mode, which others on the machine can read.
    """
    if not token_is_generated():
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _token_file())  # "" would mean this very folder
    environment.TOKEN.apply({"RAY_AUTH_TOKEN_PATH": str(path)})
    if path.exists():
        path.chmod(0o600)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(secrets.token_hex(32))


_SHOWING = compat.MONITORS
"""What the first words of a command line hold where nothing but a person's view waits for a process."""
_ATTENDING = ("ray::EventQueue", *compat.CONTROLLERS)
"""The same where a run waits for it now and then, and its wait must end on a machine without an idle core."""
_NICENESS = 15


def step_back() -> None:
    """Lower the scheduling priority of this process's monitoring children; a Ray started elsewhere has none.

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
                    _lower_priority(thread.id, idle)


def _holds(words: list[str], parts: tuple[str, ...]) -> bool:
    return any(part in word for word in words for part in parts)


def _lower_priority(thread: int, idle: bool) -> None:
    """Idle is more than nice: who wakes up takes the core at once instead of at the end of a slice."""
    os.setpriority(os.PRIO_PROCESS, thread, _NICENESS)
    if idle:
        os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))


@dataclass(frozen=True)
class Death:
    """A process that ended without closing its marks.

    Attributes:
        pid: Its number.
        marks: What it was doing, by name; what it was not doing is left out.
    """

    pid: int
    marks: dict[str, int]


class Marks:
    """What this process is doing, in a file that outlives it. Final.

    A process that the kernel or a native library ends cannot say what it was doing. Its file is locked as
    long as it lives, so that a file that can be locked is one of a process that died. Setting a mark writes
    eight bytes of shared memory (0.2 us).

    Args:
        folder: Where the processes that look for each other have their files; made when absent.
        names: Of what may be marked.

    Raises:
        OSError: The file cannot be made.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        header = json.dumps({"pid": os.getpid(), "names": list(names)}).encode() + b"\n"
        self._places = {name: len(header) + 8 * at for at, name in enumerate(names)}
        self._path = folder / f"{secrets.token_hex(8)}{_MARKS}"
        made = self._path.with_suffix(".new")
        self._file = made.open("w+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.write(header + bytes(8 * len(names)))
        self._file.flush()
        self._memory = mmap.mmap(self._file.fileno(), 0)
        made.rename(self._path)  # only now: one without its lock would count as left behind

    def set(self, name: str, value: int) -> None:
        """Mark what begins by a number, and what ends by 0."""
        if self._file.closed:
            return
        struct.pack_into("<q", self._memory, self._places[name], value)

    def close(self) -> None:
        """Remove the file: this process ends in order."""
        self._path.unlink(missing_ok=True)
        self._file.close()


_MARKS = ".marks"


def deaths(folder: Path) -> list[Death]:
    """Return the processes that died since the last look of any process, and remove their files."""
    died = []
    for path in sorted(folder.glob(f"*{_MARKS}")):
        with contextlib.suppress(OSError, ValueError, KeyError, struct.error), path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()  # fails where another process has just taken it
            header = json.loads(stream.readline())
            values = struct.unpack(f"<{len(header['names'])}q", stream.read())
            named = zip(header["names"], values, strict=True)
            died.append(Death(int(header["pid"]), {name: value for name, value in named if value}))
    return died

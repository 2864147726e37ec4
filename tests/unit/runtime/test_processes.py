"""Priorities of the processes of a local Ray, and the marks that outlive a process."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from distml.runtime import environment, processes

ROOT = Path(__file__).parents[3]
SLEEPER = (
    "import threading, time; threading.Thread(target=time.sleep, args=[60]).start(); print(1, flush=True)"
)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness of their own on Linux alone")
def test_only_monitoring_processes_get_lower_priority() -> None:
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


def test_a_child_without_a_command_line_keeps_its_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: [])  # as between two programs of one process
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as child:
        try:
            processes.step_back()
            assert os.getpriority(os.PRIO_PROCESS, child.pid) == os.getpriority(os.PRIO_PROCESS, 0)
        finally:
            child.kill()


def test_the_token_of_a_local_ray_is_its_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    old = os.umask(0)
    try:
        processes.authenticate()
    finally:
        os.umask(old)
    path = tmp_path / ".ray" / "auth_token"
    token = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(token) == 64
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(path)
    path.chmod(0o644)
    processes.authenticate()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == token
    assert processes.token_is_generated()


@pytest.mark.parametrize("variable", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN"])
def test_an_existing_token_setting_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(variable, "disabled" if variable.endswith("MODE") else "a" * 64)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    processes.authenticate()
    assert not processes.token_is_generated()
    assert not list(tmp_path.iterdir())


def test_children_use_a_temporary_folder_that_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
def test_sessions_of_ray_stay_in_their_default_folder(
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


@pytest.mark.skipif(sys.platform != "linux", reason="a copied program does not start on macOS")
def test_a_worker_that_starts_while_its_raylet_ends_is_ended(tmp_path: Path) -> None:
    raylet = Path(shutil.copy("/bin/sh", tmp_path / "raylet"))
    program = "import time; time.sleep(60)"
    command = [str(raylet), "-c", "read line", "sh", "--raylet_socket_name=/tmp/session_1/sockets/raylet"]
    late = [sys.executable, "-c", program, "--raylet-name=/tmp/session_1/sockets/raylet"]
    other = [sys.executable, "-c", program, "--raylet-name=/tmp/session_2/sockets/raylet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as ray:
        with processes.killed_at_exit():
            started = [subprocess.Popen(words) for words in (late, other)]
            killed = psutil.Process(started[0].pid)
            ray.kill()
            ray.wait()
        try:
            assert _ends(killed)
            assert started[1].poll() is None
        finally:
            for process in started:
                process.kill()
                process.wait()


def _ends(process: psutil.Process) -> bool:
    until = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="a copied program does not start on macOS")
def test_the_agents_of_a_raylet_outlive_its_workers(tmp_path: Path) -> None:
    raylet = Path(shutil.copy("/bin/sh", tmp_path / "raylet"))
    names = ("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::RayTrainWorker", "ray::IDLE")
    program = tmp_path / "sleeper.py"
    program.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)", encoding="utf-8")
    below: dict[str, psutil.Process] = {}
    with subprocess.Popen([str(raylet)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as ray:
        assert ray.stdin
        assert ray.stdout
        for name in names:
            print(f"{sys.executable} {program} {name} < /dev/null &", file=ray.stdin, flush=True)
            below[name] = psutil.Process(int(ray.stdout.readline()))
        try:
            processes.kill_workers()
            assert all(_ends(below[name]) for name in names[2:])
            assert not any(below[name].status() == psutil.STATUS_ZOMBIE for name in names[:2])
        finally:
            for process in below.values():
                process.kill()
            ray.kill()


MARKING = """
import os, sys
from pathlib import Path
from distml.runtime.processes import Marks
marks = Marks(Path(sys.argv[1]), ["loading", "predicting"])
marks.set("loading", 4)
marks.set("loading", 0)
marks.set("predicting", 7)
print(1, flush=True)
if sys.stdin.readline() == "close":
    marks.close()
    sys.exit()
os.abort()
"""


@pytest.mark.parametrize("ends", ["close", "", "kill"])
def test_a_process_that_dies_leaves_what_it_was_doing(tmp_path: Path, ends: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", MARKING, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout
    assert child.stdout.readline()
    assert processes.deaths(tmp_path) == []
    if ends == "kill":
        child.kill()
    child.communicate(ends.encode())
    expected = [] if ends == "close" else [processes.Death(child.pid, {"predicting": 7})]
    assert processes.deaths(tmp_path) == expected
    assert processes.deaths(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


SIGNALLED = """
import signal, threading
from distml.runtime import processes
event = threading.Event()
signal.signal(signal.SIGTERM, processes.setter(event))
with event._cond:  # as in the first instructions of event.wait
    signal.raise_signal(signal.SIGTERM)
assert event.wait(30)
"""


def test_a_signal_that_interrupts_the_entry_to_a_wait_ends_it() -> None:
    subprocess.run([sys.executable, "-c", SIGNALLED], check=True, timeout=60)


SWALLOWING = """
import signal
from distml.runtime import processes

def interrupted(number):
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        return True
    return False

def swallowing(number, error=None, at_end=True):
    try:
        with processes.interruptible(at_end):
            if number:
                assert interrupted(number)  # as a library may
            if error:
                raise error
    except KeyboardInterrupt:
        return "interrupted"
    except ValueError:
        return "failed"
    return "done"

before = signal.getsignal(signal.SIGTERM)
assert swallowing(0) == "done"
assert swallowing(0, ValueError()) == "failed"
assert swallowing(signal.SIGINT) == swallowing(signal.SIGTERM, ValueError()) == "interrupted"
assert swallowing(signal.SIGINT, at_end=False) == "done"
assert swallowing(signal.SIGINT, ValueError(), at_end=False) == "interrupted"
assert signal.getsignal(signal.SIGTERM) is before
signals = []
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
with processes.interruptible():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
assert signals == [signal.SIGTERM]
"""


def test_an_interrupt_that_a_library_swallows_ends_the_body() -> None:
    # In a process of its own: a worker of pytest-xdist has ended by these signals.
    subprocess.run([sys.executable, "-c", SWALLOWING], check=True, timeout=60)


FRAGILE = """
import logging, pathlib, signal, sys, time
from distml.runtime import processes

class Interrupted(logging.Handler):
    def emit(self, record):
        signal.raise_signal(signal.SIGTERM)
        self.written = True

def ends(work):
    began = time.monotonic()
    try:
        with processes.interruptible():
            work()
            time.sleep(20)
    except KeyboardInterrupt:
        return time.monotonic() - began < 10

pathlib.Path("importing.py").write_text("import signal; signal.raise_signal(signal.SIGINT); done = True")
sys.path.insert(0, ".")
assert ends(lambda: __import__("importing"))
assert sys.modules["importing"].done
handler = Interrupted()
logging.getLogger("some").addHandler(handler)
assert ends(lambda: logging.getLogger("some").warning("text"))
assert handler.written
processes._PATIENCE_S = 0.2
waiting = "import signal, time; signal.raise_signal(signal.SIGINT); time.sleep(20)"
pathlib.Path("waiting.py").write_text(waiting)
assert ends(lambda: __import__("waiting"))
"""


def test_an_interrupt_waits_for_the_end_of_an_import_for_some_seconds(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FRAGILE]
    subprocess.run(command, check=True, timeout=60, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})

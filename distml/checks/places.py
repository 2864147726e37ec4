"""Whether the storage root can be written from the driver and is the same place for a worker (driver).

"A local path on two pods" is the classic failure: both can write it, and neither sees the other's files.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distml.checks.check import Check, failed, ok, problem
from distml.errors import DistmlError, StorageError
from distml.storage import TEMPORARY, Storage

WORKER_TIMEOUT_S = 8.0
_SHARED = "Give a storage.root that every worker reaches: a shared mount, s3:// or gs://."


def echo(root: str, name: str) -> str:
    """Read what the driver wrote and write it back beside it; runs on a worker.

    Args:
        root: The storage root.
        name: File below it.

    Returns:
        The content, or a sentence that begins with `!`.
    """
    try:
        storage = Storage(root)
        if not storage.exists(name):
            return f"! {storage.uri(name)} is not there"
        content = storage.read_bytes(name)
        storage.write_bytes(content, f"{name}-answer")
        return content.decode()
    except DistmlError as error:
        return f"! {error}"


def _in_process(root: str, name: str) -> str:
    """`echo` in a fresh process of this machine, as a local worker is one."""
    program = "import sys; from distml.checks.places import echo; print(echo(*sys.argv[1:]))"
    package = Path(__file__).parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-c", program, root, name],
            cwd=package,
            capture_output=True,
            text=True,
            timeout=WORKER_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"! no answer: {error}"
    lines = (done.stdout.strip() or f"! {done.stderr.strip() or 'it ended without an answer'}").splitlines()
    return lines[-1]


@contextmanager
def _tidy(storage: Storage) -> Iterator[None]:
    """Take the root away again where it was made for looking."""
    made = storage.local and not Path(storage.root).exists()
    yield
    if made:
        with suppress(OSError):
            Path(storage.root).rmdir()


def storage(
    root: str, ask: Callable[[str, str], str] = _in_process, who: str = "a fresh process"
) -> list[Check]:
    """Write below the root, let a worker answer there, and read the answer.

    Args:
        root: `storage.root`.
        ask: Runs `echo` on a worker.
        who: Said of that worker.

    Returns:
        One check of the driver and, where that is fine, one of the worker.
    """
    name, content = f"{TEMPORARY}doctor-{uuid.uuid4().hex}", uuid.uuid4().hex
    began = time.monotonic()
    try:
        place = Storage(root)
        with _tidy(place):
            try:
                place.write_bytes(content.encode(), name)
                place.read_bytes(name)
                driver = ok("storage", f"{place.root} written and read in {time.monotonic() - began:.2f} s")
                return [driver, _worker(place, name, content, ask, who)]
            finally:
                for file in (name, f"{name}-answer"):
                    with suppress(StorageError):
                        place.delete(file)
    except DistmlError as error:
        return [failed("storage", error)]


def _worker(place: Storage, name: str, content: str, ask: Callable[[str, str], str], who: str) -> Check:
    answer = ask(place.root, name)
    if answer.startswith("!"):
        return problem("storage from a worker", f"{who}: {answer.removeprefix('!').strip()}", _SHARED)
    if answer != content or not place.exists(f"{name}-answer"):
        return problem("storage from a worker", f"{who} sees another place at {place.root}", _SHARED)
    return ok("storage from a worker", f"{who} reads and writes the same place")

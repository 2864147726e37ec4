"""The lock of object stores, on a real S3 server."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import pytest

from distml.config import Config
from distml.errors import ConfigError
from distml.storage import TEMPORARY, Lease, Storage
from distml.tracking import runs
from tests import object_store

HOLDS = """
import sys, time
from distml.storage import Storage
with Storage(sys.argv[1]).lock("folder"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.CREDENTIALS.items():
            patch.setenv(name, value)
        with object_store.running() as root:
            yield root


@pytest.fixture
def storage(server: str, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(Lease, "BEAT_S", 0.5)
    monkeypatch.setattr(Lease, "LAPSE_S", 4.0)
    monkeypatch.setattr(Lease, "_SETTLE_S", 0.3)
    base, _, options = server.partition("?")
    return Storage(f"{base}/{uuid.uuid4().hex}?{options}")


def test_of_many_at_once_each_holds_it_alone(storage: Storage) -> None:
    storage.write_bytes(b"0", "count")

    def count() -> None:
        with storage.lock("folder") as held:
            assert held
            number = int(storage.read_text("count"))
            time.sleep(0.1)
            storage.write_bytes(str(number + 1).encode(), "count")

    threads = [threading.Thread(target=count) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert storage.read_text("count") == "6"
    assert storage.names("folder", unfinished=True) == []


def test_a_second_driver_of_a_run_is_rejected(storage: Storage) -> None:
    config = Config.load(**{"storage.root": storage.root, "run.name": "mine"})
    with runs.alone(config, storage):
        with pytest.raises(ConfigError, match="mine is being trained by another process"):
            runs.alone(config, storage).__enter__()
        assert storage.names(runs.FOLDER, "mine") == []
    with runs.alone(config, storage):
        pass


@pytest.mark.parametrize("wait", [True, False])
def test_after_its_holder_was_killed_it_lapses(storage: Storage, wait: bool) -> None:
    command = [sys.executable, "-c", HOLDS, storage.root]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    began = time.monotonic()
    with storage.lock("folder", wait=wait):
        waited = time.monotonic() - began
    assert Lease.LAPSE_S - 2.0 < waited < Lease.LAPSE_S + 10.0


def test_time_that_passed_before_counts(storage: Storage) -> None:
    storage.write_bytes(b"dead 7", "folder", f"{TEMPORARY}lock")
    time.sleep(Lease.LAPSE_S + 1.5)  # the store writes times in whole seconds
    began = time.monotonic()
    with storage.lock("folder", wait=False):
        assert time.monotonic() - began < Lease.LAPSE_S - 1.0


def test_a_holder_that_lost_it_logs_an_error(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR), storage.lock("folder"):
        storage.write_bytes(b"other 0", "folder", f"{TEMPORARY}lock")
        until = time.monotonic() + 20
        while "another process has taken" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert storage.read_text("folder", f"{TEMPORARY}lock") == "other 0", "it is not its own to delete"

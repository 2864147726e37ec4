"""The request log: what is written, what is not, and that answering never waits for it or fails with it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distml.config import LogConfig
from distml.data import schema, statistics
from distml.data.plausible import Usual
from distml.errors import StorageError
from distml.serving import request_log
from distml.serving.request_log import RequestLog
from distml.storage import Storage
from distml.tasks import Task
from distml.tasks.classification import Classification


@dataclass(frozen=True)
class Served:
    """A model as the log sees it."""

    name: str
    version: int
    task: Task
    predicted: tuple[int, ...] | None = None
    usual: Usual | None = None


PETS = Served("pets", 3, Classification(("cat", "dog", "bird")))
SOON = {"enabled": True, "flush_s": 3600.0}


def answered(count: int = 2, seed: int = 0, shape: tuple[int, ...] = (8, 6, 1)) -> tuple[Any, Any]:
    """Pictures and probabilities."""
    random = np.random.default_rng(seed)
    scores = random.random((count, 3)).astype(np.float32)
    return random.integers(0, 256, (count, *shape), np.uint8), scores / scores.sum(1, keepdims=True)


def logged(storage: Storage) -> list[Any]:
    """Every file of the log as a table."""
    return [pq.read_table(pa.BufferReader(storage.read_bytes(path))) for path in request_log.listed(storage)]


def test_a_request_is_written_as_it_was_answered(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log = RequestLog(LogConfig(**SOON), storage)
    images, probabilities = answered(3)
    before = time.time()
    log.record("abc", PETS, images, probabilities, 0.25)
    log.close()
    assert log.counts() == {"written": 3, "dropped": 0, "lost": 0, "waiting": 0}
    (table,) = logged(storage)
    np.testing.assert_array_equal(schema.to_images(table["image"]), images)
    np.testing.assert_allclose(np.array(table["probabilities"].to_pylist()), probabilities)
    np.testing.assert_allclose(np.array(table["statistics"].to_pylist()), statistics.measure(images))
    assert table["label"].to_pylist() == probabilities.argmax(1).tolist()
    np.testing.assert_allclose(table["probability"].to_pylist(), probabilities.max(1))
    assert table["request"].to_pylist() == ["abc"] * 3
    assert table["position"].to_pylist() == [0, 1, 2]
    assert table["version"].to_pylist() == [3, 3, 3]
    assert table["latency_s"].to_pylist() == [0.25] * 3
    assert str(table["image"].type) == str(schema.tensor_type((8, 6, 1)))
    assert all(before - 1 <= moment.timestamp() <= time.time() for moment in table["time"].to_pylist())
    described = json.loads(table.schema.metadata[request_log.DESCRIPTION])
    assert described["classes"] == ["cat", "dog", "bird"]
    assert (described["model"], described["version"], described["shape"]) == ("pets", 3, [8, 6, 1])


def test_without_images_the_statistics_stay(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log = RequestLog(LogConfig(**SOON, images=False), storage)
    log.record("abc", PETS, *answered(), 0.1)
    log.close()
    (table,) = logged(storage)
    assert "image" not in table.column_names
    assert len(table["statistics"]) == 2


def test_the_request_log_is_off_by_default(storage_root: Path) -> None:
    log = RequestLog(LogConfig(), Storage(str(storage_root)))
    threads = threading.active_count()
    log.record("abc", PETS, *answered(), 0.1)
    log.close()
    assert threading.active_count() == threads
    assert not list(storage_root.iterdir())


def test_a_file_is_written_after_enough_rows_or_time(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    by_rows = RequestLog(LogConfig(**SOON, flush_rows=4), storage)
    for k in range(4):
        by_rows.record(f"{k}", PETS, *answered(1, k), 0.1)
    wait(lambda: by_rows.counts()["written"] == 4)
    by_time = RequestLog(LogConfig(enabled=True, flush_s=0.05), storage)
    by_time.record("later", PETS, *answered(1), 0.1)
    wait(lambda: by_time.counts()["written"] == 1)
    by_rows.close()
    by_time.close()


def wait(until: Any, limit_s: float = 20) -> None:
    deadline = time.monotonic() + limit_s
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_versions_and_shapes_have_files_of_their_own(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log = RequestLog(LogConfig(**SOON), storage)
    log.record("a", PETS, *answered(), 0.1)
    log.record("b", Served("pets", 4, PETS.task), *answered(), 0.1)
    log.record("c", PETS, *answered(shape=(4, 4, 3)), 0.1)
    log.close()
    assert sorted(table["request"].to_pylist()[0] for table in logged(storage)) == ["a", "b", "c"]


def test_a_sampled_request_is_logged_with_all_images(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log = RequestLog(LogConfig(**SOON, sample=0.3), storage)
    for k in range(500):
        log.record(f"{k}", PETS, *answered(2, k), 0.1)
    log.close()
    (table,) = logged(storage)
    taken = set(table["request"].to_pylist())
    assert 90 < len(taken) < 210  # six standard deviations about 150
    assert len(table) == 2 * len(taken)


def test_a_blocked_storage_drops_and_counts_rows(storage_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(str(storage_root))
    still, write = threading.Event(), request_log.write

    def stuck(*arguments: Any) -> str:
        still.wait(30)
        return write(*arguments)

    monkeypatch.setattr(request_log, "write", stuck)
    log = RequestLog(LogConfig(**SOON, flush_rows=5), storage)
    for k in range(200):
        log.record(f"{k}", PETS, *answered(1, k), 0.1)
    counts = log.counts()
    assert counts["waiting"] <= 40  # eight files' worth
    assert counts["dropped"] > 100
    still.set()
    log.close()
    counts = log.counts()
    assert counts["written"] + counts["dropped"] == 200
    assert counts["waiting"] == 0


def test_large_pictures_are_bounded_by_their_bytes(
    storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    still = threading.Event()
    monkeypatch.setattr(request_log, "write", lambda *_: still.wait(30))
    log = RequestLog(LogConfig(**SOON), Storage(str(storage_root)))
    images, probabilities = np.zeros((8, 1000, 1000, 1), np.uint8), answered(8)[1]
    for k in range(20):
        log.record(f"{k}", PETS, images, probabilities, 0.1)
    assert log.counts()["waiting"] <= 64
    assert log.counts()["dropped"] > 0
    still.set()
    log.close()


def test_a_storage_error_loses_rows_and_no_answers(
    storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(str(storage_root))
    write, broken = request_log.write, [True]

    def refuse(*arguments: Any) -> str:
        if broken:
            raise StorageError("the disk is full.")
        return write(*arguments)

    monkeypatch.setattr(request_log, "write", refuse)
    log = RequestLog(LogConfig(**SOON, flush_rows=1), storage)
    log.record("a", PETS, *answered(), 0.1)
    wait(lambda: log.counts()["lost"] == 2)
    broken.clear()
    log.record("b", PETS, *answered(), 0.1)
    log.close()
    assert log.counts() == {"written": 2, "dropped": 0, "lost": 2, "waiting": 0}


def test_recording_never_raises(storage_root: Path) -> None:
    log = RequestLog(LogConfig(**SOON), Storage(str(storage_root)))
    nonsense: Any = None
    log.record("a", PETS, nonsense, nonsense, 0.1)
    log.record("b", PETS, answered(2)[0], answered(3)[1], 0.1)  # detected only by the writer
    log.close()
    assert log.counts() == {"written": 0, "dropped": 1, "lost": 2, "waiting": 0}


def test_logging_does_not_import_pandas(storage_root: Path) -> None:
    script = """
import sys
from types import SimpleNamespace
import numpy as np
from distml.config import LogConfig
from distml.serving.request_log import RequestLog
from distml.storage import Storage
from distml.tasks.classification import Classification
log = RequestLog(LogConfig(enabled=True), Storage(sys.argv[1]))
task = Classification(("a", "b"))
served = SimpleNamespace(name="pets", version=1, task=task, predicted=None, usual=None)
log.record("a", served, np.zeros((2, 4, 4, 1), np.uint8), np.full((2, 2), 0.5, np.float32), 0.1)
log.close()
assert log.counts()["written"] == 2
assert "pandas" not in sys.modules
"""
    command = [sys.executable, "-c", script, str(storage_root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr


def test_old_files_go_first_by_age_then_by_size(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    now = time.time()
    places = []
    for days in (10.0, 5.0, 1.5, 0.0):
        images, probabilities = answered()
        entry = request_log.Entry(now - days * 86_400, "a", PETS, images, probabilities, 0.1)
        places.append(request_log.write(storage, [entry], True))
    assert list(request_log.listed(storage)) == places
    assert request_log.expire(storage, days=7, limit_bytes=1 << 30) == 1
    assert list(request_log.listed(storage)) == places[1:]
    assert len(storage.names(request_log.FOLDER, "pets")) == 3  # the empty day is gone
    size = max(size for _, size in request_log.listed(storage).values())
    assert request_log.expire(storage, days=7, limit_bytes=size) == 2
    assert list(request_log.listed(storage, "pets")) == places[3:]
    assert request_log.expire(storage, days=7, limit_bytes=1) == 1
    assert request_log.listed(storage) == {}
    assert request_log.listed(storage, "pets") == {}


def test_retention_limits_are_applied(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log = RequestLog(LogConfig(**SOON, flush_rows=2, retention_bytes=20_000), storage)
    for k in range(30):
        log.record(f"{k}", PETS, *answered(2, k), 0.1)
        wait(lambda k=k: log.counts()["written"] == 2 * (k + 1))
    log.close()
    kept = request_log.listed(storage)
    assert 0 < sum(size for _, size in kept.values()) <= 20_000
    assert len(kept) < 30

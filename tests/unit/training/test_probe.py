"""Which batch is taken, and that the process which measures it is ended before the machine is full."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distml.config import Config
from distml.data import shards
from distml.errors import ConfigError, TrainingError
from distml.storage import Storage
from distml.training import probe

MANIFEST = shards.Manifest(
    name="drawn",
    shape=(16, 16, 3),
    classes=("a", "b"),
    rows={"train": 2000, "validation": 10, "test": 10},
    shards={},
    sources=(),
    seed=0,
    val_fraction=0.1,
    schema_version=1,
    folder="data/drawn",
)


def config(**train: Any) -> Config:
    return Config.resolve({"model": {"name": "cnn"}, "train": {"global_batch_size": "auto", **train}})


@pytest.mark.parametrize(
    ("fits", "workers", "rows", "least", "size"),
    [
        ([8, 16, 32], 2, 10_000, 2, 64),
        ([8, 16, 32], 1, 10_000, 2, 32),
        ([8, 16, 32, 64, 128, 256], 4, 3_000, 4, 128),  # of 3,000 rows no epoch of less than 20 steps
        ([8], 1, 60, 16, 16),
    ],
)
def test_the_batch_fits_and_leaves_an_epoch_its_steps(
    fits: list[int], workers: int, rows: int, least: int, size: int
) -> None:
    assert probe.choose({str(batch): 1.0 for batch in fits}, workers, rows, least) == size


def test_a_worker_in_which_nothing_fits_is_rejected() -> None:
    with pytest.raises(TrainingError, match="not even 8 rows fit"):
        probe.choose({}, 2, 1000, 2)


def test_a_resumed_run_reuses_the_measured_batch_and_logs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "distml.training.probe")
    storage = Storage(str(tmp_path))
    measured = [{"8": 1.0, "16": 1.0}, {"8": 1.0}]
    monkeypatch.setattr(probe, "_on_a_worker", lambda spec, config: measured.pop(0))
    sizes = [
        probe.resolve(config(), storage, MANIFEST, ("runs", "a"), False).train.global_batch_size
        for _ in range(2)
    ]
    assert sizes == [32, 32]
    assert len(measured) == 1
    given = config(global_batch_size=48)
    assert probe.resolve(given, storage, MANIFEST, ("runs", "b"), False) is given
    lines = [record.getMessage() for record in caplog.records if " rows a step" in record.getMessage()]
    assert len(lines) == 2
    assert len({*lines}) == 1


def test_the_auto_batch_is_recorded_as_auto() -> None:
    assert config().train.global_batch_size == 0
    assert config().model_dump(mode="json")["train"]["global_batch_size"] == "auto"
    assert config(global_batch_size=48).model_dump(mode="json")["train"]["global_batch_size"] == 48
    with pytest.raises(ConfigError, match="expected auto or a number of at least 1"):
        config(global_batch_size=0)


def spec() -> str:
    given = {"config": config().model_dump(mode="json"), "manifest": MANIFEST.to_json(), "use_gpu": False}
    return json.dumps(given)


@pytest.mark.tensorflow
def test_batches_are_measured_in_a_process_of_their_own() -> None:
    measured = probe.measure(spec(), 8 << 30)
    assert list(measured) == ["8", "16", "32", "64", "128", "256"]
    assert sorted(measured.values()) == list(measured.values())
    assert 1 << 27 < measured["8"] < 8 << 30


def test_a_process_is_ended_when_it_takes_more_than_it_may() -> None:
    growing = "import time; rows = bytearray(b'1') * (400 << 20); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", growing], text=True) as child:
        assert probe._watched(child, 200 << 20)
        assert child.returncode == -signal.SIGKILL
    with subprocess.Popen([sys.executable, "-c", ""], text=True) as child:
        assert not probe._watched(child, 200 << 20)


def test_a_failed_process_is_reported_with_the_reason() -> None:
    broken = json.loads(spec()) | {"manifest": "{"}
    with pytest.raises(TrainingError, match=r"the probe failed: .*manifest"):
        probe.measure(json.dumps(broken), 8 << 30)


def test_the_peak_is_that_of_the_process_alone() -> None:
    before = bytearray(600 << 20)
    code = "from distml.training import probe; print(probe._peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 10 << 20 < int(done.stdout) < len(before)

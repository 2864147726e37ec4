"""Streaming keeps what waits in Ray's object store within the budget, and decodes compressed rows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from distml.config import Config
from distml.data import feed, ingestion, jobs, shards
from distml.storage import Storage
from tests import zoo

BUDGET = 4_000_000
"""Fashion-MNIST's training rows are eleven times that."""
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


def _used() -> int:
    """Bytes in the object store, as Ray Data itself asks for them."""
    import ray
    from ray._private import internal_api

    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.object_store_bytes_used)


def test_a_reader_does_not_run_ahead_of_the_budget(tmp_path: Path) -> None:
    from distml.training import launch

    config = Config.resolve(
        {"storage": {"root": str(tmp_path)}, "data": {"memory_budget_bytes": BUDGET, "mirrors": []}}
    )
    storage = Storage(str(tmp_path))
    manifest = ingestion.prepare(config, storage)
    assert manifest.nbytes("train") > 10 * BUDGET
    dataset = launch._stream(config, storage, manifest)
    dataset.context.execution_options = launch._options(config, 1)
    (split,) = dataset.streaming_split(1)
    batches = iter(split.iter_batches(batch_size=256, prefetch_batches=0))
    rows, peak = len(next(batches)["label"]), 0
    for _ in range(12):  # the reader has six seconds to run ahead
        time.sleep(0.5)
        peak = max(peak, _used())
    assert peak <= 2 * BUDGET
    rows += sum(len(batch["label"]) for batch in batches)
    assert rows == manifest.rows["train"]


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_rows_of_files_are_streamed_as_they_are_read(tmp_path: Path, encoding: str) -> None:
    from distml.training import launch

    for number in range(24):
        folder = tmp_path / "pictures" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        zoo.drawn(60, 50).rotate(15 * number).save(folder / f"{number}.png")
    given = {"path": str(tmp_path / "pictures"), "image_size": 48, "margin": 0.25, "encoding": encoding}
    config = Config.model_validate({"data": given | {"memory_budget_bytes": 1_000_000, "shards": 2}})
    storage = Storage(str(tmp_path / "root"))
    manifest = ingestion.prepare(config, storage)
    assert manifest.encoding == encoding
    streamed = launch._stream(config, storage, manifest).iter_batches(batch_size=5, batch_format="pyarrow")
    parts = [(*feed.to_rows(batch), batch["row"].to_pylist()) for batch in streamed]
    images, labels = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    order = np.argsort([row for *_, rows in parts for row in rows])
    expected, classes = shards.read(storage, manifest, "train")
    assert expected.shape[1:] == (60, 60, 3)
    np.testing.assert_array_equal(images[order], expected)
    np.testing.assert_array_equal(labels[order], classes)


def test_tasks_of_ray_write_what_threads_write_whatever_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        folder = tmp_path / "pictures" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        zoo.drawn(60, 50).rotate(15 * number).save(folder / f"{number}.png")
    config = Config.model_validate({"data": {"path": str(tmp_path / "pictures"), "image_size": 48}})
    monkeypatch.setattr(jobs, "SHARD_BYTES", 4 * 48 * 48 * 3)
    strategies: list[object] = []
    real = jobs.Pool.__init__

    def noted(self: jobs.Pool, strategy: object = None) -> None:
        strategies.append(strategy)
        real(self, strategy)

    monkeypatch.setattr(jobs.Pool, "__init__", noted)
    prepared = []
    for at_once in (0, 1, 2):  # none, then one and two tasks at a time of the two CPUs that Ray has here
        monkeypatch.setattr(jobs, "CONNECTED_FROM_S", -1.0 if at_once else 1e9)
        monkeypatch.setattr(jobs, "_cores", lambda at_once=at_once: max(1, at_once))
        prepared.append(ingestion.prepare(config, Storage(str(tmp_path / f"root{at_once}"))))
    assert strategies == [None, "DEFAULT", "DEFAULT"]
    assert len({manifest.digest for manifest in prepared}) == 1
    assert len(prepared[0].shards["train"]) > 2

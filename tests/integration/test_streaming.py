"""Streaming keeps what waits in Ray's object store within the budget, however slow the reader."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from distml.config import Config
from distml.data import shards
from distml.storage import Storage

BUDGET = 4_000_000
"""Fashion-MNIST's training rows are eleven times that."""


def _used() -> int:
    """Bytes in the object store, as Ray Data itself asks for them."""
    import ray
    from ray._private import internal_api

    state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
    return int(internal_api.get_memory_info_reply(state).store_stats.object_store_bytes_used)


@pytest.mark.ray
def test_a_reader_does_not_run_ahead_of_the_budget(tmp_path: Path) -> None:
    import ray

    from distml.training import launch

    config = Config.resolve(
        {"storage": {"root": str(tmp_path)}, "data": {"memory_budget_bytes": BUDGET, "mirrors": []}}
    )
    storage = Storage(str(tmp_path))
    manifest = shards.prepare(config, storage)
    assert manifest.nbytes("train") > 10 * BUDGET
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=200_000_000)
    try:
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
    finally:
        ray.shutdown()

"""What Ray Data is told about a training split that is streamed."""

from __future__ import annotations

import pytest

from distml.config import Config
from distml.training import launch


@pytest.mark.parametrize("budget", [1_000_000, 64 << 20, 4 << 30])
def test_a_stream_may_always_hold_some_blocks_for_each_worker(budget: int) -> None:
    config = Config.resolve({"data": {"memory_budget_bytes": budget}})
    for workers in (1, 3):
        limit = launch._options(config, workers).resource_limits.object_store_memory
        assert limit >= 8 * workers * launch._block_bytes(config)
        assert limit <= workers * max(budget // 2, 8 << 20)

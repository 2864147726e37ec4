from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from distml.data import feed, schema
from distml.errors import DataError


def table(first: int, count: int) -> Any:
    rows = np.arange(first, first + count, dtype=np.int64)
    images = np.broadcast_to(rows[:, None, None, None] % 256, (count, 2, 2, 1)).astype(np.uint8)
    return schema.to_table(np.ascontiguousarray(images), (rows % 10).astype(np.int32), rows)


class Iterating:
    """What a worker gets from Ray Data, without Ray: batches of a size, in order."""

    def __init__(self, count: int, fails: bool = False) -> None:
        self.count, self.fails = count, fails

    def iter_batches(self, batch_size: int, **_: Any) -> Iterator[Any]:
        for first in range(0, self.count, batch_size):
            yield table(first, min(batch_size, self.count - first))
        if self.fails:
            raise OSError("gone")


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_shards_of_ranks_are_disjoint_and_complete_but_for_the_remainder(
    world_size: int, blocks: int
) -> None:
    size = -(-100 // blocks)
    tables = [table(at, min(size, 100 - at)) for at in range(0, 100, size)]
    seen: list[int] = []
    for rank in range(world_size):
        images, labels = feed.share(iter(tables), 100, rank, world_size)
        assert len(labels) == 100 // world_size
        assert (images[:, 0, 0, 0] % 10 == labels).all()
        seen += images[:, 0, 0, 0].tolist()
    assert seen == list(range(100 // world_size * world_size))


def test_no_more_blocks_are_read_than_needed() -> None:
    read = []

    def blocks() -> Iterator[pa.Table]:
        for at in (0, 50):
            read.append(at)
            yield table(at, 50)

    feed.share(blocks(), 100, 0, 2)
    assert read == [0]


def test_an_empty_shard_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match="Use fewer"):
        feed.share([], 0, 0, 2)


def test_windows_hold_full_batches_and_every_row_once() -> None:
    stream = feed.Stream(Iterating(1000), 5 * 4 * 70, row_bytes=4, batch_size=32, largest_batch_size=32)
    assert stream.window_rows == 64
    windows = list(stream.windows(0))
    assert [len(labels) for _, labels in windows] == [64] * 15 + [40]
    assert np.concatenate([images[:, 0, 0, 0] for images, _ in windows]).tolist() == [
        row % 256 for row in range(1000)
    ]


def test_a_budget_below_one_batch_still_yields_batches() -> None:
    stream = feed.Stream(Iterating(10), budget_bytes=1, row_bytes=4, batch_size=4, largest_batch_size=4)
    assert [len(labels) for _, labels in stream.windows(0)] == [4, 4, 2]


def test_errors_while_reading_reach_the_trainer() -> None:
    stream = feed.Stream(Iterating(10, fails=True), 10**6, row_bytes=4, batch_size=4, largest_batch_size=4)
    with pytest.raises(OSError, match="gone"):
        list(stream.windows(0))
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


def test_the_order_is_a_permutation_and_a_function_of_its_seed() -> None:
    first = feed.order(103, 10, 10, (0, 1, 2, 0, 0))
    assert first.shape == (10, 10)
    assert len(set(first.ravel().tolist())) == 100
    assert (first == feed.order(103, 10, 10, (0, 1, 2, 0, 0))).all()
    for other in ((1, 1, 2, 0, 0), (0, 2, 2, 0, 0), (0, 1, 1, 0, 0), (0, 1, 2, 1, 0), (0, 1, 2, 0, 1)):
        assert (first != feed.order(103, 10, 10, other)).any()


def test_rows_repeat_only_after_all_were_drawn() -> None:
    drawn = feed.order(10, 4, 6, (0,)).ravel()
    assert len(drawn) == 24
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))


def test_all_workers_train_equally_many_steps_on_a_window() -> None:
    sizes = [feed.replica_batch_size(256, rank, 3) for rank in range(3)]
    streams = [feed.Stream(Iterating(10), 5 * 4 * 300, 4, size, sizes[0]) for size in sizes]
    assert [stream.window_steps for stream in streams] == [3, 3, 3]
    assert [stream.window_rows for stream in streams] == [258, 255, 255]


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 8])
def test_the_global_batch_never_depends_on_the_world_size(world_size: int) -> None:
    sizes = [feed.replica_batch_size(256, rank, world_size) for rank in range(world_size)]
    assert sum(sizes) == 256
    assert max(sizes) - min(sizes) <= 1


def test_a_balanced_order_draws_all_strata_alike_and_is_a_function_of_its_seed() -> None:
    strata = np.array([0] * 90 + [1] * 9 + [2], np.int32)
    drawn = feed.balanced_order(strata, 10, 60, (0, 1, 2))
    assert (drawn.shape, drawn.dtype.name) == ((60, 10), "int32")
    counts = np.bincount(strata[drawn.ravel()], minlength=3)
    assert (np.abs(counts - 200) < 50).all()
    rare = np.bincount(drawn[strata[drawn] == 1], minlength=100)[90:99]
    assert rare.max() - rare.min() <= 1  # all rows of a stratum before one comes again
    np.testing.assert_array_equal(drawn, feed.balanced_order(strata, 10, 60, (0, 1, 2)))
    assert (drawn != feed.balanced_order(strata, 10, 60, (0, 2, 2))).any()

"""Feeds a worker: its shard in memory windows, and batches shuffled by `training.epoch`'s seed (worker).

A shard that fits the memory budget is one window, kept for the whole run; one that does not is read
again each epoch, window after window, the next one while the present one is trained on.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distml.data import schema
from distml.errors import DataError

Rows = tuple[np.ndarray, np.ndarray]
"""Images uint8 (N, H, W, C) and targets, int32 (N,) or float32 (N, K)."""

WINDOWS_IN_MEMORY = 5
"""Windows' worth of memory that streaming may hold at once: the one trained on, the one waiting, the
one being filled, and the copies made while filling."""


def to_rows(batch: pa.Table, size: tuple[int, int] | None = None) -> Rows:
    """Arrow columns `image` and `label` as arrays, without a copy where Arrow allows it.

    Args:
        batch: The rows.
        size: Height and width to which images that keep a margin are cut in the middle.
    """
    images = schema.to_images(batch.column("image"))
    if size is not None and size != images.shape[1:3]:
        images = schema.centred(images, size)
    return images, schema.to_targets(batch.column("label"))


def share(
    blocks: Iterable[pa.Table], rows: int, rank: int, world_size: int, size: tuple[int, int] | None = None
) -> Rows:
    """This worker's part of blocks that together are the training split in order.

    Args:
        blocks: Tables, read one after the other and only as far as needed.
        rows: Rows of all blocks.
        rank: World rank.
        world_size: Workers; each takes `rows // world_size` rows in one run, the rest is dropped.
        size: As `to_rows` has it.

    Returns:
        Images and labels; which rows is a function of the arguments alone.
    """
    each = rows // world_size
    first, last, at = rank * each, (rank + 1) * each, 0
    parts = []
    for block in blocks:
        begin, end = max(first - at, 0), min(last - at, len(block))
        if begin < end:
            parts.append(to_rows(block.slice(begin, end - begin), size))
        at += len(block)
        if at >= last:
            break
    if not parts:
        raise DataError("a worker's share of the training set is empty.", "Use fewer train.workers.")
    return _join(parts)


class Memory:
    """A shard kept in memory. Final.

    Args:
        rows: The shard.

    Attributes:
        window_steps: Steps to train on a window; all that an epoch has.
    """

    streaming = False
    window_steps = sys.maxsize

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.wait_s = 0.0

    def windows(self, _epoch: int) -> Iterator[Rows]:
        """The one window there is, in every epoch."""
        yield self.rows


@dataclass
class _End:
    """Last entry of a stream: the error that ended it, or None."""

    error: BaseException | None = None


class Stream:
    """A shard read anew each epoch within a memory budget. Final.

    Args:
        iterator: This worker's `ray.data.DataIterator`.
        budget_bytes: Memory that windows may take altogether.
        row_bytes: Bytes of one image.
        batch_size: Rows of this worker's batch; a window is a whole number of batches.
        largest_batch_size: Rows of the largest batch of any worker.
        size: As `to_rows` has it.

    Attributes:
        window_steps: Steps to train on a window, the same number on every worker.
    """

    streaming = True

    def __init__(
        self,
        iterator: Any,
        budget_bytes: int,
        row_bytes: int,
        batch_size: int,
        largest_batch_size: int,
        size: tuple[int, int] | None = None,
    ) -> None:
        self._iterator, self._size = iterator, size
        self.window_steps = max(1, budget_bytes // (WINDOWS_IN_MEMORY * row_bytes * largest_batch_size))
        self.window_rows = self.window_steps * batch_size
        self.wait_s = 0.0

    def _fill(self, put: Callable[[Any], None]) -> None:
        parts: list[Rows] = []
        try:
            chunk = min(self.window_rows, 4096)
            for batch in self._iterator.iter_batches(
                batch_size=chunk, batch_format="pyarrow", prefetch_batches=1
            ):
                parts.append(to_rows(batch, self._size))
                if sum(len(part[1]) for part in parts) >= self.window_rows:
                    images, labels = _join(parts)
                    put((images[: self.window_rows], labels[: self.window_rows]))
                    parts = [(images[self.window_rows :].copy(), labels[self.window_rows :])]
            if any(len(part[1]) for part in parts):
                put(_join(parts))
            put(_End())
        except BaseException as error:
            put(_End(error))  # the consuming thread raises it

    def windows(self, _epoch: int) -> Iterator[Rows]:
        """Windows of at most `window_rows` rows until the shard is exhausted.

        Time the consumer spent waiting is added to `wait_s`.
        """
        ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        thread = threading.Thread(target=self._fill, args=(ready.put,), name="feed", daemon=True)
        thread.start()
        while True:
            began = time.perf_counter()
            window = ready.get()
            self.wait_s += time.perf_counter() - began
            if isinstance(window, _End):
                thread.join()
                if window.error:
                    raise window.error
                return
            yield window


def _join(parts: list[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def order(rows: int, replica_batch_size: int, steps: int, seed: tuple[int, ...]) -> np.ndarray:
    """Shuffle positions into batches.

    Args:
        rows: Rows to draw from, at least one.
        replica_batch_size: Rows of this worker in one step.
        steps: Batches wanted; rows come again, shuffled anew, where there are too few for them.
        seed: Makes the order; (run seed, epoch, world size, rank, window).

    Returns:
        int32 (steps, replica_batch_size).
    """
    numbers, wanted = np.random.default_rng(seed), steps * replica_batch_size
    shuffled = np.concatenate([numbers.permutation(rows) for _ in range(-(-wanted // rows))])
    return shuffled[:wanted].astype(np.int32).reshape(steps, replica_batch_size)


def balanced_order(
    strata: np.ndarray, replica_batch_size: int, steps: int, seed: tuple[int, ...]
) -> np.ndarray:
    """Draw batches in which all strata that the rows have are equally frequent on average.

    A stratum is drawn, then a row of it; the rows of a stratum all come before one comes again.

    Args:
        strata: int32 [rows], as `Task.strata` numbers them.
        replica_batch_size: As in `order`.
        steps: As in `order`.
        seed: As in `order`.

    Returns:
        int32 (steps, replica_batch_size).
    """
    numbers, wanted = np.random.default_rng(seed), steps * replica_batch_size
    present, inverse = np.unique(strata, return_inverse=True)
    drawn = numbers.integers(0, len(present), wanted)
    positions = np.empty(wanted, np.int32)
    for stratum in range(len(present)):
        places, rows = np.flatnonzero(drawn == stratum), np.flatnonzero(inverse == stratum)
        rounds = [numbers.permutation(rows) for _ in range(-(-len(places) // len(rows)))]
        positions[places] = np.concatenate([np.empty(0, np.int32), *rounds])[: len(places)]
    return positions.reshape(steps, replica_batch_size)


def replica_batch_size(global_batch_size: int, rank: int, world_size: int) -> int:
    """This worker's rows of a global batch; the first workers take one more where it does not divide."""
    return global_batch_size // world_size + (rank < global_batch_size % world_size)

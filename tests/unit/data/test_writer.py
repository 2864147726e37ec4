from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distml.config import Config, DataConfig
from distml.data import shards
from distml.data.source import Gathered, Indices, Rows, Source
from distml.data.writer import write
from distml.storage import Storage

SHAPE = (50, 50, 4)  # 10,000 bytes
IMAGES = np.random.default_rng(0).integers(0, 256, (600, *SHAPE), np.uint8)
LABELS = (np.arange(600) % 5).astype(np.int32)


@pytest.mark.parametrize(
    ("budget_bytes", "most_rows"), [(1_000_000, 100), (2_000_000, 200), (10_000_000, 600)]
)
def test_no_more_rows_are_asked_for_than_the_budget_holds(
    tmp_path: Path, budget_bytes: int, most_rows: int
) -> None:
    asked: list[int] = []

    def gather(indices: Indices) -> Gathered:
        asked.append(len(indices))
        return Gathered(IMAGES[indices])

    source = Source(SHAPE, tuple("abcde"), {"train": Rows(LABELS, gather)}, ())
    config = Config(data=DataConfig(shards=10, memory_budget_bytes=budget_bytes))
    storage = Storage(str(tmp_path))
    manifest = write(config, storage, source, "set", "set/mine")
    assert max(asked) <= most_rows
    assert max(asked) > most_rows // 2 - 50  # and whole shards at a time, not row by row
    found = np.concatenate([shards.read(storage, manifest, split)[0] for split in manifest.rows])
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in IMAGES)

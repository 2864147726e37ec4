"""Labels as lists and as numbers, from a table to shards, statistics and drift."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml.config import Config
from distml.data import ingestion, schema, shards, statistics
from distml.data.manifest import Manifest
from distml.errors import DataError
from distml.reports import drift
from distml.storage import Storage

ROWS = 60


def folder(root: Path, header: str, rows: list[str]) -> Path:
    """Pictures of noise and a table of their labels."""
    random = np.random.default_rng(0)
    root.mkdir()
    for at in range(len(rows)):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).save(root / f"{at}.png")
    lines = [f"file_name,{header}", *(f"{at}.png,{row}" for at, row in enumerate(rows))]
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


def ingest(tmp_path: Path, kind: str, path: Path, **data: Any) -> tuple[Storage, Manifest]:
    values = {"task": {"kind": kind}, "data": {"name": kind, "path": str(path), "val_fraction": 0.2, **data}}
    storage = Storage(str(tmp_path / "storage"))
    return storage, ingestion.prepare(Config.resolve(values), storage)


def test_columns_of_yes_and_no_become_targets(tmp_path: Path) -> None:
    rows = [f"{at % 2},{int(at % 3 == 0)}" for at in range(ROWS)]
    path = folder(tmp_path / "pets", "dog,cat", rows)
    storage, manifest = ingest(tmp_path, "multilabel", path, label_column=["dog", "cat"])
    assert (manifest.task.kind, manifest.classes) == ("multilabel", ("dog", "cat"))
    assert Manifest.from_json(manifest.to_json()) == manifest
    counts = [shards.class_counts(storage, manifest, split) for split in manifest.rows]
    assert np.sum(counts, 0).tolist() == [30, 20]
    assert all(count.all() for count in counts)  # each split has both labels
    images, targets = shards.read(storage, manifest, "train", 1, 2)
    assert (targets.shape, targets.dtype.name) == ((len(images), 2), "float32")
    whole = schema.to_targets(shards.table(storage, manifest, "train")["label"])
    np.testing.assert_array_equal(whole[1::2], targets)
    reference = statistics.of(storage, manifest)
    assert reference.classes[:3] == ("dog", "cat", "none")
    assert sum(reference.labels) >= manifest.rows["train"]
    kept = json.dumps(
        dataclasses.asdict(reference) | {"classes": ["dog", "cat", "none"], "labels": [1, 1, 1]}
    )
    storage.write_bytes(kept.encode(), manifest.folder, "reference.json")
    assert statistics.of(storage, manifest) == reference  # one with other bins is measured again


def test_numbers_are_scaled_by_the_training_rows_alone(tmp_path: Path) -> None:
    path = folder(tmp_path / "sizes", "length", [f"{at}" for at in range(ROWS)])
    storage, manifest = ingest(tmp_path, "regression", path, label_column="length")
    _, targets = shards.read(storage, manifest, "train")
    assert manifest.target is not None
    ((mean, deviation),) = manifest.target["scale"]
    assert (mean, deviation) == pytest.approx((targets.mean(), targets.std()))
    assert mean != pytest.approx((ROWS - 1) / 2)  # of all rows
    assert manifest.classes == ("length",)
    reference, task = statistics.of(storage, manifest), manifest.task
    served = drift.Logged(np.zeros((50, len(reference.names)), np.float32), targets[:5] + 100, (1,), 0.0, 0)
    mix = next(shift for shift in drift.compare(task, reference, served) if shift.name in task.mixes)
    assert mix.served[-1] == 1.0
    assert mix.psi > 1


@pytest.mark.parametrize(
    ("kind", "header", "row", "data", "said"),
    [
        ("regression", "length", "long", {"label_column": "length"}, "row 1 .* 'long' as length"),
        ("multilabel", "a,b", "1,maybe", {"label_column": ["a", "b"]}, "row 1 .* 'maybe' as b"),
        ("multilabel", "a,b", "1,0", {"label_column": ["a", "c"]}, "has no column c, but file_name, a, b"),
        ("classification", "a,b", "x,y", {"label_column": ["a", "b"]}, "has several labels, in a, b"),
    ],
)
def test_labels_of_a_table_that_do_not_fit_name_the_row(
    tmp_path: Path, kind: str, header: str, row: str, data: dict[str, Any], said: str
) -> None:
    path = folder(tmp_path / "pictures", header, [row] * 3)
    with pytest.raises(DataError, match=said):
        ingest(tmp_path, kind, path, **data)


def test_another_task_prepares_the_same_folder_anew(tmp_path: Path) -> None:
    path = folder(tmp_path / "sizes", "length", [f"{at % 4}" for at in range(ROWS)])
    numbers = ingest(tmp_path, "regression", path, name="a", label_column="length")[1]
    classes = ingest(tmp_path, "classification", path, name="a", label_column="length")[1]
    assert numbers.folder != classes.folder
    assert (classes.classes, classes.target) == (("0", "1", "2", "3"), None)

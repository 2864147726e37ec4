from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distml.config import Config, DataConfig
from distml.data import feed, image, ingestion, shards, statistics
from distml.data.image import Policy
from distml.data.manifest import Manifest
from distml.data.source import Gathered, Indices, Rows, Source
from distml.data.writer import write
from distml.errors import ConfigError
from distml.storage import Storage
from distml.tasks.classification import Classification
from tests import zoo

SHAPE = (50, 50, 4)  # 10,000 bytes
IMAGES = np.random.default_rng(0).integers(0, 256, (600, *SHAPE), np.uint8)
LABELS = (np.arange(600) % 5).astype(np.int32)


@pytest.mark.parametrize(
    ("budget_bytes", "most_rows"), [(1_000_000, 100), (2_000_000, 200), (10_000_000, 600)]
)
def test_reads_stay_within_the_memory_budget(tmp_path: Path, budget_bytes: int, most_rows: int) -> None:
    asked: list[int] = []

    def gather(indices: Indices) -> Gathered:
        asked.append(len(indices))
        return Gathered(IMAGES[indices])

    source = Source(SHAPE, Classification(tuple("abcde")), {"train": Rows(LABELS, gather)}, ())
    config = Config(data=DataConfig(shards=10, memory_budget_bytes=budget_bytes))
    storage = Storage(str(tmp_path))
    manifest = write(config, storage, source, "set", "set/mine")
    assert max(asked) <= most_rows
    assert max(asked) > most_rows // 2 - 50  # and whole shards at a time, not row by row
    images = np.concatenate([shards.read(storage, manifest, split)[0] for split in manifest.rows])
    assert sorted(image.tobytes() for image in images) == sorted(image.tobytes() for image in IMAGES)


def drawn(folder: Path, count: int = 12) -> None:
    for k in range(count):
        (folder / ("cat" if k % 2 else "dog")).mkdir(parents=True, exist_ok=True)
        picture = zoo.drawn(40 + k, 33 - k % 3)
        picture.save(folder / ("cat" if k % 2 else "dog") / f"{k}.png")


def in_folder(path: Path) -> None:
    drawn(path)


def in_parquet(path: Path) -> None:
    drawn(path / "files")
    files = sorted((path / "files").rglob("*.png"))
    table = pa.table({"image": [f.read_bytes() for f in files], "label": [f.parent.name for f in files]})
    pq.write_table(table, path / "all.parquet")
    shutil.rmtree(path / "files")


def in_tar(path: Path) -> None:
    drawn(path / "files")
    with tarfile.open(path / "all.tar", "w") as packed:
        for k, file in enumerate(sorted((path / "files").rglob("*.png"))):
            for ending, content in (("png", file.read_bytes()), ("cls", file.parent.name.encode())):
                member = tarfile.TarInfo(f"{k}.{ending}")
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
    shutil.rmtree(path / "files")


@pytest.mark.parametrize("lay", [in_folder, in_parquet, in_tar])
def test_training_rows_keep_a_margin_and_the_others_none(
    tmp_path: Path, storage_root: Path, lay: Callable[[Path], None]
) -> None:
    drawn(tmp_path / "pictures")
    pictures = [file.read_bytes() for file in (tmp_path / "pictures").rglob("*.png")]
    (tmp_path / "data").mkdir()
    lay(tmp_path / "data")
    data = DataConfig(path=str(tmp_path / "data"), image_size=(20, 30), margin=0.2, shards=2)
    storage = Storage(str(storage_root))
    manifest = ingestion.prepare(Config(data=data), storage)
    assert manifest.shape == (20, 30, 3)
    assert manifest.train_size == (24, 36)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.nbytes("train") == manifest.rows["train"] * 24 * 36 * 3
    for split, shape in (("train", (24, 36, 3)), ("validation", (20, 30, 3)), ("test", (20, 30, 3))):
        expected = {image.read(picture, Policy(shape)).tobytes() for picture in pictures}
        rows, _ = shards.read(storage, manifest, split)
        assert rows.shape[1:] == shape
        assert {row.tobytes() for row in rows} <= expected
    middle, _ = feed.to_rows(shards.table(storage, manifest, "train"), manifest.shape[:2])
    np.testing.assert_array_equal(middle, shards.read(storage, manifest, "train")[0][:, 2:22, 3:33])
    assert statistics.of(storage, manifest).names == statistics.names(manifest.shape)


@pytest.mark.parametrize("lay", [in_folder, in_parquet])
def test_copies_in_another_split_are_reported_whatever_the_margin(
    tmp_path: Path, storage_root: Path, lay: Callable[[Path], None]
) -> None:
    for split in ("train", "test"):
        lay(tmp_path / "data" / split)
    data = DataConfig(path=str(tmp_path / "data"), image_size=40, margin=0.3, val_fraction=0.2)
    manifest = ingestion.prepare(Config(data=data), Storage(str(storage_root)))
    said = [
        warning
        for warning in manifest.warnings
        if warning.startswith("test repeats train: near duplicates are ")
    ]
    assert said, manifest.warnings


def test_copies_of_arrays_in_another_split_are_reported_whatever_the_margin(
    tmp_path: Path, storage_root: Path
) -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "train.npz", x=images, y=labels)
    np.savez(tmp_path / "test.npz", x=images[:5], y=labels[:5])
    data = DataConfig(path=str(tmp_path), image_size=4, margin=0.5)
    manifest = ingestion.prepare(Config(data=data), Storage(str(storage_root)))
    assert manifest.train_size == (6, 6)
    (said,) = (warning for warning in manifest.warnings if "the same as an earlier one" in warning)
    assert said.startswith("5 images are the same")
    assert "5 of them in another split" in said


def test_a_margin_is_part_of_the_recipe_and_none_changes_nothing() -> None:
    plain = ingestion.folder(Config())
    assert ingestion.folder(Config(data=DataConfig(margin="auto"))) == plain
    assert ingestion.folder(Config(data=DataConfig(margin=0.1))) != plain


def test_arrays_have_no_margin(tmp_path: Path, storage_root: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((12, 4, 4), np.uint8), y=np.arange(12) % 2)
    config = Config(data=DataConfig(path=str(tmp_path / "a.npz"), margin=0.5))
    with pytest.raises(ConfigError, match=r"data\.margin = 0\.5, but the images are arrays"):
        ingestion.prepare(config, Storage(str(storage_root)))
    smaller = config.model_copy(update={"data": config.data.model_copy(update={"image_size": 2})})
    assert ingestion.prepare(smaller, Storage(str(storage_root))).train_size == (3, 3)

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distml.config import Config, DataConfig
from distml.data import ingestion, shards
from distml.data.manifest import Manifest
from distml.data.schema import to_images, to_table
from distml.errors import DataError
from distml.storage import Storage

IMAGES = np.random.default_rng(1).integers(0, 256, (100, 5, 4, 2), np.uint8)
LABELS = (np.arange(100) % 4).astype(np.int32)
SPLITS = ("train", "validation", "test")


def config(folder: Path, **data: object) -> Config:
    values = {"path": str(folder), "shards": 3, "val_fraction": 0.2, **data}
    return Config(data=DataConfig.model_validate(values))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    pq.write_table(to_table(IMAGES, LABELS, np.arange(100)), folder / "x.parquet")
    return folder


@pytest.fixture(scope="module")
def prepared(given: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Manifest]:
    storage = Storage(str(tmp_path_factory.mktemp("root")))
    return storage, ingestion.prepare(config(given), storage)


def test_the_table_of_a_split_keeps_its_order(prepared: tuple[Storage, Manifest]) -> None:
    storage, manifest = prepared
    rows = []
    for split in SPLITS:
        table = shards.table(storage, manifest, split)
        assert table.column_names == ["image", "label", "row"]
        assert isinstance(table.schema.field("image").type, pa.FixedShapeTensorType)
        assert table["row"].to_pylist() == list(range(manifest.rows[split]))
        assert len(manifest.shards[split]) == 3
        assert [shard.rows for shard in manifest.shards[split]] == [len(c) for c in table["row"].iterchunks()]
        images, labels = shards.read(storage, manifest, split)
        np.testing.assert_array_equal(to_images(table["image"]), images)
        assert table["label"].to_pylist() == labels.tolist()
        rows += [(image.tobytes(), label) for image, label in zip(images, labels, strict=True)]
    assert sorted(rows) == sorted(
        (image.tobytes(), label) for image, label in zip(IMAGES, LABELS, strict=True)
    )


def test_the_rows_of_each_class_are_counted(prepared: tuple[Storage, Manifest]) -> None:
    storage, manifest = prepared
    for split in ("train", "validation", "test"):
        _, labels = shards.read(storage, manifest, split)
        counts = shards.class_counts(storage, manifest, split)
        assert counts.tolist() == np.bincount(labels, minlength=manifest.num_classes).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 3, 7, 120])
def test_ranks_share_the_rows_without_overlap(prepared: tuple[Storage, Manifest], world_size: int) -> None:
    storage, manifest = prepared
    images, labels = shards.read(storage, manifest, "train")
    assert images.dtype == np.uint8
    assert labels.dtype == np.int32
    for rank in range(world_size):
        some, their = shards.read(storage, manifest, "train", rank, world_size)
        np.testing.assert_array_equal(some, images[rank::world_size])
        np.testing.assert_array_equal(their, labels[rank::world_size])


def test_row_groups_are_small_enough_to_stream(tmp_path: Path) -> None:
    labels = (np.arange(20_000) % 2).astype(np.int32)
    pq.write_table(
        to_table(np.zeros((20_000, 1, 1, 1), np.uint8), labels, np.arange(20_000)), tmp_path / "x.parquet"
    )
    storage = Storage(str(tmp_path / "root"))
    manifest = ingestion.prepare(config(tmp_path / "x.parquet", shards=1), storage)
    written = pq.ParquetFile(storage.uri(manifest.shards["train"][0].path)).metadata
    groups = [written.row_group(group).num_rows for group in range(written.num_row_groups)]
    assert sum(groups) == manifest.rows["train"]
    assert max(groups) <= 4096


def test_more_shards_than_rows_are_not_made(tmp_path: Path, given: Path) -> None:
    manifest = ingestion.prepare(config(given, shards=50), Storage(str(tmp_path)))
    for split in SPLITS:
        assert len(manifest.shards[split]) == min(50, manifest.rows[split])


@pytest.mark.parametrize("count", [1, 7, 60, 1000])
def test_a_sample_is_spread_over_a_split(prepared: tuple[Storage, Manifest], count: int) -> None:
    storage, manifest = prepared
    every = [image.tobytes() for image in shards.read(storage, manifest, "train")[0]]
    some = [image.tobytes() for image in shards.sample(storage, manifest, "train", count)]
    places = [every.index(image) for image in some]
    assert len(set(some)) == len(some) == min(count, len(every))
    assert places == sorted(places)
    if count == 7:  # from each of the three shards
        assert places[0] < len(every) // 3 < places[3] < 2 * len(every) // 3 < places[-1]


def test_find_reads_only_published_data_and_writes_nothing(tmp_path: Path, given: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    assert ingestion.find(config(given), storage) is None
    assert not (tmp_path / "root").exists()
    manifest = ingestion.prepare(config(given), storage)
    assert ingestion.find(config(given), storage) == manifest
    assert pickle.loads(pickle.dumps(manifest)) == manifest


def test_another_recipe_is_another_folder(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [
        config(given),
        config(given, split_seed=1),
        config(given, shards=2),
        config(given, val_fraction=0.3),
        config(given, format="parquet"),
        config(given, name="other"),
        config(tmp_path),
        Config(),
    ]
    assert len({ingestion.folder(recipe) for recipe in recipes}) == len(recipes)
    monkeypatch.chdir(given.parent)
    assert ingestion.folder(config(Path(given.name))) == ingestion.folder(config(given))
    assert ingestion.folder(config(given, mirrors=[], memory_budget_bytes=2_000_000)) == ingestion.folder(
        config(given)
    )


def test_preparing_twice_reads_and_writes_nothing(tmp_path: Path, given: Path) -> None:
    source = shutil.copytree(given, tmp_path / "given")
    storage = Storage(str(tmp_path / "root"))
    manifest = ingestion.prepare(config(source), storage)
    before = {path: path.stat() for path in (tmp_path / "root").rglob("*")}
    shutil.rmtree(source)
    assert ingestion.prepare(config(source), storage) == manifest
    after = {path: path.stat() for path in (tmp_path / "root").rglob("*")}
    assert {p: s.st_mtime_ns for p, s in before.items()} == {p: s.st_mtime_ns for p, s in after.items()}


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path, given: Path) -> None:
    storage = Storage(str(tmp_path))
    left = tmp_path / ingestion.folder(config(given))
    (left / "0badcafe").mkdir(parents=True)
    (left / "0badcafe" / "train-00000.parquet").write_bytes(b"half")
    (left / ".distml-tmp-x").write_bytes(b"half")
    manifest = ingestion.prepare(config(given), storage)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    published = {shard.path for split in SPLITS for shard in manifest.shards[split]}
    assert files == published | {f"{manifest.folder}/manifest.json"}


def test_a_changed_or_missing_shard_is_named(tmp_path: Path, given: Path) -> None:
    storage = Storage(str(tmp_path))
    manifest = ingestion.prepare(config(given), storage)
    path = tmp_path / manifest.shards["train"][1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for reading in (shards.read, shards.table):
        with pytest.raises(DataError, match=rf"{path} is not the file that was published"):
            reading(storage, manifest, "train")
    shards.read(storage, manifest, "test")
    os.unlink(path)
    with pytest.raises(DataError, match=f"cannot read {path}"):
        shards.read(storage, manifest, "train")


def test_a_damaged_manifest_is_an_error_and_not_absent(tmp_path: Path, given: Path) -> None:
    storage = Storage(str(tmp_path))
    manifest = ingestion.prepare(config(given), storage)
    path = tmp_path / manifest.folder / "manifest.json"
    path.write_text(path.read_text()[:-100])
    for asking in (ingestion.find, ingestion.prepare):
        with pytest.raises(DataError, match=rf"{path} is damaged"):
            asking(config(given), storage)


def test_equal_data_have_equal_digests_in_any_folder(tmp_path: Path, given: Path) -> None:
    first, second = (ingestion.prepare(config(given), Storage(str(tmp_path / name))) for name in ("a", "b"))
    assert first.digest == second.digest
    assert {s.path for s in first.shards["train"]}.isdisjoint(s.path for s in second.shards["train"])


def test_neither_writing_nor_reading_imports_pandas(prepared: tuple[Storage, Manifest], given: Path) -> None:
    """It takes seconds, in every process that reads; several of Arrow's calls do it in passing."""
    storage, manifest = prepared
    script = (
        "import sys; from distml.config import Config; from distml.data import ingestion, shards\n"
        "from distml.storage import Storage\n"
        "storage, manifest = Storage(sys.argv[1]), shards.Manifest.from_json(sys.argv[2])\n"
        "config = Config.model_validate_json(sys.argv[3]); ingestion.prepare(config, storage)\n"
        "shards.table(storage, manifest, 'train'); shards.read(storage, manifest, 'train')\n"
        "sys.exit('pandas' in sys.modules)"
    )
    fresh = config(given, split_seed=99).model_dump_json()
    subprocess.run([sys.executable, "-c", script, storage.root, manifest.to_json(), fresh], check=True)

"""Users' data in every format, as real files, brought through the whole ingestion."""

from __future__ import annotations

import gzip
import io
import json
import logging
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distml.config import Config, DataConfig
from distml.data import image, shards
from distml.data.image import Policy
from distml.data.manifest import Manifest
from distml.errors import ConfigError, DataError
from distml.storage import Storage

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(0)
GRAY = RANDOM.integers(0, 256, (60, 6, 5), np.uint8)
COLOUR = RANDOM.integers(0, 256, (60, 4, 4, 3), np.uint8)
LABELS = np.arange(60) % 3


def ingest(
    root: Path, path: Path | str | None, **data: Any
) -> tuple[Manifest, dict[str, tuple[Array, Array]]]:
    """Prepare user data and return the manifest and every split's arrays."""
    data = {"shards": 2, "path": None if path is None else str(path), **data}
    config = Config(data=DataConfig(**data))
    storage = Storage(str(root))
    manifest = shards.prepare(config, storage)
    return manifest, {split: shards.read(storage, manifest, split) for split in manifest.rows}


def same_rows(images: Array, labels: Array, splits: dict[str, tuple[Array, Array]]) -> None:
    """Every given row, and no other, is in the splits."""
    given = sorted((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))
    found = [(x.tobytes(), int(y)) for xs, ys in splits.values() for x, y in zip(xs, ys, strict=True)]
    assert sorted(found) == given


def png(image: Array) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "PNG")
    return sink.getvalue()


def idx(values: Array) -> bytes:
    return (
        struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
        + values.astype(np.uint8).tobytes()
    )


# IDX ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_idx(tmp_path: Path, storage_root: Path, packed: bool) -> None:
    for split, rows in (("train", slice(0, 40)), ("t10k", slice(40, 60))):
        for kind, values in (("images-idx3", GRAY), ("labels-idx1", LABELS)):
            content = idx(values[rows])
            name = f"{split}-{kind}-ubyte" + (".gz" if packed else "")
            (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    manifest, splits = ingest(storage_root, tmp_path, val_fraction=0.2)
    assert (manifest.shape, manifest.classes) == ((6, 5, 1), ("0", "1", "2"))
    assert manifest.rows == {"train": 31, "validation": 9, "test": 20}
    np.testing.assert_array_equal(splits["test"][0][..., 0], GRAY[40:])
    same_rows(GRAY, LABELS, splits)


def test_idx_without_its_other_half(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(GRAY))
    with pytest.raises(DataError, match="has no train labels"):
        ingest(storage_root, tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS[:50]))
    with pytest.raises(DataError, match="train has 60 images and 50 labels"):
        ingest(storage_root, tmp_path)


# Pictures -------------------------------------------------------------------------------------------------


def pictures(folder: Path, images: Array, names: tuple[str, ...] = ("cat", "dog", "eel")) -> None:
    for number, drawn in enumerate(images):
        path = folder / names[number % 3] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(drawn))


@pytest.mark.parametrize(("images", "shape"), [(GRAY, (6, 5, 1)), (COLOUR, (4, 4, 3))])
def test_a_folder_of_pictures(
    tmp_path: Path, storage_root: Path, images: Array, shape: tuple[int, ...]
) -> None:
    pictures(tmp_path, images)
    (tmp_path / ".DS_Store").write_bytes(b"junk")
    manifest, splits = ingest(storage_root, tmp_path, val_fraction=0.2)
    assert (manifest.shape, manifest.classes) == (shape, ("cat", "dog", "eel"))
    assert manifest.rows == {"train": 42, "validation": 9, "test": 9}
    same_rows(images.reshape(-1, *shape), LABELS, splits)


def test_pictures_below_train_and_test(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "train", GRAY[:30])
    pictures(tmp_path / "val", GRAY[30:45])
    pictures(tmp_path / "test", GRAY[45:])
    manifest, splits = ingest(storage_root, tmp_path)
    assert manifest.rows == {"train": 30, "validation": 15, "test": 15}
    same_rows(GRAY[45:, ..., None], LABELS[45:], {"test": splits["test"]})


def test_pictures_below_train_alone(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "train", GRAY)
    assert ingest(storage_root, tmp_path)[0].classes == ("cat", "dog", "eel")


def test_a_class_may_be_called_train(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, GRAY, ("bus", "car", "train"))
    assert ingest(storage_root, tmp_path)[0].classes == ("bus", "car", "train")


def test_gray_pictures_in_a_coloured_set_are_widened(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, COLOUR)
    (tmp_path / "dog" / "gray.png").write_bytes(png(COLOUR[0, :, :, 0]))
    manifest, _ = ingest(storage_root, tmp_path)
    assert manifest.shape == (4, 4, 3)
    assert sum(manifest.rows.values()) == 61


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dog/bad.png", b"not a picture", "dog/bad.png is not a readable picture"),
        ("loose.png", png(GRAY[0]), "loose.png lies outside a class folder"),
    ],
)
def test_a_picture_that_does_not_fit_is_named(
    tmp_path: Path, storage_root: Path, name: str, content: bytes, said: str
) -> None:
    pictures(tmp_path / "in", GRAY)
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        ingest(storage_root, tmp_path / "in")
    assert [p for p in storage_root.rglob("*") if p.is_file()] == []


def test_files_that_are_no_pictures_are_left_out_aloud(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path, GRAY)
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        ingest(storage_root, tmp_path)
    assert "1 files are left out, like notes.txt" in caplog.text


def test_a_stray_folder_beside_train_and_test_is_not_a_class(tmp_path: Path, storage_root: Path) -> None:
    for split in ("train", "test", "more"):
        pictures(tmp_path / split, GRAY[:6])
    with pytest.raises(DataError, match=r"more/cat/000.png lies beside test, train"):
        ingest(storage_root, tmp_path)


def test_links_in_the_users_folder_are_followed(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "real", GRAY)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "mixed" / "cat").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "mixed" / name).mkdir(exist_ok=True)
        for path in (tmp_path / "real" / name).iterdir():
            (tmp_path / "mixed" / name / path.name).symlink_to(path)
    assert sum(ingest(storage_root, tmp_path / "linked")[0].rows.values()) == 60
    assert sum(ingest(storage_root, tmp_path / "mixed")[0].rows.values()) == 40


# Parquet --------------------------------------------------------------------------------------------------


def tensor(images: Array) -> pa.Array:
    kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(images.dtype), images.shape[1:])
    flat = pa.FixedSizeListArray.from_arrays(images.ravel(), int(np.prod(images.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, flat)


COLUMNS = {
    "tensor": lambda x: tensor(x),
    "float tensor": lambda x: tensor(x.astype(np.float32) / 255),
    "nested lists": lambda x: pa.array(x.tolist()),
    "nested uint8 lists": lambda x: pa.array(x.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "fixed lists": lambda x: pa.array(x.tolist(), pa.list_(pa.list_(pa.list_(pa.uint8(), 3), 4), 4)),
    "encoded": lambda x: pa.array([png(image) for image in x]),
    "encoded structs": lambda x: pa.array([{"bytes": png(image), "path": None} for image in x]),
}


@pytest.mark.parametrize("column", COLUMNS)
def test_parquet_columns(tmp_path: Path, storage_root: Path, column: str) -> None:
    for k in range(3):
        rows = slice(20 * k, 20 * k + 20)
        table = pa.table(
            {"image": COLUMNS[column](COLOUR[rows]), "label": LABELS[rows], "other": LABELS[rows]}
        )
        pq.write_table(table, tmp_path / f"part-{k}.parquet", row_group_size=7)
    manifest, splits = ingest(storage_root, tmp_path, shards=3)
    assert manifest.shape == (4, 4, 3)
    same_rows(COLOUR, LABELS, splits)


def test_parquet_passes_do_not_change_the_result(tmp_path: Path) -> None:
    """Whether the budget holds everything or one shard at a time, the same files come out."""
    images = RANDOM.integers(0, 256, (200, 60, 60, 3), np.uint8)
    labels = np.arange(200) % 3
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": tensor(images), "label": labels}), path, row_group_size=80)
    budgets = (1_000_000, 1_000_000_000)  # two shards a pass, or all four
    manifests = [
        ingest(tmp_path / str(budget), path, memory_budget_bytes=budget, shards=4)[0] for budget in budgets
    ]
    assert len({manifest.digest for manifest in manifests}) == 1
    _, splits = ingest(tmp_path / "1000000", path, shards=4)
    same_rows(images, labels, splits)


def test_parquet_as_hugging_face_lays_it_out(tmp_path: Path, storage_root: Path) -> None:
    about = {"info": {"features": {"label": {"names": ["ant", "bee", "cow"], "_type": "ClassLabel"}}}}
    for split, rows in (("train", slice(0, 40)), ("test", slice(40, 60))):
        table = pa.table({"image": COLUMNS["encoded structs"](GRAY[rows]), "label": LABELS[rows]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
        pq.write_table(table, tmp_path / f"{split}-00000-of-00001.parquet")
    manifest, splits = ingest(storage_root, tmp_path)
    assert manifest.classes == ("ant", "bee", "cow")
    np.testing.assert_array_equal(splits["test"][0][..., 0], GRAY[40:])
    np.testing.assert_array_equal(splits["test"][1], LABELS[40:])


def test_parquet_with_text_labels_below_split_folders(tmp_path: Path, storage_root: Path) -> None:
    names = np.array(["ant", "bee", "cow"])
    for split, rows in (("train", slice(0, 30)), ("validation", slice(30, 45)), ("test", slice(45, 60))):
        (tmp_path / split).mkdir()
        labels = pa.array(names[LABELS[rows]]).dictionary_encode()
        pq.write_table(
            pa.table({"image": tensor(COLOUR[rows]), "label": labels}), tmp_path / split / "a.parquet"
        )
    manifest, splits = ingest(storage_root, tmp_path)
    assert (manifest.classes, manifest.rows["validation"]) == (("ant", "bee", "cow"), 15)
    np.testing.assert_array_equal(splits["validation"][1], LABELS[30:45])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": tensor(GRAY)}, "has no column label, but image"),
        ({"image": tensor(GRAY), "label": pa.array([None] + [1] * 59)}, "1 rows without a label"),
        ({"image": pa.array([[1] * 30] * 60), "label": LABELS}, r"images of shape \(30,\)"),
        ({"image": pa.array([[[1]]] * 59 + [[[1, 2]]]), "label": LABELS}, "several sizes|images of"),
        ({"image": pa.array(["a"] * 60), "label": LABELS}, "image column of x.parquet holds string"),
        ({"image": pa.array([b"x"] * 60), "label": LABELS}, "row 0 of row group 0 .* is not a readable"),
        ({"image": pa.array([png(GRAY[0])] * 59 + [None]), "label": LABELS}, r"row 59 .* not a readable"),
        ({"image": tensor(GRAY.astype(np.int32) + 1), "label": LABELS}, "span . to 256"),
        ({"image": tensor(GRAY), "label": LABELS / 2}, "labels are double|labels are float64"),
    ],
)
def test_parquet_that_cannot_be_used_is_named(
    tmp_path: Path, storage_root: Path, columns: dict[str, Any], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=said):
        ingest(storage_root, tmp_path)
    assert [p for p in storage_root.rglob("*") if p.is_file()] == []


def test_damaged_parquet_is_named(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"x.parquet cannot be read as Parquet"):
        ingest(storage_root, tmp_path)


# Functions ------------------------------------------------------------------------------------------------

MODULE = """
import numpy as np
def make(path=None):
    x = (np.arange(60 * 12) % 256).reshape(60, 3, 4).astype("uint8")
    y = np.arange(60) % 3
    return {"train": (x, y), "classes": [path or "a", "b", "c"]}
def wrong(): return [1]
def ragged(): return {"train": (np.zeros((5, 2, 2), "uint8"), [0, 1])}
def strange(): return {"train": (np.zeros((2, 2, 2), "uint8"), [0, 1]), "tets": 0}
def single(): return {"train": np.zeros((2, 2, 2), "uint8")}
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "distml_test_rows.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "distml_test_rows", raising=False)
    return "distml_test_rows"


def test_a_function(module: str, storage_root: Path) -> None:
    manifest, splits = ingest(storage_root, None, format=f"{module}:make", val_fraction=0.2)
    assert (manifest.shape, manifest.classes) == ((3, 4, 1), ("a", "b", "c"))
    assert manifest.rows == {"train": 42, "validation": 9, "test": 9}
    assert len(splits["train"][0]) == 42
    again, _ = ingest(storage_root, "zebra", format=f"{module}:make")
    assert again.classes == ("zebra", "b", "c")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("wrong", "returned list, not a dict with 'train'"),
        ("ragged", "train has 5 images and 2 labels"),
        ("strange", r"unknown entries \['tets'\]"),
        ("single", r"no \(images, labels\) for train"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_function_that_returns_something_else(
    module: str, storage_root: Path, name: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        ingest(storage_root, None, format=f"{module}:{name}")


def test_a_module_that_cannot_be_imported(storage_root: Path) -> None:
    with pytest.raises(DataError, match="No module named 'nowhere_at_all'"):
        ingest(storage_root, None, format="nowhere_at_all:make")


# Detection ------------------------------------------------------------------------------------------------


def test_a_path_with_nothing_known(tmp_path: Path, storage_root: Path) -> None:
    with pytest.raises(DataError, match="there are no data at"):
        ingest(storage_root, tmp_path / "absent")
    (tmp_path / "data.csv").write_text("1,2")
    with pytest.raises(DataError, match=r"no Parquet, IDX or picture files, but \.csv"):
        ingest(storage_root, tmp_path / "data.csv")


def test_a_format_that_needs_a_path(storage_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.format = parquet needs data.path"):
        ingest(storage_root, None, format="parquet")


# Sizes and policies ---------------------------------------------------------------------------------------


def noise(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


def test_pictures_of_many_sizes_are_fitted(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, GRAY)
    (tmp_path / "dog" / "wide.png").write_bytes(png(noise(20, 60)))
    (tmp_path / "dog" / "red.png").write_bytes(png(noise(30, 20, 3)))
    asked = {"image_size": [8, 12], "fit": "letterbox", "background": [9, 9, 9]}
    manifest, splits = ingest(storage_root, tmp_path, **asked)
    assert manifest.shape == (8, 12, 3)
    assert manifest.policy == Policy((8, 12, 3), "letterbox", (9, 9, 9))
    expected = image.read((tmp_path / "dog" / "wide.png").read_bytes(), manifest.policy)
    assert any((one == expected).all() for images, _ in splits.values() for one in images)


@pytest.mark.parametrize(
    ("sizes", "side"),
    [(((40, 40), (40, 40)), 40), (((40, 40), (40, 41)), 224), (((300, 300), (300, 300)), 224)],
)
def test_auto_keeps_the_pictures_own_size_where_all_have_a_small_one(
    tmp_path: Path, storage_root: Path, sizes: tuple[tuple[int, int], ...], side: int
) -> None:
    for at, name in enumerate(("cat/a.png", "cat/b.png", "dog/a.png", "dog/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(noise(*sizes[at % 2])))
    manifest, _ = ingest(storage_root, tmp_path)
    assert manifest.shape == (side, side, 1)


def test_channels_can_be_chosen(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, COLOUR)
    manifest, splits = ingest(storage_root, tmp_path, channels=1)
    assert manifest.shape == (4, 4, 1)
    luma = np.stack([np.asarray(Image.fromarray(one).convert("L")) for one in COLOUR])
    same_rows(luma[..., None], LABELS, splits)


def test_encoded_pictures_in_parquet_are_fitted_too(tmp_path: Path, storage_root: Path) -> None:
    files = [png(noise(10 + k % 7, 10 + k % 5, 3)) for k in range(60)]
    pq.write_table(pa.table({"image": files, "label": LABELS}), tmp_path / "x.parquet", row_group_size=25)
    manifest, splits = ingest(storage_root, tmp_path, image_size=6)
    policy = Policy((6, 6, 3))
    assert manifest.policy == policy
    same_rows(np.stack([image.read(one, policy) for one in files]), LABELS, splits)


def test_arrays_are_fitted_where_a_size_is_asked_for(tmp_path: Path, storage_root: Path) -> None:
    given = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": tensor(COLOUR), "label": LABELS}), given)
    manifest, splits = ingest(storage_root, given, image_size=8, channels=1)
    assert manifest.policy == Policy((8, 8, 1))
    same_rows(image.refit(COLOUR, manifest.policy), LABELS, splits)
    plain, _ = ingest(storage_root, given)
    assert plain.policy is None
    assert plain.pictures == Policy.of_arrays((4, 4, 3))
    five = np.repeat(COLOUR[..., :1], 5, axis=3)
    pq.write_table(pa.table({"image": tensor(five), "label": LABELS}), given)
    with pytest.raises(ConfigError, match="5 channels and cannot be fitted"):
        ingest(storage_root, given, image_size=9)


def test_all_damaged_pictures_are_named_at_once(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, GRAY)
    whole = png(noise(40, 40))
    (tmp_path / "cat" / "000.png").write_bytes(b"<html>404</html>")
    (tmp_path / "dog" / "001.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)2 of 60 pictures cannot be used:.*cat/000.png .*dog/001.png "):
        ingest(storage_root, tmp_path)
    for name in ("cat/000.png", "dog/001.png"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"(?s)cat/000.png .*dog/001.png |dog/001.png .*cat/000.png "):
        ingest(storage_root, tmp_path, shards=1, image_size=6)


def test_larger_pictures_than_the_limit_are_refused(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, GRAY)
    with pytest.raises(DataError, match="is larger than 29 pixels"):
        ingest(storage_root, tmp_path, max_pixels=29)

"""Users' data in every format, as real files, brought through the whole ingestion."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import pickle
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distml.config import Config, DataConfig, TaskConfig
from distml.data import image, ingestion, shards, writer
from distml.data.formats import arrays, parquet
from distml.data.image import Policy
from distml.data.manifest import Manifest
from distml.data.opening import open_source
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
    manifest = ingestion.prepare(config, storage)
    return manifest, {split: shards.read(storage, manifest, split) for split in manifest.rows}


def same_rows(images: Array, labels: Array, splits: dict[str, tuple[Array, Array]]) -> None:
    """Every given row, and no other, is in the splits."""
    given = sorted((x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True))
    actual = [(x.tobytes(), int(y)) for xs, ys in splits.values() for x, y in zip(xs, ys, strict=True)]
    assert sorted(actual) == given


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


def test_files_that_are_not_images_are_left_out_and_listed(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures(tmp_path, GRAY)
    (tmp_path / "notes.txt").write_text("x")
    with caplog.at_level(logging.WARNING):
        ingest(storage_root, tmp_path)
    assert "1 entries are left out (no picture), like notes.txt" in caplog.text


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
        ({"image": tensor(GRAY)}, "no column that may be the label: image"),
        ({"image": tensor(GRAY), "label": pa.array([None] + [1] * 59)}, r"row 1 of x\.parquet has no label"),
        ({"image": pa.array([[1] * 30] * 60), "label": LABELS}, r"images of shape \(30,\)"),
        ({"image": pa.array([[[1]]] * 59 + [[[1, 2]]]), "label": LABELS}, "several sizes|images of"),
        ({"image": pa.array(["a"] * 60), "label": LABELS}, r"texts that are not base64, like .a."),
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
def twice(): return {**make(), "val": pairs(), "validation": pairs()}
def capital(): return {"Train": make()["train"]}
def single(): return {"train": np.zeros((2, 2, 2), "uint8")}
def pairs(): return zip(*make()["train"])
def rows():
    for image, label in pairs():
        yield {"image": image / 255, "label": "abc"[label]}
class Dataset:
    def iter_rows(self): return rows()
def dataset(): return {"train": Dataset(), "test": rows()}
def none(): return iter(())
def sizes(): return iter([(np.zeros((2, 2)), 0), (np.zeros((2, 3)), 1)])
def unknown(): return iter([{"image": np.zeros((2, 2)), "file": "x"}])
def third(): return iter([(np.zeros((2, 2)), 0, "x")])
def nothing(): pass
def fails(): return 1 / 0
def later(): yield {}["x"]
class Torch:
    classes = ["a", "b", "c"]
    def __len__(self): return 60
    def __getitem__(self, at): return make()["train"][0][at], at % 3
class Batches:
    class_names = ["a", "b", "c"]
    def as_numpy_iterator(self):
        x, y = make()["train"]
        for at in range(0, 60, 16): yield x[at:at + 16, ..., None], y[at:at + 16]
def torch(): return Torch()
def batches(): return {"train": Batches(), "val": Torch()}
def listed(): return list(pairs())
def keras(): return make()["train"], make()["train"]
def pictures(sizes=(8, 6)):
    from PIL import Image
    for at in range(60):
        picture = Image.new("P", (sizes[at % 2], 6), at % 3)
        picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        yield picture, at % 3
def colors():
    from PIL import Image
    return iter([(Image.new(mode, (4, 4)), 0) for mode in ("L", "RGB")])
def text(): return iter([("a.png", 0)])
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
        ("wrong", "row 0 of distml_test_rows:wrong train is int, not"),
        ("nothing", "returned NoneType, not a dict with 'train' or rows"),
        ("ragged", "train has 5 images and 2 labels"),
        ("strange", r"unknown entries \['tets'\]"),
        ("twice", "returned val and validation, which are one split"),
        ("single", r"no \(images, labels\) for train"),
        ("absent", "absent is not a function of distml_test_rows"),
        ("fails", r"fails fails: ZeroDivisionError: division by zero \(distml_test_rows.py, line \d+\)"),
        ("later", "later fails: KeyError: 'x'"),
    ],
)
def test_a_function_that_returns_something_else(
    module: str, storage_root: Path, name: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        ingest(storage_root, None, format=f"{module}:{name}")


@pytest.mark.parametrize(
    ("function", "classes"),
    [("pairs", "012"), ("rows", "abc"), ("dataset", "abc"), ("capital", "012")],
)
def test_a_function_may_give_rows_one_by_one(
    module: str, storage_root: Path, function: str, classes: str
) -> None:
    manifest, splits = ingest(storage_root, None, format=f"{module}:{function}", val_fraction=0.2)
    assert (manifest.shape, manifest.classes) == ((3, 4, 1), tuple(classes))
    images = (np.arange(60 * 12) % 256).reshape(60, 3, 4, 1).astype(np.uint8)
    if function == "dataset":
        same_rows(images, np.arange(60) % 3, {"test": splits.pop("test")})
    same_rows(images, np.arange(60) % 3, splits)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("none", "none train gave no rows"),
        ("sizes", r"row 1 of distml_test_rows:sizes train is \(2, 3, 1\), the first row is \(2, 2, 1\)"),
        ("unknown", "row 0 of distml_test_rows:unknown train is a dictionary of image, file, not"),
        ("third", "row 0 of distml_test_rows:third train is tuple, not"),
        ("pictures", r"row 1 .* is \(6, 6, 3\), the first row is \(6, 8, 3\)"),
        ("colors", r"row 1 of .* is in colour, the first row is gray. Set data.channels: 3"),
        ("text", r"row 0 of .* is a text, 'a.png', and no image"),
    ],
)
def test_unusable_rows_of_a_function_are_named(
    module: str, storage_root: Path, function: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        ingest(storage_root, None, format=f"{module}:{function}")


@pytest.mark.parametrize("name", ["torch", "batches", "listed", "keras"])
def test_what_other_libraries_call_a_data_set(module: str, storage_root: Path, name: str) -> None:
    manifest, splits = ingest(storage_root, None, format=f"{module}:{name}", val_fraction=0.2)
    images = (np.arange(60 * 12) % 256).reshape(60, 3, 4, 1).astype(np.uint8)
    if name in ("batches", "keras"):
        same_rows(images, np.arange(60) % 3, {"": splits.pop("test" if name == "keras" else "validation")})
    same_rows(images, np.arange(60) % 3, splits)
    assert manifest.classes == (("a", "b", "c") if name in ("torch", "batches") else ("0", "1", "2"))


def test_pictures_that_a_function_gives_are_fitted(module: str, storage_root: Path) -> None:
    source = open_source(
        Config(data=DataConfig(format=f"{module}:pictures", image_size=4)), Storage(str(storage_root))
    )
    assert source.policy == Policy((4, 4, 3))
    colors = source.splits["train"].gather(np.arange(2)).images[:, 0, 0]
    assert colors.tolist() == [[255, 0, 0], [0, 255, 0]]  # of the palette, not its numbers


def test_ray_started_by_a_loader_is_shut_down(
    module: str, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter([False, True])  # before the function is called, and after
    ended: list[bool] = []
    ray = SimpleNamespace(is_initialized=lambda: next(states), shutdown=lambda: ended.append(True))
    monkeypatch.setitem(sys.modules, "ray", ray)
    arrays.open_function(f"{module}:rows", None)
    assert ended == [True]


def test_a_module_that_cannot_be_imported(storage_root: Path) -> None:
    with pytest.raises(DataError, match="No module named 'nowhere_at_all'"):
        ingest(storage_root, None, format="nowhere_at_all:make")


# Detection ------------------------------------------------------------------------------------------------


def test_a_path_with_nothing_known(tmp_path: Path, storage_root: Path) -> None:
    with pytest.raises(DataError, match="there are no data at"):
        ingest(storage_root, tmp_path / "absent")
    (tmp_path / "data.xyz").write_text("1,2")
    with pytest.raises(DataError, match=r"no pictures, Parquet, IDX, npz, npy or CSV of pixels, but \.xyz"):
        ingest(storage_root, tmp_path / "data.xyz")


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
    assert any((row == expected).all() for images, _ in splits.values() for row in images)


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
    luma = np.stack([np.asarray(Image.fromarray(pixels).convert("L")) for pixels in COLOUR])
    same_rows(luma[..., None], LABELS, splits)


def test_encoded_pictures_in_parquet_are_fitted_too(tmp_path: Path, storage_root: Path) -> None:
    files = [png(noise(10 + k % 7, 10 + k % 5, 3)) for k in range(60)]
    pq.write_table(pa.table({"image": files, "label": LABELS}), tmp_path / "x.parquet", row_group_size=25)
    manifest, splits = ingest(storage_root, tmp_path, image_size=6)
    policy = Policy((6, 6, 3))
    assert manifest.policy == policy
    same_rows(np.stack([image.read(file, policy) for file in files]), LABELS, splits)


def test_encoded_pictures_in_small_groups_are_read_by_jobs_of_their_own(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [png(noise(10 + k % 7, 10 + k % 5, 3)) for k in range(60)]
    for k, some in enumerate((slice(0, 25), slice(25, 60))):
        table = pa.table({"image": files[some], "label": LABELS[some]})
        pq.write_table(table, tmp_path / f"part-{k}.parquet", row_group_size=7)
    config = Config.model_validate({"data": {"path": str(tmp_path), "image_size": 6}})
    rows = open_source(config, Storage(str(storage_root))).splits["train"]
    assert rows.only is not None
    assert (rows.name(24), rows.name(25)) == ("row 24 (part-0.parquet)", "row 25 (part-1.parquet)")
    wanted = np.array([59, 3, 24, 25])
    read = pickle.loads(pickle.dumps(rows.only(wanted)))
    np.testing.assert_array_equal(read().images, rows.gather(np.arange(60)).images[wanted])
    (tmp_path / "part-0.parquet").rename(tmp_path / "gone")
    np.testing.assert_array_equal(rows.only(np.array([30]))().images[0], read_fitted(files[30]))
    (tmp_path / "gone").rename(tmp_path / "part-0.parquet")
    monkeypatch.setattr(parquet, "_GROUP_BYTES", 100)
    assert open_source(config, Storage(str(storage_root))).splits["train"].only is None


def read_fitted(file: bytes) -> Array:
    return image.read(file, Policy((6, 6, 3)))


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
    with pytest.raises(
        DataError,
        match=r"(?s)2 pictures cannot be used, of 60 that were checked:.*cat/000.png .*dog/001.png ",
    ):
        ingest(storage_root, tmp_path)
    for name in ("cat/000.png", "dog/001.png"):
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"(?s)cat/000.png .*dog/001.png |dog/001.png .*cat/000.png "):
        ingest(storage_root, tmp_path, shards=1, image_size=6)


def test_larger_pictures_than_the_limit_are_rejected(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path, GRAY)
    with pytest.raises(DataError, match="is larger than 29 pixels"):
        ingest(storage_root, tmp_path, max_pixels=29)


# What cannot be used, and what changes ----------------------------------------------------------------------


def damage(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(png(noise(40, 40))[:900])


def test_skip_leaves_damaged_pictures_out_and_lists_them(tmp_path: Path, storage_root: Path) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    damage(given, "cat/000.png")
    (given / "dog" / "001.png").write_bytes(b"")
    (given / "eel" / "x.png").symlink_to("nowhere.png")
    (given / "eel" / "notes.txt").write_text("x")
    asked: dict[str, Any] = {"on_error": "skip", "image_size": 6}
    with pytest.raises(DataError, match=r"more than data.max_error_fraction = 0.01 of 61"):
        ingest(storage_root, given, **asked)
    manifest, splits = ingest(storage_root, given, max_error_fraction=0.1, **asked)
    assert sum(manifest.rows.values()) == 58
    assert {name for name, _ in manifest.left_out} == {"cat/000.png", "dog/001.png", "eel/x.png"}
    assert manifest.skipped == {"no picture": 1}
    assert manifest.entries == 62
    assert sum(len(labels) for _, labels in splits.values()) == 58
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_class_without_usable_rows_fails_ingest(tmp_path: Path, storage_root: Path) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    asked: dict[str, Any] = {"on_error": "skip", "max_error_fraction": 0.9, "image_size": 6}
    for path in (given / "cat").iterdir():
        path.write_bytes(png(noise(40, 40))[:900])
    with pytest.raises(DataError, match="no picture of cat can be used for training"):
        ingest(storage_root, given, **asked)
    for path in (given / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no picture of cat can be used for training"):
        ingest(storage_root, given, **asked)
    for path in (given / "cat").iterdir():
        path.rename(path.with_suffix(".psd"))
    with pytest.raises(DataError, match=r"cat holds 20 files and no picture, like cat/000.psd"):
        ingest(storage_root, given, **asked)


def test_broken_links_are_named(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "given", GRAY)
    (tmp_path / "given" / "cat" / "x.png").symlink_to("../annex/x.png")
    with pytest.raises(
        DataError, match=r"cat/x.png is a link to ../annex/x.png, which does not exist \(1 of 61"
    ):
        ingest(storage_root, tmp_path / "given")


def test_a_broken_link_in_place_of_a_class_folder_is_an_error(tmp_path: Path, storage_root: Path) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    (given / "fox").symlink_to("/nowhere/fox")
    (given / "notes.txt").symlink_to("/nowhere/notes.txt")
    with pytest.raises(DataError, match=r"fox is a link to /nowhere/fox, which does not exist .* Mount the"):
        ingest(storage_root, given)
    manifest, _ = ingest(storage_root, given, on_error="skip", max_error_fraction=0.05)
    assert [name for name, _ in manifest.left_out] == ["fox"]


def test_a_storage_root_among_the_data_changes_nothing(tmp_path: Path) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    first, _ = ingest(given / "distml-data", given)
    again, _ = ingest(given / "distml-data", given)
    assert again == first
    other, _ = ingest(given / "distml-data", given, name="other", image_size=4)
    assert other.classes == first.classes


def test_an_empty_folder_beside_class_folders_gives_a_warning(tmp_path: Path, storage_root: Path) -> None:
    for split, some in (("train", GRAY), ("test", GRAY[:9])):
        pictures(tmp_path / "given" / split, some)
    for name in ("train/bird", "train/cat/old", "notes"):
        (tmp_path / "given" / name).mkdir()
    manifest, _ = ingest(storage_root, tmp_path / "given")
    assert [text for text in manifest.warnings if "empty" in text] == [
        "train/bird is an empty folder: no class is made of it."
    ]


def test_the_remedy_fits_what_all_unusable_files_are(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "given", GRAY)
    (tmp_path / "given" / "cat" / ".x.png.icloud").write_bytes(b"bplist00")
    said = r"cat/x.png is in iCloud and not on this machine .* Download it in Finder. Or set data.on_error"
    with pytest.raises(DataError, match=said):
        ingest(storage_root, tmp_path / "given")
    (tmp_path / "given" / "cat" / "y.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"(?s)2 pictures cannot be used.* Repair or remove them, or set"):
        ingest(storage_root, tmp_path / "given")


def test_the_content_decides_the_format_and_not_the_suffix(tmp_path: Path, storage_root: Path) -> None:
    for at, name in enumerate(("cat/a.jfif", "cat/b", "cat/c.dat", "dog/a.PNG", "dog/b.jpg", "dog/c.tif")):
        (tmp_path / "given" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "given" / name).write_bytes(png(noise(6, 5 + at)))
    manifest, _ = ingest(storage_root, tmp_path / "given", image_size=4)
    assert (sum(manifest.rows.values()), manifest.skipped) == (6, {})


def test_a_changed_source_makes_a_new_version(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    first, _ = ingest(storage_root, given)
    assert ingest(storage_root, given)[0] == first
    pictures(given, GRAY[:9], ("fox", "gnu", "hen"))
    with caplog.at_level(logging.WARNING):
        second, splits = ingest(storage_root, given)
    assert "changed since it was prepared (60 files then, 69 now)" in caplog.text
    assert len(second.classes) == 6
    assert sum(len(labels) for _, labels in splits.values()) == 69
    storage = Storage(str(storage_root))
    assert len(shards.read(storage, first, "train")[0]) == first.rows["train"]  # of runs trained on it
    assert storage.exists(first.folder, f"manifest-{first.digest[:8]}.json")
    (given / "cat" / "000.png").write_bytes(png(GRAY[1]))  # the same size, other content
    third, _ = ingest(storage_root, given)
    assert third.digest != second.digest
    for path in sorted(given.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    given.rmdir()
    assert ingest(storage_root, given)[0] == third


def test_a_failed_new_version_leaves_the_old_one(tmp_path: Path, storage_root: Path) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    first, _ = ingest(storage_root, given)
    before = sorted(storage_root.rglob("*"))
    damage(given, "cat/000.png")
    with pytest.raises(DataError, match=r"cat/000.png"):
        ingest(storage_root, given)
    assert sorted(storage_root.rglob("*")) == before
    assert len(shards.read(Storage(str(storage_root)), first, "train")[0]) == first.rows["train"]


def test_suspicious_data_give_warnings(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = tmp_path / "given"
    pictures(given, GRAY)
    (given / "cat" / "blank.png").write_bytes(png(np.full((6, 5), 9, np.uint8)))
    (given / "dog" / "again.png").write_bytes(png(GRAY[0]))
    with caplog.at_level(logging.INFO):
        manifest, _ = ingest(storage_root, given)
    assert "62 pictures of 5x6: images of 6x5x1" in caplog.text
    assert "train: 62 pictures of 3 classes: cat 21, dog 21, eel 20" in caplog.text
    said = "\n".join(manifest.warnings)
    assert "1 of 62 images are of one colour and show nothing, like cat/blank.png" in said
    assert "1 image is the same as an earlier one" in said
    assert "1 with another label" in said
    dark = tmp_path / "dark"
    pictures(dark, GRAY // 16)
    assert "all pixel values lie in 0 to 15" in "\n".join(ingest(storage_root, dark)[0].warnings)


def test_classes_without_rows_give_a_warning(tmp_path: Path, storage_root: Path) -> None:
    pictures(tmp_path / "given" / "train", GRAY[:30])
    pictures(tmp_path / "given" / "test", GRAY[30:32])
    assert "test has no row of eel." in ingest(storage_root, tmp_path / "given")[0].warnings


# More of Parquet --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (pa.array(LABELS.astype(float)), ("0", "1", "2")),
        (pa.array(LABELS > 1), ("false", "true")),
        (pa.array([f"c{value}" for value in LABELS], pa.string_view()), ("c0", "c1", "c2")),
        (pa.array(LABELS + 1, pa.uint64()), ("1", "2", "3")),
    ],
)
def test_labels_of_any_type(tmp_path: Path, storage_root: Path, label: Any, classes: tuple[str, ...]) -> None:
    pq.write_table(pa.table({"image": tensor(GRAY), "label": label}), tmp_path / "x.parquet")
    assert ingest(storage_root, tmp_path / "x.parquet")[0].classes == classes


@pytest.mark.parametrize("names", [("img", "labels"), ("pixel_values", "target"), ("photograph", "kind")])
def test_unambiguous_columns_are_detected(tmp_path: Path, storage_root: Path, names: tuple[str, str]) -> None:
    picture, label = names
    pq.write_table(pa.table({picture: tensor(GRAY), label: LABELS}), tmp_path / "x.parquet")
    assert sum(ingest(storage_root, tmp_path / "x.parquet")[0].rows.values()) == 60


def test_ambiguous_columns_are_rejected_and_can_be_configured(tmp_path: Path, storage_root: Path) -> None:
    table = pa.table({"img": tensor(GRAY), "fine": LABELS, "coarse": LABELS // 2, "id": np.arange(60)})
    given = tmp_path / "x.parquet"
    pq.write_table(table, given)
    with pytest.raises(DataError, match=r"no column that may be the label: img, fine, coarse, id. Set"):
        ingest(storage_root, given)
    assert len(ingest(storage_root, given, label_column="coarse")[0].classes) == 2
    assert len(ingest(storage_root, given, label_column="fine")[0].classes) == 3
    with pytest.raises(DataError, match=r"has no column colour, but .* Correct data.image_column"):
        ingest(storage_root, given, label_column="fine", image_column="colour")
    pq.write_table(table.append_column("class", pa.array(LABELS)).append_column("y", pa.array(LABELS)), given)
    with pytest.raises(DataError, match="several columns that may be the label: class, y"):
        ingest(storage_root, given)


@pytest.mark.parametrize("name", ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"])
def test_tensors_that_ray_data_wrote(tmp_path: Path, storage_root: Path, name: str) -> None:
    about = {"ARROW:extension:name": name, "ARROW:extension:metadata": "[4, 4, 3]"}
    rows = pa.array(COLOUR.reshape(60, -1).tolist(), pa.large_list(pa.uint8()))
    schema = pa.schema([pa.field("image", rows.type, metadata=about), pa.field("label", pa.int64())])
    pq.write_table(pa.Table.from_arrays([rows, pa.array(LABELS)], schema=schema), tmp_path / "x.parquet")
    manifest, splits = ingest(storage_root, tmp_path / "x.parquet")
    assert manifest.shape == (4, 4, 3)
    same_rows(COLOUR, LABELS, splits)


def test_damaged_rows_can_be_skipped(tmp_path: Path, storage_root: Path) -> None:
    files = [png(value) for value in GRAY]
    files[7], files[9] = b"", png(noise(40, 40))[:900]
    pq.write_table(pa.table({"image": files, "label": LABELS}), tmp_path / "x.parquet")
    asked: dict[str, Any] = {"on_error": "skip", "max_error_fraction": 0.05, "image_size": 6}
    manifest, _ = ingest(storage_root, tmp_path / "x.parquet", **asked)
    assert sum(manifest.rows.values()) == 58
    assert sorted(name for name, _ in manifest.left_out) == ["row 7 (x.parquet)", "row 9 (x.parquet)"]


@pytest.mark.parametrize("bands", [1, 3, 4, 13])
def test_channels_first_are_rejected(tmp_path: Path, storage_root: Path, bands: int) -> None:
    pq.write_table(
        pa.table({"image": tensor(noise(60, bands, 16, 16)), "label": LABELS}), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match="have their channels first"):
        ingest(storage_root, tmp_path / "x.parquet")


def test_idx_sets_in_one_folder_are_named(tmp_path: Path, storage_root: Path) -> None:
    for which in ("balanced", "letters"):
        for split in ("train", "test"):
            for kind, values in (("images-idx3", GRAY), ("labels-idx1", LABELS)):
                (tmp_path / "in").mkdir(exist_ok=True)
                (tmp_path / "in" / f"emnist-{which}-{split}-{kind}-ubyte").write_bytes(idx(values))
    with pytest.raises(DataError, match="holds several data sets: emnist-balanced, emnist-letters"):
        ingest(storage_root, tmp_path / "in")
    for path in (tmp_path / "in").glob("*letters*"):
        path.unlink()
    assert ingest(storage_root, tmp_path / "in")[0].rows["test"] == 60


def test_folders_as_hive_and_macos_write_them(tmp_path: Path, storage_root: Path) -> None:
    for number in range(24):
        name = ("caf\u00e9", "cafe\u0301", "bar")[number % 3]
        folder = tmp_path / "pictures" / f"label={name}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), 9 * number).save(folder / f"{number}.png")
    manifest, _ = ingest(storage_root, tmp_path / "pictures")
    assert manifest.classes == ("bar", "caf\u00e9")


@pytest.mark.parametrize("ending", ["PARQUET", "pq", "parq"])
def test_other_endings_of_parquet_and_a_test_split_whose_labels_are_withheld(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    for split, labels in (("train", [0, 1] * 12), ("test", [-1] * 5)):
        pictures = [png(np.full((4, 4), 9 * k, np.uint8)) for k in range(len(labels))]
        pq.write_table(pa.table({"image": pictures, "label": labels}), tmp_path / f"{split}.{ending}")
    with caplog.at_level("WARNING", logger="distml"):
        manifest, _ = ingest(storage_root, tmp_path)
    assert manifest.classes == ("0", "1")
    assert sum(manifest.rows.values()) == 24
    assert manifest.skipped == {"all labels are -1": 1}
    assert "test is left out: all its labels are -1" in caplog.text


def flat(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        (folder / name).write_bytes(png(COLOUR[k]))
    return folder


@pytest.mark.parametrize(
    "form", ["{label}.{k}.png", "{label}_{k:03d}.PNG", "{label} ({k}).png", "{k:04d}-{label}.png"]
)
def test_classes_in_the_names_of_files(tmp_path: Path, storage_root: Path, form: str) -> None:
    names = [form.format(label=("cat", "great_dane")[k % 2], k=k) for k in range(24)]
    manifest, _ = ingest(storage_root, flat(tmp_path / "flat", names))
    assert manifest.classes == ("cat", "great_dane")
    assert sum(manifest.rows.values()) == 24


@pytest.mark.parametrize(
    "form", ["{camera}_{k:04d}.png", "{camera}_20240{k}_x{k}.png", "{k}.png", "{word}.png"]
)
def test_names_of_cameras_are_no_classes(tmp_path: Path, storage_root: Path, form: str) -> None:
    names = [form.format(camera=("IMG", "DSC")[k % 2], k=k, word=chr(97 + k) * 3) for k in range(24)]
    with pytest.raises(DataError, match=r"lies outside a class folder.*data.label_pattern"):
        ingest(storage_root, flat(tmp_path / "flat", names))


def test_a_pattern_extracts_labels_from_paths(tmp_path: Path, storage_root: Path) -> None:
    folder = flat(tmp_path / "flat", [f"IMG_{k:04d}_{'ab'[k % 2]}1.png" for k in range(24)])
    manifest, _ = ingest(storage_root, folder, label_pattern=r"_(\w1)[.]png$")
    assert manifest.classes == ("a1", "b1")
    with pytest.raises(DataError, match="says no label for IMG_0000_a1"):
        ingest(storage_root, folder, label_pattern=r"_([xyz])")


@pytest.mark.parametrize(("pattern", "said"), [("(", "no regular expression"), ("cat", "has no group")])
def test_an_unusable_pattern_is_rejected(pattern: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Config.load(None, **{"data.label_pattern": pattern})


def test_parquet_below_folders_that_say_the_label(tmp_path: Path, storage_root: Path) -> None:
    for label in range(3):
        (tmp_path / "set" / f"label=a%20{label}").mkdir(parents=True)
        table = pa.table({"image": [png(image) for image in COLOUR[label == LABELS]]})
        pq.write_table(table, tmp_path / "set" / f"label=a%20{label}" / "0.parquet")
    manifest, splits = ingest(storage_root, tmp_path / "set")
    assert manifest.classes == ("a 0", "a 1", "a 2")
    same_rows(COLOUR, LABELS, splits)


def test_parquet_that_names_pictures_beside_it(tmp_path: Path, storage_root: Path) -> None:
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    cells: list[dict[str, Any]] = [
        {"bytes": png(image), "path": f"{k}.png"} for k, image in enumerate(COLOUR)
    ]
    for k in range(0, 60, 2):
        (folder / "images" / f"{k}.png").write_bytes(png(COLOUR[k]))
        cells[k] = {"bytes": None, "path": f"images/{k}.png" if k % 4 else f"/home/ann/{k}.png"}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(cells, kind), "label": LABELS}), folder / "train.parquet")
    manifest, splits = ingest(storage_root, folder)
    same_rows(COLOUR, LABELS, splits)
    assert manifest.skipped == {}
    (folder / "images" / "4.png").unlink()
    with pytest.raises(DataError, match=r"row 4 .* names /home/ann/4.png, which is not there"):
        ingest(storage_root, folder)


def test_classes_that_differ_in_case_only_give_a_warning(tmp_path: Path, storage_root: Path) -> None:
    for label, name in enumerate(("cat", "Cat", "dog")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in np.flatnonzero(label == LABELS):
            (tmp_path / "set" / name / f"{k}.png").write_bytes(png(COLOUR[k]))
    manifest, _ = ingest(storage_root, tmp_path / "set")
    assert "the classes 'Cat' and 'cat' differ in case, separators" in " ".join(manifest.warnings)


def noted(tmp_path: Path, storage_root: Path, *places: str, **data: Any) -> tuple[str, tuple[str, ...]]:
    """What is said of pictures at these places, and the classes."""
    for place in places:
        for k in range(6):
            path = tmp_path / "set" / place.format(k)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(COLOUR[6 * places.index(place) + k]))
    manifest, _ = ingest(storage_root, tmp_path / "set", **data)
    return " ".join(manifest.warnings), manifest.classes


def test_the_same_folders_below_all_classes_may_be_the_classes(tmp_path: Path, storage_root: Path) -> None:
    places = [f"{where}/{name}/{{}}.png" for where in ("indoor", "outdoor") for name in ("cat", "dog")]
    said, classes = noted(tmp_path, storage_root, *places)
    assert classes == ("indoor", "outdoor")
    pattern = "[^/]+/([^/]+)/"
    assert "below each lie the same folders: cat, dog. If those are the classes, set" in said
    assert f"data.label_pattern: '{pattern}'" in said
    said, classes = noted(tmp_path, storage_root, *places, label_pattern=pattern)
    assert classes == ("cat", "dog")
    assert "same folders" not in said


def test_other_folders_below_the_classes_are_nothing_to_say(tmp_path: Path, storage_root: Path) -> None:
    said, classes = noted(
        tmp_path, storage_root, "cat/a/{}.png", "cat/b/{}.png", "dog/a/{}.png", "dog/c/{}.png"
    )
    assert classes == ("cat", "dog")
    assert "same folders" not in said


def test_pictures_called_like_masks_of_others_give_a_warning(tmp_path: Path, storage_root: Path) -> None:
    said, _ = noted(tmp_path, storage_root, "a/x ({}).png", "a/x ({})_mask.png", "b/face_mask_{}.png")
    assert "6 pictures are called like masks of others, as a/x (0)_mask.png" in said


def held_out(tmp_path: Path, lines: str) -> Path:
    """Class folders for training, and pictures of validation that a text file gives their classes."""
    for k in range(12):
        for place in (f"train/{'cat' if k % 2 else 'dog'}/images/{k}.png", f"val/images/v{k}.png"):
            path = tmp_path / "set" / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(COLOUR[k + 20 * place.startswith("val")]))
    (tmp_path / "set" / "val" / "val_annotations.txt").write_text(lines)
    return tmp_path / "set"


def test_held_out_pictures_have_their_classes_from_a_list(tmp_path: Path, storage_root: Path) -> None:
    names = ["cat" if k % 3 else "dog" for k in range(12)]
    lines = "".join(f"v{k}.png\t{name}\t0\t0\t62\t62\n" for k, name in enumerate(names))
    manifest, splits = ingest(storage_root, held_out(tmp_path, lines))
    assert manifest.rows["validation"] == 12
    images, labels = splits["validation"][:2]
    by_picture = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    assert [manifest.classes[by_picture[COLOUR[20 + k].tobytes()]] for k in range(12)] == names


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("Filename;Width;Roi.X1;ClassId", "v{}.png;0;1;{}"),
        ("id,label", "v{},{}"),
        ("", "{1} dir/v{0}.png"),
    ],
)
def test_held_out_pictures_have_their_classes_from_a_table(tmp_path: Path, header: str, line: str) -> None:
    """Classes are numbers with leading zeros, which the table has not."""
    folder = held_out(tmp_path, "\n".join([header, *(line.format(k, k % 3 % 2) for k in range(12))]))
    for k, name in enumerate(("cat", "dog")):
        (folder / "train" / name).rename(folder / "train" / f"{k:05d}")
    source = open_source(Config(data=DataConfig(path=str(folder))), Storage(str(tmp_path / "store")))
    rows = source.splits["validation"]
    labels = {Path(rows.name(k)).stem: source.classes[label] for k, label in enumerate(rows.labels)}
    assert labels == {f"v{k}": f"{k % 3 % 2:05d}" for k in range(12)}


def test_the_example_of_a_submission_is_no_list_of_labels(tmp_path: Path) -> None:
    folder = held_out(tmp_path, "")
    (folder / "val").rename(folder / "test")
    lines = ["id,label", *(f"v{k}.png,cat" for k in range(12))]
    (folder / "sample_submission.csv").write_text("\n".join(lines), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(folder))), Storage(str(tmp_path / "store")))
    assert set(source.splits) == {"train"}
    assert source.ledger is not None
    assert source.ledger.counts()["a test picture without a class"] == 12


@pytest.mark.parametrize("lines", ["v0.png\tcat\n", "".join(f"v{k}.png bird\n" for k in range(12))])
def test_a_list_of_some_pictures_or_of_other_classes_is_none(
    tmp_path: Path, storage_root: Path, lines: str
) -> None:
    with pytest.raises(DataError, match="the validation label images is not among the classes"):
        ingest(storage_root, held_out(tmp_path, lines))


def test_a_copied_class_folder_gives_a_warning(tmp_path: Path, storage_root: Path) -> None:
    said, _ = noted(tmp_path, storage_root, "t-shirt/{}.png", "T_Shirt (1)/{}.png", "hat/{}.png")
    assert (
        "the classes 'T_Shirt (1)' and 't-shirt' differ in case, separators, leading zeros or a copy's "
        "number only" in said
    )


@pytest.mark.parametrize(
    ("names", "warning"),
    [
        (("cat", "NA"), "the class 'NA' reads like a missing label"),
        (("cat", "#N/A"), "the class '#N/A' reads like a missing label"),
        (("0", "-1"), "the class '-1' reads like a missing label"),
        (("1", "01"), "the classes '01' and '1' differ in case"),
        (("cat", "cat\u200b"), "the classes 'cat' and 'cat\\u200b' differ in case"),
        (("7", "7.0"), "the classes '7' and '7.0' differ in case"),
        (("cat", "cat|dog"), "the class 'cat|dog' reads like a list of labels"),
        (("cat", "['cat', 'dog']"), "reads like a list of labels; set task.kind: multilabel"),
    ],
)
def test_suspicious_names_of_classes_are_warned_of(names: tuple[str, str], warning: str) -> None:
    assert warning in " ".join(writer.label_warnings({"train": [3, 3]}, sorted(names)))


def test_plain_names_of_classes_are_not_warned_of() -> None:
    assert not writer.label_warnings({"train": [3] * 5}, ["10", "1", "-1", "nano", "cat (left)"])


def test_a_test_class_of_another_spelling_names_the_training_class(
    tmp_path: Path, storage_root: Path
) -> None:
    for split, name in (("train", "Cat"), ("train", "dog"), ("test", "cat"), ("test", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        for k in range(12):
            (tmp_path / split / name / f"{k}.png").write_bytes(png(COLOUR[k]))
    with pytest.raises(DataError, match="the test label cat is not among the classes; Cat is"):
        ingest(storage_root, tmp_path)


@pytest.mark.parametrize("name", ["imagelabels.mat", "devkit/annos.mat", "labels.pkl"])
def test_a_file_that_may_hold_the_labels_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "set"
    flat(folder / "jpg", [f"image_{k}.png" for k in range(12)])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match=rf"{name}, which may hold the labels, is not read\."):
        open_source(Config(data=DataConfig(path=str(folder))), Storage(str(tmp_path / "store")))


def test_pictures_in_folders_of_words_below_the_classes_give_a_note(
    tmp_path: Path, storage_root: Path
) -> None:
    names = ("a/abbey/{}.png", "a/aisle/{}.png", "b/bakery/{}.png")
    said, _ = noted(tmp_path, storage_root, *names)
    assert "all pictures lie in 3 folders below them, like abbey." in said


def test_a_single_class_is_rejected(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "set").mkdir()
    flat(tmp_path / "set" / "cat", [f"{k}.png" for k in range(12)])
    with pytest.raises(DataError, match="there is only one class, cat"):
        ingest(storage_root, tmp_path / "set")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.0, float("nan"), 1.0], r"row 2 of x\.parquet has no label"),
        ([[0], [], [1]], r"row 2 of x\.parquet has no label"),
        ([[0], [1, 0], [0]], r"row 2 of x\.parquet has several labels, \[1, 0\], in label"),
    ],
)
def test_labels_that_are_missing_or_several_are_named(
    tmp_path: Path, storage_root: Path, labels: list[Any], said: str
) -> None:
    pq.write_table(
        pa.table({"image": [png(image) for image in COLOUR[:3]], "label": labels}), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match=said):
        ingest(storage_root, tmp_path)


@pytest.mark.parametrize(
    ("name", "said", "remedy"),
    [
        ("set.7z", r"no pictures, but 1 \.7z file \(packed\), like set.7z", "Unpack it"),
        ("scan.nii.gz", r"1 \.nii\.gz file \(medical volumes\), like scan.nii.gz", "Save its slices"),
        ("set.zip.part", r"1 \.part file \(a download that was not finished\)", "Fetch it again"),
        ("data_batch_1", "no pictures, but pickled objects of Python, like data_batch_1", "module:function"),
        ("labels.csv", "a table without pictures", "Give the folder"),
    ],
)
def test_what_is_given_instead_of_a_folder_is_named(
    tmp_path: Path, storage_root: Path, name: str, said: str, remedy: str
) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02" if name == "data_batch_1" else b"file_name,label")
    with pytest.raises(DataError, match=said) as caught:
        ingest(storage_root, tmp_path / name)
    assert remedy in caught.value.remedy


def test_archives_in_a_folder_are_named(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "photos.zip").write_bytes(b"PK")
    (tmp_path / "set" / "README.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"but the archive photos\.zip\. Set data.path to .*/set/photos\.zip"):
        ingest(storage_root, tmp_path / "set")
    (tmp_path / "set" / "more.tar.gz").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"but 2 archives, like more\.tar\.gz\. Unpack them side by side"):
        ingest(storage_root, tmp_path / "set")


@pytest.mark.parametrize("name", ["__pycache__", "node_modules", "@eaDir", ".ipynb_checkpoints", "__MACOSX"])
def test_folders_of_programs_are_no_classes(tmp_path: Path, storage_root: Path, name: str) -> None:
    for place in ("cat", "dog", name, f"cat/{name}"):
        flat(tmp_path / "set" / place, [f"{k}.png" for k in range(12)])
    manifest, _ = ingest(storage_root, tmp_path / "set")
    assert manifest.classes == ("cat", "dog")
    assert (sum(manifest.rows.values()), manifest.skipped) == (24, {"hidden": 2})


def test_folders_of_small_copies_are_asked_about(tmp_path: Path, storage_root: Path) -> None:
    for place in ("cat", "dog", "thumbs_up", "Thumbnails"):
        flat(tmp_path / "set" / place, [f"{k}.png" for k in range(2)])
    with pytest.raises(DataError, match="Thumbnails looks like a part of the data, not a class"):
        ingest(storage_root, tmp_path / "set")


@pytest.mark.parametrize("where", ["train", "train/train", "images"])
def test_classes_in_names_below_folders_beside_a_test_without_classes(
    tmp_path: Path, storage_root: Path, where: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / where).parent.mkdir(parents=True, exist_ok=True)
    flat(tmp_path / "set" / where, [f"{('cat', 'dog')[k % 2]}.{k}.png" for k in range(24)])
    if where != "images":
        flat(tmp_path / "set" / "test1", [f"{k}.png" for k in range(5)])
    manifest, _ = ingest(storage_root, tmp_path / "set")
    assert manifest.classes == ("cat", "dog")
    assert sum(manifest.rows.values()) == 24
    assert manifest.skipped == ({} if where == "images" else {"a test picture without a class": 5})


def test_masks_beside_pictures_are_no_class(tmp_path: Path, storage_root: Path) -> None:
    for name in ("images", "annotations"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for k in range(12):
            (tmp_path / "set" / name / f"pug_{k}.png").write_bytes(png(COLOUR[k]))
    with pytest.raises(DataError, match="annotations looks like a part of the data, not a class"):
        ingest(storage_root, tmp_path / "set")


# Names of folders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (("2024-01-03", "2024-02-07", "2024-02-08"), True),
        (("100CANON", "101CANON", "102CANON"), True),
        (("fold_0", "fold_1", "fold_2"), True),
        (("fold_0", "fold_1", "cat"), False),
        (("0", "1", "2"), False),
    ],
)
def test_classes_called_like_days_or_parts_give_a_warning(
    tmp_path: Path, storage_root: Path, names: tuple[str, str, str], warned: bool
) -> None:
    pictures(tmp_path / "data", COLOUR, names)
    manifest, _ = ingest(storage_root, tmp_path / "data")
    assert any("called like dates or parts" in warning for warning in manifest.warnings) is warned


# Parquet: splits in a column, base64 ------------------------------------------------------------------------


def given_parquet(folder: Path, **columns: Any) -> Path:
    """Sixty encoded pictures with the given columns, in one file of small row groups."""
    folder.mkdir(exist_ok=True)
    table = {"image": [png(picture) for picture in COLOUR], "label": LABELS.tolist(), **columns}
    pq.write_table(pa.table(table), folder / "all.parquet", row_group_size=13)
    return folder


def test_a_column_of_parquet_divides_its_rows(tmp_path: Path, storage_root: Path) -> None:
    words = ["dev" if k % 5 == 0 else "Test" if k % 5 == 1 else "train" for k in range(60)]
    manifest, splits = ingest(storage_root, given_parquet(tmp_path / "data", split=words))
    assert manifest.rows == {"train": 36, "validation": 12, "test": 12}
    for split, word in (("train", "train"), ("validation", "dev"), ("test", "Test")):
        rows = np.flatnonzero(np.array(words) == word)
        same_rows(COLOUR[rows], LABELS[rows], {split: splits[split]})


def test_a_column_of_other_words_than_splits_is_reported(tmp_path: Path, storage_root: Path) -> None:
    manifest, _ = ingest(storage_root, given_parquet(tmp_path / "data", dataset=["ffhq"] * 60))
    assert "the column dataset says no splits, but ffhq, and is not used." in manifest.warnings
    mixed = given_parquet(tmp_path / "mixed", split=["train"] * 59 + ["fold7"])
    with pytest.raises(DataError, match=r"has the split fold7\. Use train, validation and test"):
        ingest(storage_root, mixed, name="mixed")


def test_pictures_in_base64_are_read_and_addresses_are_not(tmp_path: Path, storage_root: Path) -> None:
    texts = [
        "data:image/png;base64," * (k % 2) + base64.b64encode(png(x)).decode() for k, x in enumerate(COLOUR)
    ]
    _, splits = ingest(storage_root, given_parquet(tmp_path / "data", image=texts))
    same_rows(COLOUR, LABELS, splits)
    addresses = given_parquet(tmp_path / "far", image=[f"https://site/{k}.png" for k in range(60)])
    with pytest.raises(DataError, match=r"names an address, https://site/0\.png"):
        ingest(storage_root, addresses, name="far")


# Lists of splits ------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Three classes below `images`, twenty pictures each."""
    pictures(tmp_path / "images", COLOUR)
    (tmp_path / "meta").mkdir()
    return tmp_path


def lines(folder: Path, *which: int) -> str:
    """Pictures of `listed` as Food-101 lists them: class and name without the ending."""
    names = sorted(path.relative_to(folder / "images") for path in folder.glob("images/*/*.png"))
    return "".join(f"{name.with_suffix('').as_posix()}\n" for name in names[slice(*which)])


@pytest.mark.parametrize("train", [True, False])
def test_text_files_list_the_splits(listed: Path, storage_root: Path, train: bool) -> None:
    (listed / "meta" / "test.txt").write_text(lines(listed, 0, 60, 3))
    if train:
        (listed / "meta" / "train.txt").write_text(lines(listed, 1, 60, 3))
    manifest, _ = ingest(storage_root, listed)
    assert manifest.rows["test"] == 20
    assert manifest.rows["train"] + manifest.rows["validation"] == (20 if train else 40)
    assert manifest.skipped.get("in no list of a split", 0) == (20 if train else 0)
    assert not any("list" in warning for warning in manifest.warnings)


def listed_splits(folder: Path) -> dict[str, int]:
    source = open_source(Config(data=DataConfig(path=str(folder))), Storage(str(folder / "store")))
    return {split: len(rows.labels) for split, rows in source.splits.items()}


def test_tables_list_the_splits_of_class_folders(listed: Path) -> None:
    for file, which in (("train", (0, 60, 3)), ("validation", (1, 60, 3)), ("test", (2, 60, 3))):
        rows = [f"{k},{name}.png,7" for k, name in enumerate(lines(listed, *which).splitlines())]
        (listed / f"{file}.csv").write_text("\n".join([",Filename,Label", *rows]), "utf-8")
    assert listed_splits(listed) == {"train": 20, "validation": 20, "test": 20}


def test_two_lists_of_the_same_pictures_are_one(listed: Path) -> None:
    for file, which in (("train", (0, 60, 2)), ("test", (1, 60, 2))):
        (listed / "meta" / f"{file}.txt").write_text(lines(listed, *which))
        told = {"class": lines(listed, *which).splitlines()}
        (listed / "meta" / f"{file}.json").write_text(json.dumps(told), "utf-8")
    assert listed_splits(listed) == {"train": 30, "test": 30}


def test_lists_may_be_called_in_words_without_a_mark(listed: Path) -> None:
    (listed / "TrainImages.txt").write_text(lines(listed, 0, 60, 2))
    (listed / "TestImages.txt").write_text(lines(listed, 1, 60, 2))
    assert listed_splits(listed) == {"train": 30, "test": 30}


@pytest.mark.parametrize("name", ["split.json", "splits.csv", "partition.tsv", "split_of.json"])
def test_a_file_of_splits_divides_class_folders(listed: Path, name: str) -> None:
    names = lines(listed, 0, 60).splitlines()
    splits = {"train": names[::3], "val": names[1::3], "test": names[2::3]}
    of_name = {file: split for split, some in splits.items() for file in some}
    text = json.dumps({split: [[file, 1, "x"] for file in some] for split, some in splits.items()})
    if not name.endswith("json"):
        mark = "," if name.endswith("csv") else "\t"
        rows = [f"{file}.png{mark}7{mark}{split}" for file, split in of_name.items()]
        text = "\n".join([mark.join(("file", "x", "split")), *rows])
    (listed / name).write_text(text, "utf-8")
    assert listed_splits(listed) == {"train": 20, "validation": 20, "test": 20}


def test_one_file_flags_the_split_of_numbered_pictures(listed: Path) -> None:
    names = lines(listed, 0, 60).splitlines()
    (listed / "images.txt").write_text("".join(f"{k} {name}.png\n" for k, name in enumerate(names, 1)))
    (listed / "boxes.txt").write_text("".join(f"{k} 1.0 2.0 3.0\n" for k in range(1, 61)))
    (listed / "train_test_split.txt").write_text("".join(f"{k} {int(k % 3 > 0)}\n" for k in range(1, 61)))
    assert listed_splits(listed) == {"train": 40, "test": 20}


def test_lists_of_mxnet_divide_class_folders(listed: Path, storage_root: Path) -> None:
    for file, which in (("train.lst", (0, 60, 2)), ("val.lst", (1, 60, 2))):
        names = lines(listed, *which).splitlines()
        (listed / "meta" / file).write_text(
            "".join(f"{k}\t1.0\t{name}.png\n" for k, name in enumerate(names))
        )
    manifest, _ = ingest(storage_root, listed)
    assert (manifest.rows["validation"], manifest.skipped) == (30, {})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.txt": (0, 40), "test.txt": (39, 60)}, "both list"),
        ({"test1.txt": (0, 10), "test2.txt": (10, 20)}, "list the same split"),
        ({"train_test_split.txt": (0, 0)}, "train_test_split.txt: called like a list"),
    ],
)
def test_unusable_lists_give_a_warning(
    listed: Path, storage_root: Path, files: dict[str, tuple[int, int]], said: str
) -> None:
    for name, which in files.items():
        (listed / "meta" / name).write_text(lines(listed, *which) or "1 1\n2 0\n")
    manifest, _ = ingest(storage_root, listed)
    assert sum(manifest.rows.values()) == 60
    assert any(said in warning for warning in manifest.warnings)


# Camera's raw files, arrays ---------------------------------------------------------------------------------


def test_raw_files_beside_their_pictures_are_left_out_and_counted(tmp_path: Path, storage_root: Path) -> None:
    data = tmp_path / "data"
    pictures(data, COLOUR)
    (data / "cat" / "0.CR2").write_bytes(b"II*\0\x10\0\0\0CR")
    manifest, _ = ingest(storage_root, data)
    assert manifest.skipped == {"a camera's raw file": 1}
    (data / "fox").mkdir()
    (data / "fox" / "1.NEF").write_bytes(b"MM\0*")
    with pytest.raises(DataError, match=r"fox holds 1 files and no picture, like fox/1.NEF"):
        ingest(storage_root, data, name="again")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cat/a.psd", "a picture of a format that is not read: convert it to JPEG or PNG"),
        ("dog/b.JXL", "a picture of a format that is not read: convert it to JPEG or PNG"),
        ("dog/b.mov", "a video: save single pictures of it"),
        ("emu.zip", "an archive beside pictures: unpack it if it holds some"),
    ],
)
def test_files_that_may_be_data_are_left_out_with_what_to_do(
    tmp_path: Path, storage_root: Path, name: str, reason: str
) -> None:
    pictures(tmp_path, COLOUR)
    (tmp_path / name).write_bytes(b"another format")
    manifest, _ = ingest(storage_root, tmp_path)
    assert manifest.skipped == {reason: 1}


@pytest.mark.parametrize("names", [("X.npy", "Y.npy"), ("train/images.npy", "train/labels.npy")])
def test_arrays_in_npy_files_with_classes_as_one_hot_rows(
    tmp_path: Path, storage_root: Path, names: tuple[str, str]
) -> None:
    for name, values in zip(names, (COLOUR / np.float32(255), np.eye(3)[LABELS]), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, values)
    manifest, splits = ingest(storage_root, tmp_path)
    assert manifest.classes == ("0", "1", "2")
    same_rows(COLOUR, LABELS, splits)


def test_parquet_that_is_something_else_or_lacks_a_part_is_named(tmp_path: Path, storage_root: Path) -> None:
    table = pa.table({"image": [png(image) for image in GRAY], "label": LABELS})
    pq.write_table(table, tmp_path / "train-00001-of-00003.parquet")
    said = "2 of 3 files of a set are not there, like train-00000-of-00003.parquet."
    assert said in ingest(storage_root, tmp_path)[0].warnings
    (tmp_path / "test.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match=r"test.parquet is not Parquet: it is a pointer of Git LFS. Fetch"):
        ingest(storage_root, tmp_path)
    lists = [[{"bytes": png(image), "path": None}] for image in GRAY]
    pq.write_table(pa.table({"image": lists, "label": LABELS}), tmp_path / "train-00001-of-00003.parquet")
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DataError, match="has lists of pictures"):
        ingest(storage_root, tmp_path)


# Data sets of Hugging Face's library ----------------------------------------------------------------------

CLASSES = ["ant", "bee", "cow"]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
CARD = """---
dataset_info:
- config_name: small
  features:
  - name: label
    dtype: {class_label: {names: {'0': ant, '1': bee, '2': cow}}}
configs:
- config_name: small
  data_files:
  - {split: train, path: data/small-*}
  - {split: test, path: "data/held-[0-9]*"}
- config_name: large
  data_files: data/large-*
---
"""


def saved(folder: Path, rows: slice, features: Any = FEATURES, **columns: Any) -> Path:
    """What `save_to_disk` writes: a stream of batches, a list of the files, and their description."""
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    table = pa.table(columns or {"image": COLUMNS["encoded structs"](GRAY[rows]), "label": LABELS[rows]})
    with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder / name


def test_splits_that_save_to_disk_wrote(tmp_path: Path, storage_root: Path) -> None:
    files = [saved(tmp_path / split, rows) for split, rows in SPLIT_ROWS.items()]
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": [*SPLIT_ROWS]}))
    (tmp_path / "train" / "cache-1f.arrow").write_bytes(files[0].read_bytes())
    manifest, splits = ingest(storage_root, tmp_path)
    assert (manifest.classes, sum(manifest.rows.values())) == (("ant", "bee", "cow"), 60)
    np.testing.assert_array_equal(splits["test"][0][..., 0], GRAY[40:])
    assert manifest.skipped["a cache of Hugging Face's"] == 1


SPLIT_ROWS = {"train": slice(0, 40), "test": slice(40, 60)}


def test_arrow_files_with_an_index_are_read(tmp_path: Path, storage_root: Path) -> None:
    table = pa.table({"image": COLUMNS["encoded structs"](GRAY), "label": LABELS})
    with pa.OSFile(str(tmp_path / "a.feather"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    _, splits = ingest(storage_root, tmp_path)
    same_rows(GRAY[..., None], LABELS, splits)


def test_numbers_in_lists_have_the_names_of_their_labels(tmp_path: Path, storage_root: Path) -> None:
    features = {"labels": {"feature": {"names": CLASSES, "_type": "ClassLabel"}, "_type": "Sequence"}}
    images = COLUMNS["encoded structs"](GRAY)
    saved(tmp_path / "in", slice(0), features, image=images, labels=[[int(k), 2] for k in LABELS])
    config = Config(data=DataConfig(path=str(tmp_path / "in")), task=TaskConfig(kind="multilabel"))
    source = open_source(config, Storage(str(storage_root)))
    assert source.classes == ("ant", "bee", "cow")
    np.testing.assert_array_equal(source.splits["train"].labels[:3], [[1, 0, 1], [0, 1, 1], [0, 0, 1]])


def test_what_save_to_disk_wrote_and_lost_is_named(tmp_path: Path, storage_root: Path) -> None:
    file = saved(tmp_path / "a" / "train", slice(0, 60))
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    with pytest.raises(DataError, match=r"arrow cannot be read as Arrow: it is cut off. Fetch it again"):
        ingest(storage_root, tmp_path)
    file.rename(file.with_name("other.arrow"))
    with pytest.raises(DataError, match=r"state.json names .*data-00000-of-00001.arrow, which is not there"):
        ingest(storage_root, tmp_path)
    (tmp_path / "a" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(DataError, match=r"dataset_dict.json names the split test, which is not there"):
        ingest(storage_root, tmp_path / "a")
    paths = pa.array([{"bytes": None, "path": f"/home/me/{k}.png"} for k in range(60)])
    saved(tmp_path / "b", slice(0), image=paths, label=LABELS)
    with pytest.raises(DataError, match=r"(?s)names /home/me/0.png, which is not there.*to_parquet"):
        ingest(storage_root, tmp_path / "b")
    (tmp_path / "b" / "state.json").write_text('{"_indices_data_files": [{"filename": "x"}]}')
    with pytest.raises(DataError, match=r"state[.]json chooses rows by an index"):
        ingest(storage_root, tmp_path / "b")


def test_one_of_several_configurations_is_chosen(tmp_path: Path, storage_root: Path) -> None:
    for set_, first in (("a", 0), ("b", 30)):
        for split, rows in (("train", slice(first, first + 20)), ("test", slice(first + 20, first + 30))):
            (tmp_path / "in" / set_).mkdir(parents=True, exist_ok=True)
            table = pa.table({"image": COLUMNS["encoded structs"](GRAY[rows]), "label": LABELS[rows]})
            pq.write_table(table, tmp_path / "in" / set_ / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ConfigError, match=r"several configurations of a data set: a, b\. Set data.subset"):
        ingest(storage_root, tmp_path / "in")
    manifest, splits = ingest(storage_root, tmp_path / "in", subset="b")
    np.testing.assert_array_equal(splits["test"][0][..., 0], GRAY[50:])
    assert manifest.skipped == {"of another configuration": 2}
    with pytest.raises(ConfigError, match=r"data.subset = c, but .* has a, b"):
        ingest(storage_root, tmp_path / "in", subset="c")


def test_the_configurations_of_a_card(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "in" / "data").mkdir(parents=True)
    for name, rows in (("small-0", slice(0, 20)), ("held-0", slice(20, 30)), ("large-0", slice(0, 60))):
        table = pa.table({"image": COLUMNS["encoded structs"](GRAY[rows]), "label": LABELS[rows]})
        pq.write_table(table, tmp_path / "in" / "data" / f"{name}.parquet")
    (tmp_path / "in" / "README.md").write_text(CARD)
    with pytest.raises(ConfigError, match="several configurations of a data set: small, large"):
        ingest(storage_root, tmp_path / "in")
    manifest, splits = ingest(storage_root, tmp_path / "in", subset="small")
    assert manifest.classes == ("ant", "bee", "cow")
    np.testing.assert_array_equal(splits["test"][0][..., 0], GRAY[20:30])
    assert sum(ingest(storage_root, tmp_path / "in", subset="large", name="l")[0].rows.values()) == 60
    default = CARD.replace("- config_name: small\n  data", "- config_name: small\n  default: true\n  data")
    (tmp_path / "in" / "README.md").write_text(default)
    (tmp_path / "in" / "data" / "held-0.parquet").unlink()
    notes = ingest(storage_root, tmp_path / "in", name="d")[0].warnings
    assert "the configuration small is read, not large; data.subset chooses another one." in notes
    assert "data/held-[0-9]* of README.md names no file that is there." in notes


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("column", [False, True])
def test_rows_of_parquet_without_a_label_are_skipped_where_asked(
    tmp_path: Path, kind: str, column: bool
) -> None:
    """The others keep their pixels and their splits."""
    for name, first in (("a", 0), ("b", 30)):
        labels = [None if k % 10 == 3 else float(k % 2) for k in range(first, first + 30)]
        columns = {"image": tensor(GRAY[first : first + 30]), "label": labels}
        if column:
            columns["split"] = ["test" if k % 3 == 0 else "train" for k in range(first, first + 30)]
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    given = {"path": str(tmp_path), "on_error": "skip", "max_error_fraction": 0.2}
    source = open_source(
        Config.resolve({"data": given, "task": {"kind": kind}}), Storage(str(tmp_path / "store"))
    )
    assert [fault.name for fault in source.faults] == [
        f"row {at} of {name}.parquet" for name in "ab" for at in (4, 14, 24)
    ]
    left = np.array([k for k in range(60) if k % 10 != 3])
    parts = {"train": left[left % 3 != 0], "test": left[left % 3 == 0]} if column else {"train": left}
    assert set(source.splits) == set(parts)
    for split, rows in parts.items():
        some = source.splits[split]
        np.testing.assert_array_equal(np.ravel(some.labels), rows % 2)
        np.testing.assert_array_equal(some.gather(np.arange(len(rows))).images[..., 0], GRAY[rows])


def in_parquet(folder: Path, **columns: Any) -> Any:
    """What is understood of a file with these columns beside twelve pictures."""
    (folder / "set").mkdir()
    pictures_of = {"image": [png(image) for image in COLOUR[:12]]} if "url" not in columns else {}
    pq.write_table(pa.table({**pictures_of, **columns}), folder / "set" / "x.parquet")
    return open_source(Config(data=DataConfig(path=str(folder / "set"))), Storage(str(folder / "store")))


def test_parquet_has_lists_of_one_hot(tmp_path: Path) -> None:
    source = in_parquet(tmp_path, label=[[1 - k % 2, k % 2] for k in range(12)])
    assert source.splits["train"].labels.tolist() == [0, 1] * 6


def test_further_pictures_of_parquet_are_not_used_and_that_is_noted(tmp_path: Path) -> None:
    source = in_parquet(tmp_path, label=[0, 1] * 6, mask=[png(image) for image in COLOUR[:12]])
    assert source.notes == ("the pictures of image are used, not those of mask.",)


def test_objects_in_place_of_labels_and_addresses_of_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the column label of x\.parquet holds objects, like \{'id': 0"):
        in_parquet(tmp_path, label=[{"id": k % 2, "name": "ant"} for k in range(12)])
    (tmp_path / "other").mkdir()
    with pytest.raises(
        DataError, match=r"holds no pictures, but addresses in url, like https://example\.org/0"
    ):
        in_parquet(
            tmp_path / "other", url=[f"https://example.org/{k}.jpg" for k in range(12)], label=[0, 1] * 6
        )


@pytest.mark.parametrize("labels", [[["ant"], ["bee"]], np.eye(2, dtype=int), np.eye(2).astype(bool)])
def test_parquet_has_lists_of_one_label_and_columns_of_one_hot(tmp_path: Path, labels: Any) -> None:
    """As tables do."""
    columns = {"label": [labels[k % 2] for k in range(12)]}
    if not isinstance(labels, list):
        columns = {name: [row[at] for row in labels] * 6 for at, name in enumerate(("ant", "bee"))}
        columns["size"] = list(range(12))
    table = pa.table({"image": [png(image) for image in COLOUR[:12]], **columns})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "x.parquet")
    source = open_source(
        Config(data=DataConfig(path=str(tmp_path / "set"))), Storage(str(tmp_path / "store"))
    )
    assert source.classes == ("ant", "bee")
    assert source.splits["train"].labels.tolist() == [0, 1] * 6

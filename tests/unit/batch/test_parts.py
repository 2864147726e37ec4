"""Parts of a data set: every row in exactly one of them, the same twice for the same input and model."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distml.batch import parts
from distml.data import image, schema
from distml.data.image import Policy
from distml.data.listing import Folder
from distml.errors import DataError
from distml.tasks.multilabel import Multilabel
from distml.tasks.regression import Regression

SHAPE = (6, 5, 1)


def table(path: Path, rows: int, group: int, **more: Any) -> schema.Images:
    """Write a Parquet file of tensors; returns its images."""
    images = np.random.default_rng(rows).integers(0, 256, (rows, *SHAPE), np.uint8)
    made = schema.to_table(images, np.arange(rows, dtype=np.int32) % 3, np.arange(rows, dtype=np.int64))
    for name, values in more.items():
        made = made.append_column(name, pa.array(values))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, row_group_size=group)
    return images


def png(size: tuple[int, int] = (5, 6), value: int = 7) -> bytes:
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, format="PNG")
    return stream.getvalue()


def test_what_a_file_leaves_of_its_16_bits_is_noted(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name, top in (("a.png", 256), ("b.png", 4096), ("c.png", 65536)):
        values = rng.integers(0, top, SHAPE[:2], np.uint16)
        values[0, 0] = top - 1
        Image.fromarray(values).save(tmp_path / name)
    (tmp_path / "d.png").write_bytes(b"no picture")
    folder = Folder(str(tmp_path))
    [rows] = [
        rows for part in parts.plan(folder, "model") for rows in parts.read(folder, part, Policy(SHAPE))
    ]
    assert rows.unused_bits == [8, 4, 0]
    assert parts._codes(rows, None) == [["unused_bits"], ["unused_bits"], None]


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [
        (
            Multilabel(("cat", "dog"), thresholds=(0.5, 0.2)),
            [[0.75, 0.25]],
            {"labels": ["cat", "dog"], "probabilities": [0.75, 0.25]},
        ),
        (
            Regression(("length", "width")),
            [[3.5, -1.25]],
            {"predicted_length": 3.5, "predicted_width": -1.25},
        ),
    ],
)
def test_a_part_has_the_columns_of_its_task(task: Any, outputs: Any, expected: dict[str, Any]) -> None:
    batch = object.__new__(parts.Classifier)
    batch._version, batch._embedder = 3, None
    predict = np.array(outputs, np.float32).__getitem__
    predictor = SimpleNamespace(task=task, usual=None, predict=lambda images: predict(slice(len(images))))
    batch._predictor = cast(Any, predictor)
    identity = {"source": pa.array(["a.png", "b.png"])}
    images = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    rows = parts.Rows(identity, images, np.array([True, False]), [None, "b.png is broken"], [0])
    first, broken = batch._table(rows).to_pylist()
    rest = {"source": "a.png", "model_version": 3, "warnings": None, "error": None}
    assert first == expected | rest
    assert {name: broken[name] for name in expected} == dict.fromkeys(expected)
    assert broken["error"] == "b.png is broken"


def test_row_groups_are_gathered_into_parts_that_cover_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS", 100)
    images = {
        name: table(tmp_path / name, rows, 30) for name, rows in (("a.parquet", 250), ("b/c.parquet", 99))
    }
    folder = Folder(str(tmp_path))
    planned = parts.plan(folder, "model")
    assert [(item.names, item.groups, item.first) for item in planned] == [
        (("a.parquet",), (0, 4), 0),
        (("a.parquet",), (4, 8), 120),
        (("a.parquet",), (8, 9), 240),
        (("b/c.parquet",), (0, 4), 0),
    ]
    assert [item.at for item in planned] == [0, 1, 2, 3]
    read = [rows for item in planned for rows in parts.read(folder, item, Policy(SHAPE))]
    np.testing.assert_array_equal(
        np.concatenate([rows.images for rows in read]), np.concatenate(list(images.values()))
    )
    numbers = [row for rows in read for row in rows.identity["source_row"].to_pylist()]
    assert numbers == [*range(250), *range(99)]
    assert {name for rows in read for name in rows.identity} == {"source", "source_row", "label", "row"}


def test_a_part_is_named_after_input_and_model(tmp_path: Path) -> None:
    table(tmp_path / "a.parquet", 20, 10)
    first = parts.plan(Folder(str(tmp_path)), "model")[0]
    assert parts.plan(Folder(str(tmp_path)), "model") == [first]
    assert parts.Part.from_json(first.to_json()) == first
    assert parts.plan(Folder(str(tmp_path)), "other")[0].file != first.file
    table(tmp_path / "a.parquet", 30, 10)
    assert parts.plan(Folder(str(tmp_path)), "model")[0].file != first.file


def test_pictures_are_parts_of_a_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_PICTURES", 4)
    for at in range(10):
        place = tmp_path / f"class-{at % 2}" / f"{at}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(value=at))
    folder = Folder(str(tmp_path))
    planned = parts.plan(folder, "model")
    assert [len(item.names) for item in planned] == [4, 4, 2]
    read = [rows for item in planned for rows in parts.read(folder, item, Policy(SHAPE))]
    sources = [name for rows in read for name in rows.identity["source"].to_pylist()]
    assert sorted(sources) == sorted(folder.sizes)
    values = np.concatenate([rows.images[:, 0, 0, 0] for rows in read])
    assert values.tolist() == [int(Path(name).stem) for name in sources]


@pytest.mark.parametrize("column", ["jpg", "Photo", "scan"])
def test_the_images_of_a_table_may_be_called_otherwise(tmp_path: Path, column: str) -> None:
    content = {column: [png(), png(value=9)], "class": ["a", "b"], "id": [1, 2]}
    pq.write_table(pa.table(content), tmp_path / "a.parquet")
    folder = Folder(str(tmp_path))
    [rows] = [rows for part in parts.plan(folder, "m") for rows in parts.read(folder, part, Policy(SHAPE))]
    assert rows.images[:, 0, 0, 0].tolist() == [7, 9]
    assert set(rows.identity) == {"source", "source_row", "class", "id"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"text", "holds neither Parquet files nor pictures, nor tar"),
        ("a.parquet", b"no Parquet", "a.parquet cannot be read as Parquet"),
    ],
)
def test_an_unusable_data_set_is_an_error_message(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        parts.plan(Folder(str(tmp_path)), "model")


def test_a_table_without_images_is_an_error_message(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [1], "label": [2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column image, but picture, label"):
        parts.plan(Folder(str(tmp_path)), "model")


def rows_of(folder: Path, column: Any) -> parts.Rows:
    pq.write_table(
        pa.table({"image": column, "id": [f"id {at}" for at in range(len(column))]}), folder / "a.parquet"
    )
    result = Folder(str(folder))
    (part,) = parts.plan(result, "model")
    (rows,) = parts.read(result, part, Policy(SHAPE))
    assert rows.identity["id"].to_pylist() == [f"id {at}" for at in range(len(column))]
    return rows


def test_an_unreadable_image_does_not_affect_its_batch(tmp_path: Path) -> None:
    given = [png(value=1), b"no picture", None, png((50, 60), 4)]
    rows = rows_of(tmp_path, pa.array(given, pa.binary()))
    assert rows.readable.tolist() == [True, False, False, True]
    assert rows.images[:, 0, 0, 0].tolist() == [1, 4]
    assert rows.errors[0] is rows.errors[3] is None
    assert "not a readable picture" in str(rows.errors[1])
    assert rows.errors[2] == "there is no image."


def test_an_unusable_array_does_not_affect_its_batch(tmp_path: Path) -> None:
    good = np.full(SHAPE[:2], 9, np.int64).tolist()
    beyond = np.full(SHAPE[:2], 300, np.int64).tolist()
    other = np.full((3, 3), 9, np.int64).tolist()
    rows = rows_of(tmp_path, pa.array([good, beyond, None, other, good], pa.list_(pa.list_(pa.int64()))))
    assert rows.readable.tolist() == [True, False, False, False, True]
    assert rows.images.shape == (2, *SHAPE)
    assert "span 300 to 300" in str(rows.errors[1])
    assert rows.errors[2] == "there is no image."
    assert rows.errors[3] == "the image is [3, 3, 1], the model takes [6, 5, 1]."


PLAIN = Policy(SHAPE)


def all_rows(path: Path, policy: Policy = PLAIN, refit: bool = False) -> list[parts.Rows]:
    folder = Folder(str(path))
    return [
        rows
        for part in parts.plan(folder, "m")
        for rows in parts.read(Folder(str(path)), part, policy, refit)
    ]


def test_the_pictures_of_tar_files_are_read_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_PICTURES", 2)
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as packed:
            for at in range(3):
                for ending, content in (("png", png(value=10 * shard + at)), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{at}.{ending}")
                    member.size = len(content)
                    packed.addfile(member, io.BytesIO(content))
    read = all_rows(tmp_path)
    assert [len(rows.images) for rows in read] == [2, 1, 2, 1]
    assert np.concatenate([rows.images[:, 0, 0, 0] for rows in read]).tolist() == [0, 1, 2, 10, 11, 12]
    assert read[3].identity["source"].to_pylist() == ["1.tar/2.png"]
    (tmp_path / "2.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(DataError, match=r"2.tar cannot be read as a tar file"):
        all_rows(tmp_path)


def test_files_of_arrays_are_read_with_what_they_say_of_each_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "ROWS", 4)
    images = np.random.default_rng(0).integers(0, 256, (10, *SHAPE), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images[:7], y_train=np.arange(7), x_test=images[7:])
    (tmp_path / "README.md").write_text("what it is")
    read = all_rows(tmp_path)
    assert [len(rows.images) for rows in read] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate([rows.images for rows in read]), images)
    assert read[1].identity["source_row"].to_pylist() == [4, 5, 6, 7]
    assert read[1].identity["array"].to_pylist() == ["x_train"] * 3 + ["x_test"]
    folder = Folder(str(tmp_path))
    parts.plan(folder, "m")
    assert folder.ledger.reasons == {"README.md": "no file of images"}


def test_a_table_of_pixels_without_labels_keeps_its_other_columns(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
    lines = ["id," + ",".join(f"pixel{at}" for at in range(16))]
    lines += [f"{row + 100}," + ",".join(map(str, image.ravel())) for row, image in enumerate(images)]
    (tmp_path / "test.csv").write_text("\n".join(lines))
    [rows] = all_rows(tmp_path, Policy((4, 4, 1)))
    np.testing.assert_array_equal(rows.images, images)
    assert rows.identity["id"].to_pylist() == [100, 101, 102]
    lines[1] = "100," + "," * 15
    (tmp_path / "test.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"has no value in some rows of pixel0"):
        all_rows(tmp_path)


def test_idx_images_need_no_labels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5), np.uint8)
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
    (tmp_path / "new-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    [rows] = all_rows(tmp_path)
    np.testing.assert_array_equal(rows.images[..., 0], images)


def test_arrays_of_another_size_are_fitted_where_training_fitted_its_own(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 1), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    [rows] = all_rows(tmp_path)
    assert rows.errors == ["the image is [12, 10, 1], the model takes [6, 5, 1]."] * 3
    [rows] = all_rows(tmp_path, refit=True)
    np.testing.assert_array_equal(rows.images, image.refit(images, Policy(SHAPE)))
    (tmp_path / "a.npz").unlink()
    table_images = pa.array([each.ravel().tolist() for each in images], pa.list_(pa.int64(), 120))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.int64(), (12, 10)), table_images)
    pq.write_table(pa.table({"image": tensors}), tmp_path / "a.parquet")
    [rows] = all_rows(tmp_path, refit=True)
    np.testing.assert_array_equal(rows.images, image.refit(images, Policy(SHAPE)))


def test_arrays_without_a_known_name_are_an_error_message(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", first=np.zeros((1, 6, 5), np.uint8))
    with pytest.raises(DataError, match=r"a\.npz holds first; none is called images"):
        all_rows(tmp_path)


def test_pictures_without_an_ending_are_predicted_and_others_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(png(value=3))
    (tmp_path / "notes.txt").write_text("no picture")
    folder = Folder(str(tmp_path))
    [part] = parts.plan(folder, "m")
    assert part.names == ("photo",)
    assert folder.ledger.counts() == {"no picture": 1}

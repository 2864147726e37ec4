"""Tables beside pictures, arrays in files: as public sets come."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distml.config import Config, DataConfig, TaskConfig
from distml.data import ingestion, shards
from distml.data.manifest import Manifest
from distml.data.opening import open_source
from distml.errors import DataError
from distml.storage import Storage
from tests import zoo

RANDOM = np.random.default_rng(0)
LABELS = np.arange(60) % 3
NAMES = np.array(["ant", "bee", "cow"])[LABELS]


def ingest(root: Path, path: Path, **data: Any) -> Manifest:
    config = Config(data=DataConfig(shards=2, path=str(path), **data))
    return ingestion.prepare(config, Storage(str(root)))


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Sixty pictures in one folder, without a label."""
    folder = tmp_path / "given"
    (folder / "images").mkdir(parents=True)
    for k in range(60):
        picture = zoo.drawn(8 + k % 3, 8)
        picture.putpixel((0, 0), (k, k, k))
        (folder / "images" / f"{k}.png").write_bytes(zoo.encoded(picture, "PNG"))
    return folder


def rows(**columns: Any) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def as_csv(table: list[dict[str, Any]], mark: str = ",") -> bytes:
    lines = [mark.join(table[0]), *(mark.join(map(str, row.values())) for row in table)]
    return "\ufeff".encode() + "\r\n".join(lines).encode()


WRITERS: dict[str, Any] = {
    "metadata.csv": as_csv,
    "labels.csv": lambda table: as_csv(table, ";"),
    "metadata.tsv": lambda table: as_csv(table, "\t"),
    "metadata.jsonl": lambda table: "\n".join(map(json.dumps, table)).encode(),
}
FILES = [f"images/{k}.png" for k in range(60)]


@pytest.mark.parametrize("name", [*WRITERS, "metadata.parquet", "labels.pq"])
def test_labels_are_read_from_a_table(given: Path, storage_root: Path, name: str) -> None:
    table = rows(file_name=FILES, label=NAMES.tolist())
    if name not in WRITERS:
        pq.write_table(pa.Table.from_pylist(table), given / name)
    else:
        (given / name).write_bytes(WRITERS[name](table))
    manifest = ingest(storage_root, given, image_size=8)
    assert manifest.classes == ("ant", "bee", "cow")
    assert sum(manifest.rows.values()) == 60
    assert manifest.skipped == {}


def test_other_names_of_columns_and_files_without_an_ending(given: Path, storage_root: Path) -> None:
    table = rows(id=[str(k) for k in range(60)], breed=NAMES.tolist(), age=[1] * 60)
    (given / "labels.csv").write_bytes(as_csv(table[:57]))
    manifest = ingest(storage_root, given, image_size=8)
    assert sum(manifest.rows.values()) == 57
    assert manifest.skipped == {"in no table": 3}


def test_splits_are_read_from_a_column(given: Path, storage_root: Path) -> None:
    splits = ["training"] * 40 + ["val"] * 10 + ["test"] * 10
    (given / "metadata.csv").write_bytes(as_csv(rows(file_name=FILES, label=LABELS.tolist(), split=splits)))
    manifest = ingest(storage_root, given, image_size=8)
    assert manifest.rows == {"train": 40, "validation": 10, "test": 10}


def test_a_table_in_the_folder_of_each_split(given: Path, storage_root: Path) -> None:
    for split, some in (("train", range(40)), ("test", range(40, 60))):
        (given / split).mkdir()
        for k in some:
            (given / "images" / f"{k}.png").rename(given / split / f"{k}.png")
        table = rows(file_name=[f"{k}.png" for k in some], label=[int(LABELS[k]) for k in some])
        (given / split / "metadata.jsonl").write_bytes(WRITERS["metadata.jsonl"](table))
    assert ingest(storage_root, given, image_size=8).rows["test"] == 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"file_name": ["images/gone.png", *FILES[1:]]}, "row 1 of metadata.csv names images/gone.png"),
        ({"label": ["", *NAMES[1:]]}, "row 1 of metadata.csv has no label"),
        ({"split": ["later", *["train"] * 59]}, "row 1 of metadata.csv has the split later"),
        ({"is_valid": ["True", "False", *[""] * 58]}, "row 3 of metadata.csv has no split"),
    ],
)
def test_errors_in_a_table_are_named(
    given: Path, storage_root: Path, change: dict[str, Any], said: str
) -> None:
    columns = {"file_name": FILES, "label": NAMES.tolist(), **change}
    (given / "metadata.csv").write_bytes(as_csv(rows(**columns)))
    with pytest.raises(DataError, match=said):
        ingest(storage_root, given)


def test_ambiguous_columns_of_a_table_are_rejected(given: Path, storage_root: Path) -> None:
    (given / "metadata.csv").write_bytes(as_csv(rows(file_name=FILES, kind=NAMES.tolist(), site=FILES)))
    with pytest.raises(DataError, match=r"has no column that may be the label: kind, site. Set data.label"):
        ingest(storage_root, given)
    assert ingest(storage_root, given, label_column="kind", image_size=8).num_classes == 3


IMAGES = RANDOM.integers(0, 256, (60, 6, 6), np.uint8)


def test_npz_of_one_or_several_archives(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "a" / "x.npz", x_train=IMAGES[:40], y_train=LABELS[:40], x_test=IMAGES, y_test=LABELS)
    assert ingest(storage_root, tmp_path / "a").rows["test"] == 60
    np.savez(tmp_path / "b" / "train.npz", images=IMAGES[:40], labels=LABELS[:40, None])
    np.savez(tmp_path / "b" / "test.npz", images=IMAGES[40:], labels=LABELS[40:, None])
    manifest = ingest(storage_root, tmp_path / "b")
    assert (manifest.rows["test"], manifest.shape) == (20, (6, 6, 1))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x_train": IMAGES}, "has no train labels"),
        ({"weights": IMAGES, "y": LABELS}, "'weights' is not a known name"),
        ({"x": np.array([{}]), "y": LABELS}, "cannot be read as NumPy arrays"),
    ],
)
def test_npz_that_cannot_be_used(
    tmp_path: Path, storage_root: Path, arrays: dict[str, Any], said: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=said):
        ingest(storage_root, tmp_path / "x.npz")


def pixels(depth: int = 1, label: str = "label") -> bytes:
    values = RANDOM.integers(0, 256, (60, 36 * depth))
    header = ",".join([label, *(f"pixel{k}" for k in range(36 * depth))])
    return "\n".join(
        [header, *(",".join(map(str, [y, *x])) for x, y in zip(values, LABELS, strict=True))]
    ).encode()


def test_csv_of_pixels(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "in").mkdir()
    for split in ("train", "test"):
        (tmp_path / "in" / f"{split}.csv").write_bytes(pixels(3))
    manifest = ingest(storage_root, tmp_path / "in")
    assert (manifest.shape, manifest.rows["test"]) == ((6, 6, 3), 60)
    (tmp_path / "x.csv").write_bytes(pixels(1, "sort"))
    assert ingest(storage_root, tmp_path / "x.csv", format="csv_pixels", label_column="sort").shape == (
        6,
        6,
        1,
    )
    for wrong, said in (
        (pixels(1, "sort"), "no column of labels"),
        (pixels(2), "72 pixels a row, which is not square"),
        (pixels().replace(b"\n0,", b"\n0,x", 1), "pixels of string"),
    ):
        (tmp_path / "x.csv").write_bytes(wrong)
        with pytest.raises(DataError, match=said):
            ingest(storage_root, tmp_path / "x.csv", format="csv_pixels")


@pytest.mark.parametrize("column", ["image_id", "image"])
def test_the_tables_of_a_contest_say_the_labels(given: Path, storage_root: Path, column: str) -> None:
    (given / "images").rename(given / "train")
    (given / "test").mkdir()
    (given / "train" / "59.png").rename(given / "test" / "59.png")
    train = rows(**{column: [str(k) for k in range(59)], "label": NAMES[:59].tolist()})
    (given / "train.csv").write_bytes(as_csv(train))
    (given / "test.csv").write_bytes(as_csv(rows(**{column: ["59"]})))
    (given / "sample_submission.csv").write_bytes(as_csv(rows(**{column: ["59"], "label": ["ant"]})))
    manifest = ingest(storage_root, given, image_size=8)
    assert manifest.classes == ("ant", "bee", "cow")
    assert sum(manifest.rows.values()) == 59
    assert manifest.skipped == {"a test table without labels": 1, "in no table": 1, "no picture": 1}


def test_paths_of_another_machine_and_a_table_of_each_split(given: Path, storage_root: Path) -> None:
    for split, some in (("train", range(40)), ("test", range(40, 60))):
        places = [f"C:\\data\\flowers\\images\\{k}.png" for k in some]
        table = rows(**{"": list(some), "image": places, "label": [NAMES[k] for k in some]})
        (given / f"{split}.csv").write_bytes(as_csv(table))
    manifest = ingest(storage_root, given, image_size=8)
    assert (manifest.rows["test"], manifest.classes) == (20, ("ant", "bee", "cow"))


def test_columns_of_zeros_and_a_one_say_the_class(given: Path, storage_root: Path) -> None:
    hot = {name: [f"{float(label == name)}" for label in NAMES] for name in ("ant", "bee", "cow")}
    (given / "GroundTruth.csv").write_bytes(as_csv(rows(image=[f"{k}" for k in range(60)], **hot)))
    manifest = ingest(storage_root, given, image_size=8)
    assert manifest.classes == ("ant", "bee", "cow")
    _, labels = shards.read(Storage(str(storage_root)), manifest, "train")
    assert len(set(np.bincount(labels).tolist())) == 1


def test_a_table_beside_class_folders_is_no_table_of_labels(given: Path, storage_root: Path) -> None:
    for k in range(60):
        (given / "images" / NAMES[k]).mkdir(exist_ok=True)
        (given / "images" / f"{k}.png").rename(given / "images" / NAMES[k] / f"{k}.png")
    (given / "boxes.csv").write_bytes(as_csv(rows(image=[f"{k}.png" for k in range(60)], label=[1] * 60)))
    assert ingest(storage_root, given, image_size=8).classes == ("ant", "bee", "cow")


def test_splits_within_class_folders_are_splits(given: Path, storage_root: Path) -> None:
    for k in range(60):
        place = given / NAMES[k] / ("test" if k >= 48 else "train")
        place.mkdir(parents=True, exist_ok=True)
        (given / "images" / f"{k}.png").rename(place / f"{k}.png")
    manifest = ingest(storage_root, given, image_size=8)
    assert (manifest.classes, manifest.rows["test"]) == (("ant", "bee", "cow"), 12)


def test_a_test_split_without_classes_is_left_out_and_counted(given: Path, storage_root: Path) -> None:
    for k in range(60):
        place = given / "train" / NAMES[k] if k < 54 else given / "test"
        place.mkdir(parents=True, exist_ok=True)
        (given / "images" / f"{k}.png").rename(place / f"{k}.png")
    manifest = ingest(storage_root, given, image_size=8)
    assert sum(manifest.rows.values()) == 54
    assert manifest.skipped == {"a test picture without a class": 6}


def test_spaces_around_headers_and_fields_are_ignored(given: Path, storage_root: Path) -> None:
    lines = [
        f"{file}, {int(name == 'ant')}, {int(name != 'ant')}" for file, name in zip(FILES, NAMES, strict=True)
    ]
    (given / "labels.csv").write_text("\n".join(["filename, ant, other", *lines]))
    assert ingest(storage_root, given, image_size=8).classes == ("ant", "other")


def test_two_labels_of_one_picture_are_rejected(given: Path, storage_root: Path) -> None:
    table = rows(file_name=[*FILES, FILES[0]], label=[*NAMES.tolist(), "ant"])
    (given / "labels.csv").write_bytes(as_csv(table))
    assert sum(ingest(storage_root, given, image_size=8).rows.values()) == 60
    table[-1]["label"] = "cow"
    (given / "labels.csv").write_bytes(as_csv(table))
    with pytest.raises(
        DataError, match=r"row 61 of labels.csv gives images/0.png the label cow, an earlier row ant"
    ):
        ingest(storage_root, given, image_size=8)


def test_a_row_with_more_fields_than_the_header_is_rejected(given: Path, storage_root: Path) -> None:
    (given / "labels.csv").write_text("file_name,label\nimages/0.png,ant,big\n")
    with pytest.raises(DataError, match="more fields than the header, from 'big' on"):
        ingest(storage_root, given)


def test_a_table_means_the_pictures_of_its_own_split(given: Path, storage_root: Path) -> None:
    (given / "images").rename(given / "train_images")
    (given / "test_images").mkdir()
    for k in range(3):
        (given / "test_images" / f"{k}.png").write_bytes(zoo.encoded(zoo.drawn(8, 8), "PNG"))
    table = rows(image_id=[f"{k}.png" for k in range(60)], label=LABELS.tolist())
    (given / "train.csv").write_bytes(as_csv(table))
    manifest = ingest(storage_root, given, image_size=8)
    assert sum(manifest.rows.values()) == 60
    assert manifest.skipped == {"in no table": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "labels.csv has no rows"),
        (b"file_name,label\n", "labels.csv has no rows"),
        (b"images/0.png,ant\nimages/1.png,bee\n", "begins with images/0.png and not with the names"),
        (
            "file_name,label\nimages/0.png,caf\u00e9\n".encode("latin-1"),
            "not UTF-8: line 2 has the byte b'.xe9'",
        ),
        (b"file_name,label\nimages/0.png,NaN\n", "row 1 of labels.csv has no label"),
    ],
)
def test_tables_that_programs_write_wrongly_are_named(
    given: Path, storage_root: Path, content: bytes, said: str
) -> None:
    (given / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        ingest(storage_root, given)


def test_a_table_of_a_spreadsheet_is_read(given: Path, storage_root: Path) -> None:
    table = rows(**{"File Name": FILES, "Class": NAMES.tolist()})
    (given / "labels.csv").write_bytes(as_csv(table, "\t").decode("utf-8-sig").encode("utf-16"))
    assert ingest(storage_root, given, image_size=8).classes == ("ant", "bee", "cow")


def test_the_column_of_files_is_the_one_whose_values_are_files(given: Path, storage_root: Path) -> None:
    names = [Path(name).name for name in FILES]
    table = rows(id=[str(k) for k in range(60)], Dateiname=names, Klasse=NAMES.tolist())
    (given / "labels.csv").write_bytes(as_csv(table, ";"))
    assert ingest(storage_root, given, label_column="Klasse", name="asked").classes == ("ant", "bee", "cow")
    (given / "labels.csv").write_bytes(as_csv(rows(Dateiname=names, Klasse=NAMES.tolist()), ";"))
    manifest = ingest(storage_root, given)
    assert manifest.classes == ("ant", "bee", "cow")
    assert any("labels are taken from Klasse" in warning for warning in manifest.warnings)


FLAGS: dict[str, Any] = {"ant": [k % 2 for k in range(60)], "bee": [bool(k % 3) for k in range(60)]}


def test_columns_of_0_and_1_are_labels_of_the_multilabel_task(given: Path, storage_root: Path) -> None:
    (given / "_classes.csv").write_bytes(as_csv(rows(filename=FILES, **FLAGS)))
    with pytest.raises(DataError, match=r"ant, bee hold 0 and 1.* Set task.kind to multilabel"):
        ingest(storage_root, given)
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    manifest = ingestion.prepare(config, Storage(str(storage_root)))
    assert manifest.task.names == ("ant", "bee")
    assert any("labels are taken from ant, bee" in warning for warning in manifest.warnings)


def test_text_files_that_list_the_splits_of_a_table(given: Path, storage_root: Path) -> None:
    (given / "Data_Entry.csv").write_bytes(as_csv(rows(file_name=FILES, label=NAMES.tolist())))
    (given / "train_val_list.txt").write_text("\n".join(f"{k}.png" for k in range(45)))
    (given / "test_list.txt").write_text("\n".join(f"{k}.png" for k in range(45, 60)))
    manifest = ingest(storage_root, given)
    assert manifest.rows["test"] == 15
    assert manifest.rows["train"] + manifest.rows["validation"] == 45


ATTRIBUTES = {"Smiling": LABELS == 0, "Young": np.arange(60) % 2 == 0}


def celeba(folder: Path, splits: np.ndarray[Any, Any], csv: bool) -> None:
    """The lists of CelebA as its authors publish them, or as Kaggle does."""
    ending, mark = (".csv", ",") if csv else (".txt", " ")
    signs = {name: np.where(flags, "1", "-1") for name, flags in ATTRIBUTES.items()}
    columns: dict[str, dict[str, Any]] = {
        "list_attr_celeba": signs,
        "list_bbox_celeba": {"x_1": range(60), "y_1": range(60), "width": [8] * 60, "height": [8] * 60},
        "list_landmarks_align_celeba": {"lefteye_x": range(60), "lefteye_y": range(60)},
        "list_eval_partition": {"partition": splits},
    }
    for name, columns_of in columns.items():
        header = [] if name == "list_eval_partition" and not csv else [["image_id"] * csv + list(columns_of)]
        of_rows = [[f"{k}.png", *(str(values[k]) for values in columns_of.values())] for k in range(60)]
        lines = [mark.join(line) for line in (*header, *of_rows)]
        counted = ["60"] if header and not csv else []
        (folder / f"{name}{ending}").write_text("\n".join([*counted, *lines, ""]))
    if not csv:
        (folder / "identity_CelebA.txt").write_text("".join(f"{k}.png {k % 7}\n" for k in range(60)))


@pytest.mark.parametrize("csv", [False, True], ids=["txt", "csv"])
def test_the_lists_of_celeba_are_read(given: Path, storage_root: Path, csv: bool) -> None:
    celeba(given, np.repeat([0, 1, 2], [40, 10, 10]), csv)
    config = Config(data=DataConfig(path=str(given), shards=2), task=TaskConfig(kind="multilabel"))
    source = open_source(config, Storage(str(storage_root)))
    assert source.task.names == tuple(ATTRIBUTES)
    expected = np.stack(list(ATTRIBUTES.values()), axis=1).astype(int)
    bounds = {"train": (0, 40), "validation": (40, 50), "test": (50, 60)}
    for split, (start, end) in bounds.items():
        np.testing.assert_array_equal(source.splits[split].labels, expected[start:end])


def test_a_list_below_its_number_of_rows_is_read(given: Path) -> None:
    lines = [f"images/{k}.png      {NAMES[k]}" for k in range(60)]
    path = given / "list_category_img.txt"
    path.write_text("\n".join(["60", "image_name  category_label", *lines]))
    config, storage = Config(data=DataConfig(path=str(given))), Storage(str(given / "store"))
    assert open_source(config, storage).splits["train"].labels.tolist() == LABELS.tolist()
    path.write_text("\n".join(["60", "image_name  category_label", *lines[:50]]))
    with pytest.raises(DataError, match="its first line announces 60 rows, and 50 are there"):
        open_source(config, storage)
    path.write_text("\n".join(["60", "image_name  category_label", *lines[:59], "images/59.png"]))
    with pytest.raises(DataError, match="line 62 has 1 fields for 2 columns"):
        open_source(config, storage)


COCO = {
    "images": [{"id": k, "file_name": f"{k}.png"} for k in range(60)],
    "categories": [{"id": k + 7, "name": name} for k, name in enumerate(("ant", "bee", "cow"))],
    "annotations": [{"id": k, "image_id": k, "category_id": LABELS[k].item() + 7} for k in range(60)],
}


@pytest.mark.parametrize(
    "told",
    [
        dict(zip(FILES, NAMES.tolist(), strict=True)),
        rows(file_name=FILES, label=[[name] for name in NAMES.tolist()]),
        COCO,
        rows(image=FILES, annotations=[[{"label": name, "coordinates": {"x": 4}}] * 2 for name in NAMES]),
        rows(image=FILES, annotation=[{"label": name, "score": 1} for name in NAMES]),
    ],
)
def test_labels_are_read_from_json(given: Path, storage_root: Path, told: Any) -> None:
    (given / "labels.json").write_text(json.dumps(told))
    assert ingest(storage_root, given).classes == ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ([1, 2], "labels.json cannot be read as a table: it is not a list of objects"),
        ({**COCO, "annotations": [{"image_id": 99, "category_id": 7}]}, "but 99 is missing in one"),
        ({name: ["ant", "bee"] for name in FILES}, "has several labels.* set task.kind to multilabel"),
        ({name: [] for name in FILES}, "has no label"),
        (
            rows(image=FILES, annotations=[[{"label": "ant"}], *[[]] * 59]),
            "row 2 of labels.json has no label",
        ),
    ],
)
def test_json_without_a_label_for_each_image_is_rejected(
    given: Path, storage_root: Path, told: Any, said: str
) -> None:
    (given / "labels.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=said):
        ingest(storage_root, given)


def test_rows_of_one_table_are_divided_by_the_folders_of_their_pictures(
    given: Path, storage_root: Path
) -> None:
    for split, which in (("train2017", range(40)), ("val2017", range(40, 60))):
        (given / split).mkdir()
        for k in which:
            (given / "images" / f"{k}.png").rename(given / split / f"{k}.png")
    (given / "annotations").mkdir()
    (given / "annotations" / "instances.json").write_text(json.dumps(COCO))
    assert ingest(storage_root, given).rows["validation"] == 20


def test_json_of_something_else_beside_class_folders_is_no_table(given: Path, storage_root: Path) -> None:
    for k, name in enumerate(NAMES.tolist()):
        (given / name).mkdir(exist_ok=True)
        (given / "images" / f"{k}.png").rename(given / name / f"{k}.png")
    (given / "metadata.json").write_text(json.dumps({"license": "CC0", "authors": {"first": "A"}}))
    assert ingest(storage_root, given).skipped == {"no picture": 1}


@pytest.mark.parametrize(
    "start", ["C:\\\\Users\\\\me\\\\set\\\\", "/content/drive/set/", "https://host/set/"]
)
def test_paths_of_another_machine_mean_the_file_in_the_same_folders(
    tmp_path: Path, storage_root: Path, start: str
) -> None:
    given, table = tmp_path / "given", []
    for kind in ("ant", "bee"):
        (given / "images" / kind).mkdir(parents=True)
        for k in range(12):
            picture = zoo.drawn(8, 8)
            picture.putpixel((0, 0), (k, k, 0 if kind == "ant" else 99))
            (given / "images" / kind / f"{k}.PNG").write_bytes(zoo.encoded(picture, "PNG"))
            table.append({"path": f"{start}{kind}{start[-1]}{k}.png", "label": kind})
    (given / "labels.csv").write_bytes(as_csv(table))
    assert ingest(storage_root, given).classes == ("ant", "bee")
    names = json.loads(next(storage_root.rglob("names.json")).read_text())
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(storage_root)))
    rows_of = source.splits["train"]
    for row, label in enumerate(rows_of.labels.tolist()):
        assert f"/{source.classes[label]}/" in rows_of.name(row)
    assert len(names["test"]) == 4


def test_rows_whose_picture_is_not_there_are_counted_and_can_be_skipped(
    given: Path, storage_root: Path
) -> None:
    (given / "metadata.csv").write_bytes(as_csv(rows(file_name=FILES, label=NAMES.tolist())))
    for k in (3, 7):
        (given / "images" / f"{k}.png").unlink()
    with pytest.raises(DataError, match=r"2 pictures cannot be used, of 60.*\n.*\n.*\n Correct the table"):
        ingest(storage_root, given)
    manifest = ingest(storage_root, given, on_error="skip", max_error_fraction=0.1)
    assert sum(manifest.rows.values()) == 58
    assert manifest.left_out[0] == (
        "images/3.png",
        "row 4 of metadata.csv names images/3.png, which is not there.",
    )


def test_a_table_that_names_no_picture_is_rejected_even_where_rows_are_skipped(
    given: Path, storage_root: Path
) -> None:
    (given / "metadata.csv").write_bytes(as_csv(rows(file_name=["a.png", "b.png"], label=["ant", "bee"])))
    with pytest.raises(DataError, match="2 pictures cannot be used, more than"):
        ingest(storage_root, given, on_error="skip", max_error_fraction=0.99)


def test_one_hot_columns_say_the_class_in_every_split(given: Path, storage_root: Path) -> None:
    for split, some in (("train", range(40)), ("valid", range(40, 50)), ("test", range(50, 60))):
        (given / split).mkdir()
        for k in some:
            (given / "images" / f"{k}.png").rename(given / split / f"{k}.png")
        hot = {f" {name}": [int(NAMES[k] == name) for k in some] for name in ("ant", "bee", "cow")}
        (given / split / "_classes.csv").write_bytes(as_csv(rows(filename=[f"{k}.png" for k in some], **hot)))
    manifest = ingest(storage_root, given)
    assert (manifest.rows, manifest.skipped) == ({"train": 40, "validation": 10, "test": 10}, {})


def test_lines_of_commas_are_no_rows(given: Path, storage_root: Path) -> None:
    told = as_csv(rows(file_name=FILES, label=NAMES.tolist(), note=[""] * 60)) + b"\r\n,,\r\n,,\r\n"
    (given / "labels.csv").write_bytes(told)
    assert sum(ingest(storage_root, given).rows.values()) == 60


def test_a_table_of_the_classes_beside_class_folders_is_left_out(given: Path, storage_root: Path) -> None:
    for k, name in enumerate(NAMES.tolist()):
        (given / name).mkdir(exist_ok=True)
        (given / "images" / f"{k}.png").rename(given / name / f"{k}.png")
    (given / "labels.csv").write_bytes(as_csv(rows(label=[0, 1, 2], name=["ant", "bee", "cow"])))
    assert ingest(storage_root, given).skipped == {"no picture": 1}
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=["gone.png"], label=["ant"])))
    with pytest.raises(DataError, match=r"names gone.png"):
        ingest(storage_root, given)


def test_files_without_an_ending_are_found_by_their_content(given: Path, storage_root: Path) -> None:
    for k in range(60):
        (given / "images" / f"{k}.png").rename(given / f"{k}")
    (given / "labels.csv").write_bytes(as_csv(rows(id=list(range(60)), label=NAMES.tolist())))
    assert sum(ingest(storage_root, given).rows.values()) == 60


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("labels.json", "lines"),
        ("metadata.jsonl", "list"),
        ("labels.json", "key"),
        ("metadata.jsonl", "lines"),
    ],
)
def test_the_content_decides_between_json_and_json_lines(
    given: Path, storage_root: Path, name: str, form: str
) -> None:
    table = rows(file_name=FILES, label=NAMES.tolist())
    told = {
        "lines": "\n".join(map(json.dumps, table)),
        "list": json.dumps(table, indent=1),
        "key": json.dumps({"version": 1, "data": table}),
    }
    (given / name).write_text(told[form])
    assert ingest(storage_root, given).classes == ("ant", "bee", "cow")


def test_splits_are_in_any_word_of_the_names_of_several_tables(given: Path, storage_root: Path) -> None:
    for name, some in (("labels_train.csv", slice(0, 40)), ("labels_test.csv", slice(40, 60))):
        table = rows(file_name=FILES[some], label=NAMES[some].tolist())
        (given / name).write_bytes(as_csv(table))
    assert ingest(storage_root, given, image_size=8).rows["test"] == 20


def test_rows_of_all_tables_of_pixels_are_kept(tmp_path: Path, storage_root: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("mnist_train.csv", "mnist_test.csv"):
        (tmp_path / "in" / name).write_bytes(pixels())
    manifest = ingest(storage_root, tmp_path / "in")
    assert (sum(manifest.rows.values()), manifest.rows["test"]) == (120, 60)
    (tmp_path / "parts").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "parts" / name).write_bytes(pixels())
    assert sum(ingest(storage_root, tmp_path / "parts", name="parts").rows.values()) == 120


def test_the_column_of_splits_that_vertex_writes(given: Path, storage_root: Path) -> None:
    uses = ["TRAIN"] * 40 + ["VALIDATION"] * 5 + ["TEST"] * 15
    table = rows(ML_USE=uses, GCS_FILE_PATH=[f"gs://bucket/{name}" for name in FILES], label=NAMES.tolist())
    (given / "import.csv").write_bytes(as_csv(table))
    assert ingest(storage_root, given, image_size=8).rows == {"train": 40, "validation": 5, "test": 15}


def test_a_spreadsheet_beside_pictures_is_named(given: Path, storage_root: Path) -> None:
    (given / "labels.xlsx").write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match=r"labels.xlsx is a spreadsheet, which is not read. Save it as CSV"):
        ingest(storage_root, given, image_size=8)


def test_a_table_with_a_column_twice_is_rejected_and_excels_first_line_is_read(
    given: Path, storage_root: Path
) -> None:
    table = as_csv(rows(file_name=FILES, label=NAMES.tolist()), ";").decode("utf-8-sig")
    (given / "labels.csv").write_text("sep=;\n" + table, encoding="utf-8")
    assert ingest(storage_root, given, image_size=8).classes == ("ant", "bee", "cow")
    (given / "labels.csv").write_text(table.replace("label", "label;label", 1), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"labels.csv cannot be read as a table: it has the column label twice"
    ):
        ingest(storage_root, given, image_size=8)


def test_composed_and_decomposed_names_are_one_class(given: Path, storage_root: Path) -> None:
    names = ["caf\u00e9", "cafe\u0301", "dog"] * 20
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=FILES, label=names)))
    assert ingest(storage_root, given, image_size=8).classes == ("caf\u00e9", "dog")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
def test_tables_in_other_unicode_encodings_are_read(given: Path, storage_root: Path, encoding: str) -> None:
    text = as_csv(rows(file_name=FILES, label=["chât", "dog"] * 30)).decode("utf-8-sig")
    (given / "labels.csv").write_bytes(text.encode(encoding))
    assert ingest(storage_root, given, image_size=8).classes == ("chât", "dog")


def test_escaped_file_names_mean_their_files(given: Path, storage_root: Path) -> None:
    for k in range(60):
        (given / "images" / f"{k}.png").rename(given / "images" / f"no {k}.png")
    names = ["images/no%200.png", *(f"file:///home/a/images/no%20{k}.png" for k in range(1, 60))]
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=names, label=NAMES.tolist())))
    assert sum(ingest(storage_root, given, image_size=8).rows.values()) == 60


@pytest.mark.parametrize("column", ["", "Unnamed: 0", "Unnamed: 0.1"])
def test_line_numbers_of_pandas_are_no_labels(given: Path, storage_root: Path, column: str) -> None:
    table = rows(**{column: [k % 2 for k in range(60)]}, photo=FILES, kind=NAMES.tolist())
    (given / "labels.csv").write_bytes(as_csv(table))
    assert ingest(storage_root, given, image_size=8).classes == ("ant", "bee", "cow")


def of_label_studio(k: int) -> dict[str, Any]:
    result = {"type": "choices", "value": {"choices": [str(NAMES[k])]}, "from_name": "kind"}
    region = {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["leg"]}}
    done = {"was_cancelled": False, "result": [region, result]}
    place = f"/data/upload/1/0a1b2c3d-{k}.png" if k % 2 else f"/data/local-files/?d=images/{k}.png"
    return {"id": k, "data": {"image": place}, "annotations": [{"was_cancelled": True, "result": []}, done]}


def of_sagemaker(k: int) -> dict[str, Any]:
    told = {"class-name": str(NAMES[k]), "type": "groundtruth/image-classification"}
    return {"source-ref": f"s3://bucket/some/{k}.png", "kinds": int(LABELS[k]), "kinds-metadata": told}


def of_vertex(k: int) -> dict[str, Any]:
    use = {"aiplatform.googleapis.com/ml_use": "test" if k < 12 else "training"}
    label = {"displayName": str(NAMES[k]), "annotationResourceLabels": {}}
    return {
        "imageGcsUri": f"gs://bucket/{k}.png",
        "classificationAnnotation": label,
        "dataItemResourceLabels": use,
    }


def of_cvat(k: int) -> str:
    return f'<image id="{k}" name="{k}.png" width="8"><tag label="{NAMES[k]}"/><box label="leg"/></image>'


LINES = {"project-1.json": of_label_studio, "output.manifest": of_sagemaker, "import.jsonl": of_vertex}
DATUMARO = {
    "categories": {"label": {"labels": [{"name": name} for name in ("ant", "bee", "cow")]}},
    "items": [
        {"id": str(k), "annotations": [{"type": "label", "label_id": int(LABELS[k])}], "image": {"path": ""}}
        for k in range(60)
    ],
}
VIA = {
    "_via_img_metadata": {
        f"{k}.png99": {"filename": f"{k}.png", "regions": [], "file_attributes": {"kind": str(NAMES[k])}}
        for k in range(60)
    },
    "_via_settings": {},
}
EXPORTED = {
    "default.json": json.dumps(DATUMARO),
    "via_project.json": json.dumps(VIA),
    "annotations.xml": f"<annotations><meta/>{''.join(map(of_cvat, range(60)))}</annotations>",
    "all.lst": "".join(f"{k}\t{LABELS[k]}.000000\timages/{k}.png\n" for k in range(60)),
    "labels.json": json.dumps(
        {"classes": ["ant", "bee", "cow"], "labels": {str(k): int(LABELS[k]) for k in range(60)}}
    ),
}


@pytest.mark.parametrize("name", [*LINES, *EXPORTED])
def test_what_tools_for_labels_export_is_read(given: Path, name: str) -> None:
    parts = [LINES[name](k) for k in range(60)] if name in LINES else []
    text = EXPORTED.get(name) or (
        json.dumps(parts) if name.endswith(".json") else "\n".join(map(json.dumps, parts))
    )
    (given / name).write_text(text, encoding="utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    rows = {split: some.labels.tolist() for split, some in source.splits.items()}
    assert source.task.names == (("0", "1", "2") if name == "all.lst" else ("ant", "bee", "cow"))
    divided = {"train": LABELS[12:].tolist(), "test": LABELS[:12].tolist()}
    assert rows == (divided if name == "import.jsonl" else {"train": LABELS.tolist()})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "labels.json",
            [{"data": {"text": "x"}, "annotations": []}],
            "a task names 0 pictures: {'text': 'x'}",
        ),
        ("labels.json", [{"data": {"image": "0.png"}, "annotations": [{}]}], "'result' is missing"),
        ("labels.jsonl", [{"imageGcsUri": "gs://b/0.png"}], "'classificationAnnotation' is missing"),
        ("labels.lst", "0\t1\t2\timages/0.png", "line 1 has 4 fields, not a picture and a label"),
        ("annotations.xml", "<annotation/>", "is not CVAT's format for images"),
        ("annotations.xml", "<annotations>", "no element found"),
        (
            "labels.json",
            {"classes": ["a"], "labels": {"0": 4}},
            "a label is not below 1, the number of its classes",
        ),
    ],
)
def test_what_is_wrong_in_an_export_is_named(given: Path, name: str, text: Any, said: str) -> None:
    (given / name).write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    with pytest.raises(DataError, match=f"{name} cannot be read as a table: .*{said}"):
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))


def test_labels_of_regions_are_named_as_not_read(given: Path) -> None:
    (given / "labels").mkdir()
    (given / "labels" / "0.txt").write_text("0 0.5 0.5 0.1 0.1", encoding="utf-8")
    with pytest.raises(
        DataError,
        match=r"labels holds 1 files of labels \(boxes of YOLO\), like labels/0\.txt.*whole picture",
    ):
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))


@pytest.mark.parametrize(
    ("column", "yes", "no"), [("is_valid", "True", "False"), ("is_test", "1", "0"), ("is_train", "no", "yes")]
)
def test_columns_of_yes_and_no_divide_rows(given: Path, column: str, yes: str, no: str) -> None:
    held = {column: [yes if k < 12 else no for k in range(60)]}
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=FILES, label=NAMES.tolist(), **held)))
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    counts = {split: len(some.labels) for split, some in source.splits.items()}
    assert counts == {"train": 48, "validation" if column == "is_valid" else "test": 12}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!DOCTYPE html><body>Sign in", "labels.csv is no table: it is a web page. Fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a pointer of Git LFS.*git lfs pull"),
        (b"PK\3\4", "it is a zip archive. Save it as CSV, if it is a spreadsheet"),
    ],
)
def test_what_lies_in_place_of_a_table_is_named(given: Path, content: bytes, said: str) -> None:
    (given / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))


PAIRS = {"file_name": FILES, "label": NAMES.tolist()}
SPELLED = {
    "split.json": {"columns": [*PAIRS], "index": [*range(60)], "data": [*zip(*PAIRS.values(), strict=True)]},
    "columns.json": {key: dict(enumerate(values)) for key, values in PAIRS.items()},
    "list.json": PAIRS,
    "labels.csv": "\n".join(map("|".join, [PAIRS, *zip(*PAIRS.values(), strict=True)])),
    "spaces.csv": "\n".join(map(" ".join, [PAIRS, *zip(*PAIRS.values(), strict=True)])),
    "mac.csv": "\r".join(map(",".join, [PAIRS, *zip(*PAIRS.values(), strict=True)])),
    "labels.txt": "\n".join(map(" ".join, zip(*PAIRS.values(), strict=True))),
    "train.txt": "\n".join(map(", ".join, zip(*PAIRS.values(), strict=True))),
}


@pytest.mark.parametrize("name", SPELLED)
def test_other_spellings_of_a_table_are_read(given: Path, name: str) -> None:
    text = SPELLED[name] if isinstance(SPELLED[name], str) else json.dumps(SPELLED[name])
    (given / name).write_bytes(str(text).encode())
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.task.names == ("ant", "bee", "cow")
    assert source.splits["train"].labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("write", [str, "{}.0".format, "{}.JPG".format, "scans/{}.jpeg".format])
def test_names_without_leading_zeros_and_with_other_endings_mean_the_only_such_file(
    given: Path, write: Callable[[int], str]
) -> None:
    for k in range(60):
        (given / f"images/{k}.png").rename(given / f"images/{k:04d}.png")
    (given / "train.csv").write_bytes(as_csv(rows(id=[write(k) for k in range(60)], species=NAMES)))
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert [source.splits["train"].name(k) for k in (0, 7)] == ["images/0000.png", "images/0007.png"]
    assert "60 names in the table are spelled otherwise than their files, like" in source.notes[-1]


def test_a_name_that_two_files_may_have_is_not_there(given: Path) -> None:
    (given / "images/07.png").write_bytes((given / "images/7.png").read_bytes())
    (given / "labels.csv").write_bytes(as_csv(rows(id=[f"{k:03d}.png" for k in range(60)], label=NAMES)))
    with pytest.raises(DataError, match=r"row 8 of labels\.csv names 007\.png, which is not there"):
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))


def _zip_of(*names: str) -> Callable[[bytes], bytes]:
    def packed(content: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.writestr(name, content)
        return stream.getvalue()

    return packed


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("labels.csv.gz", gzip.compress),
        ("train.csv.bz2", bz2.compress),
        ("metadata.csv.XZ", lzma.compress),
        ("labels.csv.zip", _zip_of("labels.csv", "__MACOSX/._labels.csv")),
    ],
)
def test_a_packed_table_is_read(given: Path, name: str, pack: Callable[[bytes], bytes]) -> None:
    (given / name).write_bytes(pack(as_csv(rows(file_name=FILES, label=NAMES))))
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.classes == ("ant", "bee", "cow")
    assert source.ledger is not None
    assert not source.ledger.counts()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.csv.gz", b"no gzip", "labels.csv.gz cannot be read as an archive: Not a gzipped file"),
        ("labels.csv.bz2", b"no bzip2", "labels.csv.bz2 cannot be unpacked"),
        ("labels.csv.xz", b"no xz", "labels.csv.xz cannot be read as an archive"),
        ("labels.csv.zip", _zip_of("a.csv", "b.csv")(b"x"), "labels.csv.zip holds several files, not one."),
        ("labels.csv.zip", _zip_of()(b""), "labels.csv.zip holds no file, not one."),
    ],
)
def test_what_is_wrong_with_a_packed_table_is_named(
    given: Path, name: str, content: bytes, said: str
) -> None:
    (given / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert said in str(caught.value)


BY_CLASS = {kind: [name for name, of in zip(FILES, NAMES, strict=True) if of == kind] for kind in set(NAMES)}


@pytest.mark.parametrize(
    "told",
    [
        BY_CLASS,
        {name: {"label": kind, "split": "train"} for name, kind in zip(FILES, NAMES, strict=True)},
        {
            "train": dict(zip(FILES[:40], NAMES, strict=False)),
            "val": dict(zip(FILES[40:], NAMES[40:], strict=True)),
        },
        {
            "train": {kind: some[:15] for kind, some in BY_CLASS.items()},
            "test": {k: v[15:] for k, v in BY_CLASS.items()},
        },
        [[name, kind] for name, kind in zip(FILES, NAMES, strict=True)],
        {"labels": [[name, kind] for name, kind in zip(FILES, NAMES, strict=True)]},
        {"version": "1", "annotations": dict(zip(FILES, NAMES, strict=True))},
    ],
    ids=["classes", "objects", "splits", "classes of splits", "pairs", "StyleGAN", "within"],
)
def test_json_of_classes_and_their_files_and_of_splits(given: Path, told: Any) -> None:
    (given / "annotations.json").write_text(json.dumps(told), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.classes == ("ant", "bee", "cow")
    assert sum(len(some.labels) for some in source.splits.values()) == 60
    assert set(source.splits) == {"train"} | {
        "validation" if s == "val" else s for s in told if s in ("val", "test")
    }
    first = source.splits["train"]
    assert [source.classes[first.labels[k]] for k in range(3)] == [
        NAMES[FILES.index(first.name(k))] for k in range(3)
    ]


def test_a_picture_in_two_lists_of_classes_has_several_labels(given: Path) -> None:
    (given / "annotations.json").write_text(json.dumps({**BY_CLASS, "big": FILES[:30]}), "utf-8")
    with pytest.raises(DataError, match=r"several labels, .*set task.kind to multilabel"):
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    source = open_source(config, Storage(str(given / "store")))
    assert source.splits["train"].labels.sum() == 90


def test_the_flags_of_labelme_are_labels(given: Path) -> None:
    for k, kind in enumerate(NAMES):
        flags = {"ant": kind == "ant", "bee": kind == "bee", "cow": False}
        shapes = [{"label": "cow", "points": [[0, 0], [1, 1]]}] if kind == "cow" else []
        told = {
            "version": "5.4.1",
            "flags": flags,
            "shapes": shapes,
            "imagePath": f"{k}.png",
            "imageData": None,
        }
        (given / f"images/{k}.json").write_text(json.dumps(told), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    rows_of = source.splits["train"]
    assert {rows_of.name(k): source.classes[rows_of.labels[k]] for k in range(60)} == dict(
        zip(FILES, NAMES, strict=True)
    )


@pytest.mark.parametrize("column", ["file_name", "label"])
def test_rows_with_an_empty_field_are_counted_and_can_be_skipped(given: Path, column: str) -> None:
    table = rows(file_name=FILES, label=NAMES)
    table[3] = {**table[3], column: ""}
    table[9] = {**table[9], column: ""}
    (given / "labels.csv").write_bytes(as_csv(table))
    with pytest.raises(DataError) as caught:
        open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    for row in (4, 10):
        assert f"row {row} of labels.csv has no {column}." in str(caught.value)
    data = DataConfig(path=str(given), on_error="skip", max_error_fraction=0.1)
    source = open_source(Config(data=data), Storage(str(given / "store")))
    assert (len(source.splits["train"].labels), len(source.faults)) == (58, 2)


def test_columns_of_numbers_called_like_splits_and_folds_are_named(given: Path) -> None:
    numbers = [k % 5 for k in range(60)]
    (given / "labels.csv").write_bytes(
        as_csv(rows(file_name=FILES, species=NAMES, fold=numbers, set=numbers))
    )
    data = DataConfig(path=str(given), label_column="species")
    source = open_source(Config(data=data), Storage(str(given / "store")))
    assert any("the column fold is not used" in note for note in source.notes)
    assert any("the column set says no splits, but 0, 1, 2, and is not used" in note for note in source.notes)


YOLO = "{} 0.5 0.5 0.25 0.25\n".format
VOC = "<annotation><filename>x</filename><object><name>{}</name></object></annotation>".format


@pytest.mark.parametrize(
    ("pictures", "labels", "write", "said"),
    [
        ("{}.jpg", "{}.txt", YOLO, r"given holds 8 files of labels \(boxes of YOLO\), like 0\.txt"),
        ("images/train/{}.jpg", "labels/train/{}.txt", YOLO, "labels/train holds 8 files .*boxes of YOLO"),
        ("train/images/{}.jpg", "train/labels/{}.txt", YOLO, "train/labels holds 8 files .*boxes of YOLO"),
        ("train/{}.jpg", "train/{}.xml", VOC, "train holds 8 files of labels .*boxes of Pascal VOC"),
        ("JPEGImages/{}.jpg", "Annotations/{}.xml", VOC, "Annotations holds 8 files .*boxes of Pascal VOC"),
    ],
)
def test_boxes_are_named_with_what_to_do(
    tmp_path: Path, pictures: str, labels: str, write: Callable[[int], str], said: str
) -> None:
    root = tmp_path / "given"
    for k in range(8):
        for name in (pictures, labels):
            (root / name.format(k)).parent.mkdir(parents=True, exist_ok=True)
        (root / pictures.format(k)).write_bytes(zoo.encoded(zoo.drawn(8, 8), "JPEG"))
        (root / labels.format(k)).write_text(write(k % 2), "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        open_source(Config(data=DataConfig(path=str(root))), Storage(str(tmp_path / "store")))
    assert "set task.kind to multilabel and write cat|dog for several" in caught.value.remedy


def test_class_folders_with_a_text_beside_each_picture_are_classes(tmp_path: Path) -> None:
    root = tmp_path / "given"
    for k in range(8):
        (root / "cd"[k % 2]).mkdir(parents=True, exist_ok=True)
        (root / "cd"[k % 2] / f"{k}.png").write_bytes(zoo.encoded(zoo.drawn(8, 8), "PNG"))
        (root / "cd"[k % 2] / f"{k}.txt").write_text(YOLO(0), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(root))), Storage(str(tmp_path / "store")))
    assert source.classes == ("c", "d")


@pytest.mark.parametrize("folders", [("images", "masks"), ("img_dir", "ann_dir")])
def test_masks_beside_pictures_are_no_class(tmp_path: Path, folders: tuple[str, str]) -> None:
    for k in range(8):
        path = tmp_path / "given" / folders[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zoo.encoded(zoo.drawn(8, 8), "PNG"))
    with pytest.raises(DataError, match=f"{folders[1]} looks like a part of the data.*whole picture shows"):
        open_source(Config(data=DataConfig(path=str(tmp_path / "given"))), Storage(str(tmp_path / "store")))


def test_rows_of_one_picture_are_several_labels(given: Path) -> None:
    """As Open Images and exports of boxes have them: a row for each label."""
    table = rows(file_name=[*FILES, FILES[0]], label=[*NAMES, "cow"])
    (given / "labels.csv").write_bytes(as_csv(table))
    place = Storage(str(given / "store"))
    with pytest.raises(DataError, match=r"an earlier row ant\. .*set task\.kind to multilabel"):
        open_source(Config(data=DataConfig(path=str(given))), place)
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    source = open_source(config, place)
    assert source.splits["train"].labels[0].tolist() == [1, 0, 1]
    assert source.splits["train"].labels.sum() == 61
    assert "pictures in several rows have the labels of all of them." in source.notes


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_categories_of_boxes_are_labels_and_other_objects_are_none(given: Path, kind: Any) -> None:
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind=kind))
    boxes = [{"bbox": [[0, 0, 1, 1]] * 2, "categories": [int(k)] * 2} for k in LABELS]
    path = given / "metadata.jsonl"
    path.write_bytes(WRITERS["metadata.jsonl"](rows(file_name=FILES, objects=boxes)))
    assert open_source(config, Storage(str(given / "store"))).classes == ("0", "1", "2")
    path.write_bytes(WRITERS["metadata.jsonl"](rows(file_name=FILES, label=[{"x": 1}] * 60)))
    with pytest.raises(DataError, match=r"row 1 of metadata\.jsonl has .*'x': 1.* for a label"):
        open_source(config, Storage(str(given / "store")))


@pytest.mark.parametrize("several", [False, True])
def test_boxes_in_parquet_are_named(tmp_path: Path, several: bool) -> None:
    images = [zoo.encoded(zoo.drawn(8, 8), "PNG")] * 6
    box = {"bbox": [0.0, 0.0, 1.0, 1.0], "category": 1}
    boxes = [[box] if several else {key: [value] for key, value in box.items()}] * 6
    (tmp_path / "given").mkdir()
    pq.write_table(pa.table({"image": images, "objects": boxes}), tmp_path / "given/train.parquet")
    for kind in ("classification", "multilabel"):
        config = Config.resolve({"data": {"path": str(tmp_path / "given")}, "task": {"kind": kind}})
        with pytest.raises(DataError, match=r"holds no labels, but boxes in objects.*column label"):
            open_source(config, Storage(str(tmp_path / "store")))


def test_a_label_of_two_words_is_kept_where_it_is_ended(
    given: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    names = np.array(["big cat", "big dog", "cow"])[LABELS]
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=FILES, label=names)))
    assert open_source(config, Storage(str(given / "store"))).classes == ("big", "cat", "cow", "dog")
    assert "write big cat| in each row where it is one label" in caplog.text
    ended = [f"{name}|" if name == "big cat" else name for name in names]
    (given / "labels.csv").write_bytes(as_csv(rows(file_name=FILES, label=ended)))
    assert open_source(config, Storage(str(given / "store"))).classes == ("big", "big cat", "cow", "dog")


def test_a_row_without_one_of_its_numbers_is_skipped_where_asked(given: Path) -> None:
    table = rows(file_name=FILES, x=range(60), y=[*range(59), ""])
    (given / "labels.csv").write_bytes(as_csv(table))
    data = DataConfig(path=str(given), label_column=["x", "y"], on_error="skip", max_error_fraction=0.1)
    config = Config(data=data, task=TaskConfig(kind="regression"))
    source = open_source(config, Storage(str(given / "store")))
    assert [fault.reason for fault in source.faults] == [
        "row 60 of labels.csv has '' as y, which is not a number."
    ]


def test_a_list_of_names_and_labels_is_not_called_an_unused_list(given: Path) -> None:
    lines = [f"{name} {label}" for name, label in zip(FILES, NAMES, strict=True)]
    (given / "train.txt").write_text("\n".join(lines), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert not any("not used" in note for note in source.notes)


def test_a_table_of_addresses_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given/labels.csv").write_text("url,label\nhttps://example.org/1.jpg,cat\n", "utf-8")
    with pytest.raises(DataError, match="Download the pictures whose addresses it holds"):
        open_source(Config(data=DataConfig(path=str(tmp_path / "given"))), Storage(str(tmp_path / "store")))


def test_a_table_that_names_no_picture_is_named_where_there_are_no_classes(given: Path) -> None:
    (given / "train.csv").write_bytes(as_csv(rows(ID=[f"patient_{k}" for k in range(60)], Label=NAMES)))
    config = Config(data=DataConfig(path=str(given)))
    for folder in ("images/", ""):
        with pytest.raises(
            DataError, match=rf"no column of train\.csv names .* names such as {folder}0\.png"
        ):
            open_source(config, Storage(str(given / "store")))
        for name in (given / "images").glob("*.png"):
            name.rename(given / name.name)


def by_split(path: Path, kind: str = "classification") -> dict[str, dict[str, str]]:
    """The label of each picture by split, as it is understood."""
    config = Config(data=DataConfig(path=str(path)), task=TaskConfig(kind=kind))
    source = open_source(config, Storage(str(path / "store")))
    return {
        split: {rows.name(k): source.classes[label] for k, label in enumerate(rows.labels)}
        for split, rows in source.splits.items()
    }


ALL = dict(zip(FILES, NAMES.tolist(), strict=True))
BARE: dict[str, list[Any]] = {
    name: [f[7:-4] for f in FILES if ALL[f] == name] for name in ("ant", "bee", "cow")
}


@pytest.mark.parametrize(
    "told",
    [
        BARE,
        {name: [int(k) for k in some] for name, some in BARE.items()},
        {name: [f"of/{k}" for k in some] for name, some in BARE.items()},
        {"train": BARE},
    ],
    ids=["names", "numbers", "folders", "splits"],
)
def test_classes_name_their_files_without_endings(given: Path, told: Any) -> None:
    (given / "labels.json").write_text(json.dumps(told), "utf-8")
    assert by_split(given) == {"train": ALL}


def test_files_without_endings_keep_their_lists_of_labels(given: Path) -> None:
    told = {f[7:-4]: [name, "animal"] for f, name in ALL.items()}
    (given / "labels.json").write_text(json.dumps(told), "utf-8")
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    source = open_source(config, Storage(str(given / "store")))
    assert source.classes == ("animal", "ant", "bee", "cow")


@pytest.mark.parametrize(
    ("name", "told", "start"),
    [
        ("classes.txt", "ant\nbee\ncow\n", 0),
        ("classes.txt", "ant\nbee\ncow\n", 1),
        ("synset_words.txt", "0 ant\n1 bee\n2 cow\n", 0),
        ("label_map.txt", "ant 5\nbee 6\ncow 7\n", 5),
        ("obj.names", "ant\nbee\ncow\n", 0),
        ("labels_of.csv", "ClassId,Name\n0,ant\n1,bee\n2,cow\n", 0),
        ("class_indices.json", '{"ant": 0, "bee": 1, "cow": 2}', 0),
        ("cat_to_name.json", '{"1": "ant", "2": "bee", "3": "cow"}', 1),
        ("class_index.json", '{"0": ["n1", "ant"], "1": ["n2", "bee"], "2": ["n3", "cow"]}', 0),
        ("classes.json", '["ant", "bee", "cow"]', 0),
    ],
)
def test_classes_that_are_numbers_are_called_by_a_file_beside(
    given: Path, name: str, told: str, start: int
) -> None:
    lines = [f"{f} {NAMES.tolist().index(label) + start}" for f, label in ALL.items()]
    (given / "train.txt").write_text("\n".join(lines), "utf-8")
    (given / name).write_text(told, "utf-8")
    assert by_split(given) == {"train": ALL}


@pytest.mark.parametrize(
    ("files", "note"),
    [
        ({"classes.txt": "ant\nbee\ncow\n", "labels.txt": "a\nb\nc\n"}, "neither is used"),
        ({"classes.txt": "ant\nbee\n"}, ""),
        ({"classes.txt": "ant\nant\nbee\n"}, ""),
        ({"labels_about.txt": "Made by hand.\nTwo people.\nSee there.\n"}, ""),
    ],
)
def test_names_that_are_not_clear_are_not_used(given: Path, files: dict[str, str], note: str) -> None:
    lines = [f"{f} {NAMES.tolist().index(label)}" for f, label in ALL.items()]
    (given / "train.txt").write_text("\n".join(lines), "utf-8")
    for name, text in files.items():
        (given / name).write_text(text, "utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.classes == ("0", "1", "2")
    assert any(note in each for each in source.notes) == bool(note)


def test_text_files_that_share_the_numbers_of_pictures_are_joined(given: Path) -> None:
    files = [f"{at} {f}\n" for at, f in enumerate(FILES, 101)]
    (given / "images.txt").write_text("".join(files), "utf-8")
    labels = [f"{at} {NAMES.tolist().index(ALL[f]) + 1}\n" for at, f in enumerate(FILES, 101)]
    (given / "image_class_labels.txt").write_text("".join(labels), "utf-8")
    (given / "classes.txt").write_text("1 ant\n2 bee\n3 cow\n", "utf-8")
    flags = [f"{at} {int(at < 141)}\n" for at in range(101, 161)]
    (given / "train_test_split.txt").write_text("".join(flags), "utf-8")
    expected = {"train": {f: ALL[f] for f in FILES[:40]}, "test": {f: ALL[f] for f in FILES[40:]}}
    assert by_split(given) == expected


def test_labels_of_lists_have_spaces_and_names_of_files_too(given: Path) -> None:
    (given / "images/0.png").rename(given / "images/big one.png")
    names = ["images/big one.png", *FILES[1:]]
    lines = [f"{f} DC {k % 3}" for k, f in enumerate(names)]
    (given / "train.txt").write_text("\n".join(lines), "utf-8")
    assert by_split(given) == {"train": {f: f"DC {k % 3}" for k, f in enumerate(names)}}


@pytest.mark.parametrize("line", ["{} 10,20,30,40,0", "{} 1 2 3", "{}\t1\t2\t3"])
def test_lists_of_boxes_are_no_lists_of_labels(given: Path, line: str) -> None:
    (given / "labels.txt").write_text("\n".join(map(line.format, FILES)), "utf-8")
    with pytest.raises(DataError, match="only one class"):
        by_split(given)


def test_a_column_of_class_numbers_gives_way_to_their_names(given: Path) -> None:
    table = rows(
        Filename=FILES, Label=LABELS.tolist(), ClassName=NAMES.tolist(), width=[8 + k % 3 for k in range(60)]
    )
    (given / "train.csv").write_bytes(as_csv(table))
    assert by_split(given) == {"train": ALL}


def test_a_table_of_other_columns_beside_those_of_splits_is_not_used(given: Path) -> None:
    table = rows(Width=range(60), ClassId=NAMES.tolist(), Path=FILES)
    (given / "Train.csv").write_bytes(as_csv(table[:40]))
    (given / "Test.csv").write_bytes(as_csv(table[40:50]))
    (given / "Meta.csv").write_bytes(
        as_csv(rows(Path=FILES[50:53], ClassId=["ant", "bee", "cow"], ShapeId=[0, 1, 1]))
    )
    config = Config(data=DataConfig(path=str(given)))
    source = open_source(config, Storage(str(given / "store")))
    assert {split: len(some.labels) for split, some in source.splits.items()} == {"train": 40, "test": 10}
    assert "Meta.csv has other columns than the table of a split beside it, and is not used." in source.notes


def test_boxes_behind_labels_are_left_out_with_a_note(given: Path) -> None:
    values = [f"{name} 1 2 {k} 4 {name} 5 6 7 {k} " for k, name in enumerate(NAMES)]
    (given / "train.csv").write_bytes(as_csv(rows(ImageId=FILES, PredictionString=values)))
    assert by_split(given) == {"train": ALL}
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert any(note.startswith("the places in train.csv are not used") for note in source.notes)


@pytest.mark.parametrize("boxes", [True, False])
def test_coco_with_one_category_a_picture_has_a_note_on_its_boxes(given: Path, boxes: bool) -> None:
    told = {
        "images": [{"id": k, "file_name": f} for k, f in enumerate(FILES)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES[:3])],
        "annotations": [
            {"image_id": k, "category_id": k % 3} | ({"bbox": [0, 0, 4, 4]} if boxes else {})
            for k in range(60)
        ],
    }
    (given / "annotations.json").write_text(json.dumps(told), "utf-8")
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.classes == ("ant", "bee", "cow")
    assert any("places in annotations.json are not used" in note for note in source.notes) == boxes


def test_a_table_of_all_pictures_is_read_beside_folders_of_parts(given: Path) -> None:
    """As the two parts of HAM10000, beside one table."""
    for k, file in enumerate(FILES):
        place = given / f"pictures_part_{1 + k % 2}" / file[7:]
        place.parent.mkdir(exist_ok=True)
        (given / file).rename(place)
    table = rows(lesion=range(60), image_id=[file[7:-4] for file in FILES], dx=NAMES.tolist(), age=[50] * 60)
    (given / "the_metadata.csv").write_bytes(as_csv(table))
    assert sum(len(some) for some in by_split(given).values()) == 60
    source = open_source(Config(data=DataConfig(path=str(given))), Storage(str(given / "store")))
    assert source.classes == ("ant", "bee", "cow")


def test_a_list_of_partitions_gives_no_classes(given: Path) -> None:
    lines = [f"{file[7:]} {k % 3}" for k, file in enumerate(FILES)]
    (given / "list_eval_partition.txt").write_text("\n".join(lines), "utf-8")
    with pytest.raises(DataError, match="only one class, images"):
        by_split(given)


def test_columns_of_1_and_minus_1_are_labels_in_the_table_that_has_them(given: Path) -> None:
    table = rows(image_id=FILES, Male=[1 if k % 2 else -1 for k in range(60)], Old=[1] * 30 + [-1] * 30)
    (given / "list_attr.csv").write_bytes(as_csv(table))
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    source = open_source(config, Storage(str(given / "store")))
    assert source.classes == ("Male", "Old")
    assert source.splits["train"].labels.sum(0).tolist() == [30, 30]
    (given / "a_list_of_boxes.csv").write_bytes(as_csv(rows(image_id=FILES, x=range(60), y=range(60))))
    data = DataConfig(path=str(given), label_column=["Male", "Old"])
    config = Config(data=data, task=TaskConfig(kind="multilabel"))
    again = open_source(config, Storage(str(given / "store")))
    assert again.splits["train"].labels.tolist() == source.splits["train"].labels.tolist()
    assert again.ledger is not None
    assert again.ledger.counts() == {"a table without the columns of labels": 1}


def test_columns_that_no_table_has_are_named(given: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (given / name).write_bytes(as_csv(rows(image_id=FILES, x=range(60))))
    config = Config(data=DataConfig(path=str(given), label_column="kind"))
    with pytest.raises(
        DataError, match=r"none of a\.csv, b\.csv has the columns that are asked for, as kind"
    ):
        open_source(config, Storage(str(given / "store")))


@pytest.mark.parametrize("name", ["{}.txt", "{}.json"])
def test_files_of_each_picture_are_named(given: Path, name: str) -> None:
    for file in FILES:
        (given / "images" / name.format(file[7:-4])).write_text('{"label": "ant"}', "utf-8")
    with pytest.raises(DataError, match=r"60 pictures have a file of their own beside them, like images/0\."):
        by_split(given)


def test_class_folders_are_no_labels_of_the_multilabel_task(given: Path) -> None:
    for k, file in enumerate(FILES):
        (given / f"class{k % 2}").mkdir(exist_ok=True)
        (given / file).rename(given / f"class{k % 2}" / file[7:])
    with pytest.raises(DataError, match="needs a table of labels, and there is none"):
        by_split(given, "multilabel")


def test_a_table_whose_pictures_lie_elsewhere_is_named(tmp_path: Path, given: Path) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/train.csv").write_bytes(
        as_csv(rows(file=[str(given / f) for f in FILES], label=NAMES))
    )
    with pytest.raises(DataError, match=f"Put it into {given / 'images'}, where its pictures lie"):
        open_source(Config(data=DataConfig(path=str(tmp_path / "alone"))), Storage(str(tmp_path / "store")))
    (tmp_path / "alone/data.yaml").write_text("nc: 2", "utf-8")
    config = Config(data=DataConfig(path=str(tmp_path / "alone/data.yaml")))
    with pytest.raises(DataError, match="is a configuration and no data"):
        open_source(config, Storage(str(tmp_path / "store")))


def test_a_number_may_stand_between_a_file_and_its_class(given: Path) -> None:
    told = {split: [[f, 7, ALL[f]] for f in FILES[at::2]] for at, split in enumerate(("train", "test"))}
    (given / "split_of_all.json").write_text(json.dumps(told), "utf-8")
    expected = {split: {f: ALL[f] for f in FILES[at::2]} for at, split in enumerate(("train", "test"))}
    assert by_split(given) == expected


def test_a_table_with_commas_in_a_field_is_named_by_its_row(given: Path) -> None:
    lines = [f"{k},{NAMES[k]},a shirt{', blue' if k == 40 else ''}" for k in range(60)]
    (given / "styles.csv").write_text("\n".join(["id,label,name", *lines]), "utf-8")
    with pytest.raises(DataError, match=r"styles\.csv cannot be read as a table: a row has more fields"):
        by_split(given)


def test_a_table_of_several_numbers_does_not_name_classes(given: Path) -> None:
    lines = [f"{f},{'0|1' if k % 2 else '1'}" for k, f in enumerate(FILES)]
    (given / "labels.csv").write_text("\n".join(["file_name,labels", *lines]), "utf-8")
    (given / "classes.txt").write_text("ant\nbee\n", "utf-8")
    config = Config(data=DataConfig(path=str(given)), task=TaskConfig(kind="multilabel"))
    assert open_source(config, Storage(str(given / "store"))).classes == ("ant", "bee")

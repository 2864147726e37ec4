from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml import tasks
from distml.config import Config, DataConfig
from distml.data import ingestion
from distml.data.formats.arrays import gunzip, is_csv_pixels, open_csv_pixels, parse, read_images
from distml.data.listing import Folder
from distml.errors import DataError
from distml.storage import Storage

IMAGES = struct.pack(">4I", 0x803, 2, 3, 4) + bytes(range(24))


def test_content_is_a_view_of_the_shape_in_the_header() -> None:
    images = parse("x", IMAGES, (3,))
    assert images.shape == (2, 3, 4)
    assert images.dtype == np.uint8
    assert images[1, 2, 3] == 23


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (IMAGES.replace(b"\x08\x03", b"\x08\x02", 1), "is 0x00000802, expected 0x00000803"),
        (struct.pack(">4I", 0x803, 3, 3, 4) + bytes(24), "says 3 x 3 x 4 = 36 bytes, but 24 follow"),
        (IMAGES + b"x", "= 24 bytes, but 25 follow"),
        (IMAGES[:10], "cut off after 10 bytes"),
        (b"", "is 0x00000000"),
    ],
)
def test_a_wrong_header_is_reported_with_the_expected_size(content: bytes, said: str) -> None:
    with pytest.raises(DataError, match=rf"file.gz: .*{said}"):
        parse("file.gz", content, (3,))


def test_gunzip_checks_the_whole_file() -> None:
    packed = gzip.compress(IMAGES)
    assert gunzip("x", packed, len(IMAGES)) == IMAGES
    for cut in (10, 4, 1, len(packed)):
        with pytest.raises(DataError, match=r"file.gz is damaged"):
            gunzip("file.gz", packed[:-cut])
    for at in (12, len(packed) - 6):  # in the content and in its checksum
        flipped = bytearray(packed)
        flipped[at] ^= 1
        with pytest.raises(DataError, match=r"file.gz is damaged"):
            gunzip("file.gz", bytes(flipped))


def test_gunzip_stops_at_the_limit() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(DataError, match="more than the expected 1,000 bytes"):
        gunzip("file.gz", bomb, 1000)


@pytest.mark.parametrize(
    ("kind", "columns", "names", "target"),
    [
        ("multilabel", ["wet", "hot"], ("wet", "hot"), [0, 1]),
        ("multilabel", "colours", ("blue", "red"), [1, 1]),
        ("regression", "angle", ("angle",), [1.5]),
        ("regression", ["angle", "wet"], ("angle", "wet"), [1.5, 0]),
    ],
)
def test_tables_of_pixels_have_several_labels_or_numbers(
    tmp_path: Path, kind: str, columns: Any, names: tuple[str, ...], target: list[float]
) -> None:
    wanted = [columns] if isinstance(columns, str) else columns
    rows = [
        {"wet": k % 2, "hot": 1, "colours": "red|blue" if k == 2 else "red", "angle": k * 0.75}
        for k in range(4)
    ]
    header = [*wanted, *(f"pixel{at}" for at in range(16))]
    values = [[*(row[name] for name in wanted), *range(16)] for row in rows]
    lines = [",".join(map(str, line)) for line in (header, *values)]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    data = DataConfig(path=str(tmp_path), label_column=columns, format="csv_pixels")
    folder = Folder(str(tmp_path))
    assert is_csv_pixels(folder, "train.csv")
    source = open_csv_pixels(folder, data, tasks.of(kind))
    assert (source.task.names, source.shape) == (names, (4, 4, 1))
    assert source.splits["train"].labels[2].tolist() == target


def test_a_column_of_pixels_and_one_of_splits_as_fer2013_has_them(tmp_path: Path) -> None:
    usage = ["Training"] * 4 + ["PublicTest"] * 3 + ["PrivateTest"] * 2
    lines = [f"{k % 2},{' '.join(map(str, range(k, k + 16)))},{word}" for k, word in enumerate(usage)]
    (tmp_path / "fer.csv").write_text("emotion,pixels,Usage\n" + "\n".join(lines))
    folder = Folder(str(tmp_path))
    assert is_csv_pixels(folder, "fer.csv")
    source = open_csv_pixels(folder, DataConfig())
    assert {split: len(rows.labels) for split, rows in source.splits.items()} == {
        "test": 2,
        "train": 4,
        "validation": 3,
    }
    assert source.splits["validation"].gather(np.array([1])).images[0].ravel().tolist() == [*range(5, 21)]
    assert read_images(folder, "fer.csv").images.shape == (9, 4, 4, 1)
    (tmp_path / "fer.csv").write_text("emotion,pixels,Usage\n0,1 2 3 x,Training\n")
    with pytest.raises(DataError, match="other words than whole numbers"):
        open_csv_pixels(Folder(str(tmp_path)), DataConfig())


def pixel_table(path: Path, columns: dict[str, object], mark: str = ",", header: bool = True) -> Path:
    """Twenty rows of 8 x 8 pixels that tell two classes apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [*columns, *(f"pixel{k}" for k in range(64))] if header else []
    rows = [[*columns.values(), *(9 * (row % 7) + 150 * (row % 2) for _ in range(64))] for row in range(20)]
    for row, values in enumerate(rows):
        values[: len(columns)] = [row % 2 if key == "label" else row for key in columns]
    lines = [mark.join(map(str, line)) for line in ([names] if header else []) + rows]
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_table_of_pixels_with_other_columns_and_marks(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture, mark: str
) -> None:
    pixel_table(tmp_path / "given" / "a.csv", {"id": 0, "label": 0}, mark)
    config = Config(data=DataConfig(path=str(tmp_path / "given")))
    manifest = ingestion.prepare(config, Storage(str(storage_root)))
    assert (manifest.shape, manifest.classes) == ((8, 8, 1), ("0", "1"))
    assert "the columns id are no pixels and not used" in caplog.text


def test_a_table_of_pixels_as_floats(tmp_path: Path) -> None:
    path = pixel_table(tmp_path / "a.csv", {"label": 0})
    lines = [line.split(",") for line in path.read_text().splitlines()]
    lines[1:] = [[line[0], *(str(int(value) / 255) for value in line[1:])] for line in lines[1:]]
    path.write_text("\n".join(map(",".join, lines)))
    source = open_csv_pixels(Folder(str(tmp_path)), DataConfig())
    assert source.splits["train"].gather(np.array([1])).images.max() == 159


def test_a_table_of_pixels_without_a_header_is_named(tmp_path: Path) -> None:
    pixel_table(tmp_path / "a.csv", {"label": 0}, header=False)
    with pytest.raises(DataError, match=r"a.csv begins with numbers and not with the names of its columns"):
        open_csv_pixels(Folder(str(tmp_path)), DataConfig())

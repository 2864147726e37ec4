"""WebDataset tars are read where they lie."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml import tasks
from distml.config import Config, DataConfig
from distml.data import image, ingestion, shards
from distml.data.formats.webdataset import open_webdataset
from distml.data.listing import Folder
from distml.data.manifest import Manifest
from distml.errors import DataError
from distml.storage import Storage
from tests import zoo


def picture(k: int) -> bytes:
    drawn = zoo.drawn(9, 7)
    drawn.putpixel((0, 0), (k, k, k))
    return zoo.encoded(drawn, "PNG")


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as packed:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))


def samples(numbers: range, ending: str = "cls") -> dict[str, bytes]:
    made: dict[str, bytes] = {}
    for k in numbers:
        name = ("cat", "dog")[k % 2]
        made[f"{k:05d}.png"] = picture(k)
        made[f"{k:05d}.{ending}"] = (
            json.dumps({"label": name}).encode() if ending == "json" else name.encode()
        )
    return made


def ingest(root: Path, path: Path, **data: Any) -> Manifest:
    return ingestion.prepare(Config(data=DataConfig(shards=2, path=str(path), **data)), Storage(str(root)))


def test_absent_files_of_a_set_give_a_warning(tmp_path: Path, storage_root: Path) -> None:
    tar(tmp_path / "given" / "set-000-of-002.tar", samples(range(20)))
    said = "1 of 2 files of a set are not there, like set-001-of-002.tar."
    assert said in ingest(storage_root, tmp_path / "given").warnings


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_tars_of_several_splits(tmp_path: Path, storage_root: Path, ending: str) -> None:
    given = tmp_path / "given"
    tar(given / "train-000.tar", samples(range(20), ending))
    tar(given / "train-001.tar", samples(range(20, 40), ending))
    tar(given / "test-000.tar", samples(range(40, 50), ending))
    manifest = ingest(storage_root, given)
    assert manifest.classes == ("cat", "dog")
    assert (manifest.rows["test"], sum(manifest.rows.values())) == (10, 50)
    images, labels = shards.read(Storage(str(storage_root)), manifest, "test")
    np.testing.assert_array_equal(labels, np.arange(40, 50) % 2)
    np.testing.assert_array_equal(images[3], image.read(picture(43), manifest.pictures))


def test_one_tar_and_damaged_pictures(tmp_path: Path, storage_root: Path) -> None:
    members = samples(range(30))
    members["00003.png"] = b"<html>"
    members["00004.png"] = zoo.encoded(zoo.drawn(60, 60), "PNG")[:900]
    tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x.tar/00003.png is not a readable picture"):
        ingest(storage_root, tmp_path / "x.tar", image_size=6)
    manifest = ingest(storage_root, tmp_path / "x.tar", image_size=6, on_error="skip", max_error_fraction=0.1)
    assert sum(manifest.rows.values()) == 28
    assert {name for name, _ in manifest.left_out} == {"x.tar/00003.png", "x.tar/00004.png"}
    for k in range(1, 30, 2):
        members[f"{k:05d}.png"] = b""
    tar(tmp_path / "y.tar", members)
    with pytest.raises(DataError, match="no picture of dog can be used for training"):
        ingest(storage_root, tmp_path / "y.tar", image_size=6, on_error="skip", max_error_fraction=0.9)


def test_unusable_archives_are_named(tmp_path: Path, storage_root: Path) -> None:
    members = samples(range(6))
    del members["00002.cls"]
    tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"x.tar/00002.png has no label beside it"):
        ingest(storage_root, tmp_path / "x.tar")
    (tmp_path / "y.tar").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"y.tar cannot be read as a tar file"):
        ingest(storage_root, tmp_path / "y.tar", format="webdataset")


def told(**members: Any) -> dict[str, bytes]:
    """Twenty pictures with members of their JSON, each a function of the picture's number."""
    made: dict[str, bytes] = {}
    for k in range(20):
        made[f"{k:05d}.png"] = picture(k)
        made[f"{k:05d}.json"] = json.dumps({name: value(k) for name, value in members.items()}).encode()
    return made


@pytest.mark.parametrize(
    ("kind", "columns", "members", "names", "target"),
    [
        ("multilabel", None, {"labels": lambda k: ["red", "blue"][: 1 + k % 2]}, ("blue", "red"), [1, 1]),
        ("multilabel", ["wet", "hot"], {"wet": lambda k: k % 2, "hot": lambda k: 1}, ("wet", "hot"), [1, 1]),
        ("regression", "angle", {"angle": lambda k: k / 2, "id": lambda k: k}, ("angle",), [1.5]),
        ("regression", ["x", "y"], {"x": lambda k: k, "y": lambda k: -k}, ("x", "y"), [3, -3]),
    ],
)
def test_members_of_the_json_are_labels_and_numbers(
    tmp_path: Path, kind: str, columns: Any, members: Any, names: tuple[str, ...], target: list[float]
) -> None:
    tar(tmp_path / "train-000.tar", told(**members))
    data = DataConfig(path=str(tmp_path), label_column=columns)
    source = open_webdataset(Folder(str(tmp_path)), data, tasks.of(kind))
    assert source.task.names == names
    assert source.splits["train"].labels[3].tolist() == target


def test_a_json_without_what_is_asked_for_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "train-000.tar", told(angle=lambda k: k, width=lambda k: "wide"))
    for column, said in (("length", "has no .json beside it with length"), ("width", "'wide' as width")):
        data = DataConfig(path=str(tmp_path), label_column=column)
        with pytest.raises(DataError, match=rf"00000\.png .*{said}"):
            open_webdataset(Folder(str(tmp_path)), data, tasks.of("regression"))


def test_folders_in_a_tar_divide_it(tmp_path: Path, storage_root: Path) -> None:
    rows = samples(range(30))
    folders = {name: "train" if int(name[:5]) < 20 else "val" for name in rows}
    tar(tmp_path / "a.tar", {f"{folders[name]}/{name}": data for name, data in rows.items()})
    assert ingest(storage_root, tmp_path / "a.tar").rows["validation"] == 10


@pytest.mark.parametrize("form", ["{k}.image.png {k}.label.cls", "img.{k}.png img.{k}.cls"])
def test_keys_and_endings_with_dots(tmp_path: Path, form: str) -> None:
    members: dict[str, bytes] = {}
    for k in range(6):
        members |= dict(zip(form.format(k=k).split(), (picture(k), b"cat" if k % 2 else b"dog"), strict=True))
    tar(tmp_path / "a.tar", members)
    source = open_webdataset(Folder(str(tmp_path)), DataConfig())
    assert source.splits["train"].labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert not source.notes


def test_further_pictures_of_a_sample_are_reported(tmp_path: Path) -> None:
    members = {"0.image.png": picture(0), "0.mask.png": picture(1), "0.json": b'{"label": "cat"}'}
    tar(tmp_path / "a.tar", members | {"1.png": picture(2), "1.json": b'{"label": "dog"}'})
    source = open_webdataset(Folder(str(tmp_path)), DataConfig())
    assert len(source.splits["train"].labels) == 2
    assert source.notes == ("1 samples hold several pictures; the first is used, like a.tar/0.image.png.",)


@pytest.mark.parametrize("cut", [True, False])
def test_a_tar_that_is_cut_off_or_joined_is_named(tmp_path: Path, storage_root: Path, cut: bool) -> None:
    tar(tmp_path / "x.tar", samples(range(20)))
    whole = (tmp_path / "x.tar").read_bytes()
    with tarfile.open(tmp_path / "x.tar") as packed:
        header = packed.getmembers()[10].offset
    (tmp_path / "x.tar").write_bytes(whole[: header + 100] if cut else whole + whole)
    said = "it is cut off after 10 members" if cut else "more follows behind its end"
    with pytest.raises(DataError, match=f"x.tar cannot be read as a tar file: {said}"):
        ingest(storage_root, tmp_path / "x.tar")


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar"])
@pytest.mark.parametrize("form", ["auto", "webdataset"])
def test_compressed_tars_are_named(tmp_path: Path, storage_root: Path, name: str, form: str) -> None:
    given = tmp_path / "given"
    tar(given / "plain", samples(range(6)))
    (given / name).write_bytes(gzip.compress((given / "plain").read_bytes()))
    (given / "plain").unlink()
    for path in (given, given / name):
        with pytest.raises(DataError, match=rf"{name} is compressed.* Decompress it"):
            ingest(storage_root, path, format=form)

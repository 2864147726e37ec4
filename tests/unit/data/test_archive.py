"""Archives are unpacked once, and nothing in them reaches beyond their folder."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from distml.config import Config, DataConfig
from distml.data import archive, shards
from distml.data.manifest import Manifest
from distml.errors import DataError
from distml.storage import Storage
from tests import zoo


def ingest(root: Path, path: Path) -> Manifest:
    config = Config(data=DataConfig(shards=1, path=str(path), image_size=4))
    return shards.prepare(config, Storage(str(root)))


def members(count: int = 12) -> dict[str, bytes]:
    made = {}
    for k in range(count):
        picture = zoo.drawn(9, 7)
        picture.putpixel((0, 0), (k, k, k))
        made[f"set/{'cat' if k % 2 else 'dog'}/{k}.png"] = zoo.encoded(picture, "PNG")
    return made


def zipped(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in content.items():
            packed.writestr(name, data)
    return path


def tarred(path: Path, content: dict[str, bytes], *links: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
        for link in links:
            packed.addfile(link)
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_zip_and_tar_are_read_like_the_folder_in_them(tmp_path: Path, storage_root: Path) -> None:
    one = ingest(storage_root, zipped(tmp_path / "set.zip", members()))
    other = ingest(
        storage_root, tarred(tmp_path / "set.tar.gz", members(), link("set/cat/up", "/etc/passwd"))
    )
    assert one.classes == other.classes == ("cat", "dog")
    assert [s.sha256 for s in one.shards["train"]] == [s.sha256 for s in other.shards["train"]]
    assert ingest(storage_root, tmp_path / "set.zip") == one
    zipped(tmp_path / "set.zip", members(20))
    assert sum(ingest(storage_root, tmp_path / "set.zip").rows.values()) == 20


@pytest.mark.parametrize(
    "name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"]
)
def test_members_that_lead_out_are_refused(tmp_path: Path, storage_root: Path, name: str) -> None:
    for given in (zipped(tmp_path / "x.zip", {name: b"x"}), tarred(tmp_path / "x.tgz", {name: b"x"})):
        with pytest.raises(DataError, match="which leads out of it"):
            ingest(storage_root, given)
    assert not list(storage_root.rglob("out.png"))
    assert not list(storage_root.rglob(".unpacking-*"))


def test_zeros_without_end_are_stopped(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_SPARE_BYTES", 1 << 20)
    given = zipped(tmp_path / "x.zip", {f"cat/{k}.png": bytes(8 << 20) for k in range(3)})
    with pytest.raises(DataError, match="unpacks to far more than its own size"):
        ingest(storage_root, given)
    assert not [path for path in storage_root.rglob("*") if path.is_file() and path.suffix == ".png"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damaged_archives_are_named(tmp_path: Path, storage_root: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(DataError, match=f"{name} cannot be read as an archive"):
        ingest(storage_root, tmp_path / name)
    whole = zipped(tmp_path / "y.zip", members()).read_bytes()
    (tmp_path / "y.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"y.zip cannot be read as an archive"):
        ingest(storage_root, tmp_path / "y.zip")

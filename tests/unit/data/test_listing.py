"""Every entry of a folder is used, or left out for a reason that is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distml.data.listing import Folder
from distml.errors import DataError


def test_hidden_files_and_archiver_leftovers_are_left_out(tmp_path: Path) -> None:
    for name in (
        "cat/a.png",
        "cat/._a.png",
        ".DS_Store",
        "cat/Thumbs.db",
        "__MACOSX/cat/a.png",
        ".git/x",
        "#recycle/cat/a.png",
        "System Volume Information/x",
        "lost+found/a.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = Folder(str(tmp_path))
    assert list(folder.sizes) == ["cat/a.png"]
    assert folder.ledger.counts() == {"hidden": 8}
    assert folder.ledger.entries == 9


def test_links_are_followed_and_broken_ones_listed_apart(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"x")
    (tmp_path / "file.png").symlink_to("real/a.png")
    (tmp_path / "again").symlink_to("real")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "gone.png").symlink_to("annex/gone.png")
    (tmp_path / "self.png").symlink_to("self.png")
    folder = Folder(str(tmp_path))
    assert {"again/a.png", "file.png", "real/a.png"} <= set(folder.sizes)
    assert folder.dangling == {"gone.png": "annex/gone.png", "self.png": "self.png"}
    assert set(folder.ledger.counts()) == {"a link to a folder that it lies in"}
    assert folder.ledger.entries == len(folder.sizes) + 2 + len(folder.ledger.reasons)


def test_file_names_may_be_any_bytes(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as stream:
        stream.write(b"abc")
    folder = Folder(str(tmp_path))
    assert folder.sizes == {"caf\\xe9.png": 3}
    assert folder.read("caf\\xe9.png") == b"abc"
    assert len(folder.origin().sha256) == 64


def test_every_change_changes_the_fingerprint(tmp_path: Path) -> None:
    def told() -> str:
        return Folder(str(tmp_path)).fingerprint()

    (tmp_path / "a.png").write_bytes(b"x")
    seen = [told()]
    assert told() == seen[0]
    (tmp_path / "b.png").write_bytes(b"x")
    seen.append(told())
    (tmp_path / "b.png").write_bytes(b"xy")
    seen.append(told())
    os.utime(tmp_path / "b.png", ns=(1, 1))
    seen.append(told())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    seen.append(told())
    (tmp_path / "d.png").symlink_to("nowhere")
    seen.append(told())
    assert len(set(seen)) == len(seen)


def test_a_configuration_beside_the_data_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    before = Folder(str(tmp_path))
    (tmp_path / "photos.yaml").write_bytes(b"data: {path: .}")
    after = Folder(str(tmp_path))
    assert (before.fingerprint(), before.origin()) == (after.fingerprint(), after.origin())


def test_missing_and_unreadable_folders_are_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no data at"):
        Folder(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="there are no data at"):
        Folder(str(tmp_path))
    (tmp_path / "a.png").write_bytes(b"x")
    folder = Folder(str(tmp_path))
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match=r"cannot read a.png in .*: No such file"):
        folder.read("a.png")


def test_empty_folders_and_placeholders_of_a_cloud_are_noticed(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/.b.png.icloud"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "bird" / "old").mkdir(parents=True)
    folder = Folder(str(tmp_path))
    assert folder.dangling == {"dog/b.png": ".b.png.icloud"}
    assert folder.empty == ["bird/old"]


def test_names_with_the_separators_of_windows_are_paths(tmp_path: Path) -> None:
    for name in ("set\\cat\\1.png", "set\\dog\\1.png", "x\\2.png"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "2.png").write_bytes(b"another")
    folder = Folder(str(tmp_path))
    assert sorted(folder.sizes) == ["set/cat/1.png", "set/dog/1.png", "x/2.png", "x\\2.png"]
    assert folder.read("set/cat/1.png") == b"set\\cat\\1.png"
    assert folder.read("x/2.png") == b"another"


def test_folders_that_distml_writes_are_not_the_users(tmp_path: Path) -> None:
    for name in ("cat/a.png", "distml-data/data/x.parquet", "cat/out/part-0.parquet", "distml-data2/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link").symlink_to("distml-data")
    ours = (f"{tmp_path}/distml-data", f"{tmp_path}/cat/../cat/out", f"{tmp_path}/absent", "s3://bucket/x")
    folder = Folder(str(tmp_path), without=ours)
    assert list(folder.sizes) == ["cat/a.png", "distml-data2/b.png"]
    assert folder.ledger.entries == 2


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("hf://datasets/an/owner@main/data", "hf download an/owner --repo-type dataset --local-dir FOLDER"),
        ("kaggle://an/set", "kaggle datasets download an/set"),
        ("kaggle://competitions/contest", "kaggle competitions download contest"),
        ("tfds://mnist", "data.format: module:function"),
        ("sftp://host/photos", "mount what sftp names"),
        ("dbfs:/mnt/photos", "mount what dbfs names"),
        ("s3a://bucket/photos", r"Write s3://bucket/photos\."),
        ("s3:/bucket/photos", r"Write s3://bucket/photos\."),
        ("git@github.com:an/owner.git", "Clone or copy it"),
        ("$NO_SUCH_VARIABLE/photos", "Set the environment variable NO_SUCH_VARIABLE"),
        ("D:\\photos\\cats", r"such as /mnt/d/photos/cats\."),
        ("\\\\server\\photos", "such as /mnt/SHARE"),
        ("photos/*.jpg", "Give the folder itself"),
        ("photo", r"Check data\.path: .* holds photos\."),
        ("photos/cat", r"Check data\.path: .*photos exists and holds no cat\."),
        ("owner/name", r"If it is a data set of Hugging Face's: Download it by hf download owner/name"),
        ("photos,more", "Give one folder with links to both"),
        ("/no/such/folder", r"Check data\.path: / exists and holds no no\."),
    ],
)
def test_a_place_that_is_not_there_has_a_remedy_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, remedy: str
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=remedy):
        Folder(path)

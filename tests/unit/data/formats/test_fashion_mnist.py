from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from distml.config import Config, DataConfig
from distml.data import ingestion
from distml.data.fetch import UnavailableError
from distml.data.formats import fashion_mnist
from distml.errors import DataError
from distml.storage import Storage


def test_when_every_source_fails_each_is_named_with_its_reason(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fashion_mnist.INSTALLED.exists():
        pytest.skip(
            f"the system package is installed in {fashion_mnist.INSTALLED}, so not every place can fail"
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    config = Config(data=DataConfig(mirrors=["http://host.invalid/a", "ftp://b"]))
    with pytest.raises(DataError) as caught:
        ingestion.prepare(config, Storage(str(storage_root)))
    lines = caught.value.message.splitlines()
    places = [
        str(tmp_path / "cache"),
        str(storage_root),
        "http://host.invalid/a: ",
        "ftp://b: ",
        "/usr/",
        "package",
    ]
    for place in places:
        assert [line for line in lines if place in line], place
    assert "data.mirrors" in caught.value.remedy
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_built_in_data_have_the_published_shape_and_labels(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    with caplog.at_level(logging.INFO):
        source = fashion_mnist.open_builtin(Config(), Storage(str(tmp_path)))
    assert "the data come from" in caplog.text
    assert (source.shape, len(source.task.names)) == ((28, 28, 1), 10)
    for split, count in (("train", 60_000), ("test", 10_000)):
        labels = source.splits[split].labels
        assert labels.dtype == np.int32
        assert (np.bincount(labels) == count // 10).all()
    images = source.splits["test"].gather(np.arange(2)).images
    assert images.dtype == np.uint8
    assert images.shape == (2, 28, 28, 1)
    assert [origin.name for origin in source.origins] == [f"{name}.gz" for name in fashion_mnist.FILES]


needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")


def test_an_installed_file_is_read_and_an_absent_one_skipped(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert fashion_mnist.installed(tmp_path, "file") == b"x"
    with pytest.raises(UnavailableError, match=r"not installed \(other: No such file"):
        fashion_mnist.installed(tmp_path, "other")


def test_a_machine_without_apt_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no apt-get here"):
        fashion_mnist.download("anything", ["file"])


@pytest.fixture
def apt_archive(tmp_path: Path) -> Path:
    """A package archive of our own on the local disk, with no lists fetched from it yet."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "usr/share/rows").mkdir(parents=True)
    (tree / "usr/share/rows/rows.gz").write_bytes(b"rows")
    fields = ["Package: distml-rows", "Version: 1", "Architecture: all", "Maintainer: x <x@example.org>"]
    (tree / "DEBIAN/control").write_text("\n".join([*fields, "Description: rows", ""]))
    repo = tmp_path / "repo"
    repo.mkdir()
    name = "distml-rows_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(repo / name)], check=True, capture_output=True)
    size = (repo / name).stat().st_size
    digest = subprocess.run(
        ["sha256sum", repo / name], check=True, capture_output=True, text=True
    ).stdout.split()[0]
    entry = [*fields, f"Filename: ./{name}", f"Size: {size}", f"SHA256: {digest}", "Description: rows", ""]
    (repo / "Packages").write_text("\n".join(entry))
    (tmp_path / "sources.list").write_text(f"deb [trusted=yes] copy:{repo} ./\n")
    (tmp_path / "lists/partial").mkdir(parents=True)
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{tmp_path}/sources.list"; Dir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{tmp_path}/lists"; Dir::Cache "{tmp_path}/cache";\n'
    )
    return tmp_path / "apt.conf"


@needs_apt
def test_a_package_is_fetched_without_lists_and_without_installing(
    apt_archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_CONFIG", str(apt_archive))
    monkeypatch.setenv("TMPDIR", str(apt_archive.parent))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert fashion_mnist.download("distml-rows", ["rows.gz"]) == {"rows.gz": b"rows"}
    assert not Path("/usr/share/rows").exists()
    assert list(apt_archive.parent.glob("distml-apt-*")) == []
    with pytest.raises(UnavailableError, match=r"holds no other.gz"):
        fashion_mnist.download("distml-rows", ["other.gz"])
    with pytest.raises(
        UnavailableError, match=r"apt-get: .*distml-nothing; after apt-get update: apt-get: .*"
    ):
        fashion_mnist.download("distml-nothing", ["rows.gz"])

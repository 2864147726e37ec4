from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from distml.data.fetch import UnavailableError
from distml.data.formats import package

needs_apt = pytest.mark.skipif(not shutil.which("apt-get"), reason="no apt-get on this machine")


def test_an_installed_file_is_read_and_an_absent_one_is_no_surprise(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert package.installed(tmp_path, "file") == b"x"
    with pytest.raises(UnavailableError, match=r"not installed \(other: No such file"):
        package.installed(tmp_path, "other")


def test_a_machine_without_apt_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match="no apt-get here"):
        package.download("anything", ["file"])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
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
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APT_CONFIG", str(archive))
    monkeypatch.setenv("TMPDIR", str(archive.parent))
    monkeypatch.setattr("tempfile.tempdir", None)
    assert package.download("distml-rows", ["rows.gz"]) == {"rows.gz": b"rows"}
    assert not Path("/usr/share/rows").exists()
    assert list(archive.parent.glob("distml-apt-*")) == []
    with pytest.raises(UnavailableError, match=r"holds no other.gz"):
        package.download("distml-rows", ["other.gz"])
    with pytest.raises(UnavailableError, match=r"apt-get: .*distml-nothing; with fresh lists: apt-get: .*"):
        package.download("distml-nothing", ["rows.gz"])

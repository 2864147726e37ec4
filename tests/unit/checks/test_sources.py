"""Data that are not prepared: where they would come from, without fetching any."""

from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from distml.checks import sources
from distml.config import Config
from distml.data.formats import fashion_mnist
from distml.storage import Storage
from tests import zoo
from tests.mirror import Mirror, serving


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A machine without a cache, a system package, apt and the outside."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "INSTALLED", tmp_path / "installed")
    monkeypatch.setattr(fashion_mnist, "MIRRORS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    return Storage(str(tmp_path / "storage"))


def config(**data: Any) -> Config:
    return Config.model_validate({"data": data})


def fill(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in fashion_mnist.FILES:
        (folder / f"{name}.gz").touch()


def test_data_available_nowhere_is_a_problem_with_all_remedies(nowhere: Storage) -> None:
    check = sources.check(config(), nowhere)
    assert check.status == "problem"
    assert all(way in check.remedy for way in (fashion_mnist.PACKAGE, "data.mirrors", "data.path"))


def test_the_cache_is_named(nowhere: Storage) -> None:
    fill(Path(fashion_mnist.caches(nowhere)[0].root))
    check = sources.check(config(), nowhere)
    assert (check.status, "in the cache" in check.detail) == ("ok", True)


def test_an_incomplete_cache_is_ignored(nowhere: Storage) -> None:
    folder = Path(fashion_mnist.caches(nowhere)[0].root)
    fill(folder)
    next(folder.iterdir()).unlink()
    assert sources.check(config(), nowhere).status == "problem"


def test_the_installed_package_is_named(nowhere: Storage) -> None:
    fill(fashion_mnist.INSTALLED)
    assert f"the package {fashion_mnist.PACKAGE} is installed" in sources.check(config(), nowhere).detail


def test_a_mirror_is_checked_by_head_without_fetching(nowhere: Storage, tmp_path: Path) -> None:
    fill(tmp_path / "served")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *args: object) -> None:
            asked.append((self.command, self.path))

        def log_message(self, *args: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_address[1]}"
        check = sources.check(config(mirrors=["http://127.0.0.1:9", f"{url}/no", url, "ftp://x"]), nowhere)
        httpd.shutdown()
    assert (check.status, f"{url}/train" in check.detail) == ("ok", True)
    assert {method for method, _ in asked} == {"HEAD"}


def test_a_mirror_without_head_is_available(nowhere: Storage) -> None:
    with serving(Mirror({f"{name}.gz": b"x" for name in fashion_mnist.FILES})) as mirror:
        check = sources.check(config(mirrors=[mirror.url]), nowhere)
        assert (check.status, mirror.gets) == ("ok", [])


def test_without_a_mirror_apt_is_a_warning(nowhere: Storage, tmp_path: Path) -> None:
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    check = sources.check(config(mirrors=[]), nowhere)
    assert (check.status, "apt-get will fetch" in check.detail) == ("warning", True)


@pytest.mark.parametrize(
    ("names", "form"),
    [(["a/1.png", "b/2.png"], "image_folder"), (["train.parquet"], "parquet"), (["x.csv"], None)],
)
def test_a_users_folder_is_listed(
    nowhere: Storage, tmp_path: Path, names: list[str], form: str | None
) -> None:
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        content = zoo.encoded(zoo.drawn(), "PNG") if name.endswith("png") else b""
        (tmp_path / "mine" / name).write_bytes(content + b"x" * ((1 << 20) - len(content)))
    check = sources.check(config(path=str(tmp_path / "mine")), nowhere)
    if form is None:
        assert check.status == "problem"
    else:
        assert check.status == "ok"
        assert f"{len(names)} files, {len(names)} MiB, to be read as {form}" in check.detail


@pytest.mark.parametrize(
    "data", [{"path": "/no/such/folder"}, {"format": "parquet"}, {"format": "no_such:f"}]
)
def test_missing_data_are_a_problem(nowhere: Storage, data: dict[str, str]) -> None:
    check = sources.check(config(**data), nowhere)
    assert check.status == "problem"
    assert check.remedy


def test_a_loader_of_the_user_is_checked_without_running_it(nowhere: Storage, workdir: Path) -> None:
    (workdir / "own_data.py").write_text("raise RuntimeError('must not run')")
    assert sources.check(config(format="own_data:load"), nowhere).status == "ok"


def test_damaged_images_are_reported_before_anything_starts(nowhere: Storage, tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True)
        (tmp_path / "mine" / name).write_bytes(b"<html>404</html>")
    mine = str(tmp_path / "mine")
    check = sources.check(config(path=mine), nowhere)
    assert (check.status, "2 of 2 that were checked cannot be used" in check.detail) == ("problem", True)
    assert sources.check(config(path=mine, on_error="skip"), nowhere).status == "warning"

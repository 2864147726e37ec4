from __future__ import annotations

import contextlib
import gzip
import io
import re
import socket
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distml.checks import sources
from distml.config import Config, DataConfig
from distml.data import fetch, ingestion, opening
from distml.data.fetch import UnavailableError
from distml.data.manifest import Manifest
from distml.errors import DataError
from distml.storage import Storage
from tests import certificates, zoo
from tests.mirror import Mirror, serving

CONTENT = bytes(range(256)) * 4000
LIMIT = 2 * len(CONTENT)


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serving(Mirror({"file": CONTENT})) as running:
        yield running


def get(mirror: Mirror, name: str = "file", limit: int = LIMIT) -> bytes:
    return fetch.Mirror(mirror.url, fetch.Patience()).get(name, limit)


def test_a_file_is_fetched_with_one_request(mirror: Mirror) -> None:
    assert get(mirror) == CONTENT
    assert mirror.gets == [("file", "")]


def test_a_broken_transfer_resumes_at_its_offset(mirror: Mirror) -> None:
    mirror.drops["file"] = 2
    assert get(mirror) == CONTENT
    half, more = len(CONTENT) // 2, len(CONTENT) * 3 // 4
    assert mirror.gets == [("file", ""), ("file", f"bytes={half}-"), ("file", f"bytes={more}-")]


def test_a_server_without_ranges_restarts_the_transfer(mirror: Mirror) -> None:
    mirror.drops["file"] = 1
    mirror.ranges = False
    assert get(mirror) == CONTENT


def test_a_transfer_is_tried_three_times(mirror: Mirror) -> None:
    mirror.drops["file"] = 3
    with pytest.raises(UnavailableError, match=r"file: the connection closed with .* bytes to come, 3 tries"):
        get(mirror)
    assert len(mirror.gets) == 3


def test_a_busy_server_is_retried(mirror: Mirror) -> None:
    mirror.errors["file"] = [503, 429]
    assert get(mirror) == CONTENT


def test_a_missing_file_is_not_retried(mirror: Mirror) -> None:
    with pytest.raises(UnavailableError, match="HTTP 404"):
        get(mirror, "other")
    assert len(mirror.gets) == 1


def test_more_bytes_than_the_limit_are_rejected(mirror: Mirror) -> None:
    with pytest.raises(DataError, match="more than 1,000 bytes were received"):
        get(mirror, limit=1000)


def test_only_http_urls_are_accepted() -> None:
    with pytest.raises(UnavailableError, match="not an http or https URL"):
        fetch.Mirror("file:///etc", fetch.Patience()).get("passwd", LIMIT)


def test_a_closed_port_and_an_unknown_host_fail_fast() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    begun = time.monotonic()
    for base in (f"http://127.0.0.1:{port}", "http://host.invalid"):
        with pytest.raises(UnavailableError):
            fetch.Mirror(base, fetch.Patience()).get("file", LIMIT)
    assert time.monotonic() - begun < 3


def test_silent_mirrors_share_one_time_limit() -> None:
    patience = fetch.Patience(left_s=1.0)
    begun = time.monotonic()
    with contextlib.ExitStack() as until:
        for _ in range(5):
            server = until.enter_context(socket.create_server(("127.0.0.1", 0)))  # connects, never answers
            silent = fetch.Mirror(f"http://127.0.0.1:{server.getsockname()[1]}", patience)
            with pytest.raises(UnavailableError, match=r"no response|without an answer|timed out"):
                silent.get("file", LIMIT)
    assert time.monotonic() - begun < 2


def test_the_time_for_a_dead_network_is_bounded() -> None:
    """Each of the public mirrors may be silent; the reader waits half a second longer than the socket."""
    assert fetch.PATIENCE_S + 3 * 0.5 <= 10


def ingest_archive(root: Path, path: Path | str) -> Manifest:
    config = Config(data=DataConfig(shards=1, path=str(path), image_size=4))
    return ingestion.prepare(config, Storage(str(root)))


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
    first = ingest_archive(storage_root, zipped(tmp_path / "set.zip", members()))
    other = ingest_archive(
        storage_root, tarred(tmp_path / "set.tar.gz", members(), link("set/cat/up", "/etc/passwd"))
    )
    assert first.classes == other.classes == ("cat", "dog")
    assert [s.sha256 for s in first.shards["train"]] == [s.sha256 for s in other.shards["train"]]
    assert ingest_archive(storage_root, tmp_path / "set.zip") == first
    zipped(tmp_path / "set.zip", members(20))
    assert sum(ingest_archive(storage_root, tmp_path / "set.zip").rows.values()) == 20


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_the_only_archive_within_an_archive_is_unpacked_with_it(
    tmp_path: Path, storage_root: Path, pack: Callable[[Path, dict[str, bytes]], Path]
) -> None:
    inner = pack(tmp_path / "set.zip", members()).read_bytes()  # the content decides which kind it is
    given = zipped(tmp_path / "download.zip", {"Download/set.zip": inner})
    plain = ingest_archive(storage_root, tmp_path / "set.zip")
    assert ingest_archive(storage_root, given).rows == plain.rows
    assert not list(storage_root.rglob("*.zip"))


def test_an_archive_within_an_archive_has_the_limits_of_the_outer_one(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_SPARE_BYTES", 1 << 20)
    inner = zipped(tmp_path / "in.zip", {"cat/1.png": bytes(8 << 20)}).read_bytes()
    for content, told in (
        ({"in.zip": inner}, "x.zip/in.zip unpacks to far more"),
        ({"in.zip": inner[:4000]}, "x.zip/in.zip cannot be read as an archive"),
        ({"in.zip": b"PK\5\6" + bytes(18)}, "x.zip/in.zip is an archive without files"),
        ({"a.zip": inner, "b.zip": inner}, "holds no pictures, but 2 archives"),
    ):
        with pytest.raises(DataError, match=told):
            ingest_archive(storage_root, zipped(tmp_path / "x.zip", content))
    assert not list(storage_root.rglob(".unpacking-*"))


@pytest.mark.parametrize(
    "name", ["../out.png", "/tmp/out.png", "a/../../out.png", "..\\out.png", "C:\\out.png"]
)
def test_members_outside_the_folder_are_rejected(tmp_path: Path, storage_root: Path, name: str) -> None:
    for given in (zipped(tmp_path / "x.zip", {name: b"x"}), tarred(tmp_path / "x.tgz", {name: b"x"})):
        with pytest.raises(DataError, match="whose path is outside of it"):
            ingest_archive(storage_root, given)
    assert not list(storage_root.rglob("out.png"))
    assert not list(storage_root.rglob(".unpacking-*"))


def test_endless_members_stop_at_the_limit(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "_SPARE_BYTES", 1 << 20)
    given = zipped(tmp_path / "x.zip", {f"cat/{k}.png": bytes(8 << 20) for k in range(3)})
    with pytest.raises(DataError, match="unpacks to far more than its own size"):
        ingest_archive(storage_root, given)
    assert not [path for path in storage_root.rglob("*") if path.is_file() and path.suffix == ".png"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"notes.txt": b"x"}, "holds no pictures, Parquet"),
        ({"a.dcm": b"x"}, "holds no pictures, but 1 .dcm file"),
        ({"a.7z": b"x"}, "holds no pictures, but 1 .7z file"),
        ({"train-images-idx3-ubyte": bytes.fromhex("00000803") + bytes(12)}, "has no train labels"),
        ({"data.csv": b"name,price\na,1\n"}, "is a table without pictures"),
    ],
)
def test_messages_about_an_archive_name_it_and_no_folder_of_the_cache(
    tmp_path: Path, storage_root: Path, content: dict[str, bytes], named: str
) -> None:
    given = zipped(tmp_path / "x.zip", content)
    with pytest.raises(DataError) as error:
        ingest_archive(storage_root, given)
    assert error.value.message.startswith(f"{given} {named}")


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_damaged_archives_are_named(tmp_path: Path, storage_root: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an archive")
    with pytest.raises(DataError, match=f"{name} cannot be read as an archive"):
        ingest_archive(storage_root, tmp_path / name)
    whole = zipped(tmp_path / "y.zip", members()).read_bytes()
    (tmp_path / "y.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"y.zip cannot be read as an archive"):
        ingest_archive(storage_root, tmp_path / "y.zip")


def test_an_archive_of_a_server_is_fetched_and_unpacked_once(tmp_path: Path, storage_root: Path) -> None:
    def content(count: int) -> bytes:
        return zipped(tmp_path / "set.zip", members(count)).read_bytes()

    with serving(Mirror({"set.zip": content(12)})) as running:
        url = f"{running.url}/sets/set.zip"
        running.drops["set.zip"] = 1
        manifest = ingest_archive(storage_root, url)
        assert (manifest.classes, sum(manifest.rows.values())) == (("cat", "dog"), 12)
        assert [asked for _, asked in running.gets] == ["", f"bytes={len(running.files['set.zip']) // 2}-"]
        assert ingest_archive(storage_root, url) == manifest
        assert len(running.gets) == 2
        config = Config(data=DataConfig(shards=1, path=url, image_size=4))
        assert sources.check(config, Storage(str(storage_root))).status == "ok"
        running.files["set.zip"] = content(20)
        assert ingestion.changed(config, manifest) == f"{url} changed since it was prepared"
        assert sum(ingest_archive(storage_root, url).rows.values()) == 20
    prepared = ingestion.find(config, Storage(str(storage_root)))  # the server is gone
    assert prepared is not None
    assert sum(prepared.rows.values()) == 20
    assert sources.check(config, Storage(str(storage_root))).status == "problem"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("set.html", "set.html is not an archive. Give one that ends in .zip"),
        ("none.zip", "none.zip cannot be fetched: HTTP 404 Not Found"),
        ("busy.zip", "busy.zip cannot be fetched: HTTP 503"),
        ("out.zip", "whose path is outside of it"),
    ],
)
def test_an_archive_that_cannot_be_fetched_is_an_error_message(
    tmp_path: Path, storage_root: Path, name: str, said: str
) -> None:
    out = zipped(tmp_path / "out.zip", {"../out.png": b"x"}).read_bytes()
    mirror = Mirror({"out.zip": out, "busy.zip": b""}, errors={"busy.zip": [503] * 3})
    with serving(mirror) as running, pytest.raises(DataError) as caught:
        ingest_archive(storage_root, f"{running.url}/{name}")
    assert said in str(caught.value)
    assert not list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("head", [0, 403])
def test_a_change_that_a_server_does_not_name_is_only_noticed_by_its_length(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture, head: int
) -> None:
    def content(count: int) -> bytes:
        return zipped(tmp_path / f"{count}.zip", members(count)).read_bytes()

    with serving(Mirror({"set.zip": content(12)}, etag=False, head=head)) as running:
        url = f"{running.url}/set.zip"
        for _ in range(2):
            fetch.downloaded(url, Storage(str(storage_root)))
        assert re.search(r"neither an ETag nor a date.*remove .*-set\.zip to fetch it anew", caplog.text)
        running.files["set.zip"] = content(20)
        changed = Path(fetch.downloaded(url, Storage(str(storage_root)))[0]).read_bytes()
        assert changed == running.files["set.zip"]
        running.etag = True
        caplog.clear()
        for _ in range(2):
            fetch.downloaded(url, Storage(str(storage_root)))
        assert "neither an ETag" not in caplog.text


def test_what_is_no_archive_and_what_needs_a_password_is_named(tmp_path: Path, storage_root: Path) -> None:
    for name, content, said in (
        ("empty.zip", b"", "empty.zip is no archive: it is empty. Fetch it again"),
        ("page.tar", b"<!DOCTYPE html>", "page.tar is no archive: it is a web page. Fetch it again"),
        ("old.zip", b"Rar!\x1a\x07", "old.zip is no archive: it is a RAR archive. Unpack it"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=said):
            ingest_archive(storage_root, tmp_path / name)
    locked = bytearray(zipped(tmp_path / "locked.zip", members()).read_bytes())
    at = -1
    while (at := locked.find(b"PK\1\2", at + 1)) >= 0:
        locked[at + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match=r"0\.png in locked\.zip is encrypted\. Unpack it with its password"):
        ingest_archive(storage_root, tmp_path / "locked.zip")


def test_the_content_decides_which_kind_an_archive_is(tmp_path: Path, storage_root: Path) -> None:
    zipped(tmp_path / "a.zip", members()).rename(tmp_path / "a.tar.gz")
    tarred(tmp_path / "b.tgz", members()).rename(tmp_path / "b.zip")
    for name in ("a.tar.gz", "b.zip"):
        assert ingest_archive(storage_root, tmp_path / name).classes == ("cat", "dog")


def test_links_within_an_archive_are_files_and_others_are_reported(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    links = [
        link("set/cat/hard.png", "set/cat/1.png", tarfile.LNKTYPE),
        link("set/dog/soft.png", "0.png"),
        link("set/dog/out.png", "../../../etc/passwd"),
        link("set/dog/pipe.png", "", tarfile.FIFOTYPE),
    ]
    manifest = ingest_archive(storage_root, tarred(tmp_path / "x.tgz", members(), *links))
    assert sum(manifest.rows.values()) == 14
    assert "2 entries of x.tgz are no files in it, like set/dog/out.png; left out" in caplog.text


@pytest.mark.parametrize("code", ["utf-8", "cp437", "cp932"])
def test_names_in_a_zip_without_an_encoding(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    kind = {"cp932": "\u732b"}.get(code, "Caf\u00e9").encode(code)
    plain = kind.hex()[: len(kind)]  # a name of as many ASCII letters, for which the zip has no flag
    content = {name.replace("/cat/", f"/{plain}/"): data for name, data in members().items()}
    path = zipped(tmp_path / "x.zip", content)
    path.write_bytes(path.read_bytes().replace(f"/{plain}/".encode(), b"/" + kind + b"/"))
    classes = ingest_archive(storage_root, path).classes
    assert set(classes) == {kind.decode("utf-8" if code == "utf-8" else "cp437"), "dog"}
    assert ("6 of its names are written; they are read as code page 437" in caplog.text) == (code != "utf-8")


def test_archives_that_lose_something_are_named(
    tmp_path: Path, storage_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match=r"x.zip is an archive without files"):
        ingest_archive(storage_root, zipped(tmp_path / "x.zip", {}))
    long = zipped(tmp_path / "long.zip", {**members(), f"set/cat/{'x' * 300}.png": b""})
    with pytest.raises(DataError, match=r"long.zip cannot be unpacked: File name too long. Unpack it"):
        ingest_archive(storage_root, long)
    twice = zipped(tmp_path / "y.zip", {**members(), "set\\cat\\1.png": members()["set/cat/3.png"]})
    assert sum(ingest_archive(storage_root, twice).rows.values()) == 12
    assert "y.zip holds 1.png twice; the last one is used" in caplog.text


def test_a_tar_is_checked_to_its_end(tmp_path: Path, storage_root: Path) -> None:
    whole = gzip.decompress(tarred(tmp_path / "x.tgz", members()).read_bytes())
    with tarfile.open(tmp_path / "x.tgz") as packed:
        header = packed.getmembers()[8].offset
    (tmp_path / "x.tar").write_bytes(whole[: header + 99])
    with pytest.raises(DataError, match=r"x.tar cannot be read as an archive: it is cut off after 8 members"):
        ingest_archive(storage_root, tmp_path / "x.tar")
    packed_again = bytearray(gzip.compress(whole, 0))
    packed_again[-6] ^= 1  # of the checksum
    (tmp_path / "x.tgz").write_bytes(packed_again)
    with pytest.raises(DataError, match=r"x.tgz cannot be read as an archive: CRC check failed"):
        ingest_archive(storage_root, tmp_path / "x.tgz")


def test_a_zip_of_another_compression_is_to_be_unpacked_manually(tmp_path: Path, storage_root: Path) -> None:
    path = zipped(tmp_path / "x.zip", members())
    with zipfile.ZipFile(path) as packed:
        first, start = packed.infolist()[0].header_offset, packed.start_dir
    content = bytearray(path.read_bytes())
    content[first + 8] = content[start + 10] = 9  # Deflate64
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"x.zip cannot be read as an archive: .* Unpack it manually and give"
    ):
        ingest_archive(storage_root, path)


def test_what_a_server_gives_in_place_of_an_archive_is_fetched_anew(
    tmp_path: Path, storage_root: Path
) -> None:
    whole = zipped(tmp_path / "set.zip", members(12)).read_bytes()
    damaged = bytearray(whole)
    damaged[whole.index(b".png") + 30] ^= 255  # within the content of the first picture
    with serving(Mirror({"set.zip": b"<!DOCTYPE html><html>log in</html>"})) as running:
        url = f"{running.url}/set.zip"
        with pytest.raises(DataError, match=r"set.zip gave no archive: what was received is a web page"):
            ingest_archive(storage_root, url)
        running.files["set.zip"] = bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as an archive"):
            ingest_archive(storage_root, url)
        assert not list((storage_root / "cache" / "downloads").glob("*.zip"))
        running.files["set.zip"] = whole
        assert sum(ingest_archive(storage_root, url).rows.values()) == 12


@pytest.mark.parametrize(
    ("host", "days", "trusted", "sentence"),
    [
        ("localhost", 36_500, False, r"self-signed certificate\. Set SSL_CERT_FILE"),
        ("localhost", 1, True, r"certificate has expired\. Check this machine's clock"),
        ("elsewhere", 36_500, True, r"not valid for 'localhost'\. Give the host's name"),
    ],
)
def test_a_certificate_that_is_not_accepted_is_not_retried(
    tmp_path: Path,
    storage_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    days: int,
    trusted: bool,
    sentence: str,
) -> None:
    certificate, key = certificates.write(tmp_path, host=host, days=days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    content = zipped(tmp_path / "set.zip", members(12)).read_bytes()
    began = time.monotonic()
    with (
        serving(Mirror({"set.zip": content}, tls=(certificate, key))) as running,
        pytest.raises(DataError, match=sentence),
    ):
        ingest_archive(storage_root, f"{running.url}/set.zip")
    assert time.monotonic() - began < fetch.CONNECT_TIMEOUT_S  # no waits between tries


def test_an_archive_is_fetched_over_tls(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = certificates.write(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    content = zipped(tmp_path / "set.zip", members(12)).read_bytes()
    with serving(Mirror({"set.zip": content}, tls=(certificate, key))) as running:
        assert sum(ingest_archive(storage_root, f"{running.url}/set.zip").rows.values()) == 12


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("https://www.dropbox.com/s/abc/set.zip?dl=0", "https://www.dropbox.com/s/abc/set.zip?dl=1"),
        ("https://github.com/a/b/blob/main/set.zip", "https://github.com/a/b/raw/main/set.zip"),
        (
            "https://huggingface.co/datasets/a/b/blob/main/set.tar.gz",
            "https://huggingface.co/datasets/a/b/resolve/main/set.tar.gz",
        ),
        ("https://example.org/blob/set.zip?dl=0", "https://example.org/blob/set.zip?dl=0"),
    ],
)
def test_the_page_of_a_shared_file_means_the_file(page: str, file: str) -> None:
    assert fetch.direct(page) == file


@pytest.mark.parametrize(
    ("page", "remedy"),
    [
        ("https://huggingface.co/datasets/a/b", "hf download a/b --repo-type dataset"),
        ("https://huggingface.co/datasets/a/b/tree/main", "hf download a/b --repo-type dataset"),
        ("https://www.kaggle.com/datasets/a/b?select=x", "kaggle datasets download a/b"),
        ("https://www.kaggle.com/c/contest/data", "kaggle competitions download contest"),
        ("https://drive.google.com/file/d/1aB-c/view?usp=sharing", "by gdown 1aB-c;"),
        ("https://drive.google.com/uc?export=download&id=1aB-c", "by gdown 1aB-c;"),
        ("https://drive.google.com/drive/u/0/folders/1aB-c", "by gdown --folder 1aB-c;"),
        ("https://github.com/a/b/tree/main/photos", "git clone https://github.com/a/b;"),
        ("https://github.com/a/b.git", "git clone https://github.com/a/b;"),
        ("https://bucket.s3.eu-west-1.amazonaws.com/photos/", "Give the bucket: s3://bucket/FOLDER."),
        ("https://console.cloud.google.com/storage/browser/b/photos;tab=objects", "gs://b/photos."),
        ("https://www.dropbox.com/sh/abc/xyz?dl=0", "Download it in a browser"),
        ("https://example.org/photos/", "or download it and give the file."),
    ],
)
def test_what_holds_no_archive_has_a_remedy_of_its_own(tmp_path: Path, page: str, remedy: str) -> None:
    with pytest.raises(DataError, match="is not an archive") as caught:
        fetch.downloaded(page, Storage(str(tmp_path)))
    assert remedy in str(caught.value)
    check = sources.check(Config(data=DataConfig(path=page)), Storage(str(tmp_path)))
    assert (check.status, remedy in check.remedy) == ("problem", True)


def test_a_server_is_asked_once_which_version_it_has(tmp_path: Path, storage_root: Path) -> None:
    with serving(Mirror({"set.zip": zipped(tmp_path / "set.zip", members(12)).read_bytes()})) as running:
        config = Config(data=DataConfig(path=f"{running.url}/set.zip"))
        place = opening.located(config.data, Storage(str(storage_root)))
        assert len(running.heads) == 1
        assert place.fingerprint == fetch.version(str(config.data.path))

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from distml import storage as files
from distml.errors import StorageError
from distml.storage import Storage


def test_a_root_becomes_absolute_and_crosses_processes_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    storage = Storage("here")
    assert storage.root == str(tmp_path / "here")
    assert Storage(f"file://{tmp_path}/he%72e") == storage
    assert vars(pickle.loads(pickle.dumps(storage))) == {"root": storage.root}


def test_a_remote_root_keeps_its_options_behind_what_is_appended() -> None:
    storage = Storage("s3://bucket/root/?endpoint_override=127.0.0.1:1&scheme=http")
    assert not storage.local
    assert storage.uri("a", "b/c") == "s3://bucket/root/a/b/c?endpoint_override=127.0.0.1:1&scheme=http"


def test_a_bucket_of_google_out_of_reach_is_given_up_within_the_minute() -> None:
    for root, seconds in (("gs://bucket", 60), ("gs://bucket?retry_limit_seconds=5", 5)):
        (client, _) = Storage(root).arrow()
        (_, (options,)) = client.__reduce__()
        assert options["retry_time_limit"] == timedelta(seconds=seconds)


@pytest.mark.parametrize("root", ["", "http://host/x", "s3://", "nosuch://a/b", "a\0b"])
def test_unknown_schemes_are_rejected(root: str) -> None:
    with pytest.raises(StorageError, match=r"not a (kind of storage|storage root)"):
        Storage(root)


def test_a_password_in_a_root_is_rejected_and_not_repeated() -> None:
    with pytest.raises(StorageError) as caught:
        Storage("s3://key:hunter2@bucket/root")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "part", ["..", "../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a\0b", "s3://b/x"]
)
def test_paths_outside_the_root_are_rejected_by_every_method(tmp_path: Path, part: str) -> None:
    storage = Storage(str(tmp_path / "root"))
    for attempt in (
        lambda: storage.uri(part),
        lambda: storage.write_bytes(b"x", part),
        lambda: storage.read_bytes(part),
        lambda: storage.names("a", part),
        lambda: storage.delete(part),
        lambda: storage.upload(tmp_path, part),
    ):
        with pytest.raises(StorageError, match="does not name something below"):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_a_link_out_of_the_root_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    storage = Storage(str(tmp_path / "root"))
    with pytest.raises(StorageError, match="through a link"):
        storage.write_bytes(b"x", "link", "file")
    with pytest.raises(StorageError, match="through a link"):
        storage.delete("link")
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    Storage(str(tmp_path / "root")).write_bytes(b"x", "file")
    assert (tmp_path / "real" / "file").read_bytes() == b"x"


def test_written_bytes_are_read_back_listed_and_deleted(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes("grün".encode(), "folder/sub", "b.txt")
    storage.write_bytes(b"", "folder", "a.txt")
    assert storage.read_text("folder", "sub", "b.txt") == "grün"
    assert storage.names("folder") == ["a.txt", "sub"]
    assert storage.names("nothing") == []
    assert (storage.exists("folder/sub"), storage.exists("folder/no")) == (True, False)
    storage.delete("folder", "a.txt")
    storage.delete("folder")
    storage.delete("folder")
    assert storage.names() == []


def test_the_root_is_never_deleted(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="never deleted"):
        Storage(str(tmp_path)).delete()
    assert tmp_path.exists()


def test_errors_of_the_file_system_name_the_path(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write_bytes(b"x", "file")
    with pytest.raises(StorageError, match=rf"cannot read {tmp_path}/no: No such file or directory\."):
        storage.read_bytes("no")
    with pytest.raises(StorageError, match=rf"cannot write {tmp_path}/file/below: "):
        storage.write_bytes(b"x", "file", "below")
    storage.write_bytes(b"\xff", "binary")
    with pytest.raises(StorageError, match="not UTF-8"):
        storage.read_text("binary")


def test_a_reader_never_sees_a_partial_write(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    contents = [bytes([letter]) * 2_000_000 for letter in b"ab"]
    storage.write_bytes(contents[0], "file")
    stop = threading.Event()

    def write(content: bytes) -> None:
        while not stop.is_set():
            storage.write_bytes(content, "file")

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    seen = [storage.read_bytes("file") for _ in range(60)]
    stop.set()
    for writer in writers:
        writer.join()
    assert set(seen) <= set(contents)
    assert storage.names(unfinished=True) == ["file"]


def test_leftovers_of_a_killed_write_are_not_listed(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / f"{files.TEMPORARY}1").write_bytes(b"half")
    assert storage.names() == []
    assert storage.names(unfinished=True) == [f"{files.TEMPORARY}1"]


def test_trees_are_copied_in_and_out(tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "one").write_text("1")
    (tmp_path / "in" / "sub" / "two").write_text("2")
    storage = Storage(str(tmp_path / "root"))
    storage.upload(tmp_path / "in", "runs", "x")
    storage.download(tmp_path / "out", "runs", "x")
    copied = {
        str(p.relative_to(tmp_path / "out")): p.read_text()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert copied == {"one": "1", "sub/two": "2"}
    with pytest.raises(StorageError, match="cannot read"):
        storage.download(tmp_path / "none", "runs", "y")


def test_probe_passes_and_leaves_nothing(tmp_path: Path) -> None:
    Storage(str(tmp_path / "new")).probe()
    assert list((tmp_path / "new").iterdir()) == []


def test_probe_names_a_root_that_takes_no_files() -> None:
    with pytest.raises(StorageError, match="cannot write /proc/distml/"):
        Storage("/proc/distml").probe()


HOLD = """
import sys, time
from distml.storage import Storage
with Storage(sys.argv[1]).lock("folder") as held:
    print(held, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"True\n"
        entered = threading.Event()

        def enter() -> None:
            with Storage(str(tmp_path)).lock("folder"):
                entered.set()

        waiter = threading.Thread(target=enter)
        waiter.start()
        assert not entered.wait(0.3)
        begun = time.monotonic()
        os.kill(holder.pid, signal.SIGKILL)
        assert entered.wait(5)
        assert time.monotonic() - begun < 1
        waiter.join()
    assert list((tmp_path / "folder").iterdir()) == []

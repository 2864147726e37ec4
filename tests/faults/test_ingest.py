"""Data that are damaged, cut off, interrupted, on a full disk, concurrent, repeated. Each is done for real.

Wall time on two cores shared with other work: 60-150 s for all.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image, PngImagePlugin

from distml.checks import sources
from distml.config import Config
from distml.data import fetch, ingestion, shards
from distml.data.formats import fashion_mnist
from distml.data.listing import Folder
from distml.data.manifest import Manifest
from distml.data.schema import Images, Labels
from distml.errors import DataError
from distml.storage import Storage
from tests import zoo
from tests.mirror import Mirror, serving
from tests.runner import REPOSITORY

pytestmark = pytest.mark.fault

TRAIN, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
ROWS = {"train": 55_000, "validation": 5_000, "test": 10_000}


def _idx(values: Labels | Images) -> bytes:
    """Wrap uint8 values as IDX content."""
    return (
        struct.pack(f">I{values.ndim}I", 0x800 + values.ndim, *values.shape)
        + values.astype(np.uint8).tobytes()
    )


@pytest.fixture(scope="session")
def fashion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of the four files by name, obtained as any user obtains it."""
    result = fashion_mnist.open_builtin(Config(), Storage(str(tmp_path_factory.mktemp("storage"))))
    contents = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        rows = result.splits[split]
        contents[f"{prefix}-images-idx3-ubyte.gz"] = _idx(
            rows.gather(np.arange(len(rows.labels))).images[..., 0]
        )
        contents[f"{prefix}-labels-idx1-ubyte.gz"] = _idx(rows.labels)
    return contents


@pytest.fixture(scope="session")
def packed(fashion: dict[str, bytes]) -> dict[str, bytes]:
    """The four files, compressed."""
    return {name: gzip.compress(content, 1) for name, content in fashion.items()}


@pytest.fixture
def mirror(packed: dict[str, bytes]) -> Iterator[Mirror]:
    """A mirror of our own that serves the real files until a test sets a fault."""
    with serving(Mirror(dict(packed))) as running:
        yield running


@dataclass
class Ingest:
    """Starts `python -m distml.ingest` against a mirror, with a cache of its own."""

    mirror: Mirror
    cache: Path
    programs: str = os.environ["PATH"]

    def start(self, root: Path) -> subprocess.Popen[str]:
        """Start one process."""
        words = ["--storage.root", str(root), "--data.mirrors", json.dumps([self.mirror.url])]
        return subprocess.Popen(
            [sys.executable, "-m", "distml.ingest", *words],
            env={**os.environ, "XDG_CACHE_HOME": str(self.cache), "PATH": self.programs},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
        """Wait and return the exit code, the result line and standard error, which holds no traceback."""
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, json.loads(out.splitlines()[-1]), err

    def run(self, root: Path) -> tuple[int, dict[str, Any], str]:
        """Start and finish."""
        return self.finish(self.start(root))


@pytest.fixture
def ingest(mirror: Mirror, tmp_path: Path) -> Ingest:
    """The verb, to be run."""
    return Ingest(mirror, tmp_path / "cache")


def files(root: Path) -> dict[str, int]:
    """Every file below a folder with its modification time."""
    return {str(p.relative_to(root)): p.stat().st_mtime_ns for p in root.rglob("*") if p.is_file()}


def published(root: Path) -> Manifest:
    """The one manifest below a root; every file there is it or named by it, and verifies."""
    (path,) = root.rglob("manifest.json")
    manifest = Manifest.from_json(path.read_text())
    named = {shard.path for split in ROWS for shard in manifest.shards[split]}
    assert set(files(root)) == named | {str(path.relative_to(root))}
    for split, rows in ROWS.items():
        images, labels = shards.read(Storage(str(root)), manifest, split)
        assert len(images) == len(labels) == rows
    return manifest


def test_a_truncated_file_is_named_and_nothing_is_written(ingest: Ingest, storage_root: Path) -> None:
    ingest.mirror.files[TRAIN] = ingest.mirror.files[TRAIN][:-10]
    code, result, _ = ingest.run(storage_root)
    assert code == 1
    assert TRAIN in result["error"]
    assert "damaged" in result["error"]
    assert files(storage_root) == {}
    assert not ingest.cache.exists()


def test_a_mirror_that_always_hangs_up_is_given_up_after_three_tries(
    ingest: Ingest, storage_root: Path
) -> None:
    ingest.mirror.drops[TRAIN] = 99
    ingest.programs = "/nonexistent"  # so that there is no package archive to turn to
    code, result, _ = ingest.run(storage_root)
    assert code == 1
    assert f"{ingest.mirror.url}: {TRAIN}: the connection closed" in result["error"]
    assert len(ingest.mirror.gets) == 3
    assert files(storage_root) == {}


def _flipped(content: bytes) -> bytes:
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def _header(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + value.to_bytes(4, "big") + content[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "expected", "actual"),
    [
        pytest.param(_flipped, "expected bad3541b69d9", "has the SHA-256 ", id="flipped byte"),
        pytest.param(lambda c: _header(c, 0, 0x802), "expected 0x00000801", "is 0x00000802", id="magic"),
        pytest.param(lambda c: _header(c, 4, 60_001), "says 60001 = 60,001", "60,000 follow", id="count"),
    ],
)
def test_damaged_content_is_rejected_with_expected_and_actual_digest(
    ingest: Ingest,
    storage_root: Path,
    fashion: dict[str, bytes],
    damage: Callable[[bytes], bytes],
    expected: str,
    actual: str,
) -> None:
    ingest.mirror.files[LABELS] = gzip.compress(damage(fashion[LABELS]), 1)
    code, result, _ = ingest.run(storage_root)
    assert code == 1
    assert LABELS in result["error"]
    assert expected in result["error"]
    assert actual in result["error"]
    assert files(storage_root) == {}


def test_a_byte_flipped_in_transfer_is_rejected(ingest: Ingest, storage_root: Path) -> None:
    ingest.mirror.files[LABELS] = _flipped(ingest.mirror.files[LABELS])
    code, result, _ = ingest.run(storage_root)
    assert code == 1
    assert f"{LABELS} from {ingest.mirror.url}" in result["error"]
    assert files(storage_root) == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"this root may not mount: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_is_reported_and_the_next_run_succeeds_with_space(
    ingest: Ingest, small_disk: Path
) -> None:
    begun = time.monotonic()
    code, result, _ = ingest.run(small_disk)
    assert time.monotonic() - begun < 30  # measured: 3 to 8 s
    assert (code, result["kind"]) == (1, "StorageError")
    assert f"cannot write {small_disk}" in result["error"]
    assert "No space left on device" in result["error"]
    assert files(small_disk) == {}
    subprocess.run(["mount", "-o", "remount,size=128m", small_disk], check=True)
    code, _, _ = ingest.run(small_disk)
    assert code == 0
    published(small_disk)


def test_interrupted_twice_and_killed_gives_the_same_data(ingest: Ingest, tmp_path: Path) -> None:
    clean, root = tmp_path / "clean", tmp_path / "killed"
    code, result, _ = ingest.run(clean)
    assert code == 0
    ingest.mirror.gets.clear()
    ingest.mirror.drops[TRAIN] = 2
    second = Ingest(ingest.mirror, tmp_path / "empty")
    process = second.start(root)
    give_up = time.monotonic() + 60
    while not any(name.endswith(".parquet") for name in _moving(root)):
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert [name for name, _ in ingest.mirror.gets].count(TRAIN) == 3
    assert not list(root.rglob("manifest.json"))
    assert list(root.rglob("*.parquet"))
    code, again, _ = second.run(root)
    assert code == 0
    assert again["digest"] == result["digest"]
    assert published(root).digest == published(clean).digest


def _moving(root: Path) -> list[str]:
    """Names below a folder that another process is writing to."""
    return [name for _, _, names in os.walk(root) for name in names]


def test_four_at_once_publish_once_and_another_run_does_nothing(ingest: Ingest, storage_root: Path) -> None:
    processes = [ingest.start(storage_root) for _ in range(4)]
    finished = [ingest.finish(process) for process in processes]
    assert [code for code, _, _ in finished] == [0, 0, 0, 0]
    assert sum("published" in err for _, _, err in finished) == 1
    assert len({result["digest"] for _, result, _ in finished}) == 1
    assert len(ingest.mirror.gets) == 4
    for _, result, _ in finished:
        assert result["rows"] == ROWS
    assert published(storage_root).digest == finished[0][1]["digest"]

    before = files(storage_root) | files(ingest.cache)
    ingest.mirror.gets.clear()
    code, result, _ = ingest.run(storage_root)
    assert (code, result["cached"]) == (0, True)
    assert ingest.mirror.gets == []
    assert files(storage_root) | files(ingest.cache) == before


def test_a_damaged_cache_is_skipped_and_replaced(ingest: Ingest, tmp_path: Path) -> None:
    folder = ingest.cache / "distml" / fashion_mnist.PACKAGE
    folder.mkdir(parents=True)
    for name, content in ingest.mirror.files.items():
        (folder / name).write_bytes(_flipped(content) if name == LABELS else content)
    code, _, err = ingest.run(tmp_path / "root")
    assert code == 0
    assert f"not available from the cache {folder}: {LABELS} from the cache {folder} " in err
    assert len(ingest.mirror.gets) == 4
    assert (folder / LABELS).read_bytes() == ingest.mirror.files[LABELS]
    assert published(tmp_path / "root")


def test_damage_detected_after_the_first_shards_removes_them(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for number in range(40):
            folder = tmp_path / "pictures" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("L", (4, 4), number).save(folder / f"{number:02d}.png")
    bad = tmp_path / "pictures/test/class1/39.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    config = Config.model_validate({"data": {"path": str(tmp_path / "pictures"), "shards": 2}})
    storage = Storage(str(tmp_path / "root"))
    with pytest.raises(DataError, match=r"test/class1/39.png is not a readable picture"):
        ingestion.prepare(config, storage)
    assert files(tmp_path / "root") == {}
    assert ingestion.find(config, storage) is None


# Folders of pictures: tasks, drivers and nodes that are killed, and what strangers put into folders.

PICTURES, CLASSES = 240, 3
FORCED = (
    "import sys; from distml import ingest; from distml.data import jobs; "
    "jobs.RAY_FROM_S = jobs.CONNECTED_FROM_S = {ray_from_s}; jobs.SHARD_BYTES = 600_000; "
    "sys.exit(ingest.main())"
)
"""Ten pictures a shard, so that there is a middle to be killed in."""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise, for which a task of ten takes about a fifth of a second."""
    root = tmp_path_factory.mktemp("photographs")
    noise = np.random.default_rng(0).integers(0, 256, (420, 420, 3), np.uint8)
    for number in range(PICTURES):
        split = ("train", "train", "train", "train", "validation", "test")[number % 6]
        folder = root / split / f"class{number // 6 % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.roll(noise, 3 * number, (0, 1))[: 400 + number % 20])
        picture.save(folder / f"{number:04d}.png", compress_level=0)
    return root


def _ingesting(data: Path, root: Path, ray: bool, **more: str) -> subprocess.Popen[str]:
    words = ["--storage.root", str(root), "--data.path", str(data), "--data.image_size", "140"]
    words += [word for key, value in more.items() for word in (f"--data.{key}", value)]
    return subprocess.Popen(
        [sys.executable, "-c", FORCED.format(ray_from_s=0 if ray else 1e9), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _result(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, json.loads(out.splitlines()[-1]), err


@pytest.fixture(scope="module")
def undisturbed(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of what an ingest by threads of one process prepares."""
    code, result, _ = _result(_ingesting(photographs, tmp_path_factory.mktemp("undisturbed"), ray=False))
    assert code == 0
    return str(result["digest"])


def _notes(root: Path) -> int:
    return sum(re.fullmatch(r"[a-z]+-\d{5}\.json", name) is not None for name in _moving(root))


def _await(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 90
    while not reached():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.002)


def _tasks(above: int) -> list[psutil.Process]:
    """Processes of the ingest's tasks at work below a process."""
    working = []
    for process in psutil.Process(above).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.cmdline()[:1] == ["ray::ingest"]:
                working.append(process)
    return working


def _written(root: Path, notes: int, above: int) -> bool:
    """Whether so many jobs are finished and another is at work below a process."""
    return _notes(root) >= notes and bool(_tasks(above))


@pytest.mark.ray
def test_a_killed_task_is_retried(photographs: Path, undisturbed: str, tmp_path: Path) -> None:
    process = _ingesting(photographs, tmp_path, ray=True)
    killed = 0
    for written in (2, 6):
        _await(process, functools.partial(_written, tmp_path, written, process.pid))
        for task in _tasks(process.pid)[:1]:
            task.kill()
            killed += 1
    code, result, _ = _result(process)
    assert killed == 2
    assert (code, result["digest"]) == (0, undisturbed)
    assert not _notes(tmp_path)


@pytest.mark.ray
def test_ingest_resumes_after_its_driver_was_killed_halfway(
    photographs: Path, undisturbed: str, tmp_path: Path
) -> None:
    process = _ingesting(photographs, tmp_path, ray=True)
    _await(process, lambda: _notes(tmp_path) >= 14)  # of 28 shards
    below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    psutil.wait_procs(below, timeout=30)
    assert not list(tmp_path.rglob("manifest.json"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    finished = sum((path.parent / "notes" / f"{path.stem}.json").exists() for path in before)
    code, result, err = _result(_ingesting(photographs, tmp_path, ray=False))
    assert (code, result["digest"]) == (0, undisturbed)
    assert f"where {finished} shards are written" in err
    kept = sum(path.exists() and path.stat().st_mtime_ns == written for path, written in before.items())
    assert kept == finished >= 14


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_lost_node_loses_no_shard(
    photographs: Path, undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    small = {"object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"include_dashboard": False, "num_cpus": 0, **small}
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, **small) for _ in range(2)]
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        process = _ingesting(photographs, tmp_path, ray=True)
        raylet = nodes[1].all_processes["raylet"][0].process.pid
        _await(process, functools.partial(_written, tmp_path, 4, raylet))
        cluster.remove_node(nodes[1], allow_graceful=False)
        code, result, _ = _result(process)
        assert (code, result["digest"]) == (0, undisturbed)
    finally:
        cluster.shutdown()


def _few(folder: Path, count: int = 24) -> Path:
    for number in range(count):
        (folder / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (60, 40), (number, 2 * number, 255 - number))
        picture.paste((255, 255, 255), (number, 3, number + 9, 30))
        picture.save(folder / f"class{number % 2}" / f"{number:05d}.png")
    return folder


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_file_deleted_between_listing_and_reading_is_named(tmp_path: Path, on_error: str) -> None:
    folder = _few(tmp_path / "pictures")
    data = {"path": str(folder), "on_error": on_error, "max_error_fraction": 0.1}
    config, storage = Config.model_validate({"data": data}), Storage(str(tmp_path / "root"))
    source = ingestion.look(config, storage)
    (folder / "class1" / "00007.png").unlink()
    if on_error == "fail":
        with pytest.raises(DataError, match=r"cannot read class1/00007\.png in .*: No such file"):
            ingestion.prepare(config, storage, source)
        assert files(tmp_path / "root") == {}
        return
    manifest = ingestion.prepare(config, storage, source)
    ((name, reason),) = manifest.left_out
    assert name == "class1/00007.png"
    assert "No such file" in reason
    assert sum(manifest.rows.values()) == 23


def test_a_folder_of_200000_files_on_a_slow_store_is_looked_at_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name takes a millisecond and each file fifty: all of them would take three minutes and more."""
    folder = _few(tmp_path / "pictures")
    real, opened = os.scandir, Folder.open
    entries = {str(path): list(real(path)) for path in (folder, *folder.iterdir())}
    listed = 0

    @contextlib.contextmanager
    def slow(path: str) -> Iterator[Iterator[Any]]:
        def named() -> Iterator[Any]:
            nonlocal listed
            for entry in entries[str(path)]:
                for number in range(1 if entry.is_dir() else 200_000 // 24):
                    listed += 1
                    yield Entry(entry, number)

        yield named()

    class Entry:
        def __init__(self, entry: os.DirEntry[str], number: int) -> None:
            self.path, self._entry = entry.path, entry
            self.name = f"{number:06}-{entry.name}" if number else entry.name

        def stat(self) -> os.stat_result:
            time.sleep(0.001)
            return self._entry.stat()

    def slowly(self: Folder, name: str) -> Any:
        time.sleep(0.05)
        return opened(self, name)

    monkeypatch.setattr("distml.data.listing.os.scandir", slow)
    monkeypatch.setattr(Folder, "open", slowly)
    monkeypatch.setattr(sources, "LISTING_S", 0.5)
    monkeypatch.setattr(sources, "LOOKING_S", 0.2)
    config = Config.model_validate({"data": {"path": str(folder)}})
    check = sources.check(config, Storage(str(tmp_path / "root")))
    assert check.status == "ok", check
    assert "in the first 0.5 s, and more, to be read as image_folder" in check.detail
    looked_at = int(re.search(r"sizes among (\d+) that", check.detail)[1])  # type: ignore[index]
    assert looked_at % sources._AT_ONCE == 0
    assert looked_at < sources.SAMPLE
    assert 1_000 <= listed < 10_000


def test_ingest_resumes_after_a_full_disk_at_the_third_shard(
    photographs: Path, undisturbed: str, small_disk: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=2m", small_disk], check=True)
    code, result, _ = _result(_ingesting(photographs, small_disk, ray=False))
    assert (code, result["kind"]) == (1, "StorageError")
    assert "No space left on device" in result["error"]
    written = _notes(small_disk)
    assert written >= 2
    subprocess.run(["mount", "-o", "remount,size=128m", small_disk], check=True)
    code, result, err = _result(_ingesting(photographs, small_disk, ray=False))
    assert (code, result["digest"]) == (0, undisturbed)
    assert f"where {written} shards are written" in err


def test_picture_bombs_are_left_out_and_cost_no_memory(tmp_path: Path) -> None:
    folder = _few(tmp_path / "pictures")
    (folder / "class0" / "huge.png").write_bytes(zoo.header_only(20_000))
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "0" * (50 << 20))
    Image.new("RGB", (60, 40)).save(folder / "class1" / "text.png", pnginfo=text)
    code = (  # not of getrusage, which begins with the peak of the process that started this one
        "import re, sys; from distml import ingest; code = ingest.main(); "
        "print(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr); "
        "sys.exit(code)"
    )
    words = ["--storage.root", str(tmp_path / "root"), "--data.path", str(folder)]
    words += ["--data.on_error", "skip", "--data.max_error_fraction", "0.2"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert int(done.stderr.splitlines()[-1]) < 512 << 10
    manifest = Manifest.from_json(Path(result["manifest"]).read_text())
    reasons = dict(manifest.left_out)
    assert "is larger than 100,000,000 pixels" in reasons["class0/huge.png"]
    assert sum(manifest.rows.values()) == 26 - len(reasons)


def test_damaged_files_among_many_are_each_listed_and_bounded(tmp_path: Path) -> None:
    folder = _few(tmp_path / "pictures", 400)
    damaged = {}
    for number in range(0, 400, 10):
        path = folder / f"class{number % 2}" / f"{number:05d}.png"
        content = path.read_bytes()
        path.write_bytes((content[: len(content) // 2], b"", b"no picture", content[:20])[number // 10 % 4])
        damaged[f"class{number % 2}/{number:05d}.png"] = path
    data = {"path": str(folder), "on_error": "skip", "max_error_fraction": 0.1}
    manifest = ingestion.prepare(Config.model_validate({"data": data}), Storage(str(tmp_path / "root")))
    assert {name for name, _ in manifest.left_out} == set(damaged)
    assert sum(manifest.rows.values()) == 360
    data["max_error_fraction"] = 0.09
    with pytest.raises(
        DataError, match=r"40 pictures cannot be used, more than data.max_error_fraction = 0.09"
    ):
        ingestion.prepare(Config.model_validate({"data": data}), Storage(str(tmp_path / "other")))


@pytest.mark.parametrize(
    ("name", "content", "link", "expected"),
    [
        (
            "../../escaped.png",
            b"x",
            None,
            r"holds 'pictures/\.\./\.\./escaped\.png', whose path is outside of it",
        ),
        ("class0/zeros.png", b"\0" * (4 << 20), None, r"unpacks to far more than its own size"),
        ("class0/passwd.png", b"", "/etc/passwd", None),
    ],
)
def test_hostile_archives_write_nothing_outside(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    content: bytes,
    link: str | None,
    expected: str | None,
) -> None:
    monkeypatch.setattr(fetch, "_SPARE_BYTES", 1 << 20)
    folder = _few(tmp_path / "pictures")
    with tarfile.open(tmp_path / "pictures.tar.gz", "w:gz") as archive:
        archive.add(folder, "pictures")
        member = tarfile.TarInfo(f"pictures/{name}")
        member.size = len(content)
        if link is not None:
            member.type, member.linkname = tarfile.SYMTYPE, link
        archive.addfile(member, io.BytesIO(content))
    config = Config.model_validate({"data": {"path": str(tmp_path / "pictures.tar.gz")}})
    storage = Storage(str(tmp_path / "deep" / "root"))
    if expected is None:
        assert sum(ingestion.prepare(config, storage).rows.values()) == 24
        assert not list(tmp_path.rglob("passwd.png"))
        return
    with pytest.raises(DataError, match=expected):
        ingestion.prepare(config, storage)
    assert not list(tmp_path.rglob("escaped.png"))
    assert files(tmp_path / "deep") == {}

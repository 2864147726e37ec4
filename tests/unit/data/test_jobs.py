from __future__ import annotations

import io
import json
import pickle
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import ray.exceptions

from distml.config import Config
from distml.data import image, ingestion, jobs, listing, schema, shards, writer
from distml.data.formats import image_folder
from distml.data.jobs import Job, Record
from distml.data.listing import Folder
from distml.data.manifest import Shard
from distml.data.opening import open_source
from distml.data.source import Fault, Gathered
from distml.errors import ConfigError, DataError, ResourceError, StorageError
from distml.storage import Storage
from tests import zoo

COUNT = 40


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty drawn pictures of two classes, one of them broken."""
    for k in range(COUNT):
        folder = tmp_path / "pictures" / ("cat" if k % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        zoo.drawn(30 + k % 7, 33).rotate(9 * k).save(folder / f"{k:02}.png")
    broken = tmp_path / "pictures" / "cat" / "99.png"
    broken.write_bytes((tmp_path / "pictures" / "cat" / "01.png").read_bytes()[:-30])
    return tmp_path / "pictures"


def configured(pictures: Path, **data: Any) -> Config:
    """Twenty pixels a side, so that a shard of 8,000 bytes holds six images."""
    given = {
        "path": str(pictures),
        "image_size": 20,
        "shards": 2,
        "on_error": "skip",
        "max_error_fraction": 0.1,
    }
    return Config.model_validate({"data": given | data})


def test_the_result_does_not_depend_on_threads_or_decoder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SHARD_BYTES", 8_000)
    prepared = []
    for cores in (1, 2, 4):
        monkeypatch.setattr(jobs, "_cores", lambda cores=cores: cores)
        prepared.append(ingestion.prepare(configured(pictures), Storage(str(tmp_path / str(cores)))))
    manifest = prepared[0]
    assert len({made.digest for made in prepared}) == 1
    assert {made.left_out for made in prepared} == {manifest.left_out}
    assert [name for name, _ in manifest.left_out] == ["cat/99.png"]
    assert sum(manifest.rows.values()) == COUNT
    assert all(shard.rows <= 6 for some in manifest.shards.values() for shard in some)
    assert len(manifest.shards["train"]) > 2
    assert not list(tmp_path.rglob(writer.NOTES))


def interrupted(after: int, error: BaseException) -> Callable[[Job], Record]:
    done: list[Job] = []

    def run(job: Job) -> Record:
        if len(done) == after:
            raise error
        done.append(job)
        return jobs_run(job)

    return run


jobs_run = jobs.run


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("cannot write: No space left.")])
def test_an_interrupted_ingest_resumes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(jobs, "SHARD_BYTES", 8_000)
    monkeypatch.setattr(jobs, "_cores", lambda: 1)
    config, storage = configured(pictures), Storage(str(tmp_path / "root"))
    monkeypatch.setattr(jobs, "run", interrupted(3, error))
    with pytest.raises(type(error)):
        ingestion.prepare(config, storage)
    kept = sorted((tmp_path / "root").rglob("*.parquet"))
    assert len(kept) == 3
    changed = kept[0].read_bytes()
    kept[0].write_bytes(changed[:-1])
    notes = [Record.from_json(note.read_text()) for note in (tmp_path / "root").rglob("*.json")]
    done = sum(
        len(note.digests) + len(note.faults) for note in notes if not str(kept[0]).endswith(note.shard.path)
    )
    read: list[str] = []
    real = image.read

    def counted(data: bytes, policy: image.Policy, name: str, max_pixels: int) -> image.Images:
        read.append(name)
        return real(data, policy, name, max_pixels)

    monkeypatch.setattr(jobs, "run", jobs_run)
    with monkeypatch.context() as counting:
        counting.setattr(image, "read", counted)
        manifest = ingestion.prepare(config, storage)
    near_duplicates = COUNT + 1
    assert len(read) == near_duplicates + jobs._SAMPLE + COUNT + 1 - done
    assert manifest.digest == ingestion.prepare(config, Storage(str(tmp_path / "other"))).digest
    assert kept[0].read_bytes() == changed
    assert not list((tmp_path / "root").rglob(writer.NOTES))


def test_an_ingest_of_changed_data_does_not_resume(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"cat/99\.png is not a readable picture"):
        ingestion.prepare(configured(pictures, on_error="fail"), Storage(str(tmp_path / "root")))
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_file()]


def test_leftovers_of_another_ingest_are_removed(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, storage = configured(pictures), Storage(str(tmp_path / "root"))
    monkeypatch.setattr(jobs, "run", interrupted(1, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        ingestion.prepare(config, storage)
    (left,) = (tmp_path / "root").rglob("*.parquet")
    (pictures / "cat" / "99.png").unlink()
    monkeypatch.setattr(jobs, "run", jobs_run)
    ingestion.prepare(config, storage)
    assert not left.exists()


def test_a_job_is_pickled_without_the_data_set(pictures: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    source = open_source(configured(pictures), storage)
    only = source.splits["train"].only
    assert only is not None
    few, all_of_them = only(np.arange(1)), only(np.arange(COUNT))
    assert len(pickle.dumps(few)) < 1_500 < len(pickle.dumps(all_of_them))
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(few))().images, source.splits["train"].gather(np.arange(1)).images
    )


def test_a_progress_note_round_trips_and_other_files_are_rejected() -> None:
    faults = {2: Fault("a.png", "a.png is broken.", "Mend it.")}
    record = Record(Shard("set/a.parquet", 2, 10, "00"), 200, (1,), ("aa", "bb"), b"\0x", faults)
    assert Record.from_json(record.to_json()) == replace(record, fresh=False)
    for text in ("{}", "[]", "null", '{"shard": 1}', "broken"):
        with pytest.raises(ValueError, match=r"record|Expecting"):
            Record.from_json(text)


def test_images_that_compress_well_are_compressed_and_photographs_are_not(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    noise = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    for images, compressed in ((noise, False), (noise // 64 * 64 // 255, True), (noise[:0], False)):
        labels, numbers = np.zeros(len(images), np.int32), np.arange(len(images))
        record = jobs.write(storage, "a.parquet", Gathered(images), labels, numbers, "raw")
        assert (record.shard.bytes < 0.7 * images.nbytes) == compressed
        table = schema.decoded(pq.read_table(tmp_path / "a.parquet"), (64, 64, 3))
        np.testing.assert_array_equal(schema.to_images(table[schema.IMAGE]), images)


def test_a_small_file_of_a_store_is_read_once(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(pictures))
    local, opened = folder._system, []

    class Store:
        def open_input_file(self, path: str) -> Any:
            opened.append(path)
            return local.open_input_file(path)

    folder._system = Store()
    monkeypatch.setattr(folder, "_room", 6_000)
    source = image_folder.open_pictures(folder, configured(pictures).data)
    headers, sizes = len(opened), [folder.sizes[name] for name in folder.sizes]
    assert headers == COUNT + 1
    only = source.splits["train"].only
    assert only is not None
    assert len(only(np.arange(COUNT))().images) == COUNT
    kept = headers + COUNT + 1 - len(opened)
    assert 0 < kept < COUNT
    assert sum(sorted(sizes)[:kept]) <= 6_000


def test_files_of_a_store_are_fetched_while_others_are_decoded(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(pictures))
    local, second, opened = folder._system, threading.Event(), []

    class Store:
        def open_input_file(self, path: str) -> Any:
            opened.append(path)
            if len(opened) == 1:
                assert second.wait(60), "the second request waits for the first"
            second.set()
            return local.open_input_file(path)

    expected = {name: folder.read(name) for name in folder.sizes}
    names = [*expected, "cat/01.png"]
    folder._system = Store()
    assert [content() for content in folder.ahead(names)] == [*expected.values(), expected["cat/01.png"]]
    monkeypatch.setattr(listing, "_AHEAD_BYTES", 1)
    assert [content() for content in folder.ahead(names[:3])] == list(expected.values())[:3]
    (pictures / names[1]).unlink()
    first, gone = folder.ahead(names[:2])
    assert first() == expected[names[0]]
    with pytest.raises(DataError, match="cannot read"):
        gone()


def test_compressed_rows_are_decoded_alike_everywhere(pictures: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    raw = ingestion.prepare(configured(pictures, encoding="raw"), storage)
    jpeg = ingestion.prepare(configured(pictures, encoding="jpeg"), storage)
    assert (raw.encoding, jpeg.encoding, jpeg.rows) == ("raw", "jpeg", raw.rows)
    assert raw.digest != jpeg.digest
    for split in raw.rows:
        pixels, labels = shards.read(storage, raw, split)
        near, same = shards.read(storage, jpeg, split)
        assert (labels == same).all()
        assert 0 < np.abs(pixels.astype(int) - near).mean() < 4  # measured: 1.4 on drawn edges
        (stored,) = {image.to_jpeg(pixels[0])}
        np.testing.assert_array_equal(near[0], image.read(stored, image.Policy.of_arrays(raw.shape)))


@pytest.mark.parametrize(("pixels", "expected"), [(0.5, "jpeg"), (2, "tensor")])
def test_auto_compresses_what_the_workers_cannot_hold(
    pictures: Path, tmp_path: Path, pixels: float, expected: str
) -> None:
    source = open_source(configured(pictures), Storage(str(tmp_path)))
    config = configured(pictures, memory_budget_bytes=1_000_000)
    needed = round(1_000_000 * config.train.min_workers / pixels)
    assert writer.encoding(config, source, needed) == expected


def test_arrays_stay_tensors_and_four_channels_are_no_jpeg(tmp_path: Path, storage_root: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((12, 4, 4, 4), np.uint8), y=np.arange(12) % 2)
    given = {"path": str(tmp_path / "a.npz")}
    storage = Storage(str(storage_root))
    assert ingestion.prepare(Config.model_validate({"data": given}), storage).encoding is None
    with pytest.raises(ConfigError, match=r"data\.encoding is jpeg, but the images have 4 channels"):
        ingestion.prepare(Config.model_validate({"data": given | {"encoding": "jpeg"}}), storage)


def test_progress_shows_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    progress = jobs.Progress(1_000)
    shard = Shard("a", 200, 1, "00")
    with caplog.at_level("INFO", logger="distml"):
        progress.add(Record(shard, 0, (), ("aa",) * 200, fresh=False))
        now = 110.0
        progress.add(Record(shard, 0, (), ("aa",) * 200))
        progress.add(Record(shard, 0, (), ("aa",) * 200))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said == "prepared 400 of 1,000 pictures, 200 of them before, 20 a second, 30 s left"


@pytest.mark.parametrize(
    ("rows", "connected", "expected"),
    [(20_000, False, "here"), (20_000, True, "ray"), (100_000, False, "started")],
)
def test_ray_is_used_for_large_ingests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, connected: bool, expected: str
) -> None:
    from distml.runtime import cluster

    monkeypatch.setattr(jobs, "_cores", lambda: 2)
    monkeypatch.setattr(jobs, "_strategy", lambda storage, place: "DEFAULT")
    fake = SimpleNamespace(is_initialized=lambda: connected)
    monkeypatch.setitem(sys.modules, "ray", fake)
    started: list[Config] = []

    @contextmanager
    def connect(config: Config, dashboard: bool) -> Iterator[None]:
        assert not dashboard  # nobody is told its address
        started.append(config)
        yield

    monkeypatch.setattr(cluster, "connect", connect)
    ticks = iter([0.0, 0.016])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    with jobs.pool(Config(), Storage(str(tmp_path)), "/photos", rows, lambda count: None) as pool:
        chosen = "started" if started else "here" if pool._strategy is None else "ray"
    assert chosen == expected


def test_a_task_that_keeps_failing_is_reported_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: Any) -> Record:
        raise raised

    fake = SimpleNamespace(wait=lambda some, num_returns: (some[:1], some[1:]), get=lost)
    fake.exceptions = ray.exceptions
    refused = ray.exceptions.RayTaskError("run", "", StorageError("cannot write: full.", "Free space."))
    monkeypatch.setitem(sys.modules, "ray", fake)
    raised: Exception = ray.exceptions.WorkerCrashedError()
    with pytest.raises(
        ResourceError, match=r"a task of the ingest was lost 6 times: .*what is finished is kept"
    ):
        jobs._next([1])
    raised = refused
    with pytest.raises(StorageError, match=r"cannot write: full\. Free space\."):
        jobs._next([1])


def test_a_progress_note_of_another_file_is_ignored(pictures: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "root"))
    rows = open_source(configured(pictures), storage).splits["train"]
    assert rows.only is not None
    numbers = np.arange(3)
    job = Job(storage, "a.parquet", "a.json", rows.only(numbers), rows.labels[:3], numbers, "raw")
    first = jobs.run(job)
    assert jobs.run(job) == replace(first, fresh=False)
    note = json.loads(storage.read_text("a.json"))
    note["shard"]["path"] = "b.parquet"
    storage.write_bytes(json.dumps(note).encode(), "a.json")
    assert jobs.run(job).fresh


@pytest.mark.parametrize(("seen_elsewhere", "expected"), [(True, "SPREAD"), (False, None)])
def test_tasks_go_where_the_folder_of_an_unpacked_archive_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_elsewhere: bool, expected: str | None
) -> None:
    """Its files lie in the cache of the driver; the archive itself may be seen by all nodes."""
    packed = tmp_path / "pictures.tar"
    with tarfile.open(packed, "w") as archive:
        for k in range(12):
            picture = zoo.encoded(zoo.drawn(30 + k, 33), "PNG")
            member = tarfile.TarInfo(f"{'cat' if k % 2 else 'dog'}/{k}.png")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    asked: list[list[str]] = []

    def look(paths: list[str]) -> list[int | None]:
        asked.append(paths)
        there = jobs._seen(paths)
        return there if seen_elsewhere else [None for _ in there]

    class Remote:
        def __init__(self, function: Any) -> None:
            pass

        def options(self, **_: Any) -> Remote:
            return self

        remote = staticmethod(look)

    nodes = [{"NodeID": "0" * 56, "Alive": True, "Resources": {"CPU": 1}}] * 2
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "remote", Remote)
    monkeypatch.setattr(ray, "get", lambda given: given)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(jobs, "CONNECTED_FROM_S", -1.0)
    chosen: list[object] = []

    def noted(self: jobs.Pool, strategy: object = None) -> None:
        chosen.append(strategy)
        self._strategy = None

    monkeypatch.setattr(jobs.Pool, "__init__", noted)
    storage = Storage(str(tmp_path / "root"))
    ingestion.prepare(Config.model_validate({"data": {"path": str(packed)}}), storage)
    assert chosen == [expected]
    assert all(paths[0].startswith(storage.uri("cache", "unpacked")) for paths in asked)
    assert len(asked) == 2

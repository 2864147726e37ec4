"""Writes single shards: jobs that run in threads, or as Ray tasks for much data; resumable (driver).

A job is a pure function of the files it reads, so the result does not depend on who runs it, when, or how
often. A finished job leaves a note beside its shard; another run of the same ingest takes the note and does
not decode again. Measured on 2 cores, see `benchmarks/README.md`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import Config
from distml.data import duplicates, image, schema
from distml.data.manifest import Shard
from distml.data.schema import Images
from distml.data.source import Fault, Gathered, Indices
from distml.errors import DistmlError, ResourceError, StorageError
from distml.storage import TEMPORARY, Storage
from distml.tasks import Targets

Given = TypeVar("Given")
Made = TypeVar("Made")

_LOG = logging.getLogger(__name__)

SHARD_BYTES = 16 << 20
"""Pixels of one shard at most: a task holds them once, and Parquet's copies of them."""
RECORDS = 2
"""Version of the notes of finished jobs; those of another are not gone on with."""
RAY_FROM_S = 30.0
"""So long must this process have to work before Ray is started, which takes 6 to 10 s on 2 cores."""
CONNECTED_FROM_S = 5.0
"""The same where Ray runs already: each of its processes takes 2 s to start."""
_RETRIES = 5
_SAMPLE = 16
_EVERY_S = 5.0

_GROUP_ROWS = 4096
_GROUP_BYTES = 4 << 20  # Arrow takes sixteen times as much while it encodes or decodes a group of tensors
# Parquet knows no bytes: each pixel of a tensor is an INT32, so the encoding decides. Measured on 60,000
# images of 28 x 28 in 8 files, one thread of 2 busy cores: dictionary + zstd 0.39 s and 27 MB, plain 0.46 s
# and 189 MB, plain + lz4 0.53 s and 53 MB, delta + zstd 0.44 s and 38 MB. Byte-stream-split + zstd (0.35 s,
# 27 MB) is no faster within the noise, and fewer readers know it.
# Packed, an image is one value of bytes. CPU milliseconds for a photograph of 224 x 224: written 0.44 and
# read 0.14 with zstd (81 % of its size), 0.24 and 0.04 with lz4 (87 %), 0.08 and 0.01 uncompressed; as a
# tensor 1.97 and 3.03 (83 %). So photographs are not compressed, drawings, which shrink to a fraction, are.
_FORMS: dict[str, dict[str, Any]] = {
    "tensor": {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [f"{schema.IMAGE}.list.element"],
    },
    "raw": {"compression": "zstd", "compression_level": 1, "use_dictionary": False},
    "plain": {"compression": "none", "use_dictionary": False},
}
_WORTH = 0.7
"""Of the size of raw pixels: what compression must leave at most."""
_TRIED = 4
_OVERHEAD_BYTES = 64 << 10
"""Beside the values, of the file and of each group of rows, at most."""


@dataclass(frozen=True)
class Job:
    """One shard to be written.

    Args:
        storage: Takes it.
        path: Of the shard, relative to the storage root.
        note: Of the finished job, relative to the storage root.
        read: Reads the rows.
        labels: Targets of the task.
        numbers: int64 [N], each row's position in its split.
        encoding: tensor, raw or jpeg.
        near: Whether near duplicates are looked for.
    """

    storage: Storage
    path: str
    note: str
    read: Callable[[], Gathered]
    labels: Targets
    numbers: Indices
    encoding: str
    near: bool = False


@dataclass(frozen=True)
class Record:
    """What a job wrote and saw.

    Args:
        shard: The file.
        top: Largest pixel value.
        constant: Places of rows of one colour among those written.
        digests: Of each row written, in hexadecimal.
        signatures: Of the rows written, for near duplicates; none where they are not looked for.
        faults: Rows that cannot be used, by their place among those of the job.
        fresh: False where an earlier run wrote it.
    """

    shard: Shard
    top: int
    constant: tuple[int, ...]
    digests: tuple[str, ...]
    signatures: bytes = b""
    faults: dict[int, Fault] = field(default_factory=dict)
    fresh: bool = True

    def to_json(self) -> str:
        """Return the note of a finished job."""
        return json.dumps(asdict(self) | {"signatures": base64.b64encode(self.signatures).decode()})

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a note.

        Raises:
            ValueError: Something else.
        """
        try:
            raw = json.loads(text)
            faults = {int(at): Fault(**fault) for at, fault in raw["faults"].items()}
            places = tuple(map(int, raw["constant"])), tuple(map(str, raw["digests"]))
            seen = base64.b64decode(raw["signatures"])
            return cls(Shard(**raw["shard"]), int(raw["top"]), *places, seen, faults, fresh=False)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no record of a finished job: {error}") from None


def run(job: Job) -> Record:
    """Do a job unless its note says that it is done (any process).

    Raises:
        StorageError: The storage cannot be written or is full.
    """
    done = _done(job)
    if done is not None:
        return done
    record = write(job.storage, job.path, job.read(), job.labels, job.numbers, job.encoding, job.near)
    job.storage.write_bytes(record.to_json().encode(), job.note)
    return record


def _done(job: Job) -> Record | None:
    """What an earlier run wrote, None where it did not, or where the file is another one by now."""
    try:
        record = Record.from_json(job.storage.read_text(job.note))
        digest = hashlib.sha256(job.storage.read_bytes(job.path)).hexdigest()
    except (StorageError, ValueError):
        return None
    return record if (job.path, digest) == (record.shard.path, record.shard.sha256) else None


def write(
    storage: Storage,
    path: str,
    gathered: Gathered,
    labels: Targets,
    numbers: Indices,
    encoding: str,
    near: bool = False,
    plain: Images | None = None,
) -> Record:
    """Write the usable rows as one Parquet file and look at them.

    Args:
        storage: Takes the file.
        path: Relative to the storage root.
        gathered: The rows [N].
        labels: Targets of the task.
        numbers: int64 [N], each row's position in its split.
        encoding: tensor and raw keep pixels, jpeg compressed images.
        near: As `Job` has it. A margin does not matter: signatures are of the whole image, scaled.
        plain: The same rows without their margin; identical rows are recognised by them.
    """
    images = gathered.images
    if gathered.faults:
        kept = np.ones(len(images), bool)
        kept[list(gathered.faults)] = False
        images, labels, numbers = images[kept], labels[kept], numbers[kept]
        plain = None if plain is None else plain[kept]
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    constant = np.flatnonzero(flat.min(1) == flat.max(1)).tolist() if len(flat) else []
    digests = tuple(map(_digest, flat if plain is None else plain))
    signatures = duplicates.signatures(images).to_bytes() if near else b""
    table = _TABLES[encoding](images, labels, numbers)
    data = _parquet(table, _form(encoding, flat))
    storage.write_bytes(data, path)
    shard = Shard(path, len(labels), len(data), hashlib.sha256(data).hexdigest())
    top = int(flat.max()) if len(flat) else 0
    return Record(shard, top, tuple(constant), digests, signatures, dict(gathered.faults))


def _digest(row: Images) -> str:
    # CPUs have instructions for SHA-256: 0.09 ms for 150 kB, BLAKE2b 0.16.
    return hashlib.sha256(np.ascontiguousarray(row).data).hexdigest()[:24]


def _form(encoding: str, flat: Images) -> str:
    """How Parquet stores the rows, uint8 [N, H * W * C], as some of them compress."""
    if encoding != "raw":
        return "tensor" if encoding == "tensor" else "plain"
    some = flat[:: max(1, len(flat) // _TRIED)][:_TRIED].tobytes()
    left = pa.Codec("zstd", compression_level=1).compress(some, asbytes=True)
    return "raw" if len(left) <= _WORTH * len(some) else "plain"


def _parquet(table: Any, form: str) -> Any:
    """Encode a table of rows as one Parquet file in memory."""
    size = min(_GROUP_ROWS, max(1, _GROUP_BYTES * len(table) // max(1, table.nbytes)))
    if form == "plain":  # its size is known: a stream that grows holds up to three times as much
        room = pa.allocate_buffer(table.nbytes * 17 // 16 + _OVERHEAD_BYTES * (2 + len(table) // size))
        sink = pa.FixedSizeBufferWriter(room)
        pq.write_table(table, sink, row_group_size=size, write_statistics=False, **_FORMS[form])
        return room.slice(0, sink.tell())
    stream = pa.BufferOutputStream()
    pq.write_table(table, stream, row_group_size=size, write_statistics=False, **_FORMS[form])
    return stream.getvalue()


def _compressed(images: Images, labels: Targets, numbers: Indices) -> Any:
    return schema.to_encoded(list(map(image.to_jpeg, images)), labels, numbers)


_TABLES = {"tensor": schema.to_table, "raw": schema.to_packed, "jpeg": _compressed}


class Pool:
    """Runs functions of picklable arguments on every CPU: in threads, or as Ray tasks. Final.

    Args:
        strategy: Where Ray puts tasks, None for threads of this process.
    """

    def __init__(self, strategy: Any | None = None) -> None:
        self._strategy = strategy

    def run(self, function: Callable[[Given], Made], items: Iterable[Given]) -> Generator[Made]:
        """Call the function for each item, and yield what it returned in the order in which calls end.

        Args:
            function: Pure: a task may be retried in any process.
            items: Are made as they are needed.

        Raises:
            ResourceError: Ray lost the same task again and again. And whatever the function raises.
        """
        return self._threads(function, items) if self._strategy is None else self._tasks(function, items)

    def _threads(self, function: Callable[[Given], Made], items: Iterable[Given]) -> Generator[Made]:
        # Decoding, resizing and Parquet release the interpreter's lock. A shard's last fifth is waiting for
        # the disk: one thread more than there are CPUs works meanwhile.
        pending: set[Future[Made]] = set()
        at_once = _cores() + 1
        with ThreadPoolExecutor(at_once) as pool:
            for item in items:
                if len(pending) >= at_once:
                    ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in ended)
                pending.add(pool.submit(function, item))
            for future in pending:
                yield future.result()

    def _tasks(self, function: Callable[[Given], Made], items: Iterable[Given]) -> Generator[Made]:
        import ray

        from distml.runtime import cluster

        # A local Ray has more CPUs than there are cores: they are tickets of ranks that wait for each other.
        tickets = ray.cluster_resources().get("CPU", 1.0)
        each = max(1.0, tickets / _cores()) if cluster.address() is None else 1.0
        options = {"num_cpus": each, "max_retries": _RETRIES, "scheduling_strategy": self._strategy}
        task = ray.remote(function).options(name="ingest", **options)
        pending: list[Any] = []
        try:
            for item in items:
                # Twice as many as can run, so that none waits for the driver; nodes may join meanwhile.
                while len(pending) >= 2 * max(1.0, ray.cluster_resources().get("CPU", 1.0) / each):
                    yield _next(pending)
                pending.append(task.remote(item))
            while pending:
                yield _next(pending)
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _next(pending: list[Any]) -> Any:
    """Wait for a task, take it out of `pending` and return what it made."""
    import ray

    (ended,), pending[:] = ray.wait(pending, num_returns=1)
    try:
        return ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, DistmlError) else error) from None
    except ray.exceptions.RayError as error:
        cause = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"a task of the ingest was lost {_RETRIES + 1} times: {cause}",
            "Give its nodes more memory and run again; what is finished is kept.",
        ) from None


@contextmanager
def pool(
    config: Config, storage: Storage, place: str, count: int, sample: Callable[[int], object]
) -> Iterator[Pool]:
    """Give a pool of threads where they are fast enough, else one of Ray, which is started if need be.

    Args:
        config: Where the cluster is.
        storage: Is written by tasks.
        place: Folder or URI that tasks read: of an archive, where it was unpacked.
        count: Pictures that are to be read.
        sample: Reads so many of them, to see how long one takes.
    """
    from distml.runtime import cluster

    size = min(count, _SAMPLE)
    began = time.perf_counter()
    sample(size)
    alone_s = (time.perf_counter() - began) / max(1, size) * count / _cores()
    connected = cluster.connected()
    if alone_s < (CONNECTED_FROM_S if connected else RAY_FROM_S):
        yield Pool()
        return
    with ExitStack() as until:
        if not connected:
            _LOG.info("%d pictures would take %.0f s in this process: starting Ray", count, alone_s)
            until.enter_context(cluster.connect(config, dashboard=False))
        yield Pool(_strategy(storage, place))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _strategy(storage: Storage, place: str) -> str | None:
    """Spread tasks over the nodes; None where some of them do not see the data or the storage."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Node

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return "DEFAULT"
    probe = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
    storage.write_bytes(b"", probe)
    try:
        data = Storage(place)
        local = [data.root] * data.local + [storage.uri(probe)] * storage.local
        look, there = ray.remote(_seen), [Node(node, soft=False) for node in nodes]
        asked = [look.options(num_cpus=0, scheduling_strategy=node).remote(local) for node in there]
        blind = sum(seen != _seen(local) for seen in ray.get(asked))
    finally:
        storage.delete(probe)
    if not blind:
        return "SPREAD"
    shown = " and ".join(each.root for each in (data, storage) if each.local)
    _LOG.warning("%d of %d nodes do not see %s: only this process is used", blind, len(nodes), shown)
    return None


def _seen(paths: list[str]) -> list[int | None]:
    """When they were modified, as this node sees it; None where there is nothing."""
    return [os.stat(path).st_mtime_ns if os.path.exists(path) else None for path in paths]


class Progress:
    """Says how many rows are done, how fast, and how long it will take. Final."""

    def __init__(self, count: int) -> None:  # rows of all jobs
        self._count, self._done, self._before = count, 0, 0
        self._began = self._said = time.monotonic()

    def add(self, record: Record) -> None:
        """Count a finished job."""
        rows = len(record.digests) + len(record.faults)
        self._done += rows
        self._before += 0 if record.fresh else rows
        now = time.monotonic()
        if now - self._said < _EVERY_S or self._done == self._before:
            return
        self._said = now
        rate = (self._done - self._before) / (now - self._began)
        left_s = (self._count - self._done) / rate
        kept = f", {self._before:,} of them before" if self._before else ""
        _LOG.info(
            "prepared %s of %s pictures%s, %.0f a second, %.0f s left",
            *(f"{self._done:,}", f"{self._count:,}", kept, rate, left_s),
        )

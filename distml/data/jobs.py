"""Shards are written by jobs: by threads of this process where little is to be done, else by Ray tasks.

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
import sys
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from distml.config import Config
from distml.data import duplicates, image, schema
from distml.data.manifest import Shard
from distml.data.schema import Images
from distml.data.source import Fault, Gathered, Indices
from distml.errors import DistmlError, ResourceError, StorageError
from distml.storage import Storage
from distml.tasks import Targets

_LOG = logging.getLogger(__name__)

SHARD_BYTES = 32 << 20
"""Pixels of one shard at most: a task holds them once, and Parquet's copies of them."""
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
# Packed, an image is one value of bytes. CPU milliseconds for a photograph of 224 x 224: written 0.36 and
# read 0.13 with zstd (82 % of its size), 0.13 and 0.01 uncompressed; as a tensor 1.97 and 3.03 (83 %).
_FORMS: dict[str, dict[str, Any]] = {
    "tensor": {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [f"{schema.IMAGE}.list.element"],
    },
    "raw": {"compression": "zstd", "compression_level": 1, "use_dictionary": False},
    "jpeg": {"compression": "none", "use_dictionary": False},
}


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
        inner: (H, W) in the middle of the images by which near duplicates are found, None to look for none.
    """

    storage: Storage
    path: str
    note: str
    read: Callable[[], Gathered]
    labels: Targets
    numbers: Indices
    encoding: str
    inner: tuple[int, int] | None = None


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
            raise ValueError(f"no note of a finished job: {error}") from None


def run(job: Job) -> Record:
    """Do a job unless its note says that it is done (any process).

    Raises:
        StorageError: The storage cannot be written or is full.
    """
    done = _done(job)
    if done is not None:
        return done
    record = write(job.storage, job.path, job.read(), job.labels, job.numbers, job.encoding, job.inner)
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
    inner: tuple[int, int] | None = None,
) -> Record:
    """Write the usable rows as one Parquet file and look at them.

    Args:
        storage: Takes the file.
        path: Relative to the storage root.
        gathered: The rows [N].
        labels: Targets of the task.
        numbers: int64 [N], each row's position in its split.
        encoding: tensor and raw keep pixels, jpeg compressed images.
        inner: As `Job` has it.
    """
    images = gathered.images
    if gathered.faults:
        kept = np.ones(len(images), bool)
        kept[list(gathered.faults)] = False
        images, labels, numbers = images[kept], labels[kept], numbers[kept]
    flat = images.reshape(len(images), math.prod(images.shape[1:]))
    constant = np.flatnonzero(flat.min(1) == flat.max(1)).tolist() if len(flat) else []
    digests = tuple(hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest() for row in flat)
    signatures = b"" if inner is None else _signatures(images, inner)
    table = _TABLES[encoding](images, labels, numbers)
    size = min(_GROUP_ROWS, max(1, _GROUP_BYTES * len(table) // max(1, table.nbytes)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=size, write_statistics=False, **_FORMS[encoding])
    data = sink.getvalue()
    storage.write_bytes(data, path)
    shard = Shard(path, len(labels), len(data), hashlib.sha256(data).hexdigest())
    top = int(flat.max()) if len(flat) else 0
    return Record(shard, top, tuple(constant), digests, signatures, dict(gathered.faults))


def _signatures(images: Images, inner: tuple[int, int]) -> bytes:
    return duplicates.signatures(schema.centred(images, inner)).to_bytes()


def _compressed(images: Images, labels: Targets, numbers: Indices) -> Any:
    return schema.to_encoded(list(map(image.to_jpeg, images)), labels, numbers)


_TABLES = {"tensor": schema.to_table, "raw": schema.to_packed, "jpeg": _compressed}


def run_all(
    config: Config, jobs: Iterable[Job], count: int, sample: Callable[[int], object]
) -> Generator[Record]:
    """Run jobs where it is fastest and yield what they wrote, in the order in which they end.

    Args:
        config: Where data and cluster are.
        jobs: Are made as they are needed.
        count: Rows of all jobs.
        sample: Reads so many rows, to see how long one takes.

    Raises:
        StorageError: The storage cannot be written or is full.
        ResourceError: Ray lost the same job again and again.
    """
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    with _ray(config, connected, count, sample) as on_ray:
        progress = _Progress(count)
        for record in _on_ray(config, jobs) if on_ray else _in_threads(jobs):
            progress.add(record)
            yield record


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _ray(
    config: Config, connected: bool, count: int, sample: Callable[[int], object]
) -> AbstractContextManager[object]:
    """Give whether Ray does the work: None in this process; start it where it is not there and worth it."""
    size = min(count, _SAMPLE)
    began = time.perf_counter()
    sample(size)
    alone_s = (time.perf_counter() - began) / max(1, size) * count / _cores()
    if alone_s < (CONNECTED_FROM_S if connected else RAY_FROM_S):
        return nullcontext(None)
    if connected:
        return nullcontext(True)
    from distml.runtime import cluster

    _LOG.info("%d pictures would take %.0f s here: starting Ray", count, alone_s)
    return cluster.connect(config)


def _in_threads(jobs: Iterable[Job]) -> Generator[Record]:
    """Decoding, resizing and Parquet release the interpreter's lock."""
    pending: set[Future[Record]] = set()
    with ThreadPoolExecutor(_cores()) as pool:
        for job in jobs:
            if len(pending) >= _cores():
                ended, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
            pending.add(pool.submit(run, job))
        for future in pending:
            yield future.result()


def _on_ray(config: Config, jobs: Iterable[Job]) -> Generator[Record]:
    import ray

    from distml.runtime import cluster

    # A local Ray has more CPUs than there are cores, for they are tickets of ranks that wait for each other.
    tickets = ray.cluster_resources().get("CPU", 1.0)
    each = max(1.0, tickets / _cores()) if cluster.address() is None else 1.0
    task = ray.remote(run).options(
        num_cpus=each, max_retries=_RETRIES, scheduling_strategy=_strategy(config), name="ingest"
    )
    pending: list[Any] = []
    try:
        for job in jobs:
            # Twice as many as can run, so that none waits for the driver; nodes may join meanwhile.
            while len(pending) >= 2 * max(1.0, ray.cluster_resources().get("CPU", 1.0) / each):
                yield _next(pending)
            pending.append(task.remote(job))
        while pending:
            yield _next(pending)
    finally:
        for reference in pending:
            ray.cancel(reference, force=True)


def _next(pending: list[Any]) -> Record:
    """Wait for a task, take it out of `pending` and return what it wrote."""
    import ray

    (ended,), pending[:] = ray.wait(pending, num_returns=1)
    try:
        record: Record = ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, DistmlError) else error) from None
    except ray.exceptions.RayError as error:
        cause = str(error).strip().partition("\n")[0]
        raise ResourceError(
            f"a task of the ingest was lost {_RETRIES + 1} times: {cause}",
            "Give its nodes more memory and run again; what is finished is kept.",
        ) from None
    return record


def _strategy(config: Config) -> Any:
    """Spread tasks over the nodes that see the data and the storage; on this one where some do not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Node

    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return "DEFAULT"
    places = [Storage(place) for place in (config.data.path, config.storage.root) if place is not None]
    local = [place.root for place in places if place.local]
    mine = _seen(local)
    look = ray.remote(_seen)
    there = [Node(node, soft=False) for node in nodes]
    asked = [look.options(num_cpus=0, scheduling_strategy=node).remote(local) for node in there]
    blind = sum(seen != mine for seen in ray.get(asked))
    if not blind:
        return "SPREAD"
    _LOG.warning(
        "%d of %d nodes do not see %s: this one prepares the data alone",
        blind,
        len(nodes),
        " and ".join(local),
    )
    return Node(ray.get_runtime_context().get_node_id(), soft=False)


def _seen(folders: list[str]) -> list[int | None]:
    """When folders were modified, as this node sees it; None where there is none."""
    return [os.stat(folder).st_mtime_ns if os.path.exists(folder) else None for folder in folders]


class _Progress:
    """Says how many rows are done, how fast, and how long it will take. Final."""

    def __init__(self, count: int) -> None:
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

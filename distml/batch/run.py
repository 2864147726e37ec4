"""Predict a whole data set: plan the parts, skip those that are done, classify the rest, sum up (driver)."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distml import log, storage
from distml.artifacts import digests
from distml.artifacts.layout import DIGESTS
from distml.batch.classify import SOURCE, SOURCE_ROW
from distml.batch.parts import Part, plan
from distml.config import Config
from distml.data.listing import Folder
from distml.errors import ConfigError, DataError, DistmlError, ResourceError, StorageError
from distml.runtime import cluster
from distml.storage import Storage

MANIFEST = "manifest.json"
_LISTED = 100  # unreadable rows that the manifest lists; the parts have all
Say = Callable[[str], None]


def predict(
    config: Config, export: digests.Export, model: str, version: int | None, data: str, output: str, say: Say
) -> dict[str, Any]:
    """Classify every row of a data set and write the answers as Parquet, going on where an earlier try ended.

    Args:
        config: Says where Ray is.
        export: The model, verified.
        model: Its name in the registry.
        version: None where it is not registered.
        data: Parquet files with a column `image`, or pictures: a folder or file, a path or URI.
        output: Folder or URI; its `manifest.json` is written last.
        say: Takes a line for the person watching.

    Returns:
        `rows`, `failed` (rows that could not be read), `parts`, `done_before` (parts) and `manifest`.

    Raises:
        ConfigError: The output holds the answers of another model or for other data.
        DataError: The data cannot be read.
        DistmlError: The storage refused, or Ray cannot be reached.
    """
    began = time.monotonic()
    folder, target = Folder(data), Storage(output)
    target.probe()
    parts = plan(folder, export.sha256)
    names = set(target.names())
    foreign = sorted(name for name in names - {part.file for part in parts} if name.startswith("part-"))
    if foreign:
        raise ConfigError(
            f"{target.root} holds answers of another model or for other data, like {foreign[0]}.",
            "Give another --output.",
        )
    left = [part for part in parts if part.file not in names]
    before = len(parts) - len(left)
    say(f"{len(parts)} parts, {before} of them done before")
    if left:
        _classify(config, export, version, folder, target, left, say)
    summary = _sum_up(target, parts) | {"data": folder.root, "output": target.root}
    seconds = time.monotonic() - began
    summary |= {"model": model, "version": version, "sha256": export.sha256, "classes": list(export.classes)}
    target.write_bytes(json.dumps(summary, indent=1).encode(), MANIFEST)
    figures = {key: summary[key] for key in ("rows", "failed", "data", "output")}
    places = {"parts": len(parts), "done_before": before, "manifest": target.uri(MANIFEST)}
    return figures | places | {"wall_s": round(seconds, 2)}


@contextlib.contextmanager
def _shared(export: digests.Export, target: Storage) -> Iterator[str]:
    """Keep the model's files where every process finds them, also one that is started again."""
    name = f"{storage.TEMPORARY}model-{uuid.uuid4().hex[:8]}"
    listed = json.loads((export.folder / DIGESTS).read_bytes())
    try:
        for path in (DIGESTS, *listed):
            target.write_bytes((export.folder / path).read_bytes(), name, path)
        yield name
    finally:
        with contextlib.suppress(StorageError):
            target.delete(name)


def _classify(
    config: Config,
    export: digests.Export,
    version: int | None,
    folder: Folder,
    target: Storage,
    left: list[Part],
    say: Say,
) -> None:
    """Classify parts on Ray, so many at a time as there are CPUs to spare."""
    with cluster.connect(config) as connected, _shared(export, target) as model:
        import ray

        from distml.batch.classify import Classifier, Task

        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is said below
        context.enable_progress_bars = False
        most = max(1, int(connected.resources.get("CPU", 1) - cluster.SPARE_CPUS))
        task = Task(folder.root, target.root, model, export.sha256, version)
        rows = ray.data.from_items([{"part": part.to_json()} for part in left], override_num_blocks=len(left))
        answers = rows.map_batches(
            Classifier,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(left))),
            num_cpus=1,
        )
        try:
            _follow(iter(answers.iter_rows()), len(left), say)
        except ray.exceptions.RayError as error:
            raise _described(error) from error


def _described(error: BaseException) -> DistmlError:
    """What stopped the processes: our own sentence where there is one."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DistmlError):
        return cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ResourceError(
        f"the prediction stopped: {lines[-1][:300]}.", "The same command goes on with the rest."
    )


def _follow(answers: Iterator[dict[str, Any]], parts: int, say: Say) -> None:
    rows = failed = 0
    with (
        log.quietly()
    ):  # Ray writes a line about restarts of actors, below Python's reach, when it makes them
        first = next(answers)
    for done, done_part in enumerate(itertools.chain([first], answers), 1):
        rows, failed = rows + int(done_part["rows"]), failed + int(done_part["failed"])
        unreadable = f", {failed:,} unreadable" if failed else ""
        say(f"part {done}/{parts}  {rows:,} rows{unreadable}")


def _sum_up(target: Storage, parts: list[Part]) -> dict[str, Any]:
    """Count what the parts hold, those of earlier tries among them, and list what could not be read."""
    from distml.batch.classify import COUNTS

    rows = failed = 0
    listed: list[dict[str, Any]] = []
    written = []
    for part in parts:
        content = target.read_bytes(part.file)
        try:
            with pq.ParquetFile(pa.BufferReader(content)) as file:
                counts = json.loads(file.schema_arrow.metadata[COUNTS])
                if counts["failed"] and len(listed) < _LISTED:
                    listed += _unreadable(file)
        except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
            where = target.uri(part.file)
            raise DataError(f"{where} is damaged: {error}.", "Delete it and run the same again.") from None
        rows, failed = rows + counts["rows"], failed + counts["failed"]
        written.append({"file": part.file, **counts})
    return {"rows": rows, "failed": failed, "unreadable": listed[:_LISTED], "parts": written}


def _unreadable(file: Any) -> list[dict[str, Any]]:
    columns = [name for name in (SOURCE, SOURCE_ROW, "error") if name in file.schema_arrow.names]
    return [row for row in file.read(columns).to_pylist() if row["error"] is not None]

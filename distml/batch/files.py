"""Predictions of a trained model for image files in this process, or for a whole data set on Ray (driver)."""

from __future__ import annotations

import contextlib
import functools
import glob
import itertools
import json
import logging
import os
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import log, storage
from distml.artifacts import layout
from distml.artifacts.layout import DIGESTS, Model
from distml.batch.parts import COUNTS, SOURCE, SOURCE_ROW, BatchSpec, Classifier, Part, plan
from distml.config import Config
from distml.data import fetch, image, opening, plausible, schema
from distml.data.formats import image_folder
from distml.data.image import Images, Policy
from distml.data.listing import Folder
from distml.errors import ConfigError, DataError, DistmlError, ResourceError, StorageError
from distml.runtime import cluster
from distml.storage import Storage
from distml.tasks import Task
from distml.tracking.locate import Chosen, choose

_AT_ONCE = 256
"""Files that are read and predicted together."""
MANIFEST = "manifest.json"
_LISTED = 100  # unreadable rows that the manifest lists; the parts have all
Say = Callable[[str], None]


def predict_parts(
    config: Config,
    export: layout.Export,
    model: tuple[str, int | None],
    data: str,
    output: str,
    say: Say,
    embeddings: bool = False,
) -> dict[str, Any]:
    """Classify every row of a data set and write predictions as Parquet; resumes.

    Args:
        config: Says where Ray is.
        export: The model, verified.
        model: Its name in the registry and its version, None where it is not registered.
        data: Folder, file or URI; see `parts.plan`. An archive, also of a web server, is unpacked.
        output: Folder or URI; its `manifest.json` is written last.
        say: Takes a line for the person watching.
        embeddings: Whether the column `embedding` has the features in front of the head.

    Returns:
        `rows`, `failed` (rows that could not be read), `parts`, `done_before` (parts) and `manifest`.

    Raises:
        ConfigError: The output holds predictions of another model or for other data.
        DataError: The data cannot be read.
        DistmlError: The storage refused, or Ray cannot be reached.
    """
    began = time.monotonic()
    folder, target = _opened(config, data, output), Storage(output)
    shown = data if fetch.is_archive(data) else folder.root
    target.probe()
    parts = plan(folder, export.sha256 + ", with embeddings" * embeddings)
    names = set(target.names())
    foreign = sorted(name for name in names - {part.file for part in parts} if name.startswith("part-"))
    if foreign:
        raise ConfigError(
            f"{target.root} holds predictions of another model or for other data, like {foreign[0]}.",
            "Give another --output.",
        )
    left = [part for part in parts if part.file not in names]
    before = len(parts) - len(left)
    say(f"{len(parts)} parts, {before} of them done before")
    unused = folder.ledger.counts()
    if unused:
        say(_told_left_out(unused))
    if left:
        spec = BatchSpec(folder.root, target.root, "", export.sha256, model[1], embeddings)
        _classify_parts(config, export, spec, target, left, say)
    summary = _sum_up(target, parts) | {"data": shown, "output": target.root, "left_out": unused}
    seconds = time.monotonic() - began
    named = {"model": model[0], "version": model[1], "sha256": export.sha256}
    summary |= named | {"classes": list(export.classes), "embeddings": embeddings}
    target.write_bytes(json.dumps(summary, indent=1).encode(), MANIFEST)
    figures = {key: summary[key] for key in ("rows", "failed", "data", "output")}
    places = {"parts": len(parts), "done_before": before, "manifest": target.uri(MANIFEST)}
    return figures | places | {"wall_s": round(seconds, 2)}


def _told_left_out(counts: Mapping[str, int]) -> str:
    return "left out: " + ", ".join(f"{count:,} ({reason})" for reason, count in counts.items())


def _opened(config: Config, data: str, output: str) -> Folder:
    """The folder of the data; an archive is fetched and unpacked below the storage root."""
    if not fetch.is_remote(data) and (data.lower().endswith(".tar") or not fetch.is_archive(data)):
        return Folder(data, without=(config.storage.root, output))
    storage = Storage(config.storage.root)
    if not storage.local and cluster.address() is not None:
        raise ConfigError(
            f"{data} would be unpacked on this machine, where the workers of the cluster cannot read it.",
            "Unpack it and give the URI of the folder.",
        )
    as_it_lies = data.partition("?")[0].lower().endswith(".tar")
    return opening.folder_at(data, "webdataset" if as_it_lies else "auto", storage)[1]


@contextlib.contextmanager
def _shared(export: layout.Export, target: Storage) -> Iterator[str]:
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


def _classify_parts(
    config: Config,
    export: layout.Export,
    spec: BatchSpec,
    target: Storage,
    left: list[Part],
    say: Say,
) -> None:
    """Classify parts on Ray, so many at a time as there are CPUs to spare."""
    with cluster.connect(config, dashboard=False) as connected, _shared(export, target) as model:
        import ray

        context = ray.data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is said below
        context.enable_progress_bars = False
        most = max(1, int(connected.resources.get("CPU", 1) - cluster.SPARE_CPUS))
        task = replace(spec, model=model)
        rows = ray.data.from_items([{"part": part.to_json()} for part in left], override_num_blocks=len(left))
        predictions = rows.map_batches(
            Classifier,
            fn_constructor_args=(task,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, len(left))),
            num_cpus=1,
        )
        try:
            _follow(iter(predictions.iter_rows()), len(left), say)
        except ray.exceptions.RayError as error:
            raise _described(error) from error


def _described(error: BaseException) -> DistmlError:
    """What stopped the processes: our own sentence where there is one."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DistmlError):
        return cause
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ResourceError(
        f"the prediction stopped: {lines[-1][:300]}.", "Run the same command again to resume."
    )


def _follow(predictions: Iterator[dict[str, Any]], parts: int, say: Say) -> None:
    rows = failed = 0
    with (
        log.quietly()
    ):  # Ray writes a line about restarts of actors, below Python's reach, when it makes them
        first = next(predictions)
    for done, done_part in enumerate(itertools.chain([first], predictions), 1):
        rows, failed = rows + int(done_part["rows"]), failed + int(done_part["failed"])
        unreadable = f", {failed:,} unreadable" if failed else ""
        say(f"part {done}/{parts}  {rows:,} rows{unreadable}")


def _sum_up(target: Storage, parts: list[Part]) -> dict[str, Any]:
    """Count what the parts hold, those of earlier tries among them, and list what could not be read."""
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


def _show(console: Console, task: Task, predictions: list[dict[str, Any]]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    for heading in task.headings:
        table.add_column(heading, justify="right" if heading == "probability" else "left")
    for prediction in predictions:
        table.add_row(*(escape(text) for text in (prediction["file"], *task.shown(prediction))))
    console.print(table)
    for prediction in predictions:
        for warning in prediction.get("warnings", ()):
            console.print(f"[yellow]{escape(prediction['file'])}: {escape(warning['sentence'])}[/yellow]")


def predict_files(
    config: Config,
    images: Sequence[str],
    *,
    run: str | None = None,
    version: int | None = None,
    top: int = 3,
) -> dict[str, Any]:
    """Predict image files with a registered model or a run's, loaded in this process.

    Args:
        config: Names storage and registry.
        images: Paths of image files and folders, patterns like `photos/*.jpg`, and `-` for a path on each
            line of standard input.
        run: Name of a run, or an MLflow run id, whose model is loaded.
        version: Registered version; without run and version the champion.
        top: Classes listed for a file.

    Returns:
        As `classify`.

    Raises:
        DistmlError: There is no such model, or its files do not match their digests.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _model(config, run, version, console) as (chosen, export):
        here = Model(
            chosen.model,
            chosen.version,
            export.shape,
            tuple(export.classes),
            policy=export.pictures,
            target=export.target,
            usual=export.usual,
        )
        return classify(images, top, here, _asking(export))


def predict_data(
    config: Config,
    data: str,
    output: str,
    *,
    run: str | None = None,
    version: int | None = None,
    embeddings: bool = False,
) -> dict[str, Any]:
    """Classify every row of a data set on Ray; repeating the call resumes an interrupted run.

    Args:
        config: Names storage, registry and resources.
        data: Folder or URI of Parquet files or images.
        output: Folder or URI for the predictions.
        run: As in `predict_files`.
        version: As in `predict_files`.
        embeddings: Whether the column `embedding` has the features in front of the network's last layer.

    Returns:
        `model`, `version`, `rows`, `failed` (how many could not be read), `parts`, `done_before` and
        `manifest`.

    Raises:
        DistmlError: There is no model to ask, it cannot be trusted, or the data cannot be read.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with _model(config, run, version, console) as (chosen, export):
        named = (chosen.model, chosen.version)
        counts = predict_parts(config, export, named, data, output, console.print, embeddings)
        return {"model": chosen.model, "version": chosen.version} | counts


@contextlib.contextmanager
def _model(
    config: Config, run: str | None, version: int | None, console: Console
) -> Iterator[tuple[Chosen, layout.Export]]:
    """The chosen model and its verified export; its files exist while the block runs."""
    with tempfile.TemporaryDirectory(prefix="distml-predict-") as folder:
        chosen = choose(config, run, version, Path(folder))
        if chosen.why:
            console.print(f"{chosen.why}: version {chosen.version}")
        yield chosen, layout.verify(chosen.folder, chosen.sha256)


def classify(
    files: Sequence[str],
    top: int,
    model: Model,
    ask: Callable[[schema.Images], npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Predict the image files that can be read, and print a table and the files that cannot.

    Args:
        files: See `expanded`.
        top: Classes listed for a file.
        model: Describes the images that `ask` takes and the outputs that it returns.
        ask: From uint8 [N, H, W, C] to float32 [N, K].

    Returns:
        `model`, `version`, `predictions` in the files' order; `left_out` where folders hold other files, by
        reason; where files cannot be read, `failed` with `file` and `error` of each, and `status`, which is
        failed.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    predictions: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    some, left_out = expanded(files)
    names = list(dict.fromkeys(some))
    for first in range(0, len(names), _AT_ONCE):
        images, unreadable, noted = read_all(names[first : first + _AT_ONCE], model.pictures)
        failed += unreadable
        if images:
            outputs = zip(images, ask(np.stack(list(images.values()))), strict=True)
            predictions += [
                {"file": file} | model.task.described(row, top) | _doubts(images[file], model, noted[file])
                for file, row in outputs
            ]
    if predictions:
        _show(console, model.task, predictions)
    for failure in failed:
        console.print(f"[red]{escape(failure['error'])}[/red]")
    result: dict[str, Any] = {"model": model.name, "version": model.version, "predictions": predictions}
    if left_out:
        console.print(_told_left_out(left_out))
        result["left_out"] = dict(left_out)
    return result | ({"status": "failed", "failed": failed} if failed else {})


def _doubts(image: Images, model: Model, noted: Sequence[plausible.Doubt]) -> dict[str, Any]:
    """The member `warnings` of a file's prediction, as the endpoint has it."""
    return plausible.described([*plausible.doubts(image[None], model.usual), *noted])


def _asking(export: layout.Export) -> Callable[[Images], npt.NDArray[np.float32]]:
    """What asks an export about images; it is loaded once, when there are images."""

    @functools.cache
    def predictor() -> Any:
        from distml.artifacts.predictor import Predictor

        return Predictor.of(export)

    def ask(images: Images) -> npt.NDArray[np.float32]:
        with log.quietly():
            outputs: npt.NDArray[np.float32] = predictor().predict(images)
        return outputs

    return ask


def expanded(words: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """Return the files that words mean: files, folders, patterns, and `-` for the lines of standard input.

    A folder stands for its pictures at any depth, sorted by name, as training would read it.

    Returns:
        The files, and how many of those in folders were left out, by reason.

    Raises:
        ConfigError: A folder without pictures, a pattern that fits no file, an empty standard input, or
            something that is no file.
    """
    files: list[str] = []
    left_out: Counter[str] = Counter()
    for word in words:
        if word == "-":
            lines = (line.removeprefix("\ufeff").rstrip("\r\n") for line in sys.stdin)
            some = [line for line in lines if line.strip()]
        elif os.path.isdir(word):
            some = _below(word, left_out)
        elif not os.path.lexists(word) and glob.has_magic(word):
            some = sorted(path for path in glob.glob(word, recursive=True) if not os.path.isdir(path))
        else:
            some = [_one_file(word)]
        if not some:
            what = "standard input lists no files" if word == "-" else f"{word} names no picture"
            raise ConfigError(f"{what}.", "Give picture files, folders of them or a pattern.")
        files += some
    return files, left_out


def _one_file(word: str) -> str:
    if "://" in word or (fetch.is_archive(word) and os.path.isfile(word)):
        what = "an address" if "://" in word else "an archive"
        raise ConfigError(
            f"{word} is {what}, not a picture.",
            "Folders and archives, also at an address, are predicted by --data and --output.",
        )
    return word


def _below(word: str, left_out: Counter[str]) -> list[str]:
    try:
        folder = Folder(word)
    except DataError:  # nothing but folders
        return []
    named = image_folder.present(folder)
    left_out.update(folder.ledger.counts())
    return [os.path.join(word, os.path.relpath(folder.entries[name].path, folder.root)) for name in named]


MAX_FILE_BYTES = 64 << 20


def read_picture(path: str, policy: Policy) -> tuple[Images, tuple[plausible.Doubt, ...]]:
    """Read one picture of any size and mode as the model wants it, with what is odd about the file.

    Args:
        path: A picture file.
        policy: How the model had its pictures fitted.

    Returns:
        uint8 [H, W, C], and the doubts.

    Raises:
        DataError: Unreadable, not a picture, or far too large.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        cause = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {cause}.", "Give existing picture files.") from None
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"{path} is larger than {MAX_FILE_BYTES:,} bytes.", "Scale it down.")
    opened = image.open_picture(data, path)
    return image.fit(opened, policy, path), plausible.unused([image.unused_bits(opened)])


def read_all(
    files: Sequence[str], policy: Policy
) -> tuple[dict[str, Images], list[dict[str, str]], dict[str, tuple[plausible.Doubt, ...]]]:
    """Read what can be read.

    Returns:
        The images by file; `file` and `error` of each that could not be read; what is odd, by file.
    """
    images: dict[str, Images] = {}
    noted: dict[str, tuple[plausible.Doubt, ...]] = {}
    failed = []
    for file in dict.fromkeys(files):
        try:
            images[file], noted[file] = read_picture(file, policy)
        except DataError as error:
            failed.append({"file": file, "error": str(error)})
    return images, failed, noted

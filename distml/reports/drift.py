"""Drift of logged requests from the histograms of training, live accuracy from later labels (driver)."""

from __future__ import annotations

import io
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distml import tasks
from distml.config import Config
from distml.data import ingestion, schema, statistics
from distml.data.statistics import Reference, count
from distml.errors import DataError
from distml.serving import request_log
from distml.storage import Storage
from distml.tasks import Targets, Task

_FOLDER = "drift"
_DAY_S = 86_400.0


class Own(NamedTuple):
    """What a version predicts, by bin of its task's `mix`.

    Attributes:
        expected: Validation rows.
        served: Logged rows.
        rows: How many are logged.
    """

    expected: npt.NDArray[np.int64]
    served: npt.NDArray[np.int64]
    rows: int

    def plus(self, other: Own | None) -> Own:
        """The same with the logged rows of another file."""
        if other is None:
            return self
        return Own(self.expected, self.served + other.served, self.rows + other.rows)


@dataclass(frozen=True)
class Logged:
    """What the log says about served requests.

    Attributes:
        measured: float32 [N, K], the statistics of the pictures.
        labels: What was predicted, in the form of targets.
        versions: Versions of the model that predicted.
        since_s: Seconds since the epoch of the first row, None without rows.
        skipped: Files of other shapes, classes or statistics, which cannot be compared.
        own: By version, what it predicted for validation rows and in serving; versions exported before they
            said so are not among them.
        others: What those predicted, in the form of targets; None where no version says so.
    """

    measured: statistics.Features
    labels: Targets
    versions: tuple[int, ...]
    since_s: float | None
    skipped: int
    own: Mapping[int, Own] = field(default_factory=dict)
    others: Targets | None = None

    @property
    def silent(self) -> tuple[int, ...]:
        """Versions that do not say what they predict for validation rows."""
        return tuple(version for version in self.versions if version not in self.own)


@dataclass(frozen=True)
class Shift:
    """One comparison.

    Attributes:
        name: Of the statistic, or of what is predicted, see `Task.mixes`.
        psi: Population stability index.
        chance: The index that as many rows drawn from the training data would have on average.
        trained: Share by bin of the training rows; of what is predicted, of the validation rows.
        served: Share by bin of the logged rows.
    """

    name: str
    psi: float
    chance: float
    trained: tuple[float, ...]
    served: tuple[float, ...]

    def drifted(self, threshold: float) -> bool:
        """Whether the index is above the threshold by more than few rows make it by chance."""
        return self.psi > threshold + self.chance


def read(storage: Storage, model: str, reference: Reference, days: float | None) -> Logged:
    """Read the logged statistics and predictions of a model.

    Args:
        storage: Where the log is.
        model: Its name in the registry.
        reference: What they are to be compared with.
        days: Only the files begun within these days; None takes all.

    Raises:
        DataError: A file of the log is damaged.
        StorageError: The storage cannot be read.
    """
    oldest = time.time() - days * _DAY_S if days else 0.0
    measured = [np.empty((0, len(reference.names)), np.float32)]
    labels: list[Targets] = []
    others: list[Targets] = []
    own: dict[int, Own] = {}
    versions, stamps, skipped = set(), [], 0
    for path, (stamp, _) in request_log.listed(storage, model).items():
        if stamp < oldest:
            continue
        described, table = _file(storage, path)
        if not _comparable(described, reference):
            skipped += 1
            continue
        statistics = table["statistics"].combine_chunks()
        flat = schema.to_numbers(statistics.flatten(), np.float32)
        measured.append(flat.reshape(-1, len(reference.names)))
        labels.append(schema.to_targets(table["decision"]))
        version = int(described["version"])
        versions.add(version)
        if (told := _own(described, labels[-1])) is None:
            others.append(labels[-1])
        else:
            own[version] = told.plus(own.get(version))
        stamps.append(stamp)
    since, known = min(stamps, default=None), tuple(sorted(versions))
    return Logged(np.concatenate(measured), _joined(labels), known, since, skipped, own, _joined(others))


def _own(described: dict[str, Any], labels: Targets) -> Own | None:
    """What a file says of its version; its bins are those of its training, as tenths of a number are."""
    if not described.get("predicted"):
        return None
    try:
        task = tasks.restore(described["names"], described["task"])
        expected, served = np.asarray(described["predicted"], np.int64), task.mix(labels)
    except (KeyError, TypeError, ValueError):
        return None
    return Own(expected, served, len(labels)) if expected.shape == served.shape else None


def _joined(labels: list[Targets]) -> Targets:
    return np.concatenate(labels) if labels else np.empty(0, np.int32)


def _file(storage: Storage, path: str) -> tuple[dict[str, Any], Any]:
    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(path))) as file:
            described = json.loads(file.schema_arrow.metadata[request_log.DESCRIPTION])
            decision = described.get("decision", "label")
            table = file.read([decision, "statistics"], use_threads=False)
            return described, table.select([decision, "statistics"]).rename_columns(
                ["decision", "statistics"]
            )
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        where = storage.uri(path)
        raise DataError(f"{where} is not a file of the request log: {error}.", "Delete it.") from None


def _comparable(described: dict[str, Any], reference: Reference) -> bool:
    return (
        described.get("statistics_version") == reference.version
        and tuple(described.get("statistics", ())) == reference.names
        and tuple(described.get("classes", ())) == reference.classes
    )


def compare(task: Task, reference: Reference, logged: Logged) -> list[Shift]:
    """Compare each statistic and what is predicted, the largest shift first.

    What is predicted is compared with what the same version predicted for validation rows.
    """
    served = {
        name: count(column, edges)
        for name, column, edges in zip(reference.names, logged.measured.T, reference.edges, strict=True)
    }
    trained: dict[str, Any] = dict(zip(reference.names, reference.counts, strict=True))
    others = logged.labels if logged.others is None else logged.others
    parts = list(logged.own.values())
    if len(others) or not parts:
        # What is true of the training rows stands for what an earlier export does not say.
        parts.append(Own(np.asarray(reference.labels), task.mix(others), len(others)))
    predicted = np.sum([part.served for part in parts], axis=0)
    for name, bins in task.mixes.items():
        served[name], trained[name] = predicted[bins], _expected(parts, bins)
    shifts = [_shift(name, np.asarray(trained[name]), counts) for name, counts in served.items()]
    return sorted(shifts, key=lambda shift: -shift.psi)


def _expected(parts: Sequence[Own], bins: slice) -> npt.NDArray[np.float64]:
    """Rows by bin that versions are expected to predict, each weighed by its logged rows."""
    total = max(1, sum(part.rows for part in parts))
    weights = [part.rows / total for part in parts] if len(parts) > 1 else [1.0]
    counts = [np.asarray(part.expected[bins], np.float64) for part in parts]
    sizes = [max(1.0, float(each.sum())) for each in counts]
    shares = sum(weight * each / size for weight, each, size in zip(weights, counts, sizes, strict=True))
    return np.asarray(shares * np.dot(weights, sizes))


def _shift(name: str, trained: npt.NDArray[Any], served: npt.NDArray[np.int64]) -> Shift:
    expected, actual = _shares(trained), served.sum()
    observed = (served + expected) / (actual + 1)  # one row's worth of the expected keeps empty bins finite
    psi = float(np.sum((observed - expected) * np.log(observed / expected)))
    # n times the index is close to a chi-squared variable with one degree of freedom less than bins in use.
    used = int(np.count_nonzero(trained)) - 1
    chance = used * (1 / max(1, actual) + 1 / trained.sum())
    shares = served / max(1, actual)
    return Shift(name, psi, float(chance), tuple(expected.tolist()), tuple(shares.tolist()))


def _shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Shares with a hundredth of a row more in each bin, so that none is zero."""
    return np.asarray((counts + 0.01) / (counts.sum() + 0.01 * len(counts)), np.float64)


if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _MUTED, _TRAINED, _SERVED, _ALARM = "#1f2933", "#7b8794", "#b8c4d0", "#2166ac", "#d6604d"
_CLASSES = 30  # more names do not fit


def draw(shifts: Sequence[Shift], task: Task, threshold: float, logged: Logged, trained: int) -> Figure:
    """Draw every index beside the threshold, what is predicted, and the statistic that moved most.

    Args:
        shifts: The largest first.
        task: What is predicted; of several numbers, the one that moved most is drawn.
        threshold: Above which an index is drift.
        logged: What is compared.
        trained: Training rows it is compared with.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", facecolor="white")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 1.15))
    left, right = halves
    _indices(left.subplots(), shifts, threshold)
    upper, lower = right.subplots(2, 1)
    mixes = task.mixes
    against = "true in training" if not logged.own else "predicted in validation"
    _mix(upper, next(shift for shift in shifts if shift.name in mixes), task, against)
    _most_moved(lower, next(shift for shift in shifts if shift.name not in mixes))
    names = [f"expected ({trained:,} training rows)", f"{len(logged.labels):,} served rows"]
    right.legend(upper.containers, names, frameon=False, fontsize=8, ncols=2, loc="outside lower right")
    return figure


def _plain(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=_INK, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_MUTED)
    axes.tick_params(colors=_INK, labelsize=8, length=0)


def _indices(axes: Any, shifts: Sequence[Shift], threshold: float) -> None:
    shown = list(shifts)[::-1]
    values = [shift.psi for shift in shown]
    colors = [_ALARM if shift.drifted(threshold) else _SERVED for shift in shown]
    axes.barh([shift.name for shift in shown], values, color=colors, height=0.7)
    axes.axvline(threshold, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    limit = max(*values, threshold) * 1.18
    axes.set_xlim(0, limit)
    for at, value in enumerate(values):
        axes.text(
            value + limit * 0.012,
            at,
            f"{value:.{2 if value >= 0.1 else 3}f}",
            va="center",
            fontsize=7.5,
            color=_INK,
        )
    axes.set_xlabel(
        f"population stability index (drift above {threshold:g} and chance)", color=_MUTED, fontsize=8
    )
    _plain(axes, "Shift of each statistic")


def _pairs(axes: Any, shift: Shift) -> np.ndarray:
    at = np.arange(len(shift.trained))
    axes.bar(at - 0.2, shift.trained, 0.4, color=_TRAINED)
    axes.bar(at + 0.2, shift.served, 0.4, color=_SERVED)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return at


def _mix(axes: Any, shift: Shift, task: Task, against: str) -> None:
    at, names = _pairs(axes, shift), task.mix_names[task.mixes[shift.name]]
    if len(names) <= _CLASSES:
        axes.set_xticks(at, names, rotation=30, ha="right")
    _plain(axes, f"{shift.name[0].upper()}{shift.name[1:]}: {against}, predicted in serving")


def _most_moved(axes: Any, shift: Shift) -> None:
    at = _pairs(axes, shift)
    names = ["less", *[""] * (len(at) - 2), "more"]
    axes.set_xticks(at, names)
    axes.set_xlabel("tenths of the training rows, and what lies beyond them", color=_MUTED, fontsize=8)
    _plain(axes, f"Largest shift: {shift.name}")


def check(config: Config) -> dict[str, Any]:
    """Compare, draw and judge.

    Returns:
        `drifted` (None where too few rows are logged), `rows`, `versions`, the largest indices, and the
        places of the figure and of the whole comparison. The status is drifted beyond the threshold, so
        that the exit code is 1.

    Raises:
        DataError: The training data are not prepared, or a file of the log is damaged.
        StorageError: The storage cannot be read or written.
    """
    storage = Storage(config.storage.root)
    manifest = ingestion.find(config, storage)
    if manifest is None:
        raise DataError(
            f"{storage.uri(ingestion.folder(config))} holds no prepared data to compare with.",
            "Give the configuration that the model was trained with, or run ingest.",
        )
    ground = statistics.of(storage, manifest)
    model = config.tracking.registered_model
    logged = read(storage, model, ground, config.drift.days)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if logged.skipped:
        console.print(f"{logged.skipped} files of other classes, shapes or statistics are left out")
    if logged.silent:
        console.print(_silent(logged.silent))
    if len(logged.labels) < config.drift.min_rows:
        return _too_few(console, config, logged)
    shifts = compare(manifest.task, ground, logged)
    _show(console, shifts, config.drift.threshold)
    return _judged(config, storage, ground, logged, shifts, manifest.task)


def _silent(versions: Sequence[int]) -> str:
    """What is compared of versions that were exported before they said what they predict."""
    several = len(versions) > 1
    return (
        f"version{'s' * several} {', '.join(map(str, versions))} {'do' if several else 'does'} not store "
        "predictions for validation rows: what is predicted is compared with what is true of the training "
        "rows, which differs where a model is often wrong; train again to compare with its own predictions"
    )


def _too_few(console: Console, config: Config, logged: Logged) -> dict[str, Any]:
    rows, needed = len(logged.labels), config.drift.min_rows
    why = f"{rows} rows are logged for {config.tracking.registered_model}, {needed} are needed to judge"
    hint = "" if rows else "; serve with log.enabled true"
    console.print(escape(f"{why}{hint}"))
    return {"drifted": None, "rows": rows, "versions": list(logged.versions), "why": why}


def _show(console: Console, shifts: Sequence[Shift], threshold: float) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("statistic")
    table.add_column("stability index", justify="right")
    table.add_column("by chance", justify="right", style="dim")
    table.add_column("")
    for shift in shifts:
        beyond = shift.drifted(threshold)
        values = (f"{shift.psi:.3f}", f"{shift.chance:.3f}", "drifted" if beyond else "")
        table.add_row(shift.name, *values, style="red" if beyond else None)
    console.print(table)


def _judged(
    config: Config,
    storage: Storage,
    ground: statistics.Reference,
    logged: Logged,
    shifts: Sequence[Shift],
    task: Task,
) -> dict[str, Any]:
    threshold = config.drift.threshold
    rows, trained = len(logged.labels), sum(ground.counts[0])
    beyond = {shift.name: round(shift.psi, 4) for shift in shifts if shift.drifted(threshold)}
    line = {
        "drifted": bool(beyond),
        "rows": rows,
        "versions": list(logged.versions),
        "threshold": threshold,
        "beyond": beyond,
        "largest": {shifts[0].name: round(shifts[0].psi, 4)},
    }
    stream = io.BytesIO()
    draw(shifts, task, threshold, logged, trained).savefig(stream, format="png", dpi=110)
    where = f"{_FOLDER}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:4]}"
    line |= {"without_own_predictions": list(logged.silent)} if logged.silent else {}
    line |= live(storage, config.tracking.registered_model)
    whole = line | {"data_digest": ground.digest, "shifts": [asdict(shift) for shift in shifts]}
    storage.write_bytes(stream.getvalue(), where, "drift.png")
    storage.write_bytes(json.dumps(whole, indent=1).encode(), where, "drift.json")
    places = {"figure": storage.uri(where, "drift.png"), "report": storage.uri(where, "drift.json")}
    return line | places | ({"status": "drifted"} if beyond else {})


_FEEDBACK = "feedback"
_Joined = tuple[Task, Any, Any]
"""The task of a logged row, its target and its outputs."""


def feedback(config: Config, path: str) -> dict[str, Any]:
    """Join true labels that came later with the logged predictions.

    Args:
        config: Names the storage and the model.
        path: CSV (`.csv`) or Parquet with the columns `id` (the request's `x-request-id`), `label` (see
            `Task.told`) and, for requests of several images, `position`, counted from 0. Of several lines
            for an image the last one counts, and of several answers of a version the last one.

    Returns:
        `labels` in the file, `joined` with a logged prediction, `without_label` and `repeated` lines,
        `unknown`, ids that no logged request has (five at most), `metric`, the task's main one, and
        `live_METRIC` by version: `rows`, the metric and its 95 % `interval`. They are kept for
        `distml drift`, too.

    Raises:
        DataError: The file or the log cannot be read, or a label is none of the model's.
        StorageError: The storage cannot be read or written.
    """
    storage, model = Storage(config.storage.root), config.tracking.registered_model
    truth, counted = _truth(path)
    name = tasks.of(config.task.kind).main
    joined: dict[int, dict[tuple[str, int], _Joined]] = {}  # a request that was repeated is logged again
    for place in request_log.listed(storage, model):
        task, table = _labelled(storage, place, config.task.kind)
        rows = zip(*(table[column].to_pylist() for column in table.column_names), strict=True)
        for request, position, version, outputs in rows:
            if (label := truth.get((request, position))) is not None:
                name = task.main
                told = _told(task, label, path)
                joined.setdefault(version, {})[request, position] = (task, told, outputs)
    live = {str(version): _live([*rows.values()]) for version, rows in sorted(joined.items())}
    known = set().union(*joined.values())
    unknown = list(dict.fromkeys(request for request, position in truth if (request, position) not in known))
    line = {"labels": len(truth), "joined": len(known), **counted, "unknown": unknown[:_SHOWN]}
    line |= {"metric": name, f"live_{name}": live}
    storage.write_bytes(json.dumps(line, indent=1).encode(), _FEEDBACK, f"{model}.json")
    return line


def _labelled(storage: Storage, path: str, kind: str) -> tuple[Task, Any]:
    """The task that a file of the log is of, and its rows with their outputs in the last column.

    A file of another task, or of labels or numbers before the log said so, has no rows to join.
    """
    try:
        with pq.ParquetFile(pa.BufferReader(storage.read_bytes(path))) as file:
            described = json.loads(file.schema_arrow.metadata[request_log.DESCRIPTION])
            task = tasks.restore(described.get("names") or described["classes"], described.get("task"))
            columns = ["request", "position", "version", task.output]
            if task.kind != kind:
                return task, pa.table({name: [] for name in columns})
            return task, file.read(columns, use_threads=False).select(columns)
    except (pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{storage.uri(path)} is not a file of the request log: {error}.", "Delete it."
        ) from None


def _told(task: Task, label: Any, path: str) -> Any:
    try:
        return task.told(label)
    except DataError as error:
        raise DataError(f"{path} {error.message}", error.remedy) from None


def _live(rows: Sequence[_Joined]) -> dict[str, Any]:
    """The main metric on the rows of a version, which are all of one task."""
    task = rows[0][0]
    targets = np.stack([target for _, target, _ in rows])
    outputs = np.asarray([row for _, _, row in rows], np.float32)
    value = task.value(task.main, targets, outputs)
    ends = [round(end, 4) for end in task.interval(targets, outputs)]
    return {"rows": len(rows), task.main: round(value, 4), "interval": ends}


_SHOWN = 5
_PARQUET = b"PAR1"
_DELIMITERS = b",;\t|"


def _read_labels(path: str) -> pa.Table:
    """Read CSV or Parquet by its content, all of a CSV as texts; names of columns in lower case."""
    try:
        content = Path(path).read_bytes()
        if content.startswith(_PARQUET):
            table = pq.read_table(pa.BufferReader(content))
        else:
            head = content.partition(b"\n")[0]
            mark = chr(max(_DELIMITERS, key=lambda mark: head.count(mark)))
            names = csv.open_csv(io.BytesIO(content), parse_options=csv.ParseOptions(delimiter=mark)).schema
            texts = csv.ConvertOptions(column_types=dict.fromkeys(names.names, pa.string()))
            table = csv.read_csv(
                io.BytesIO(content), parse_options=csv.ParseOptions(delimiter=mark), convert_options=texts
            )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give CSV or Parquet.") from None
    names = [name.strip().lower() for name in table.column_names]
    if twice := [name for name in ("id", "label", "position") if names.count(name) > 1]:
        raise DataError(f"{path} has the column {twice[0]!r} twice.", "Rename the one that is not meant.")
    return table.rename_columns(names)


def _truth(path: str) -> tuple[dict[tuple[str, int], Any], dict[str, int]]:
    """True labels by request and position; how many lines have none, and how many were said again."""
    table = _read_labels(path)
    if missing := sorted({"id", "label"} - set(table.column_names)):
        raise DataError(
            f"{path} has no column {missing[0]!r}; its columns are {', '.join(table.column_names[:9])}.",
            "Give id, label and, for requests of several images, position.",
        )
    places = table["position"].to_pylist() if "position" in table.column_names else [0] * len(table)
    rows = zip(table["id"].to_pylist(), places, table["label"].to_pylist(), strict=True)
    truth: dict[tuple[str, int], Any] = {}
    counted = {"without_label": 0, "repeated": 0}
    for number, (name, place, label) in enumerate(rows, 1):
        if label is None or (isinstance(label, str) and not label.strip()):
            counted["without_label"] += 1
            continue
        if name is None or not str(name).strip():
            raise DataError(f"{path} has the label {label!r} without an id, in row {number}.", "Add its id.")
        key = (str(name).strip(), _position(place, path, number))
        counted["repeated"] += key in truth
        truth[key] = label.strip() if isinstance(label, str) else label
    return truth, counted


def _position(place: Any, path: str, number: int) -> int:
    """Which image of a request is meant; the first where a line does not say."""
    if place is None or place == "":
        return 0
    try:
        if (position := int(float(place))) == float(place) and position >= 0:
            return position
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(
        f"{path} has the position {place!r} in row {number}.", "Count the images of a request from 0."
    )


def live(storage: Storage, model: str) -> dict[str, Any]:
    """Return what `feedback` last said of each version by its `live_METRIC`, {} where it never did."""
    if not storage.exists(_FEEDBACK, f"{model}.json"):
        return {}
    try:
        told = json.loads(storage.read_text(_FEEDBACK, f"{model}.json"))
        return {key: value for key, value in told.items() if key.startswith("live_") and value}
    except (ValueError, AttributeError):
        return {}

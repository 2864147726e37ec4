"""`distml inspect`: damaged files, duplicates, leakage and suspect labels as an HTML page and JSON (driver).

distml inspect photos/                     writes photos-inspection.html and .json
distml inspect --config photos.yaml        after a training: suspect labels, too

Every picture is read once at a small size. CleanVision 0.3.7 on 3,781 photographs took 35 s of CPU (17 here,
with suspect labels), called 823 of them oddly sized, matched one of five pairs of near duplicates and has no
notion of splits. Suspect labels are cleanlab's, from predictions for rows that the model did not learn from.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from distml import log
from distml.artifacts import layout
from distml.artifacts.predictor import Predictor
from distml.config import Config
from distml.data import duplicates, image, ingestion, writer
from distml.data.formats import image_folder
from distml.data.image import Policy
from distml.data.listing import Folder
from distml.data.opening import located, open_source
from distml.data.schema import Images
from distml.data.source import Fault, Gathered, Rows, Source
from distml.data.split import SPLITS, Part
from distml.errors import DistmlError, StorageError
from distml.reports import page
from distml.storage import Storage
from distml.tracking import runs
from distml.tracking.locate import choose

SHOWN = 24
"""Pictures, pairs or names of a kind that the page shows; the JSON has all."""
_SMALL, _PHOTO = 64, 192
_CHUNK, _READERS = 256, 4
_DARK, _LIGHT, _DULL = 32.0, 223.0, 12.0
"""Mean and deviation of gray values, 0 to 255."""
_BLURRED = 3.0
"""Mean step between neighbouring pixels of 64, below which nothing in a picture is sharp."""
_LONG = 4.0
"""Longer side against the shorter one."""


@dataclass(frozen=True)
class Suspect:
    """A held-out row whose label the model contradicts.

    Args:
        name: Of the picture.
        split: It belongs to.
        given: Its class.
        predicted: What the model says.
        probability: Of the given class.
    """

    name: str
    split: str
    given: str
    predicted: str
    probability: float


@dataclass
class Inspection:
    """Everything that was noticed.

    Args:
        path: Of the data.
        shape: (H, W, C) of the images that ingest would make.
        rows: By split.
        classes: Rows of each class, by split.
        sizes: Pictures by "WIDTHxHEIGHT".
        formats: Pictures by format of the file.
        skipped: Entries that were left out, by reason.
        notes: What was noticed in the layout, a sentence each.
        damaged: Name and reason of pictures that cannot be used.
        blank: Pictures of one colour.
        outliers: Pictures by what is unusual about them.
        exact: Groups of identical pictures.
        near: Groups of near duplicates.
        leaks: Pairs of pictures of different splits that show the same, by "held-out split / other split".
        contradictions: Groups that show the same and whose targets cannot all be right.
        what: What the targets are, in the plural.
        suspects: Held-out rows whose label the model contradicts.
        judged_by: The run whose predictions mark suspects, or why there is none.
        seconds: Time taken.
    """

    path: str
    shape: tuple[int, ...]
    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    sizes: dict[str, int] = field(default_factory=dict)
    formats: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    damaged: list[tuple[str, str]] = field(default_factory=list)
    blank: list[str] = field(default_factory=list)
    outliers: dict[str, list[str]] = field(default_factory=dict)
    exact: list[list[str]] = field(default_factory=list)
    near: list[list[str]] = field(default_factory=list)
    leaks: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    contradictions: list[list[str]] = field(default_factory=list)
    what: str = "classes"
    suspects: list[Suspect] = field(default_factory=list)
    judged_by: str = ""
    seconds: float = 0.0

    def findings(self) -> list[str]:
        """Say what matters, a sentence each, what spoils a measurement first."""
        said = [*self.notes]
        for splits, pairs in self.leaks.items():
            held, _, other = splits.partition(" / ")
            many = _counted(len({name for name, _ in pairs}), "picture")
            said.append(f"{many} of {held} also in {other}: accuracy there measures memorization.")
        counted = (
            (len(self.contradictions), "group", f"of the same picture with different {self.what}."),
            (len(self.suspects), "held-out label", "contradicted by the model."),
            (len(self.damaged), "picture", "damaged or unreadable."),
            (len(self.blank), "picture", "of one colour."),
            (sum(len(group) - 1 for group in self.exact), "picture", "identical to another."),
            (sum(len(group) - 1 for group in self.near), "picture", "nearly the same as another."),
        )
        said += [f"{_counted(count, noun)} {rest}" for count, noun, rest in counted if count]
        return said + _unbalanced(self.classes.get("train", {}))

    def summary(self) -> dict[str, Any]:
        """Return the result line: numbers of what was noticed."""
        lists = ("damaged", "blank", "exact", "near", "contradictions", "suspects")
        return {
            "rows": self.rows,
            "leaks": {splits: len(pairs) for splits, pairs in self.leaks.items()},
            **{name: len(getattr(self, name)) for name in lists},
            "outliers": {kind: len(names) for kind, names in self.outliers.items()},
            "skipped": self.skipped,
            "findings": self.findings(),
            "judged_by": self.judged_by,
            "seconds": round(self.seconds, 1),
        }


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _unbalanced(counts: Mapping[str, int]) -> list[str]:
    if len(counts) < 2 or max(counts.values()) <= 5 * max(1, min(counts.values())):
        return []
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    return [f"Unbalanced: {counts[most]:,} training pictures of {most}, {counts[least]:,} of {least}."]


@dataclass(frozen=True)
class _Row:
    split: str
    number: int
    name: str


@dataclass(frozen=True)
class _Seen:
    """All rows of all splits: what they are called and how they look."""

    rows: tuple[_Row, ...]
    signatures: duplicates.Signatures
    mean: npt.NDArray[np.float32]
    deviation: npt.NDArray[np.float32]
    step: npt.NDArray[np.float32]
    faults: tuple[Fault, ...]


def look(config: Config) -> tuple[Inspection, dict[str, str]]:
    """Look at all pictures of the configured data, and at the run of that name where it is finished.

    Args:
        config: `data` says which; unusable pictures are listed whatever `data.on_error` says.

    Returns:
        What was noticed, and the pictures that the page shows as data URLs by name.

    Raises:
        DataError: There are no data, or none of them can be used.
    """
    began = time.monotonic()
    lenient = config.data.model_copy(update={"on_error": "skip", "max_error_fraction": 0.999})
    storage = Storage(config.storage.root)
    source = open_source(config.model_copy(update={"data": lenient}), storage)
    seen = _look(source)
    made = Inspection(
        path=config.data.path or config.data.name,
        shape=source.shape,
        rows={split: len(source.splits[split].labels) for split in SPLITS if split in source.splits},
        classes=_counts(source),
        what=source.task.what,
        skipped={} if source.ledger is None else source.ledger.counts(),
        notes=source.notes,
        damaged=[(fault.name, fault.reason) for fault in (*source.faults, *seen.faults)],
    )
    _headers(config, storage, made)
    _plain(seen, made)
    _repeated(seen, made, source)
    made.judged_by = _judge(config, storage, source, made)
    made.seconds = time.monotonic() - began
    return made, _pictures(source, seen, made)


def _counts(source: Source) -> dict[str, dict[str, int]]:
    counts = {}
    for split in (split for split in SPLITS if split in source.splits):
        numbers = source.task.counts(source.splits[split].labels).tolist()
        counts[split] = dict(zip(source.classes, numbers, strict=True))
    return counts


def _small(rows: Rows) -> Rows:
    return rows if rows.fitted is None else rows.fitted(Policy((_SMALL, _SMALL, 3), "stretch"))


def _look(source: Source) -> _Seen:
    """Read every row once at a small size."""
    parts: list[tuple[Any, ...]] = []
    described: list[_Row] = []
    for split, rows in source.splits.items():
        small = _small(rows)

        def read(first: int, small: Rows = small) -> tuple[Any, ...]:
            last = min(first + _CHUNK, len(small.labels))
            gathered = small.gather(np.arange(first, last, dtype=np.int64))
            signatures = duplicates.of_gathered(Gathered(_colour(gathered.images), gathered.faults))
            return signatures, *_statistics(gathered.images), tuple(gathered.faults.values())

        with ThreadPoolExecutor(_READERS) as readers:
            parts += readers.map(read, range(0, len(rows.labels), _CHUNK))
        described += [_Row(split, number, _name(source, split, number)) for number in range(len(rows.labels))]
    mean, deviation, step = (np.concatenate([part[at] for part in parts]) for at in (1, 2, 3))
    faults = tuple(fault for part in parts for fault in part[4])
    return _Seen(
        tuple(described),
        duplicates.concatenated([part[0] for part in parts]),
        *(mean, deviation, step, faults),
    )


def _colour(images: Images) -> Images:
    """Images of 1 or 3 channels; others become their mean."""
    return images if images.shape[3] in (1, 3) else images.mean(3, keepdims=True).astype(np.uint8)


def _statistics(images: Images) -> tuple[npt.NDArray[np.float32], ...]:
    """Mean, deviation and mean step between neighbours of the gray values of each image."""
    gray = images.mean(3, dtype=np.float32)
    steps = np.abs(np.diff(gray, axis=1)).mean((1, 2)) + np.abs(np.diff(gray, axis=2)).mean((1, 2))
    return gray.mean((1, 2)), gray.std((1, 2)), (steps / 2).astype(np.float32)


def _headers(config: Config, storage: Storage, made: Inspection) -> None:
    """Sizes, formats and long sides, where the pictures are files of a folder."""
    path, form = config.data.path, config.data.format
    if path is None or form not in ("auto", "image_folder", "table"):
        return
    folder = located(config.data, storage).folder
    names = image_folder.pictures(folder)
    if not names:
        return
    headers, _ = image_folder.survey(folder, names, config.data.max_pixels)
    made.sizes = dict(Counter(f"{h.width}x{h.height}" for h in headers.values()).most_common())
    made.formats = dict(Counter(_format(folder, name) for name in headers).most_common())
    long = [n for n, h in headers.items() if max(h.width, h.height) > _LONG * min(h.width, h.height)]
    small = [n for n, h in headers.items() if 4 * min(h.width, h.height) < 3 * min(made.shape[:2])]
    made.outliers |= {
        kind: some for kind, some in (("long and narrow", long), ("smaller than the images", small)) if some
    }


def _format(folder: Folder, name: str) -> str:
    return image.open_picture(folder.read(name, 1 << 16), name).format or "unknown"


def _plain(seen: _Seen, made: Inspection) -> None:
    """Pictures of one colour, dark, light, dull and blurred ones."""
    unusable = {fault.name for fault in seen.faults}
    kept = np.array([row.name not in unusable for row in seen.rows], bool)
    blank = kept & (seen.deviation < 1)
    kept &= ~blank
    kinds = {
        "very dark": kept & (seen.mean < _DARK),
        "very light": kept & (seen.mean > _LIGHT),
        "little contrast": kept & (seen.deviation < _DULL),
        "blurred": kept & (seen.step < _BLURRED) & (seen.deviation >= _DULL),
    }
    made.blank = [seen.rows[at].name for at in np.flatnonzero(blank)]
    for kind, mask in kinds.items():
        if mask.any():
            made.outliers[kind] = [seen.rows[at].name for at in np.flatnonzero(mask)]


def _repeated(seen: _Seen, made: Inspection, source: Source) -> None:
    """Groups that show the same; among arrays only identical rows."""
    colours = seen.signatures.colours.reshape(len(seen.rows), -1)
    keys: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(seen.signatures.usable).tolist():
        identity = colours[row].tobytes() + seen.signatures.hashes[row].tobytes()
        identity += np.array([seen.mean[row], seen.deviation[row], seen.step[row]]).tobytes()
        keys.setdefault(identity, []).append(row)
    exact = [rows for rows in keys.values() if len(rows) > 1]
    made.exact = [_names(seen, rows) for rows in exact]
    groups = exact
    if source.pictures:
        grouped = duplicates.groups(len(seen.rows), duplicates.pairs(seen.signatures))
        members: dict[int, list[int]] = {}
        for row, group in enumerate(grouped.tolist()):
            members.setdefault(group, []).append(row)
        groups = [rows for rows in members.values() if len(rows) > 1]
        identical = {tuple(rows) for rows in exact}
        made.near = [_names(seen, rows) for rows in groups if tuple(rows) not in identical]
    task = source.task.fitted(source.splits["train"].labels)
    targets = np.concatenate([rows.labels for rows in source.splits.values()])
    for rows in groups:
        if task.contradict(targets[rows]):
            made.contradictions.append(_names(seen, rows))
        _leaks([seen.rows[row] for row in rows], made.leaks)


def _names(seen: _Seen, rows: Sequence[int]) -> list[str]:
    return [seen.rows[row].name for row in rows]


def _leaks(rows: Sequence[_Row], leaks: dict[str, list[tuple[str, str]]]) -> None:
    """Pair each held-out row of a group with the first row of a split before it."""
    for held in rows:
        other = next((row for row in rows if SPLITS.index(row.split) < SPLITS.index(held.split)), None)
        if other is not None:
            leaks.setdefault(f"{held.split} / {other.split}", []).append((held.name, other.name))


def _judge(config: Config, storage: Storage, source: Source, made: Inspection) -> str:
    """Let the finished run of the configuration predict the rows that were held out from it."""
    if any(rows.labels.ndim != 1 or rows.labels.dtype.kind not in "iu" for rows in source.splits.values()):
        return "only classes are judged, one for each picture"
    try:
        if runs.finished(storage, config.run.name) is None:
            return f"no run {config.run.name} is finished, so labels were not checked with a model"
        if ingestion.find(config, storage) is None:
            return f"the data changed since run {config.run.name}, so labels were not checked with its model"
        with tempfile.TemporaryDirectory(prefix="distml-inspect-") as folder:
            chosen = choose(config, config.run.name, None, Path(folder))
            export = layout.verify(chosen.folder, chosen.sha256)
            if tuple(export.classes) != source.classes or export.shape != source.shape:
                return f"run {config.run.name} has other classes or images than these data"
            with log.quietly():
                made.suspects = suspects(source, writer.divide(config, source), Predictor.of(export))
    except DistmlError as error:
        return f"run {config.run.name} cannot check labels: {error.message}"
    return f"run {config.run.name}, on the validation and test rows, on which it was not trained"


def suspects(source: Source, parts: Mapping[str, Part], predictor: Predictor) -> list[Suspect]:
    """Ask cleanlab about the rows of both held-out splits together, the least plausible label first."""
    from cleanlab.filter import find_label_issues

    held, labels, predictions = [], [], []
    for split in ("validation", "test"):
        rows, part = source.splits[parts[split].origin], parts[split]
        for first in range(0, len(part.rows), _CHUNK):
            wanted = part.rows[first : first + _CHUNK]
            gathered = rows.gather(wanted)
            kept = np.array([at for at in range(len(wanted)) if at not in gathered.faults], np.int64)
            held += [(split, _name(source, parts[split].origin, int(row))) for row in wanted[kept]]
            labels.append(rows.labels[wanted[kept]])
            predictions.append(predictor.predict(gathered.images[kept]))
    given, probabilities = np.concatenate(labels), np.concatenate(predictions).astype(np.float64)
    ranked = find_label_issues(given, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [
        Suspect(
            name=held[at][1],
            split=held[at][0],
            given=source.classes[given[at]],
            predicted=source.classes[int(probabilities[at].argmax())],
            probability=round(float(probabilities[at, given[at]]), 4),
        )
        for at in ranked.tolist()
    ]


def _name(source: Source, split: str, row: int) -> str:
    """What a row is called; rows without names have numbers that each split begins anew."""
    name = source.splits[split].name(row)
    return f"{split} {name}" if name.startswith("row ") else name


def _pictures(source: Source, seen: _Seen, made: Inspection) -> dict[str, str]:
    """Those that the page shows, as they were, by name."""
    lists = [
        made.blank,
        *made.outliers.values(),
        *made.exact[:SHOWN],
        *made.near[:SHOWN],
        *made.contradictions,
    ]
    lists += [[name for pair in pairs[:SHOWN] for name in pair] for pairs in made.leaks.values()]
    lists.append([suspect.name for suspect in made.suspects])
    wanted = {name for some in lists for name in some[: 2 * SHOWN]}
    shown = {}
    for row in seen.rows:
        if row.name in wanted:
            shown[row.name] = photo(source.splits[row.split], row.number)
    return {name: data for name, data in shown.items() if data}


def photo(rows: Rows, number: int) -> str:
    """Return a picture as it was, within 192 by 192 pixels, as a data URL; empty where it is damaged."""
    letterbox = Policy((_PHOTO, _PHOTO, 3), "letterbox", (238, 241, 245))
    shown = rows if rows.fitted is None else rows.fitted(letterbox)
    gathered = shown.gather(np.array([number], np.int64))
    return "" if gathered.faults else page.embedded(gathered.images[0])


def render(made: Inspection, pictures: Mapping[str, str]) -> str:
    """Render the page: a whole HTML document.

    Args:
        made: What was noticed.
        pictures: Data URLs by name.
    """
    return page.template("inspection.html.j2").render(
        made=made, pictures=pictures, shown=SHOWN, findings=made.findings()
    )


def to_json(made: Inspection) -> str:
    """Return everything that was noticed as JSON."""
    return json.dumps(asdict(made) | {"findings": made.findings()}, indent=2, ensure_ascii=False) + "\n"


def inspect(config: Config, own: Namespace) -> dict[str, Any]:
    """Look at all pictures and write the page and its JSON.

    Returns:
        `page` and `json` (their paths) and what `Inspection.summary` says.

    Raises:
        DataError: There are no data, or none of them can be used.
        StorageError: The page cannot be written.
    """
    if own.folder is not None:
        data = config.data.model_copy(update={"path": _place(own.folder)})
        config = config.model_copy(update={"data": data})
    made, pictures = look(config)
    name = PurePosixPath(config.data.path or config.data.name).name
    shown = Path(own.to or f"{name}-inspection.html")
    written = shown.with_suffix(".json")
    try:
        shown.write_text(render(made, pictures), encoding="utf-8")
        written.write_text(to_json(made), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {shown}: {error.strerror}.", "Give another --to.") from None
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    for sentence in made.findings() or ["no problems detected"]:
        console.print(sentence)
    console.print(f"labels: {made.judged_by}")
    console.print(f"wrote {shown} and {written}")
    return {"page": str(shown), "json": str(written)} | made.summary()


def _place(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if Storage(path).local else path

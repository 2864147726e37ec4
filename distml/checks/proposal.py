"""`distml init`: proposes a configuration from a folder of pictures and this machine (driver).

distml init photos/                        writes photos.yaml and says what to type next
distml init photos/ --to mine.yaml         writes another file; nothing is ever overwritten

`examine` opens the data as ingest would, `measure` times half a second of this machine, `propose` decides (a
pure function) and `to_yaml` writes the decision down. Nothing here imports TensorFlow or starts Ray.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
import shlex
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from distml.checks import GIB, machine
from distml.config import Config
from distml.data import split
from distml.data.formats import image_folder
from distml.data.listing import Folder
from distml.data.opening import format_of, located, open_source
from distml.data.source import Source
from distml.data.writer import label_warnings
from distml.errors import ConfigError, StorageError
from distml.models.backbones import BACKBONES
from distml.storage import Storage
from distml.training.pretrained import IMAGENET, cached

SAMPLE = 500
"""Pictures whose headers are read to describe the sizes."""
SMALL_SIDE = 64
"""Pictures up to this side are trained from random weights: backbones were trained on 224 pixels and more."""
CPU_BACKBONE, GPU_BACKBONE = "efficientnetv2_b0", "efficientnetv2_s"
"""Proposed where no weights are stored; Keras publishes both."""
_MEASURED_S = 0.25
_PRODUCTS = 100
_UNBALANCED = 5.0
"""Largest class against the smallest beyond which rows are weighted."""
_FEW_ROWS = 1000
_FEW = 10
"""Training pictures of a class below which a note is due."""
_KFLOP_A_PIXEL = {"convnet": 28.0, "resnet": 34.0}
"""Of one image forward, in thousands of operations a pixel: `convnet`, and `resnet` with `_RESNET`."""
_RESNET: dict[str, Any] = {"stem": 16, "widths": [32, 64, 128, 256]}
_EFFICIENCY = {"convnet": 0.25, "resnet": 0.35}
_BACKBONE_EFFICIENCY = 0.2
"""Share of the speed of matrix products that a network reaches; depthwise convolutions are slow."""
_START_S = 45.0
"""Ray, TensorFlow in two workers, evaluation, export and report on 2 cores."""
_GPU_SPEEDUP = 50.0
"""A GPU against the CPU beside it, for an estimate; nothing is run on it."""


@dataclass(frozen=True)
class Facts:
    """What the data are.

    Args:
        path: As it goes into the file.
        form: The format they are read as.
        counts: Training rows by class.
        rows: Rows by split of the source.
        sizes: Pictures by (width, height) of those checked; empty for arrays.
        shape: (H, W, C) that ingest would choose by itself.
        damaged: Pictures whose headers cannot be used.
        skipped: Entries left out by reason.
        notes: What was noticed in the layout.
        what: Kind of the names that are counted: classes, labels or numbers.
        weighted: Whether a row counts for some of them, so that there are rare ones.
    """

    path: str
    form: str
    counts: Mapping[str, int]
    rows: Mapping[str, int]
    sizes: Mapping[tuple[int, int], int]
    shape: tuple[int, int, int]
    damaged: int
    skipped: Mapping[str, int]
    notes: tuple[str, ...] = ()
    what: str = "classes"
    weighted: bool = True

    @property
    def total(self) -> int:
        """Rows of all splits."""
        return sum(self.rows.values())


@dataclass(frozen=True)
class Machine:
    """What it runs on.

    Args:
        cores: Of the CPU.
        gpus: Visible.
        memory_bytes: Free.
        gflops: Measured billions of operations a second of all cores in float32 matrix products.
        rows_per_s: Measured pictures decoded and fitted a second by one core.
    """

    cores: int
    gpus: int
    memory_bytes: int
    gflops: float
    rows_per_s: float

    @property
    def on_cpus(self) -> str:
        """Cores and memory, in words."""
        return f"{self.cores} cores, {self.memory_bytes / GIB:.0f} GiB free"


@dataclass(frozen=True)
class Choice:
    """One key of the proposed file.

    Args:
        path: Dotted.
        value: Plain data.
        why: A comment of one line.
    """

    path: str
    value: Any
    why: str


@dataclass(frozen=True)
class Proposal:
    """A whole file.

    Args:
        choices: In the order in which they are written.
        seconds: Estimated, by stage.
        backbone: Whose pretrained weights are worth fetching; None where they are stored or of no use.
    """

    choices: tuple[Choice, ...]
    seconds: Mapping[str, float]
    backbone: str | None

    @property
    def minutes(self) -> float:
        """Of the whole run."""
        return sum(self.seconds.values()) / 60


def examine(config: Config, path: str) -> tuple[Facts, Source]:
    """Open the data as ingest would, damaged pictures left out.

    Args:
        config: What the user gave by flags.
        path: Folder, file or URI.

    Raises:
        DataError: There are none, or they cannot be used.
    """
    local = Storage(path).local and ":" not in config.data.format
    place = os.path.abspath(os.path.expanduser(path)) if local else path
    lenient = {"path": place, "on_error": "skip", "max_error_fraction": 0.5}
    given = config.model_copy(update={"data": config.data.model_copy(update=lenient)})
    source = open_source(given, Storage(config.storage.root))
    form = config.data.format
    sizes: Mapping[tuple[int, int], int] = {}
    if ":" not in form:
        folder = located(given.data, Storage(config.storage.root)).folder
        form = format_of(folder) if form == "auto" and source.ledger is not None else form
        sizes = _sizes(folder, config) if form in ("image_folder", "table") else {}
    counts = source.task.counts(source.splits["train"].labels).tolist()
    facts = Facts(
        path=place,
        form=form,
        counts=dict(zip(source.classes, counts, strict=True)),
        rows={name: len(source.splits[name].labels) for name in split.SPLITS if name in source.splits},
        sizes=sizes,
        shape=source.shape,
        damaged=len(source.faults),
        skipped={} if source.ledger is None else source.ledger.counts(),
        notes=(*source.notes, *_doubts(source)),
        what=source.task.what,
        weighted=source.task.weighted != "nothing",
    )
    return facts, source


def _doubts(source: Source) -> tuple[str, ...]:
    """What ingest would say of the labels, before anything is written, and that classes are small.

    Raises:
        DataError: The rows cannot be divided.
    """
    task, strata = source.task, {s: source.task.strata(rows.labels) for s, rows in source.splits.items()}
    split.plan(strata, Config().data.val_fraction, 0)
    targets = source.splits["train"].labels
    counts = dict(zip(task.names, task.counts(targets).tolist(), strict=False))
    notes = [*task.doubts(targets), *label_warnings({"train": [*counts.values()]}, [*counts])]
    if few := {name: count for name, count in counts.items() if count < _FEW}:
        name, count = min(few.items(), key=lambda item: item[1])
        what = f"{len(few)} of {len(counts)} {task.what} have fewer than {_FEW} training pictures"
        notes.append(f"{what}, like {name} with {count}: the few that are held out tell little.")
    return tuple(notes)


def _sizes(folder: Folder, config: Config) -> Mapping[tuple[int, int], int]:
    names = image_folder.pictures(folder)
    sample = names[:: max(1, len(names) // SAMPLE)]
    headers, _ = image_folder.survey(folder, sample, config.data.max_pixels)
    return Counter((header.width, header.height) for header in headers.values())


def measure(source: Source) -> Machine:
    """Time this machine for half a second: matrix products, then decoding of the user's pictures."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    block, fastest_s = np.ones((64, 64), np.float32), math.inf  # so small that BLAS takes one thread
    until = time.perf_counter() + _MEASURED_S
    while (began := time.perf_counter()) < until:
        for _ in range(_PRODUCTS):
            block @ block
        fastest_s = min(fastest_s, (time.perf_counter() - began) / _PRODUCTS)
    rows = source.splits["train"]
    order = np.random.default_rng(0).permutation(len(rows.labels))
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < _MEASURED_S:
        rows.gather(order[done % len(order) :][:1].astype(np.int64))
        done += 1
    free = int(psutil.virtual_memory().available)
    return Machine(cores, machine.gpus(), free, cores * 2 * 64**3 / fastest_s / 1e9, done / took)


def at_hand(root: Storage) -> list[str]:
    """Backbones whose ImageNet weights lie under the storage root."""
    return [name for name in BACKBONES if cached(root, f"{IMAGENET}:{name}") is not None]


def propose(facts: Facts, where: Machine, weights: Sequence[str]) -> Proposal:
    """Decide on every key that matters.

    Args:
        facts: Of the data.
        where: The machine.
        weights: Backbones whose weights are stored.
    """
    small = max(facts.shape[:2]) <= SMALL_SIDE
    name = None if small else _backbone(weights, where)
    train_rows, held = _cut(facts)
    plan = _Plan(facts, where, name, small, train_rows)
    choices = (*_data(facts, plan, held), *_model(plan), *_training(plan))
    per_core = max(1.0, min(where.cores, 8) * 0.8)
    gpus = _GPU_SPEEDUP * where.gpus or 1.0
    flops = train_rows * (1 if plan.backbone else 3 * plan.epochs)
    flops += sum(facts.rows.values()) - train_rows + (0 if plan.backbone else train_rows)
    seconds = {
        "ingest": facts.total / (where.rows_per_s * per_core) + facts.total / 4000,
        "start, evaluation and export": _START_S * max(1.0, 2 / where.cores),
        "training": flops * plan.gflops / (where.gflops * plan.efficiency * gpus)
        + plan.epochs * (0.3 + train_rows / 20_000),
    }
    wanted = None if small or name else (GPU_BACKBONE if where.gpus else CPU_BACKBONE)
    return Proposal(choices, {stage: round(value, 1) for stage, value in seconds.items()}, wanted)


def _backbone(weights: Sequence[str], where: Machine) -> str | None:
    """On CPUs the cheapest with at least 0.5 GFLOPs; on GPUs the most expensive with at most 20 GFLOPs."""
    if not weights:
        return None
    by_cost = sorted(weights, key=lambda name: BACKBONES[name].gflops)
    if where.gpus:
        return ([name for name in by_cost if BACKBONES[name].gflops <= 20] or by_cost[:1])[-1]
    return next((name for name in by_cost if BACKBONES[name].gflops >= 0.5), by_cost[-1])


def _cut(facts: Facts) -> tuple[int, float]:
    """Training rows left after the cuts, and the share held out for validation."""
    rest = facts.rows["train"]
    if "test" not in facts.rows:
        rest -= round(rest * split.TEST_FRACTION)
    held = 0.2 if rest < _FEW_ROWS else 0.1
    return max(1, rest if "validation" in facts.rows else rest - round(rest * held)), held


@dataclass(frozen=True)
class _Plan:
    """What follows from the data, the machine and the kind of network."""

    facts: Facts
    where: Machine
    backbone: str | None
    small: bool
    rows: int

    @property
    def name(self) -> str:
        return self.backbone or ("convnet" if self.small else "resnet")

    @property
    def side(self) -> int:
        if self.backbone:
            return BACKBONES[self.backbone].image_size
        return max(self.facts.shape[:2]) if self.small else (128 if self.where.gpus else 64)

    @property
    def gflops(self) -> float:
        """Forward, of one image."""
        if self.backbone:
            return BACKBONES[self.backbone].gflops
        return self.side**2 * _KFLOP_A_PIXEL[self.name] / 1e6

    @property
    def efficiency(self) -> float:
        return _BACKBONE_EFFICIENCY if self.backbone else _EFFICIENCY[self.name]

    @property
    def workers(self) -> int:
        """One a GPU; on CPUs one for two cores, two at least where there are two, as memory allows."""
        if self.where.gpus:
            return self.where.gpus
        fits = max(1, int((self.where.memory_bytes - 2.5 * GIB) // (1.5 * GIB)))
        return max(1, min(fits, max(min(self.where.cores, 2), self.where.cores // 2), 8, self.rows))

    @property
    def batch(self) -> int:
        """A power of two that leaves twenty steps an epoch, from 16 to 256, no more than there are rows."""
        wanted = 1 << int(math.log2(max(1, self.rows / 20)))
        return max(self.workers, min(max(16, min(wanted, 256 if self.small else 128)), self.rows))

    @property
    def epochs(self) -> int:
        """A head converges in 30; from random weights some 1,500 steps are planned, in 10 to 40 epochs."""
        if self.backbone:
            return 30
        steps = max(1, self.rows // self.batch)
        return max(5 if self.small else 12, min(40, round(1500 / steps)))


def _data(facts: Facts, plan: _Plan, held: float) -> list[Choice]:
    name = slug(facts.path)
    counts = sorted(facts.counts.values())
    shown = ", ".join(f"{key} {count:,}" for key, count in list(facts.counts.items())[:8])
    more = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    each = f"{counts[0]:,}" + (f" to {counts[-1]:,}" if counts[-1] != counts[0] else "")
    classes = f"{len(counts)} {facts.what} of {each} training pictures: {shown}{more}"
    if not facts.weighted:
        classes = f"{facts.what}: {', '.join(list(facts.counts)[:8])}{more}"
    choices = [
        Choice("run.name", name, "names the run and its folder; the same name again resumes it"),
        Choice("data.name", name, "names the prepared data below storage.root"),
        Choice("data.path", facts.path, f"{facts.total:,} rows; {classes}"),
        Choice("data.format", facts.form, "detected from the files"),
        Choice("data.image_size", plan.side if not plan.small else "auto", _size_reason(facts, plan)),
    ]
    if facts.sizes and len(facts.sizes) > 1:
        why = "the middle of each picture is kept; letterbox keeps its edges, stretch changes proportions"
        choices.append(Choice("data.fit", "crop", why))
    if facts.damaged:
        many = f"{facts.damaged:,} picture{'s' * (facts.damaged > 1)} cannot be read"
        why = f"{many}: left out, and listed by distml inspect"
        choices.append(Choice("data.on_error", "skip", why))
        share = min(0.5, round(2 * facts.damaged / facts.total + 0.01, 2))
        choices.append(Choice("data.max_error_fraction", share, "a larger share fails the ingest"))
    if "validation" in facts.rows:
        return choices
    why = f"the folder has no validation split: {held:.0%} of each class are held out for model selection"
    if "test" not in facts.rows:
        why += f", after {split.TEST_FRACTION:.1%} as test"
    return [*choices, Choice("data.val_fraction", held, why)]


def _size_reason(facts: Facts, plan: _Plan) -> str:
    least, most = min(facts.sizes, default=None), max(facts.sizes, default=None)
    seen = "images"
    if least and most:
        span = f"{least[0]}x{least[1]}" + (f" to {most[0]}x{most[1]}" if least != most else "")
        many = len(facts.sizes)
        seen = f"{many} size{'s' * (many > 1)} among {sum(facts.sizes.values()):,} checked, {span}"
    if plan.small:
        return f"{seen}: kept as they are, {facts.shape[0]}x{facts.shape[1]}"
    reason = (
        f"{plan.name} was trained at this side"
        if plan.backbone
        else "small, since training starts from random weights"
    )
    return f"{seen}; {reason}"


def _model(plan: _Plan) -> list[Choice]:
    if plan.backbone:
        cost = BACKBONES[plan.backbone]
        size = f"{cost.parameters / 1e6:.1f} million parameters, {cost.gflops:g} GFLOPs an image"
        frozen = f"{plan.rows:,} rows: the head learns alone, from features computed once"
        return [
            Choice("model.name", plan.backbone, f"{size}; its weights are available"),
            Choice("model.weights", IMAGENET, "pretrained on 1.3 million photographs"),
            Choice("model.freeze_epochs", plan.epochs, frozen),
        ]
    if plan.small:
        return [
            Choice("model.name", "convnet", f"small images of {plan.side} pixels need no pretrained network")
        ]
    return [
        Choice(
            "model.name", "resnet", "no pretrained weights are under storage.root, so a small network learns"
        ),
        Choice("model.options", _RESNET, "downsamples early, which leaves time for wider stages"),
    ]


def _training(plan: _Plan) -> list[Choice]:
    where, counts = plan.where, sorted(plan.facts.counts.values())
    on = f"{where.gpus} GPUs" if where.gpus else where.on_cpus
    steps = -(-plan.rows // plan.batch)
    smoothing = "keeps probabilities away from 0 and 1"
    choices = [
        Choice("train.workers", plan.workers, f"this machine has {on}"),
        Choice(
            "train.epochs",
            plan.epochs,
            f"{steps} step{'s' if steps != 1 else ''} each; early_stopping_patience would end sooner",
        ),
        Choice(
            "train.global_batch_size",
            plan.batch,
            f"of {plan.rows:,} training rows, over all workers together",
        ),
        Choice("train.precision", "auto", "bfloat16 where the hardware has it"),
        Choice("train.optimizer", "adamw", "with weight decay: small data sets overfit easily"),
        Choice("train.learning_rate", 0.003 if plan.backbone else 0.002, "peak of the schedule"),
        Choice("train.weight_decay", 0.01 if plan.backbone else 0.05, "of kernels"),
        *([Choice("train.label_smoothing", 0.1, smoothing)] if plan.facts.weighted else []),
        Choice("train.schedule", "cosine", "a warm-up of one epoch, then down to zero"),
        Choice("train.restore_best", True, "exports the best epoch on validation rows"),
    ]
    if not plan.backbone and not plan.small:
        why = "random horizontal flip; leave it out where left and right differ, as in text"
        choices.append(Choice("train.augment.flip", True, why))
    if counts[-1] > _UNBALANCED * max(1, counts[0]):
        why = f"the largest class is {counts[-1] / max(1, counts[0]):.0f} times the smallest"
        choices.append(Choice("train.class_weights", "balanced", why))
    name = slug(plan.facts.path)
    return [
        *choices,
        Choice("tracking.experiment", name, "MLflow experiment"),
        Choice("tracking.registered_model", name, "name of the model in the registry"),
    ]


def slug(path: str) -> str:
    """A name for a run from the last part of a path: letters, digits, dots, dashes and underscores."""
    base = PurePosixPath(path.rstrip("/").replace("\\", "/")).name
    base = re.sub(r"(\.(zip|tar|tgz|gz|parquet|npz|csv))+$", "", base, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", base).strip("-._")[:62]
    return name.lower() or "photos"


def override(choices: Sequence[Choice], given: Mapping[str, Any]) -> tuple[Choice, ...]:
    """Put what the user gave by flags in the place of what was proposed.

    Args:
        choices: The proposal.
        given: Nested values that are not the defaults.
    """
    flat = dict(_flat(given))
    kept = [Choice(c.path, flat.pop(c.path), "as given") if c.path in flat else c for c in choices]
    return (*kept, *(Choice(path, value, "as given") for path, value in flat.items()))


def _flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        free = above + key in ("model.options", "train.class_weights", "sweep.search")
        if isinstance(value, Mapping) and not free:
            pairs += _flat(value, f"{above}{key}.")
        else:
            pairs.append((above + key, value))
    return pairs


def nested(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the choices as the nested values of a configuration."""
    values: dict[str, Any] = {}
    for choice in choices:
        *above, key = choice.path.split(".")
        into = values
        for part in above:
            into = into.setdefault(part, {})
        into[key] = choice.value
    return values


def to_yaml(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """Write the choices as YAML, each below its reason.

    Args:
        choices: What goes into the file.
        heading: Comment lines on top.
    """
    reasons = {choice.path: choice.why for choice in choices}
    lines = [f"# {line}".rstrip() for line in heading]

    def write(values: Mapping[str, Any], above: str) -> None:
        indent = "  " * above.count(".")
        for key, value in values.items():
            path = f"{above}{key}"
            if path in reasons:
                lines.append(f"{indent}# {_one_line(reasons[path])}")
                lines.append(f"{indent}{key}: {json.dumps(value, ensure_ascii=False)}")
            else:
                lines.append(f"{indent}{key}:")
                write(value, f"{path}.")

    write(nested(choices), "")
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return re.sub(r"[^\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]+", " ", text)


def init(config: Config, own: Namespace) -> dict[str, Any]:
    """Examine, measure, decide and write.

    Returns:
        `config` (the file), `rows` by split, `classes`, `sizes`, `model`, `minutes` (estimated), `next` (the
        command) and `weights` (the command that brings pretrained ones, None where they would be of no use).

    Raises:
        ConfigError: The file exists, or the folder is given twice.
        DataError: The data cannot be used.
        StorageError: The file cannot be written.
    """
    if own.config:
        raise ConfigError(f"--config {own.config}: init writes a new file.", "Leave it out.")
    path = Path(own.to or f"{slug(os.path.abspath(own.folder))}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists.", "Move it away, or give another --to.")
    facts, source = examine(config, own.folder)
    where = measure(source)
    weights = at_hand(Storage(config.storage.root))
    made = propose(facts, where, weights)
    choices = override(made.choices, config.model_dump(mode="json", exclude_defaults=True))
    checked = Config.resolve(nested(choices))
    root = "" if config.storage.root == Config().storage.root else config.storage.root
    fetch = _fetch(made.backbone, root)
    following = f"distml train --config {shlex.quote(str(path))}"
    _write(path, to_yaml(choices, _heading(own.folder, made, fetch, following)))
    _tell(facts, made, path, checked, fetch, following)
    return {
        "config": str(path),
        "rows": dict(facts.rows),
        "classes": len(facts.counts),
        "sizes": len(facts.sizes),
        "model": checked.model.name,
        "minutes": round(made.minutes, 1),
        "next": following,
        "weights": fetch,
    }


def _fetch(backbone: str | None, root: str) -> str | None:
    return (
        None
        if backbone is None
        else shlex.join(["distml", "fetch-weights", backbone, *(["--storage.root", root] if root else [])])
    )


def _heading(folder: str, made: Proposal, fetch: str | None, following: str) -> list[str]:
    stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in made.seconds.items())
    lines = [
        f"Written by `distml init {shlex.quote(folder)}`, {datetime.date.today()}.",
        f"Estimated from half a second of this machine: {made.minutes:.1f} minutes ({stages}).",
        f"Next: {following}",
    ]
    if fetch:
        lines.append(
            f"Better with pretrained weights: `{fetch}` on a machine with a network, then init again."
        )
    return lines


def _write(path: Path, text: str) -> None:
    try:
        content = text.encode("utf-8")
        with path.open("xb") as stream:
            stream.write(content)
    except UnicodeEncodeError:
        raise ConfigError(
            "the name of the folder cannot be written as UTF-8, as a configuration is.",
            "Rename the folder, or set a locale such as LC_ALL=C.UTF-8.",
        ) from None
    except FileExistsError:
        raise ConfigError(f"{path} exists.", "Move it away, or give another --to.") from None
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}.", "Give another --to.") from None


def _tell(
    facts: Facts,
    made: Proposal,
    path: Path,
    checked: Config,
    fetch: str | None,
    following: str,
) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    rows = ", ".join(f"{count:,} {name}" for name, count in facts.rows.items())
    console.print(f"data     {facts.total:,} rows ({rows}) of {len(facts.counts)} {facts.what}, {facts.form}")
    for reason, count in facts.skipped.items():
        console.print(f"         {count:,} entries are left out: {reason}")
    for note in facts.notes:
        console.print(f"         {note}")
    if facts.damaged:
        console.print(f"         left out because they cannot be read: {facts.damaged:,}")
    train = checked.train
    size = f"{checked.data.image_size} pixels" if checked.data.image_size != "auto" else "their own size"
    console.print(
        f"model    {checked.model.name} at {size}, {train.epochs} epochs, {train.max_workers} workers"
    )
    console.print(f"time     about {made.minutes:.1f} minutes on this machine")
    if fetch:
        size_mb = BACKBONES[str(made.backbone)].parameters * 4 / 1e6
        console.print(f"weights  none are available; `{fetch}` downloads {made.backbone} ({size_mb:.0f} MB),")
        console.print("         which needs far fewer pictures; then run init again")
    console.print(f"wrote    {path}")
    console.print(f"next     {following}")

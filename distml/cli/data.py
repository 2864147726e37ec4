"""Verbs that look at data before anything is learnt from them: init and inspect (driver).

distml init photos/                        writes photos.yaml and says what to type next
distml init photos/ --to mine.yaml         writes another file; nothing is ever overwritten
distml inspect photos/                     writes photos-inspection.html and .json
distml inspect --config photos.yaml        after a training: suspect labels, too
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from distml.checks import proposal
from distml.config import Config
from distml.errors import ConfigError, StorageError
from distml.models.backbones import BACKBONES
from distml.reports import inspection
from distml.storage import Storage


def init(config: Config, own: argparse.Namespace) -> dict[str, Any]:
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
    path = Path(own.to or f"{proposal.slug(os.path.abspath(own.folder))}.yaml")
    if path.exists():
        raise ConfigError(f"{path} exists.", "Move it away, or give another --to.")
    facts, source = proposal.examine(config, own.folder)
    machine = proposal.measure(source)
    weights = proposal.at_hand(Storage(config.storage.root))
    made = proposal.propose(facts, machine, weights)
    choices = proposal.override(made.choices, config.model_dump(mode="json", exclude_defaults=True))
    checked = Config.resolve(proposal.nested(choices))
    root = "" if config.storage.root == Config().storage.root else config.storage.root
    fetch = _fetch(made.backbone, root)
    following = f"distml train --config {shlex.quote(str(path))}"
    _write(path, proposal.to_yaml(choices, _heading(own.folder, made, fetch, following)))
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


def _heading(folder: str, made: proposal.Proposal, fetch: str | None, following: str) -> list[str]:
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
        with path.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists.", "Move it away, or give another --to.") from None
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}.", "Give another --to.") from None


def _tell(
    facts: proposal.Facts,
    made: proposal.Proposal,
    path: Path,
    checked: Config,
    fetch: str | None,
    following: str,
) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    rows = ", ".join(f"{count:,} {name}" for name, count in facts.rows.items())
    console.print(f"data     {facts.total:,} rows ({rows}) of {len(facts.counts)} classes, {facts.form}")
    for reason, count in facts.skipped.items():
        console.print(f"         {count:,} entries are left out: {reason}")
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
        console.print(f"weights  none are here; `{fetch}` would bring {made.backbone} ({size_mb:.0f} MB),")
        console.print("         which learns from far fewer pictures; then run init again")
    console.print(f"wrote    {path}")
    console.print(f"next     {following}")


def inspect(config: Config, own: argparse.Namespace) -> dict[str, Any]:
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
    made, pictures = inspection.inspect(config)
    name = proposal.slug(config.data.path or config.data.name)
    page = Path(own.to or f"{name}-inspection.html")
    written = page.with_suffix(".json")
    try:
        page.write_text(inspection.render(made, pictures), encoding="utf-8")
        written.write_text(inspection.to_json(made), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {page}: {error.strerror}.", "Give another --to.") from None
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    for sentence in made.findings() or ["nothing was noticed"]:
        console.print(sentence)
    console.print(f"labels: {made.judged_by}")
    console.print(f"wrote {page} and {written}")
    return {"page": str(page), "json": str(written)} | made.summary()


def _place(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path)) if Storage(path).local else path

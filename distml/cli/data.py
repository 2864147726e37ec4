"""Look at a folder of pictures and at this machine and write a configuration for both (driver).

distml init photos/                        writes photos.yaml and says what to type next
distml init photos/ --to mine.yaml         writes another file; nothing is ever overwritten
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

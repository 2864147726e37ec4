"""The networks that can be trained: listing them, fetching their weights (driver)."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from rich.console import Console
from rich.table import Table

from distml.config import Config
from distml.errors import ConfigError
from distml.models import backbones, registry
from distml.storage import Storage
from distml.training import pretrained

_BYTES = 4
"""Of a parameter; exports are float32."""


def models(_config: Config, namespace: Namespace) -> dict[str, Any]:
    """Print the table.

    Returns:
        `models`: name, and for a backbone parameters, GFLOPs, size in megabytes, sides of images.

    Raises:
        ConfigError: No name contains the word.
    """
    word = str(namespace.word).lower()
    ours = [name for name in registry.names() if word in name]
    others = {name: backbone for name, backbone in backbones.BACKBONES.items() if word in name}
    if not ours and not others:
        raise ConfigError(f"no model's name contains {word!r}.", "`distml models` lists all of them.")
    rows = [
        _row(name, backbone) for name, backbone in sorted(others.items(), key=lambda pair: pair[1].gflops)
    ]
    _show(ours, rows)
    return {"models": [{"name": name} for name in ours] + rows}


def _row(name: str, backbone: backbones.Backbone) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": backbone.parameters,
        "gflops": backbone.gflops,
        "megabytes": round(backbone.parameters * _BYTES / 1e6, 1),
        "image_size": backbone.image_size,
        "min_size": backbone.min_size,
    }


def _show(ours: list[str], rows: list[dict[str, Any]]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if ours:
        console.print(f"small networks for images of any kind: {', '.join(ours)}")
    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("backbone")
    for heading in ("parameters", "GFLOPs", "MB", "image size", "at least"):
        table.add_column(heading, justify="right")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:.1f} M"
        cost = (millions, f"{row['gflops']:g}", f"{row['megabytes']:g}")
        table.add_row(row["name"], *cost, f"{row['image_size']}", f"{row['min_size']}")
    console.print(table)


def fetch_weights(config: Config, namespace: Namespace) -> dict[str, Any]:
    """Fetch, or do nothing where they are already.

    Returns:
        `name`, `file`, `sha256`, `bytes` and `place`.

    Raises:
        ConfigError: No backbone of that name, or no such file.
        ModelError: Keras's file cannot be fetched.
        StorageError: The storage cannot be written.
    """
    name = namespace.name or config.model.name
    registry.check(name, {})
    model = config.model.model_copy(update={"name": name, "weights": pretrained.IMAGENET})
    wanted = config.model_copy(update={"model": model})
    storage = Storage(config.storage.root)
    if namespace.file:
        pretrained.check(wanted)
        source = f"{pretrained.IMAGENET}:{name}"
        resolved_file = pretrained.put(storage, source, *pretrained.read(namespace.file))
    else:
        resolved = pretrained.resolve(wanted, storage)
        assert resolved is not None
        resolved_file = resolved
    place = storage.uri(*resolved_file.parts)
    return {
        "name": name,
        "file": resolved_file.file,
        "sha256": resolved_file.sha256,
        "bytes": resolved_file.bytes,
        "place": place,
    }

"""List the networks that can be trained, with what they cost (driver).

distml models [WORD]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from distml import cli
from distml.config import Config
from distml.errors import ConfigError
from distml.models import backbones, registry

_BYTES = 4
"""Of a parameter; exports are float32."""


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument("word", nargs="?", default="", help="list only names that contain it")


def run(_config: Config, namespace: Namespace) -> dict[str, Any]:
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("models", run, argv, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())

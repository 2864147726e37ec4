"""The command `distml serve`: serve the champion over HTTP until stopped, by `serving.run` (driver).

python -m distml.serve --config configs/fashion_mnist.yaml
python -m distml.serve --config configs/k3d.yaml --detach     leave it running on the cluster in RAY_ADDRESS
python -m distml.serve --config configs/k3d.yaml --stop       end it there
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Serve, or end what serves on the cluster."""
    from distml.serving import run as serving

    return serving.stop(config) if own.stop else serving.run(config, detach=own.detach)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("serve", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

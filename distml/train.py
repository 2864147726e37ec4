"""The command `distml train`: one run, or a sweep where one is configured, by `training.run` (driver).

python -m distml.train --config configs/fashion_mnist.yaml     one model
python -m distml.train --config configs/sweep.yaml             the candidates of a sweep, compared
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config) -> dict[str, Any]:
    """Train as the configuration says: one model, or the candidates of a sweep.

    Raises:
        ConfigError: The configuration cannot be used; nothing was started.
        DistmlError: The run failed.
    """
    from distml.training import run as training

    return training.train(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("train", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

"""Compare logged requests with the training data and say whether they have drifted apart (driver).

distml drift --config configs/fashion_mnist.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config
from distml.reports import drift


def run(config: Config) -> dict[str, Any]:
    """Compare, draw and judge; the status is drifted beyond the threshold, so that the exit code is 1."""
    return drift.check(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("drift", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

"""The command `distml doctor`: check whether a configuration can run here, by `checks.doctor` (driver).

python -m distml.doctor --config configs/fashion_mnist.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config) -> dict[str, Any]:
    """Look at everything a run depends on; the status is failed where a check is a problem."""
    from distml.checks import doctor

    return doctor.run(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("doctor", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

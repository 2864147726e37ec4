"""The command `distml pipeline`: from data to a tested endpoint, by `selection.pipeline` (driver).

python -m distml.pipeline --config configs/sweep.yaml           on this machine; the endpoint ends with it
python -m distml.pipeline --config configs/sweep.yaml --stay    ... and answers until Ctrl-C
RAY_ADDRESS=... python -m distml.pipeline --config FILE         on a cluster; the endpoint stays up there

Every stage remembers what it was done for, so repeating the command resumes it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Do every stage that is not done yet."""
    from distml.selection import pipeline

    return pipeline.run(config, own.stay)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("pipeline", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

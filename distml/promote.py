"""The command `distml promote`: make the best model the champion, by `selection.promotion` (driver).

python -m distml.promote --config configs/sweep.yaml           the best candidate of that sweep
python -m distml.promote --run fashion-mnist                   a sweep or run by name; '*': every version
python -m distml.promote --version 7 --dry-run                 what would happen to this one
python -m distml.promote --rollback                            the champion before this one again
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.cli import flags
from distml.config import Config


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Promote, keep or roll back."""
    from distml.selection import promotion

    flags.require_rollback_alone(own)
    if own.rollback:
        return promotion.rollback(config, own.version, own.dry_run)
    return promotion.promote(config, own.run, own.version, own.dry_run, own.replace)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("promote", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

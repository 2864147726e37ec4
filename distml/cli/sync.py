"""Send to the tracking server what runs recorded while it was away (driver)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli, tracking
from distml.config import Config


def run(config: Config) -> dict[str, Any]:
    """Send every spooled run; returns how many were sent."""
    return tracking.sync(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("sync", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

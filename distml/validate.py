"""Check a configuration without starting anything (driver)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config) -> dict[str, Any]:
    """Return the digest of a configuration that was accepted."""
    return {"run": config.run.name, "digest": config.digest()}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("validate", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

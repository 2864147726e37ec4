"""Check a configuration without starting or writing anything (driver)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config
from distml.errors import ConfigError, DistmlError
from distml.models import registry
from distml.selection import candidates as sweep
from distml.selection import search
from distml.storage import Storage
from distml.tracking import runs
from distml.training import weight_sources


def run(config: Config) -> dict[str, Any]:
    """Check what can be known without the data and the cluster.

    Returns:
        `run`, `digest` of the resolved configuration and `candidates`, their number.

    Raises:
        ConfigError: A key, the model, its options, a candidate or a place cannot be used.
    """
    registry.check_config(config.model)
    weight_sources.check(config)
    candidates = len(sweep.candidates(config))
    if config.sweep.search:
        search.check(config)
    try:
        Storage(config.storage.root).uri(runs.FOLDER, config.run.name)
    except DistmlError as error:
        raise ConfigError(f"run.name = {config.run.name!r}: {error.message}", error.remedy) from None
    return {"run": config.run.name, "digest": config.digest(), "candidates": candidates}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("validate", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

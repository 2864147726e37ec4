"""Check a configuration without starting or writing anything (driver)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli, loading, runs
from distml.config import Config
from distml.errors import ConfigError, DistmlError
from distml.models import registry
from distml.storage import Storage


def run(config: Config) -> dict[str, Any]:
    """Check what can be known without the data and the cluster.

    Returns:
        `run`, `digest` of the resolved configuration and `candidates`, their number.

    Raises:
        ConfigError: A key, the model, its options, a candidate or a place cannot be used.
    """
    registry.check(config.model.name, config.model.options)
    for number, overrides in enumerate(config.sweep.candidates):
        _check_candidate(config, f"sweep.candidates.{number}", overrides)
    try:
        Storage(config.storage.root).uri(runs.FOLDER, config.run.name)
    except DistmlError as error:
        raise ConfigError(f"run.name = {config.run.name!r}: {error.message}", error.remedy) from None
    candidates = len(config.sweep.candidates)
    return {"run": config.run.name, "digest": config.digest(), "candidates": candidates}


def _check_candidate(config: Config, path: str, overrides: dict[str, Any]) -> None:
    try:
        values = loading.merge(config.model_dump(mode="json"), loading.nest(overrides))
        candidate = loading.resolve(values)
        registry.check(candidate.model.name, candidate.model.options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.remedy) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("validate", run, argv)


if __name__ == "__main__":
    raise SystemExit(main())

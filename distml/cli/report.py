"""Show the report of a finished run: one HTML file with all that is known of it (driver).

python -m distml report fashion-mnist                     a run of this storage
python -m distml report 965b61abbc344c7086c86c34d50cd2f2  an MLflow run
python -m distml report fashion-mnist --open              in a browser
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

from distml.config import Config
from distml.errors import ConfigError, StorageError
from distml.reports import page
from distml.storage import Storage
from distml.tracking import runs
from distml.tracking.locate import choose


def report(config: Config, own: argparse.Namespace) -> dict[str, Any]:
    """Find a run's report on this machine, or bring it here.

    Returns:
        `run`, `report` (its path) and `opened`.

    Raises:
        ConfigError: There is no such run, it is not finished, or it left no report.
        DistmlError: The storage or the registry does not answer.
    """
    path = _of_storage(config, own.run, own.to) or _of_registry(config, own.run, own.to)
    print(path, file=sys.stderr)
    opened = bool(own.open and webbrowser.open(path.resolve().as_uri()))
    if own.open and not opened:
        print("no browser could be opened here", file=sys.stderr)
    return {"run": own.run, "report": str(path), "opened": opened}


def _of_storage(config: Config, name: str, to: str | None) -> Path | None:
    """The report of a run of this storage, None where there is no run of that name."""
    storage = Storage(config.storage.root)
    if name not in storage.names(runs.FOLDER):
        return None
    record = runs.finished(storage, name)
    if record is None:
        raise ConfigError(f"run {name} is not finished.", "Start it again to finish it.")
    parts = (*record.paths.export, page.FOLDER, page.FILE)
    if not storage.exists(*parts):
        raise _without(name)
    if storage.local and to is None:
        return Path(storage.uri(*parts))
    return _written(storage.read_bytes(*parts), name, to)


def _of_registry(config: Config, run_id: str, to: str | None) -> Path:
    """The report beside the model that an MLflow run registered."""
    with tempfile.TemporaryDirectory(prefix="distml-report-") as folder:
        chosen = choose(config, run_id, None, Path(folder))
        path = chosen.folder / page.FOLDER / page.FILE
        if not path.exists():
            raise _without(run_id)
        if to is None and not path.is_relative_to(folder):
            return path
        return _written(path.read_bytes(), run_id, to)


def _without(name: str) -> ConfigError:
    return ConfigError(f"run {name} left no report.", "Train it again with --run.restart true.")


def _written(content: bytes, name: str, to: str | None) -> Path:
    path = Path(to or f"{name}-report.html").absolute()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}.", "Give another --to.") from None
    return path

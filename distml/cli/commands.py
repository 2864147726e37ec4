"""The small commands, which have no module of their own; `cli.command.MODULES` lists them (driver).

Each imports what it needs when it runs, so that none pays for the others.
"""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from argparse import Namespace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distml.config import Config
from distml.errors import ConfigError, DistmlError, StorageError
from distml.storage import Storage

if TYPE_CHECKING:
    from distml.models.backbones import Backbone

_PARAMETER_BYTES = 4
"""Exports are float32."""


def drift(config: Config) -> dict[str, Any]:
    """Compare logged requests with the training data.

    distml drift --config configs/fashion_mnist.yaml

    Returns:
        The comparison; beyond the threshold its status is `drifted`, so that the exit code is 1.

    Raises:
        DataError: The training data are not prepared, or a file of the log is damaged.
        StorageError: The storage cannot be read or written.
    """
    from distml.reports import drift as comparison

    return comparison.check(config)


def sync(config: Config, own: Namespace) -> dict[str, Any]:
    """Send to the tracking server what runs recorded while it was unreachable.

    Returns:
        `sent` and `left`, numbers of runs; with `--dry-run` nothing is sent, and `rejected` has the reason of
        each that the server did not take at the last attempt.

    Raises:
        TrackingError: The server is unreachable for longer than `tracking.wait_s`, or rejects a run.
    """
    from distml import tracking
    from distml.tracking import outbox

    if not own.dry_run:
        return tracking.sync(config)
    rejected = outbox.rejected(Storage(config.storage.root))
    return {"sent": 0, "left": outbox.waiting(config), "rejected": rejected}


def backup(config: Config, own: Namespace) -> dict[str, Any]:
    """Back up registry, runs and champion to another place.

    distml backup /mnt/backups --config FILE
    MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://... distml backup s3://backups --keep 14 --config FILE

    Returns:
        `backup` (its name), what it holds, and `elsewhere`: files of models that it does not hold.

    Raises:
        DistmlError: The database or a file cannot be read or written; there is no new backup.
    """
    from distml.tracking import backup as backups

    return backups.backup(config, own.to, own.artifacts, own.keep)


def restore(config: Config, own: Namespace) -> dict[str, Any]:
    """Restore a backup into an empty storage root and an empty database.

    distml restore /mnt/backups --storage.root new --config FILE

    Returns:
        `backup` (its name) and what was restored.

    Raises:
        DistmlError: There is no such backup, it is damaged, or something is there already.
    """
    from distml.tracking import backup as backups

    return backups.restore(config, own.source, own.at, own.artifacts)


def validate(config: Config) -> dict[str, Any]:
    """Check what can be known without the data and the cluster; starts and writes nothing.

    Returns:
        `run`, `digest` of the resolved configuration and `candidates`, their number.

    Raises:
        ConfigError: A key, the model, its options, a candidate or a place cannot be used.
    """
    from distml.models import registry
    from distml.selection import candidates
    from distml.tracking import runs
    from distml.training import pretrained

    registry.check_run(config)
    pretrained.check(config)
    count = len(candidates.candidates(config))
    if config.sweep.search:
        candidates.check_space(config)
    try:
        Storage(config.storage.root).uri(runs.FOLDER, config.run.name)
    except DistmlError as error:
        raise ConfigError(f"run.name = {config.run.name!r}: {error.message}", error.remedy) from None
    return {"run": config.run.name, "digest": config.digest(), "candidates": count}


def cluster(_config: Config, own: Namespace) -> dict[str, Any]:
    """Bring the cluster of kuberay/ up or down, show it, or set up what a pod of it needs.

    Raises:
        ConfigError: There is no such overlay, or the database is no PostgreSQL.
        ClusterError: A command failed.
        TrackingError: The database cannot be upgraded.
    """
    from distml.kube import cluster as kubernetes
    from distml.kube import server, status
    from distml.tracking import database

    target = kubernetes.Target(own.context, own.overlay, own.folder)
    match own.what:
        case "up":
            return kubernetes.up(target, operators=own.operators == "true", base_image=own.base_image)
        case "down":
            return kubernetes.down(target)
        case "status":
            return status.status(target)
        case "secrets":
            return {"created": kubernetes.create_secrets(server.here())}
        case _:
            database.upgrade(os.environ.get(database.URI, ""))
            return {"ready": True}


def feedback(config: Config, own: Namespace) -> dict[str, Any]:
    """Join true labels that came later with logged predictions.

    distml feedback labels.csv --config configs/fashion_mnist.yaml

    Returns:
        `labels` in the file, `joined` with a logged prediction, what was not, `metric`, and `live_METRIC` by
        version, with its interval.

    Raises:
        DataError: The file or the log cannot be read, or a label is none of the model's.
        StorageError: The storage cannot be read or written.
    """
    from distml import tasks
    from distml.reports import drift as comparison
    from distml.tasks.multilabel import NONE

    joined = comparison.feedback(config, own.file)
    print(f"{joined['joined']} of {joined['labels']} labels have a logged prediction", file=sys.stderr)
    if unknown := joined["unknown"]:
        hint = "an id is the x-request-id of an answer that was logged (log.enabled, log.sample)"
        print(f"without one, for instance: {', '.join(unknown)}; {hint}", file=sys.stderr)
    if joined["repeated"]:
        print(f"{joined['repeated']} lines are of an image before them; the last counts", file=sys.stderr)
    if joined["without_label"]:
        hint = f"; write {NONE} for an image without any" if tasks.of(config.task.kind).flags else ""
        print(f"{joined['without_label']} lines have no label yet and are left out{hint}", file=sys.stderr)
    metric = joined["metric"]
    for version, live in joined[f"live_{metric}"].items():
        between = " to ".join(f"{bound:.4g}" for bound in live["interval"])
        reached = f"{metric} {live[metric]:.4g} on {live['rows']} rows ({between})"
        print(f"version {version}: {reached}", file=sys.stderr)
    return joined


def status(config: Config, own: Namespace) -> dict[str, Any]:
    """Show what an endpoint serves, what it rejects and why, its replicas, rate, latency and drift.

    distml status --config configs/fashion_mnist.yaml

    Returns:
        `url`, `model`, `version`, `aliases`, `loaded`, `refused`, `missing`, `registry_age_s`, `replicas`,
        `requests_per_s`, `failed_per_s`, `p50_s`, `p99_s` (of all requests since the start) and `drifted`; of
        several models, most of that by their names in `models`.

    Raises:
        ServingError: Nothing answers there, or it asks for another key.
    """
    from distml.serving import deploy, run

    own_url = config.serve.url or deploy.url(config.serve)
    return run.status(config, (own.url or own_url).rstrip("/"), own.url is None, own.over_s)


def keys(config: Config, own: Namespace) -> dict[str, Any]:
    """Draw an API key, list the names that have one, or take a name's keys away.

    distml keys new alice --config configs/fashion_mnist.yaml --serve.auth.keys_file keys.txt

    Returns:
        `file`, and the new `key` with its `name`, or all `keys` by name and end, or how many were `removed`.

    Raises:
        ConfigError: No keys file is configured, it cannot be used, or the name is missing or not there.
    """
    from distml.serving import keys as api_keys

    path = config.serve.auth.keys_file
    if path is None:
        raise ConfigError(
            "serve.auth.keys_file is not set.", "Name the file, as --serve.auth.keys_file keys.txt."
        )
    if own.what == "list":
        listed = [{"name": key.name, "expires": _moment(key.expires)} for key in api_keys.read(path)]
        return {"file": path, "keys": listed}
    if own.name is None:
        raise ConfigError(f"keys {own.what} takes a name.", f"Write distml keys {own.what} NAME.")
    if own.what == "remove":
        return {"file": path, "name": own.name, "removed": api_keys.remove(path, own.name)}
    key = api_keys.new(path, own.name, own.expires)
    print(
        "The key is shown only once; the file stores its hash. Keep it where secrets are kept.",
        file=sys.stderr,
    )
    return {"file": path, "name": own.name, "expires": own.expires, "key": key}


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()


def report(config: Config, own: Namespace) -> dict[str, Any]:
    """Show the report of a finished run: one HTML file with all that is known of it.

    distml report fashion-mnist                     a run of this storage
    distml report 965b61abbc344c7086c86c34d50cd2f2  an MLflow run
    distml report fashion-mnist --open              in a browser

    Returns:
        `run`, `report` (its path) and `opened`.

    Raises:
        ConfigError: There is no such run, it is not finished, or it has no report.
        DistmlError: The storage or the registry does not respond.
    """
    path = _of_storage(config, own.run, own.to) or _of_registry(config, own.run, own.to)
    print(path, file=sys.stderr)
    opened = bool(own.open and webbrowser.open(path.resolve().as_uri()))
    if own.open and not opened:
        print("no browser could be opened here", file=sys.stderr)
    return {"run": own.run, "report": str(path), "opened": opened}


def _of_storage(config: Config, name: str, to: str | None) -> Path | None:
    """The report of a run of this storage, None where there is no run of that name."""
    from distml.reports import page
    from distml.tracking import runs

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
    from distml.reports import page
    from distml.tracking.locate import choose

    with tempfile.TemporaryDirectory(prefix="distml-report-") as folder:
        chosen = choose(config, run_id, None, Path(folder))
        path = chosen.folder / page.FOLDER / page.FILE
        if not path.exists():
            raise _without(run_id)
        if to is None and not path.is_relative_to(folder):
            return path
        return _written(path.read_bytes(), run_id, to)


def _without(name: str) -> ConfigError:
    return ConfigError(f"run {name} has no report.", "Train it again with --run.restart true.")


def _written(content: bytes, name: str, to: str | None) -> Path:
    path = Path(to or f"{name}-report.html").absolute()
    try:
        path.write_bytes(content)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}.", "Give another --to.") from None
    return path


def models(_config: Config, namespace: Namespace) -> dict[str, Any]:
    """Print the table.

    Returns:
        `models`: name, and for a backbone parameters, GFLOPs, size in megabytes, sides of images.

    Raises:
        ConfigError: No name contains the word.
    """
    from distml.models import backbones, registry

    word = str(namespace.word).lower()
    ours = [name for name in registry.names() if word in name]
    others = {name: backbone for name, backbone in backbones.BACKBONES.items() if word in name}
    if not ours and not others:
        raise ConfigError(f"no model's name contains {word!r}.", "`distml models` lists all of them.")
    rows = [
        _model_row(name, backbone)
        for name, backbone in sorted(others.items(), key=lambda pair: pair[1].gflops)
    ]
    _show_models(ours, rows)
    return {"models": [{"name": name} for name in ours] + rows}


def _model_row(name: str, backbone: Backbone) -> dict[str, Any]:
    return {
        "name": name,
        "parameters": backbone.parameters,
        "gflops": backbone.gflops,
        "megabytes": round(backbone.parameters * _PARAMETER_BYTES / 1e6, 1),
        "image_size": backbone.image_size,
        "min_size": backbone.min_size,
    }


def _show_models(ours: list[str], rows: list[dict[str, Any]]) -> None:
    """Print the table, cheapest first."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if ours:
        console.print(f"small networks for images of any kind: {', '.join(ours)}")
    if not rows:
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("backbone")
    for heading in ("parameters", "GFLOPs", "MB", "image size", "at least"):
        table.add_column(heading, justify="right")
    for row in rows:
        millions = f"{row['parameters'] / 1e6:.1f} M"
        cost = (millions, f"{row['gflops']:g}", f"{row['megabytes']:g}")
        table.add_row(row["name"], *cost, f"{row['image_size']}", f"{row['min_size']}")
    console.print(table)


def fetch_weights(config: Config, namespace: Namespace) -> dict[str, Any]:
    """Fetch, or do nothing where they are already.

    Returns:
        `name`, `file`, `sha256`, `bytes` and `place`.

    Raises:
        ConfigError: No backbone of that name, or no such file.
        ModelError: Keras's file cannot be fetched.
        StorageError: The storage cannot be written.
    """
    from distml.models import registry
    from distml.training import pretrained

    name = namespace.name or config.model.name
    registry.check(name, {})
    model = config.model.model_copy(update={"name": name, "weights": pretrained.IMAGENET})
    wanted = config.model_copy(update={"model": model})
    storage = Storage(config.storage.root)
    if namespace.file:
        pretrained.check(wanted)
        source = f"{pretrained.IMAGENET}:{name}"
        resolved_file = pretrained.put(storage, source, *pretrained.read(namespace.file))
    else:
        resolved = pretrained.resolve(wanted, storage)
        assert resolved is not None
        resolved_file = resolved
    place = storage.uri(*resolved_file.parts)
    return {
        "name": name,
        "file": resolved_file.file,
        "sha256": resolved_file.sha256,
        "bytes": resolved_file.bytes,
        "place": place,
    }

"""The verbs that are one call each: drift, sync, backup, restore, validate, cluster, keys (driver).

Each imports what it needs when it runs, so that none pays for the others.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from datetime import UTC, datetime
from typing import Any

from distml.config import Config
from distml.errors import ConfigError, DistmlError


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
    """Send to the tracking server what runs recorded while it was away.

    Returns:
        `sent` and `left`, numbers of runs; with `--dry-run` nothing is sent.

    Raises:
        TrackingError: The server is away for longer than `tracking.wait_s`, or refuses a run.
    """
    from distml import tracking
    from distml.tracking import spool

    return {"sent": 0, "left": spool.waiting(config)} if own.dry_run else tracking.sync(config)


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
    from distml.storage import Storage
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
        "The key is shown this once; the file has its hash. Keep it where secrets are kept.", file=sys.stderr
    )
    return {"file": path, "name": own.name, "expires": own.expires, "key": key}


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()

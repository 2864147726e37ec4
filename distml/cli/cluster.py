"""Bring up, look at or take down the Kubernetes cluster of kuberay/ (driver)."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.cli import arguments
from distml.config import Config
from distml.kube import cluster, server
from distml.tracking import database


def run(config: Config, own: Namespace) -> dict[str, Any]:
    """Bring the cluster up or down, show it, or set up what a pod of it needs."""
    target = cluster.Target(own.context, own.overlay, own.folder)
    match own.what:
        case "up":
            return cluster.up(target, operators=own.operators == "true", base_image=own.base_image)
        case "down":
            return cluster.down(target)
        case "status":
            return cluster.status(target)
        case "secrets":
            return {"created": cluster.create_secrets(server.here())}
        case _:
            database.upgrade(os.environ.get(database.URI, ""))
            return {"ready": True}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("cluster", run, argv, arguments.cluster)


if __name__ == "__main__":
    raise SystemExit(main())

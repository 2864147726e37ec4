"""The secrets that nobody has to know, drawn inside the cluster (the Job `setup`)."""

from __future__ import annotations

import base64
import secrets

from distml.kube.server import ConflictError, Server

GENERATED = {"mlflow-database": "password", "ray-token": "auth_token"}
"""Secrets and their one key: PostgreSQL's password, and the token of every Ray cluster."""


def create(where: Server) -> list[str]:
    """Create the secrets that do not exist; others stay as they are, and none is ever read.

    Returns:
        The names of the new ones.

    Raises:
        ClusterError: The API server refuses or does not answer.
    """
    new = []
    for name, key in GENERATED.items():
        value = base64.b64encode(secrets.token_hex(32).encode()).decode()
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "distml"}},
            "data": {key: value},
        }
        try:
            where.create("api/v1/secrets", body)
        except ConflictError:
            continue
        new.append(name)
    return new

"""Where the embedded default keeps what is recorded."""

from __future__ import annotations

from pathlib import Path

from distml.config import Config
from distml.tracking import server


def location(root: str, uri: str | None) -> str | None:
    return server.artifact_location(Config.resolve({"storage": {"root": root}, "tracking": {"uri": uri}}))


def test_artifacts_lie_under_the_root_or_beside_the_database_or_where_the_server_says(tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    assert location(str(tmp_path), None) == f"file://{tmp_path}/mlflow-artifacts"
    assert location(str(tmp_path), database) == f"file://{tmp_path}/mlflow-artifacts"
    assert location("s3://bucket/root", database) == f"file://{tmp_path}/mlflow-artifacts"
    assert location("s3://bucket/root", "http://mlflow:5000") is None

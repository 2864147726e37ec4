"""The secrets that are drawn inside the cluster."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from distml.errors import ClusterError
from distml.kube import cluster as kube
from distml.kube.server import Server
from tests import apiserver


def test_what_is_missing_is_drawn_and_what_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-canary")
    with apiserver.serving(apiserver.Cluster([])) as cluster:
        where = Server(cluster.url, "distml", tmp_path, patience_s=2)
        cluster.secrets["ray-token"] = {"auth_token": "old"}
        assert kube.create_secrets(where) == ["mlflow-database"]
        assert kube.create_secrets(where) == []
    drawn = base64.b64decode(cluster.secrets["mlflow-database"]["password"]).decode()
    assert len(drawn) == 64
    assert int(drawn, 16) > 0
    assert cluster.secrets["ray-token"] == {"auth_token": "old"}


def test_a_refusal_is_a_sentence(tmp_path: Path) -> None:
    with apiserver.serving(apiserver.Cluster([])) as cluster, pytest.raises(ClusterError, match="401"):
        kube.create_secrets(Server(cluster.url, "distml", tmp_path, patience_s=2))
    assert cluster.secrets == {}

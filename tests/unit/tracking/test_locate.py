"""Files of a model come from places of ours, whatever the registry says."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from distml.config import Config
from distml.errors import TrackingError
from distml.tracking import locate


def config(root: str, server: str | None = None, roots: list[str] | None = None) -> Config:
    tracking = {"uri": server, "artifact_roots": roots or []}
    return Config.resolve({"storage": {"root": root}, "tracking": tracking})


def accepted(config: Config, location: str) -> bool:
    try:
        locate.require_own(config, location, "pets version 7")
    except TrackingError as error:
        return "pets version 7 has its files at" not in str(error)
    return True


def test_sources_below_the_storage_root_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    known = config(str(tmp_path / "in"))
    for place in ("mlflow-artifacts/models/m-1/artifacts", "runs/a/001/export-1", "with space"):
        assert accepted(known, str(tmp_path / "in" / place))
        assert accepted(known, (tmp_path / "in" / place).as_uri())


@pytest.mark.parametrize(
    "place",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "../outside",
        "{root}/../outside",
        "file://{root}/../outside",
        "file://{root}/%2e%2e/outside",
        "file://{root}/%2E%2E/%2e%2e/etc",
        "{root}-other/model",
        "file://elsewhere{root}/model",
        "http://127.0.0.1:9/canary",
        "https://canary.example/model",
        "s3://bucket/model",
        "s3:{root}/model",
        "ftp://canary.example/model",
        "dbfs:/model",
        "runs:/0123/model",
        "models:/other/1",
        "mlflow-artifacts://canary.example/1/model",
        "mlflow-artifacts:/1/../../etc/passwd",
        "mlflow-artifacts:/1/%2e%2e/%2e%2e/etc/passwd",
        "mlflow-artifacts:/1/%252e%252e/etc/passwd",
        "mlflow-artifacts:/1/..\\..\\etc",
        "",
        "\0",
    ],
)
def test_sources_elsewhere_are_rejected(place: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    assert not accepted(config(str(root)), place.format(root=root))


def test_a_link_out_of_the_root_is_rejected(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "link").symlink_to("/etc")
    assert not accepted(config(str(root)), str(root / "link" / "passwd"))


def test_a_root_that_is_a_link_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    assert accepted(config(str(tmp_path / "root")), str(tmp_path / "root" / "models" / "m"))


def test_the_tracking_server_hands_out_its_own_files_alone(tmp_path: Path) -> None:
    known = config(str(tmp_path), "http://mlflow:5000")
    assert accepted(known, "mlflow-artifacts:/1/models/m-1/artifacts")
    assert accepted(known, "mlflow-artifacts://mlflow:5000/1/models/m-1/artifacts")
    assert not accepted(known, "mlflow-artifacts://canary:5000/1/models/m-1/artifacts")
    assert not accepted(known, "http://mlflow:5000/1/models")


def test_an_object_store_may_be_the_root() -> None:
    known = config("s3://bucket/distml?endpoint_override=127.0.0.1:9", "http://mlflow:5000")
    assert accepted(known, "s3://bucket/distml/runs/a/001/export-1")
    assert not accepted(known, "s3://bucket/distml-other/model")
    assert not accepted(known, "s3://bucket/distml/../other")
    assert not accepted(known, "s3://bucket/distml/%2e%2e/other")


def test_further_sources_can_be_allowed(tmp_path: Path) -> None:
    known = config(str(tmp_path), roots=["s3://models/team", "/srv/models"])
    assert accepted(known, "s3://models/team/m-1")
    assert accepted(known, "/srv/models/m-1")
    assert not accepted(known, "/srv/other")


def test_files_of_a_renamed_or_copied_root_are_located(tmp_path: Path) -> None:
    export = ("mlflow-artifacts", "models", "m-1", "artifacts")
    old, new = tmp_path / "old", tmp_path / "with space"
    digests = b'{"data/model.keras": "0"}'
    sha256 = hashlib.sha256(digests).hexdigest()
    for root in (old, new):
        root.joinpath(*export).mkdir(parents=True)
        root.joinpath(*export, "digests.json").write_bytes(digests)
    registered, here = old.joinpath(*export).as_uri(), str(new.joinpath(*export))
    assert locate._moved(config(str(new)), registered, sha256) == here  # a copy is on its own
    shutil.rmtree(old)
    assert locate._moved(config(str(new)), registered, sha256) == here
    assert locate._moved(config(str(new)), old.joinpath(*export).as_posix(), sha256) == here
    assert locate._moved(config(str(new)), f"s3://bucket/{'/'.join(export)}", sha256) == here
    assert locate._moved(config(str(new)), here, sha256) is None  # where the registry says
    for foreign in (registered.replace("m-1", "m-2"), registered.replace("models", "..%2fmodels")):
        assert locate._moved(config(str(new)), foreign, sha256) is None
    assert locate._moved(config(str(new)), registered, "0" * 64) is None  # other files of that name
    assert locate._moved(config(str(new)), registered, None) is None

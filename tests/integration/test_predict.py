"""Predict against a real registry: champion, version, run id, newest, and a model that was tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml import predict, tracking
from distml.artifacts.layout import MODEL, write_digests
from distml.config import Config, load
from distml.errors import TrackingError
from distml.tracking import locate
from distml.tracking import registry as champions
from tests.registered import FORMATS

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("plain_logging"),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CLASSES = ["cat", "dog", "bird"]


@dataclass(frozen=True)
class Registry:
    """Three versions of a model on SQLite.

    Args:
        config: Points there.
        client: Of MLflow.
        runs: Run of each version.
        folders: Files of each version.
    """

    config: Config
    client: Any
    runs: list[str]
    folders: list[Path]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Version 1 and 2 answer differently; 3 is tampered with after it was registered."""
    root = tmp_path_factory.mktemp("storage")
    config = Config.resolve({"storage": {"root": str(root)}, "tracking": {"registered_model": "pets"}})
    client = tracking.client(config)
    experiment = client.create_experiment("pets", artifact_location=(root / "artifacts").as_uri())
    client.create_registered_model("pets")
    runs, folders = [], []
    for seed in range(3):
        folder = root / f"export-{seed}"
        folder.mkdir()
        digest = _export(folder, seed)
        run = client.create_run(experiment)
        client.create_model_version("pets", folder.as_uri(), run.info.run_id, tags={"sha256": digest})
        runs.append(run.info.run_id)
        folders.append(folder)
    content = bytearray((folders[2] / MODEL).read_bytes())
    content[-5000] ^= 1
    (folders[2] / MODEL).write_bytes(content)
    write_digests(folders[2])  # a writer of the model can rewrite the list beside it
    return Registry(config, client, runs, folders)


def _export(folder: Path, seed: int) -> str:
    from distml.artifacts.export import export
    from distml.models import registry as models

    network = models.build("convnet", (12, 12, 1), len(CLASSES), {"filters": [4], "dense": 8}, seed)
    described = {"name": "pets", "classes": CLASSES, "shape": [12, 12, 1]}
    export(network, folder, described, np.zeros((2, 12, 12, 1), np.uint8), FORMATS)
    return write_digests(folder)


@pytest.fixture
def alias(registry: Registry) -> Iterator[Registry]:
    """Version 1 is the champion."""
    registry.client.set_registered_model_alias("pets", "champion", "1")
    yield registry
    registry.client.delete_registered_model_alias("pets", "champion")


def test_a_version_can_be_named_by_number_run_and_alias(alias: Registry) -> None:
    config = alias.config
    champion = champions.by_alias(config)
    assert champion is not None
    assert champion == champions.by_number(config, 1) == champions.by_run(config, alias.runs[0])
    assert (champion.name, champion.version, champion.run_id) == ("pets", 1, alias.runs[0])
    assert champion.sha256 is not None
    newest = champions.newest(config)
    assert newest is not None
    assert newest.version == 3


def test_a_missing_version_is_none(registry: Registry) -> None:
    config = registry.config
    other = Config.resolve(load.merge(config.model_dump(), load.nest({"tracking.registered_model": "none"})))
    assert champions.by_alias(config) is None
    assert champions.by_alias(other) is None
    assert champions.by_number(config, 9) is None
    assert champions.by_run(config, "0" * 32) is None
    assert champions.by_run(config, "' or name = 'pets") is None
    assert champions.newest(other) is None


def test_files_on_this_machine_are_not_copied_and_missing_ones_are_named(
    registry: Registry, tmp_path: Path
) -> None:
    version = champions.by_number(registry.config, 1)
    assert version is not None
    assert locate.fetch(registry.config, version, tmp_path) == registry.folders[0]
    assert not list(tmp_path.iterdir())
    gone = champions.ModelVersion("pets", 7, None, None, (registry.folders[0] / "gone").as_uri())
    with pytest.raises(TrackingError, match="pets version 7 cannot be fetched"):
        locate.fetch(registry.config, gone, tmp_path)


def test_an_unreachable_server_is_an_error_message(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Config.resolve({"tracking": {"uri": "http://127.0.0.1:9", "wait_s": 0}})
    with pytest.raises(TrackingError, match=r"the registry http://127\.0\.0\.1:9 does not respond"):
        champions.newest(away)


def ask(
    registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str
) -> tuple[int, dict[str, Any], str]:
    """Exit code, result line and standard error of predict on two good files and a bad one."""
    noise = np.random.default_rng(0).integers(0, 256, (2, 50, 40), np.uint8)
    files = [str(tmp_path / name) for name in ("one.png", "two.png")]
    for file, pixels in zip(files, noise, strict=True):
        Image.fromarray(pixels).save(file)
    tracked = registry.config.tracking.registered_model
    fixed = ["--storage.root", registry.config.storage.root, "--tracking.registered_model", tracked]
    code = predict.main([*files, *fixed, *words])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_predict_uses_the_champion(
    alias: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, result, err = ask(alias, capsys, tmp_path, "--top", "2")
    assert (code, result["status"], result["model"], result["version"]) == (0, "finished", "pets", 1)
    for prediction, name in zip(result["predictions"], ("one.png", "two.png"), strict=True):
        assert prediction["file"].endswith(name)
        assert prediction["class"] == CLASSES[prediction["label"]]
        assert prediction["top"][0]["class"] == prediction["class"]
        assert len(prediction["top"]) == 2
        assert 1 / 3 <= prediction["probability"] <= 1
    assert "one.png" in err
    assert "no version is the champion" not in err


def test_a_version_and_its_run_predict_the_same(
    registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    second = ask(registry, capsys, tmp_path, "--version", "2")[1]
    by_run = ask(registry, capsys, tmp_path, "--run", registry.runs[1])[1]
    first = ask(registry, capsys, tmp_path, "--version", "1")[1]
    assert second == by_run
    assert second["predictions"] != first["predictions"]


def test_a_tampered_version_is_never_loaded(
    registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, result, err = ask(registry, capsys, tmp_path)
    assert "no version is the champion yet; the newest one answers: version 3" in err
    assert (code, result["kind"]) == (1, "ModelError")
    assert "digests.json has the SHA-256" in result["error"]


def test_unreadable_files_are_reported_and_the_others_predicted(
    registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_text("no picture")
    bad = [str(tmp_path / name) for name in ("bad.png", "none.png")]
    code, result, err = ask(registry, capsys, tmp_path, "--version", "2", *bad)
    assert (code, result["status"]) == (1, "failed")
    assert len(result["predictions"]) == 2
    assert [item["file"] for item in result["failed"]] == bad
    assert all(item["error"] in err for item in result["failed"])


def test_a_run_of_this_storage_predicts_without_the_registry(
    registry: Registry, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from distml.storage import Storage
    from distml.tracking import runs

    storage = Storage(registry.config.storage.root)
    run, _ = runs.begin(Config.resolve({"run": {"name": "mine"}}), storage)
    shutil.copytree(registry.folders[0], storage.uri(*run.paths.folder, "export-1a"))
    run.status = "finished"
    run.result = {"model": "pets", "version": None, "artifacts": storage.uri(*run.paths.folder, "export-1a")}
    run.save(storage)
    code, result, _ = ask(registry, capsys, tmp_path, "--run", "mine")
    assert (code, result["version"]) == (0, None)
    expected = ask(registry, capsys, tmp_path, "--version", "1")[1]["predictions"]
    assert result["predictions"] == expected

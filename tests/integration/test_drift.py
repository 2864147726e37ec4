"""Drift on the real data: half of the test rows is no drift, the same rows inverted or of one class are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml import cli
from distml.config import Config, LogConfig
from distml.data import ingestion, shards
from distml.data.schema import Images, Labels
from distml.serving import request_log
from distml.serving.request_log import RequestLog
from distml.storage import Storage
from tests import serving

pytestmark = [pytest.mark.usefixtures("plain_logging"), pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    root = tmp_path_factory.mktemp("drift") / "storage"
    config = Config.resolve({"storage": {"root": str(root)}})
    ingestion.prepare(config, Storage(config.storage.root))
    return config


@pytest.fixture
def test_half(config: Config) -> tuple[Images, Labels]:
    storage = Storage(config.storage.root)
    storage.delete(request_log.FOLDER)
    manifest = ingestion.find(config, storage)
    assert manifest is not None
    images, labels = shards.read(storage, manifest, "test")
    half = np.random.default_rng(0).permutation(len(images))[: len(images) // 2]
    return images[half], labels[half]


def serve(config: Config, pictures: Images, labels: Labels, **log: Any) -> None:
    """Log answers as the endpoint would."""
    storage = Storage(config.storage.root)
    manifest = ingestion.find(config, storage)
    assert manifest is not None
    request_log = RequestLog(LogConfig(enabled=True, **log), storage)
    served = serving.served(1, manifest.classes, manifest.shape, config.tracking.registered_model)
    probabilities = np.eye(manifest.num_classes, dtype=np.float32)[labels]
    for at in range(0, len(pictures), 100):
        request_log.record(f"{at}", served, pictures[at : at + 100], probabilities[at : at + 100], 0.001)
    request_log.close()
    assert request_log.counts()["written"] == len(pictures)


def ask(config: Config, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = cli.run("drift", ["--storage.root", config.storage.root, *words])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_half_of_the_test_rows_is_no_drift(
    config: Config, test_half: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    serve(config, *test_half)
    code, result, err = ask(config, capsys)
    assert (code, result["status"], result["drifted"], result["rows"]) == (0, "finished", False, 5000)
    assert result["beyond"] == {}
    assert max(result["largest"].values()) < 0.02
    assert "class mix" in err
    assert Path(result["figure"]).read_bytes().startswith(b"\x89PNG")
    whole = json.loads(Path(result["report"]).read_text())
    assert len(whole["shifts"]) == 14


def test_inverted_pictures_are_drift_even_without_pictures_in_the_log(
    config: Config, test_half: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = test_half
    serve(config, 255 - images, labels, images=False)
    code, result, err = ask(config, capsys)
    assert (code, result["status"], result["drifted"]) == (1, "drifted", True)
    assert result["beyond"]["mean intensity"] > 1
    assert "class mix" not in result["beyond"]
    assert "drifted" in err
    code, result, _ = ask(config, capsys, "--drift.threshold", "1000")
    assert (code, result["drifted"]) == (0, False)


def test_requests_of_one_class_are_drift_of_the_mix(
    config: Config, test_half: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = test_half
    serve(config, images[labels == 9], labels[labels == 9])
    code, result, _ = ask(config, capsys)
    assert code == 1
    assert result["beyond"]["class mix"] > 1


def test_too_few_rows_give_no_verdict(
    config: Config, test_half: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, err = ask(config, capsys)
    assert (code, result["drifted"], result["rows"]) == (0, None, 0)
    assert "log.enabled" in err
    images, labels = test_half
    serve(config, 255 - images[:60], labels[:60])
    code, result, err = ask(config, capsys)
    assert (code, result["status"], result["drifted"], result["rows"]) == (0, "finished", None, 60)
    assert "60 rows are logged for fashion-mnist, 200 are needed to judge" in err
    assert ask(config, capsys, "--drift.min_rows", "50")[0] == 1


def test_the_training_rows_are_measured_once(
    config: Config, test_half: tuple[Images, Labels], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(config.storage.root)
    serve(config, *test_half)
    ask(config, capsys)
    kept = Path(storage.uri(ingestion.folder(config), "reference.json"))
    written = kept.stat().st_mtime_ns
    ask(config, capsys)
    assert kept.stat().st_mtime_ns == written
    kept.write_text("{}")  # of another version of distml, or cut off
    code, result, _ = ask(config, capsys)
    assert (code, result["drifted"]) == (0, False)
    assert json.loads(kept.read_text())["labels"]


def test_without_prepared_data_there_is_nothing_to_compare_with(
    storage_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config.resolve({"storage": {"root": str(storage_root)}})
    code, result, _ = ask(config, capsys)
    assert (code, result["kind"]) == (1, "DataError")
    assert "holds no prepared data to compare with" in result["error"]
    assert not list(storage_root.iterdir())

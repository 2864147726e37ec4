"""The Python API: results are typed, and importing it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import distml
from distml import api
from distml.config import Config
from distml.errors import ConfigError, DataError

RESULT = {
    "run_id": "a" * 32,
    "model": "mine",
    "version": "3",
    "val_accuracy": 0.9,
    "test_accuracy": None,
}


def test_the_types_are_exported_lazily_and_the_verbs_stay_modules() -> None:
    program = (
        "import sys, distml\n"
        "assert 'distml.api' not in sys.modules\n"
        "assert distml.Config is distml.api.Config\n"
        "assert not {'ray', 'tensorflow', 'mlflow'} & {name for name in sys.modules if '.' not in name}\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    from distml import train

    assert train.__name__ == "distml.train"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = distml.trian


def test_a_result_has_its_figures_and_its_report(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "learning_curves.png").write_bytes(b"png")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("<html>")
    result = api.TrainResult.of(Config(), RESULT | {"artifacts": str(tmp_path)})
    assert (result.version, result.test_accuracy) == (3, None)
    assert result.figures == {"learning_curves": str(tmp_path / "figures" / "learning_curves.png")}
    assert result.report == str(tmp_path / "report" / "report.html")


def test_an_unregistered_run_has_no_version(tmp_path: Path) -> None:
    result = api.TrainResult.of(Config(), RESULT | {"version": None, "artifacts": str(tmp_path)})
    assert (result.version, result.figures, result.report) == (None, {}, None)


def test_configurations_are_read_with_values_on_top(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {epochs: 3, workers: 1}\nrun: {name: mine}\n")
    config = Config.load(file, train={"epochs": 4}, **{"run.name": "other", "train.workers": 2})
    assert (config.train.epochs, config.train.workers, config.run.name) == (4, 2, "other")
    assert Config.load() == Config()
    with pytest.raises(ConfigError, match=r"train\.epohcs.*Did you mean train\.epochs"):
        Config.load(file, **{"train.epohcs": 4})


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distml.batch import files

    failed = [
        {"file": "a.png", "error": "a.png is not a readable picture."},
        {"file": "b.png", "error": "b."},
    ]
    monkeypatch.setattr(files, "predict_files", lambda *_, **__: {"predictions": [], "failed": failed})
    with pytest.raises(DataError, match=r"a\.png is not a readable picture\. \(1 more cannot be read\.\)"):
        api.predict(Config(), ["a.png", "b.png"])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"class": "cat", "probability": 0.9, "top": [{"class": "cat", "probability": 0.9}]},
            ("cat", 0.9, 1),
        ),
        ({"labels": ["tree"], "top": [{"class": "tree", "probability": 0.8}]}, (None, None, 1)),
        ({"values": {"age": 3.5}}, (None, None, 0)),
    ],
)
def test_predictions_of_every_task_have_a_typed_form(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    from distml.batch import files

    line = {"file": "a.png"} | given
    monkeypatch.setattr(files, "predict_files", lambda *_, **__: {"predictions": [line]})
    (prediction,) = api.predict(Config(), ["a.png"])
    assert (prediction.label, prediction.probability, len(prediction.top)) == expected
    assert (prediction.file, prediction.result) == ("a.png", line)


def test_an_endpoint_and_a_registered_version_cannot_both_be_asked() -> None:
    with pytest.raises(ConfigError, match="url uses the model of that endpoint"):
        api.predict(Config(), ["a.png"], url="http://127.0.0.1:1", version=3)
    with pytest.raises(ConfigError, match="which is not an address"):
        api.predict(Config(), ["a.png"], url="localhost:1")

"""Commands that are printed can be pasted."""

from __future__ import annotations

import shlex
from typing import Any

from distml.config import ExportConfig
from distml.training import run
from distml.training.events import EpochFinished, RunFinished


def test_printed_commands_are_quoted() -> None:
    root = "/tmp/my data #1"
    asked = shlex.split(run.asked_by("own run", root), comments=True)
    assert asked[:3] == ["python", "-m", "distml.predict"]
    assert asked[4:] == ["--run", "own run", "--storage.root", root]
    uri = f"sqlite:///{root}/mlflow.db"
    assert shlex.split(run.viewed_by(uri), comments=True)[-1] == uri
    assert run.viewed_by("http://mlflow:5000") == "http://mlflow:5000"


def test_forms_of_a_model_are_listed_with_the_reason_of_one_that_is_not_there() -> None:
    formats: dict[str, dict[str, Any]] = {
        "keras": {"bytes": 14_224_263},
        "litert_int8": {"bytes": 3_900_000, "accuracy": 0.92, "accuracy_float": 0.93, "rows": 42},
        "onnx": {"left_out": "not converted to ONNX: the extra onnx is not installed"},
    }
    kept = "keras 14.2 MB, litert_int8 3.9 MB (validation rows correct: 0.9200, of litert 0.9300)"
    assert run.written(formats, ExportConfig()) == kept  # ONNX was not asked for by name
    reason = "; onnx is left out: not converted to ONNX: the extra onnx is not installed"
    assert run.written(formats, ExportConfig(formats=["keras", "onnx"])) == kept + reason
    formats["litert_int8"] = {"left_out": "it loses 0.1", "accuracy": 0.8, "accuracy_float": 0.9}
    assert run.written(formats, ExportConfig()) == "keras 14.2 MB; litert_int8 is left out: it loses 0.1"


def test_times_of_a_resumed_run_are_those_of_its_last_command() -> None:
    spent = {"train_s": 50.0, "data_wait_s": 10.0, "features_s": 88.0, "evaluate_s": 1.0, "checkpoint_s": 1.0}
    history = [EpochFinished(1, 10, spent, time=1000.0), EpochFinished(2, 20, spent, time=2000.0)]
    finished = RunFinished((), {}, history, [], 20.0, 30.0, time=2060.0)
    parts = run.times(finished, None, 250.0)
    assert (parts["features"], parts["training steps"], parts["validation"]) == (88.0, 40.0, 1.0)
    assert sum(parts.values()) == 250.0
    assert parts["start, tracking, figures"] == 60.0

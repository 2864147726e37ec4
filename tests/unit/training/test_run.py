"""Commands that are printed can be pasted."""

from __future__ import annotations

import shlex

from distml.training import run


def test_printed_commands_are_quoted() -> None:
    root = "/tmp/my data #1"
    asked = shlex.split(run.asked_by("own run", root), comments=True)
    assert asked[:3] == ["python", "-m", "distml.predict"]
    assert asked[4:] == ["--run", "own run", "--storage.root", root]
    uri = f"sqlite:///{root}/mlflow.db"
    assert shlex.split(run.viewed_by(uri), comments=True)[-1] == uri
    assert run.viewed_by("http://mlflow:5000") == "http://mlflow:5000"

"""What can be known of a configuration without data, cluster or storage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distml import cli

pytestmark = pytest.mark.usefixtures("plain_logging")


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.run("validate", list(words))
    return code, json.loads(capsys.readouterr().out)


def test_an_accepted_configuration_writes_nothing(capsys: pytest.CaptureFixture[str], workdir: Path) -> None:
    code, result = check(capsys, "--run.name", "mine", "--sweep.candidates", "[{model.name: cnn}]")
    assert (code, result["run"], result["candidates"]) == (0, "mine", 1)
    assert len(result["digest"]) == 16
    assert not list(workdir.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.name", "convnte"], "model.name = 'convnte'"),
        (["--model.options", "{dens: 3}"], "model.options.dens is unknown to convnet"),
        (["--sweep.candidates", "[{}, {model.name: cn}]"], "sweep.candidates.1: model.name = 'cn'"),
        (
            ["--sweep.candidates", "[{train: 3, train.epochs: 4}]"],
            "sweep.candidates.0: train.epochs lies below",
        ),
        (
            ["--sweep.candidates", "[{model.options: {filters: x}}]"],
            "sweep.candidates.0: model.options.filters",
        ),
        (
            ["--storage.root", "ftp://host/place"],
            "ftp://host/place is not a kind of storage that distml supports",
        ),
    ],
)
def test_a_configuration_that_cannot_run_anywhere_is_exit_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, result = check(capsys, *words)
    assert (code, result["status"]) == (2, "invalid")
    assert said in result["error"]

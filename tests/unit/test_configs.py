"""Every committed configuration is one that a run accepts, and says what it is for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from distml.config import Config, load
from distml.models import registry
from distml.selection import candidates

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs").rglob("*.y*ml"))
HEADER = re.compile(r"\A# Purpose:  \S.*\n(?:#  .*\n)*# Hardware: \S.*\n# Measured: \S.*\n# Date:     \S.*\n")


def test_there_are_at_most_ten_configurations() -> None:
    assert {"fashion_mnist", "sweep", "smoke", "accuracy", "gpu", "photos"} <= {path.stem for path in FILES}
    assert len(FILES) <= 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_is_accepted_with_its_model_and_candidates(path: Path) -> None:
    values = load.load_file(str(path))
    base = Config.resolve(values)
    registry.check(base.model.name, base.model.options)
    candidates.candidates(base)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_file_states_its_purpose(path: Path) -> None:
    assert HEADER.match(path.read_text())


def test_runs_of_different_configurations_do_not_share_a_folder() -> None:
    names = [Config.resolve(load.load_file(str(path))).run.name for path in FILES]
    assert len(set(names)) == len(names)


def test_the_default_model_is_that_of_the_readme() -> None:
    config = Config.resolve(load.load_file(str(ROOT / "configs" / "fashion_mnist.yaml")))
    assert (config.model.name, config.train.max_workers, config.train.epochs) == ("convnet", 2, 5)
    assert config.train.global_batch_size == 256
    assert not config.sweep.wanted

"""Candidates are what their overrides say, and mistakes in them are named before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distml.config import Config, load
from distml.data import ingestion
from distml.errors import ConfigError
from distml.selection.candidates import candidates

ROOT = Path(__file__).parents[3]


def config(*given: dict[str, Any], **values: Any) -> Config:
    base = {"run": {"name": "s"}, "sweep": {"candidates": list(given)}}
    return Config.resolve(load.merge(base, values))


def test_each_name_trains_the_model_it_names() -> None:
    """The system we follow trained the batch-norm model under the name of the dropout model."""
    values = load.load_file(str(ROOT / "configs" / "sweep.yaml"))
    actual = candidates(Config.resolve(values))
    assert {item.name: item.config.model.name for item in actual} == {
        "cnn": "cnn",
        "cnn_batchnorm": "cnn_batchnorm",
        "cnn_dropout": "cnn_dropout",
    }


def test_no_two_candidates_share_a_folder() -> None:
    names = [
        candidate.config.run.name
        for candidate in candidates(config({"model.name": "cnn"}, {"train.epochs": 9}))
    ]
    assert names == ["s-cnn", "s-epochs-9"]


def test_a_candidate_is_an_ordinary_run() -> None:
    (candidate,) = candidates(config({"train.epochs": 9, "name": "long"}))
    assert (candidate.name, candidate.overrides) == ("long", {"train.epochs": 9})
    assert candidate.config.train.epochs == 9
    assert not candidate.config.sweep.wanted
    assert candidate.config.model_dump(exclude={"run", "sweep", "train"}) == Config().model_dump(
        exclude={"run", "sweep", "train"}
    )


def test_another_model_does_not_inherit_the_options_of_the_first() -> None:
    given = config({"model.name": "cnn"}, {"train.epochs": 2}, model={"options": {"filters": [8]}})
    first, second = candidates(given)
    assert first.config.model.options == {}
    assert second.config.model.options == {"filters": [8]}


def test_nested_overrides_are_dotted_ones() -> None:
    (candidate,) = candidates(config({"model": {"name": "resnet", "options": {"blocks": 1}}}))
    assert candidate.overrides == {"model.name": "resnet", "model.options.blocks": 1}


def test_seeds_are_compared_on_the_same_rows() -> None:
    candidate, other = candidates(config({"run.seed": 1}, {"run.seed": 2}))
    assert (candidate.name, candidate.config.run.seed, other.config.run.seed) == ("seed-1", 1, 2)
    assert ingestion.folder(candidate.config) == ingestion.folder(other.config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"model.name": "cn"}], "sweep.candidates.0: model.name = 'cn' is not a known model"),
        ([{}, {"train.epohcs": 3}], "sweep.candidates.1: unknown key train.epohcs"),
        ([{"train.epochs": 0}], "sweep.candidates.0: train.epochs = 0"),
        ([{"data.split_seed": 1}], "sweep.candidates.0: a candidate cannot override data.split_seed"),
        ([{"data.val_fraction": 0.5}], "a candidate cannot override data.val_fraction"),
        (
            [{"epochs": 3}],
            "cannot override epochs: only model, train and run.seed may differ. Did you mean train",
        ),
        ([{"model.name": "cnn"}, {"model.name": "cnn"}], "sweep.candidates.1: the name cnn is taken"),
        ([{"name": "a b"}], "sweep.candidates.0: run.name"),
        ([{"name": "x" * 80}], "longer than 63 letters"),
    ],
)
def test_an_invalid_candidate_is_named_with_its_key(given: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        candidates(config(*given))
    assert said in str(caught.value)

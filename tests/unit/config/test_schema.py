"""The schema: frozen, closed, typed at the edge, and one digest for one meaning."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from distml.config import Config, DataConfig, TrainConfig
from distml.errors import ConfigError


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    result = [model]
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            result += sections(field.annotation)
    return result


@pytest.mark.parametrize("section", sections(Config), ids=lambda section: section.__name__)
def test_every_section_is_frozen_closed_and_explains_each_key(section: type[BaseModel]) -> None:
    assert section.model_config["frozen"]
    assert section.model_config["extra"] == "forbid"
    assert all(field.description for field in section.model_fields.values())


def test_a_key_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().train.__setattr__("epochs", 3)


def test_the_keys_of_the_configuration_are_stable() -> None:
    promised: dict[str, set[str]] = {
        "run": {"name", "seed"},
        "storage": {"root"},
        "data": {"name", "path", "format", "val_fraction", "memory_budget_bytes"},
        "model": {"name", "options"},
        "train": {
            *("workers", "device", "epochs", "global_batch_size", "optimizer", "learning_rate", "schedule"),
            *("checkpoint_every_epochs", "max_failures"),
        },
        "sweep": {"candidates", "search"},
        "tracking": {"uri", "experiment", "registered_model", "required"},
        "promote": {"metric", "min_gain"},
        "serve": {"host", "port", "replicas", "proxy", "max_body_bytes"},
    }
    given = Config().model_dump()
    assert {section: keys - given[section].keys() for section, keys in promised.items()} == {
        section: set() for section in promised
    }


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("run", {"seed": -1}),
        ("run", {"seed": 2**31}),
        ("run", {"name": "-x"}),
        ("run", {"name": "x" * 64}),
        ("run", {"name": "x\n"}),
        ("data", {"val_fraction": 0}),
        ("data", {"val_fraction": 0.9}),
        ("data", {"shards": 2**53 + 1}),
        ("data", {"shards": "9" * 33}),
        ("data", {"format": "module:"}),
        ("data", {"format": "csv"}),
        ("train", {"epochs": True}),
        ("train", {"epochs": 1.5}),
        ("train", {"learning_rate": float("nan")}),
        ("train", {"learning_rate": float("inf")}),
        ("train", {"workers": []}),
        ("train", {"workers": [1, 2, 3]}),
        ("train", {"workers": [3, 2]}),
        ("train", {"workers": 4, "global_batch_size": 3}),
        ("train", {"schedule_options": {"boundaries": [1.0]}}),
        ("train", {"schedule_options": {"boundaries": [7.0, 3.0]}}),
        ("promote", {"metric": "test_accuracy"}),
        ("serve", {"port": 0}),
    ],
)
def test_an_invalid_value_is_rejected(section: str, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Config.model_validate({section: values})


@pytest.mark.parametrize(("workers", "least", "most"), [(3, 3, 3), ([1, 4], 1, 4), ([2, 2], 2, 2)])
def test_workers_are_a_number_or_a_range(workers: Any, least: int, most: int) -> None:
    train = TrainConfig(workers=workers)
    assert (train.min_workers, train.max_workers) == (least, most)


def test_the_digest_depends_on_values_and_survives_json() -> None:
    config = Config()
    again = Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config
    assert again.digest() == config.digest() == Config.model_validate({"run": {"seed": 0}}).digest()
    assert Config.model_validate({"run": {"seed": 1}}).digest() != config.digest()
    assert len(config.digest()) == 16


@pytest.mark.parametrize(
    "given",
    [
        '"{}/my photos"',
        "'{}/my photos/'\n",
        " {}/my photos\t",
        "\u202a{}/my photos",
        "\u201c{}/my photos\u201d",
        "{}/my\\ photos",
        "$PLACE_OF_PHOTOS/my photos",
        "${{PLACE_OF_PHOTOS}}/my photos",
    ],
)
def test_what_is_copied_with_a_path_is_taken_away_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    (tmp_path / "my photos").mkdir()
    monkeypatch.setenv("PLACE_OF_PHOTOS", str(tmp_path))
    data = Config.resolve({"data": {"path": given.format(tmp_path)}}).data
    assert str(data.path).rstrip("/") == str(tmp_path / "my photos")
    assert re.search(r"data\.path: .* is read as .*my photos", caplog.text)
    assert DataConfig(path=data.path) == data


def test_a_path_that_is_there_is_taken_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "photos ").mkdir()
    assert DataConfig(path=f"{tmp_path}/photos ").path == f"{tmp_path}/photos "
    (tmp_path / "set.zip").touch()
    assert DataConfig(path=f"{tmp_path}/set.zip/").path == f"{tmp_path}/set.zip"
    assert DataConfig(path="s3://bucket/photos/").path == "s3://bucket/photos/"
    assert DataConfig(path="$NO_SUCH_VARIABLE/photos").path == "$NO_SUCH_VARIABLE/photos"
    assert len(caplog.records) == 1
    with pytest.raises(
        ConfigError, match=r'data\.path = "\\"\\"" is not accepted: it is empty; give a folder'
    ):
        Config.resolve({"data": {"path": '""'}})


@pytest.mark.parametrize("value", ["Auto", "automatic", "", True, 0, "-1"])
def test_a_batch_that_is_no_number_is_answered_with_auto(value: object) -> None:
    with pytest.raises(ConfigError, match="expected auto or a number of at least 1"):
        Config.load(**{"train.global_batch_size": value})

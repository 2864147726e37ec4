"""The last model set is restored in spite of damaged records, and never that of another endpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distml.config import Config
from distml.errors import StorageError
from distml.serving.models import ModelSet, Record, from_json
from distml.serving.replica import _orders
from distml.tracking.registry import ModelVersion


def config(root: Path, **sections: Any) -> Config:
    tracking = {"registered_model": "pets"} | sections.pop("tracking", {})
    return Config.resolve({"storage": {"root": str(root)}, "tracking": tracking, **sections})


def version(number: int, location: str = "/exports/1", name: str = "pets") -> ModelVersion:
    return ModelVersion(name, number, f"{number:032x}", f"{number:064x}", location)


def models(number: int, asked_at: float = 100.0, location: str = "/exports/1", **aliases: int) -> ModelSet:
    named = {"champion": number, **aliases}
    versions = {at: version(at, location) for at in named.values()}
    return ModelSet(named, versions, {number: {"acc": 0.5}}, asked_at=asked_at)


def test_a_stored_model_set_is_restored_as_unconfirmed(tmp_path: Path) -> None:
    Record(config(tmp_path)).keep(models(3), {})
    recalled = Record(config(tmp_path)).recall()
    assert recalled == replace(models(3), confirmed=False)
    assert recalled.asked_at == 100.0


def test_a_missing_record_and_an_unreachable_storage_restore_nothing(tmp_path: Path) -> None:
    assert Record(config(tmp_path / "new")).recall() == ModelSet()
    (tmp_path / "file").write_text("no folder")
    away = Record(config(tmp_path / "file"))
    assert away.recall() == ModelSet()
    with pytest.raises(StorageError):
        away.keep(models(3), {})


@pytest.mark.parametrize(
    "content", ["", '{"registry": null, "models": {', "[]", '{"registry": null}', "\xff"]
)
def test_an_incomplete_record_is_ignored(tmp_path: Path, content: str) -> None:
    record = Record(config(tmp_path))
    record.keep(models(3), {})
    (path,) = (tmp_path / "serving" / "pets").glob("*.json")
    path.write_text(content, encoding="latin-1")
    assert record.recall() == ModelSet()
    record.keep(models(4), {})
    assert record.recall().aliases == {"champion": 4}


def test_endpoints_of_other_models_registries_and_aliases_share_a_root(tmp_path: Path) -> None:
    plain = Record(config(tmp_path))
    canary = Record(config(tmp_path, serve={"canary": {"alias": "challenger", "percent": 5}}))
    other = Record(config(tmp_path, tracking={"registered_model": "shoes"}))
    elsewhere = Record(config(tmp_path, tracking={"uri": "http://127.0.0.1:1"}))
    plain.keep(models(3), {})
    canary.keep(models(4, asked_at=200.0, challenger=5), {})
    assert plain.recall().aliases == {"champion": 3}
    assert canary.recall().aliases == {"champion": 4, "challenger": 5}
    assert other.recall() == elsewhere.recall() == ModelSet()


def test_an_endpoint_that_follows_other_aliases_takes_the_newest_champion_alone(tmp_path: Path) -> None:
    Record(config(tmp_path)).keep(models(3), {})
    canary = config(tmp_path, serve={"canary": {"alias": "challenger", "percent": 5}})
    Record(canary).keep(models(4, asked_at=200.0, challenger=5), {})
    shadow = Record(config(tmp_path, serve={"shadow": "next"})).recall()
    assert (shadow.aliases, list(shadow.versions)) == ({"champion": 4}, [4])


def test_files_that_only_the_server_hands_out_are_copied_and_cleared(tmp_path: Path) -> None:
    record, folder = Record(config(tmp_path)), tmp_path / "export"
    folder.mkdir()
    (folder / "classes.json").write_text("[]")
    for number in (3, 4):
        served = models(number, location="mlflow-artifacts:/x")
        record.keep(served, {served.versions[number]: folder})
    copies = tmp_path / "serving" / "pets" / "models"
    assert [path.name for path in copies.iterdir()] == [f"{4:064x}"]
    into = tmp_path / "into"
    assert record.fetch(version(4, "mlflow-artifacts:/x"), into) == into
    assert (into / "classes.json").read_text() == "[]"
    assert record.fetch(version(3, "mlflow-artifacts:/x"), tmp_path / "none") is None
    assert record.fetch(version(4), tmp_path / "none") is None


def test_model_sets_are_compared_by_content() -> None:
    assert models(3, 100.0).digest == models(3, 200.0).digest
    assert models(3).digest != models(4).digest
    assert ModelSet().digest == ModelSet(refused=()).digest == ""
    other = replace(models(3), versions={3: replace(version(3), sha256="0" * 64)})
    assert other.digest != models(3).digest
    assert from_json(
        json.loads(json.dumps(vars(models(3)) | {"versions": {3: vars(version(3))}}))
    ) == replace(models(3), confirmed=False)


def test_confirmed_model_sets_replace_served_ones() -> None:
    held = models(3, 100.0)
    assert not _orders(ModelSet(), held, "pets")  # a watcher that has just started
    assert not _orders(held, held, "pets")
    assert _orders(models(2, 50.0), held, "pets")  # the registry says so now
    assert not _orders(replace(models(2, 50.0), confirmed=False), held, "pets")
    assert _orders(replace(models(4, 150.0), confirmed=False), held, "pets")
    assert _orders(replace(models(2, 50.0), confirmed=False), ModelSet(), "pets")
    assert not _orders(models(4, 150.0), held, "shoes")

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest

from distml.data.manifest import Manifest, Shard
from distml.data.source import Origin
from distml.errors import DataError

MANIFEST = Manifest(
    name="set",
    shape=(28, 28, 1),
    classes=("a", "b"),
    rows={"train": 100, "validation": 10, "test": 20},
    shards={"train": (Shard("data/x/1/train-00000.parquet", 100, 5000, "00"),), "validation": (), "test": ()},
    sources=(Origin("f", "http://one/f", "11"),),
    seed=0,
    val_fraction=0.1,
    schema_version=1,
    folder="data/x",
)


def test_a_manifest_survives_json_and_pickling() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert pickle.loads(pickle.dumps(MANIFEST)) == MANIFEST
    assert json.loads(MANIFEST.to_json())["digest"] == MANIFEST.digest


def test_the_digest_depends_on_the_data_and_not_on_their_path() -> None:
    moved = dataclasses.replace(
        MANIFEST,
        folder="elsewhere",
        sources=(Origin("f", "http://two/f", "11"),),
        shards={**MANIFEST.shards, "train": (Shard("other/train.parquet", 100, 5000, "00"),)},
    )
    assert moved.digest == MANIFEST.digest
    for change in (
        {"classes": ("a", "c")},
        {"seed": 1},
        {"sources": (Origin("f", "http://one/f", "12"),)},
        {"shards": {**MANIFEST.shards, "test": MANIFEST.shards["train"]}},
    ):
        assert dataclasses.replace(MANIFEST, **change).digest != MANIFEST.digest


def test_sizes_follow_from_rows_and_shape() -> None:
    assert (MANIFEST.num_classes, MANIFEST.nbytes("train")) == (2, 78_400)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", MANIFEST.to_json()[:-40], MANIFEST.to_json().replace('"train": 100', '"train": 101')],
)
def test_a_damaged_manifest_is_rejected_by_name(text: str) -> None:
    with pytest.raises(DataError, match="here is damaged"):
        Manifest.from_json(text, "here")


def test_manifests_that_differ_name_the_keys() -> None:
    other = dataclasses.replace(MANIFEST, val_fraction=0.2, seed=3)
    assert other.unlike(MANIFEST) == "data.val_fraction 0.2, not 0.1; data.split_seed 3, not 0"
    grown = dataclasses.replace(MANIFEST, rows={"train": 1_200, "validation": 10, "test": 20})
    assert MANIFEST.unlike(grown) == "130 rows, now 1,230"

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from distml.config import Config, DataConfig
from distml.data import shards
from distml.data.formats import fashion_mnist
from distml.errors import DataError
from distml.storage import Storage


def test_when_every_place_fails_each_is_named_with_its_reason(
    tmp_path: Path, storage_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fashion_mnist.INSTALLED.exists():
        pytest.skip(
            f"the system package is installed in {fashion_mnist.INSTALLED}, so not every place can fail"
        )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    config = Config(data=DataConfig(mirrors=["http://host.invalid/a", "ftp://b"]))
    with pytest.raises(DataError) as caught:
        shards.prepare(config, Storage(str(storage_root)))
    lines = caught.value.message.splitlines()
    places = [
        str(tmp_path / "cache"),
        str(storage_root),
        "http://host.invalid/a: ",
        "ftp://b: ",
        "/usr/",
        "package",
    ]
    for place in places:
        assert [line for line in lines if place in line], place
    assert "data.mirrors" in caught.value.remedy
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_built_in_data_are_what_they_should_be(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.INFO):
        found = fashion_mnist.open_builtin(Config(), Storage(str(tmp_path)))
    assert "the data come from" in caplog.text
    assert (found.shape, len(found.classes)) == ((28, 28, 1), 10)
    for split, count in (("train", 60_000), ("test", 10_000)):
        labels = found.splits[split].labels
        assert labels.dtype == np.int32
        assert (np.bincount(labels) == count // 10).all()
    images = found.splits["test"].gather(np.arange(2)).images
    assert images.dtype == np.uint8
    assert images.shape == (2, 28, 28, 1)
    assert [origin.name for origin in found.origins] == [f"{name}.gz" for name in fashion_mnist.FILES]

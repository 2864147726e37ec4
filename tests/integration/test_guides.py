"""The Python that the guides show does what the guides say."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from distml.config import Config
from distml.data import opening
from distml.models import registry
from distml.storage import Storage
from tests.documents import ROOT, blocks


@pytest.fixture
def _saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The titled blocks of all guides, in the current directory."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        for block in blocks(page):
            if block.title:
                (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


@pytest.mark.tensorflow
@pytest.mark.usefixtures("_saved")
@pytest.mark.parametrize(
    ("name", "options"), [("mynet:mynet", {"width": 16}), ("network:network", {"filters": 32})]
)
def test_the_builders_of_the_guides_build(name: str, options: dict[str, int]) -> None:
    model = registry.build(name, (28, 28, 1), 10, options, seed=0)
    assert model.output_shape == (None, 10)
    logits = model(np.full((2, 28, 28, 1), 255, np.float32))
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.usefixtures("_saved")
def test_the_loader_of_the_guide_loads(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", x=images, y=np.arange(40) % 10)
    config = Config.load(None, data={"name": "digits", "path": "digits.npz", "format": "digits:load"})
    opened = opening.open_source(config, Storage(str(tmp_path / "storage")))
    assert opened.classes == tuple(f"digit {number}" for number in range(10))
    assert opened.splits["train"].gather(np.arange(40)).images.shape == (40, 8, 8, 1)

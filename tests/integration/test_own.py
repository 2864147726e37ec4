"""A user's own data by the other roads: colour images in folders, streamed, in 16 bits, with every option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml.config import Config
from distml.data.opening import open_source
from distml.storage import Storage
from tests.runner import Training, recorded

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(400)]

CLASSES = ("Trouser", "Bag", "Ankle boot")
ROWS = 1200

FLAGS = [
    "--data.name=own",
    "--data.format=image_folder",
    "--data.val_fraction=0.1",
    "--data.memory_budget_bytes=1000000",  # 900 rows of 2,352 bytes are more than two workers may keep
    "--model.options={filters: [8, 16], dense: 16}",
    "--train.epochs=3",
    "--train.global_batch_size=60",
    "--train.optimizer=adamw",
    "--train.weight_decay=0.001",
    "--train.learning_rate=0.01",
    "--train.precision=mixed_bfloat16",
    "--train.ema=0.9",
    "--train.clip_norm=1.0",
    "--train.label_smoothing=0.1",
    "--train.augment.flip=true",
    "--train.augment.crop_padding=2",
    "--train.augment.erase=4",
    "--train.tensorboard=true",
    "--evaluate.metrics=[own_metrics:matched]",
]

METRICS = """
def matched(targets, outputs):
    print("a metric may print")
    return (outputs.argmax(1) == targets).mean()
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Training]:
    """Some real rows of three classes as colour PNG files in a folder each, and a run on them."""
    base = tmp_path_factory.mktemp("own")
    source = open_source(Config(), Storage(str(base / "storage")))
    rows = source.splits["train"]
    for name in CLASSES:
        folder = base / "images" / name
        folder.mkdir(parents=True)
        of_class = np.flatnonzero(rows.labels == source.classes.index(name))[: ROWS // len(CLASSES)]
        for at, image in zip(of_class, rows.gather(of_class).images, strict=True):
            Image.fromarray(np.repeat(image, 3, axis=2)).save(folder / f"{at}.png")
    (base / "own_metrics.py").write_text(METRICS)
    with Training(base / "storage", "own", f"--data.path={base / 'images'}", *FLAGS) as run:
        code, result = run.finish()
    assert code == 0, run.lines
    return base / "storage", result, run


def test_three_separable_classes_are_learnt(trained: tuple[Path, dict[str, Any], Training]) -> None:
    _, result, run = trained
    assert min(result["val_accuracy"], result["test_accuracy"]) > 0.85  # 45 steps; a third by chance
    assert run.said("shards streamed") == 1


def test_a_metric_of_the_users_is_on_record_for_both_splits(
    trained: tuple[Path, dict[str, Any], Training],
) -> None:
    root, result, _ = trained
    values = recorded(root, "own")[0].data.metrics
    for split in ("val", "test"):
        assert result[f"{split}_matched"] == pytest.approx(result[f"{split}_accuracy"])
        assert values[f"{split}_matched"] == result[f"{split}_matched"]
    report = Path(result["artifacts"]) / "report" / "report.html"
    assert "matched" in report.read_text().partition("<h2>Classes")[0]


def test_streamed_rows_are_accounted_for(trained: tuple[Path, dict[str, Any], Training]) -> None:
    root, result, _ = trained
    (manifest,) = root.rglob("own-*/manifest.json")
    assert json.loads(manifest.read_text())["encoding"] == "jpeg"  # decoded on the fly
    history = json.loads((Path(result["artifacts"]) / "report.json").read_text())["history"]
    assert [(epoch["rows_read"], epoch["rows_dropped"]) for epoch in history] == [(900, 0)] * 3


def test_tensorboard_shows_the_curves(trained: tuple[Path, dict[str, Any], Training]) -> None:
    root, _, _ = trained
    files = list((root / "runs" / "own").rglob("events.out.tfevents.*"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert b"val_accuracy" in content
    assert b"learning_rate" in content


def test_the_export_describes_the_own_data(trained: tuple[Path, dict[str, Any], Training]) -> None:
    described = json.loads((Path(trained[1]["artifacts"]) / "classes.json").read_text())
    assert described["classes"] == sorted(CLASSES)
    assert described["shape"] == [28, 28, 3]


def test_the_report_shows_and_names_the_files_of_mistakes(
    trained: tuple[Path, dict[str, Any], Training],
) -> None:
    artifacts = Path(trained[1]["artifacts"])
    worst = json.loads((artifacts / "report.json").read_text())["worst"]
    text = (artifacts / "report" / "report.html").read_text()
    assert len(re.findall(r'class="photo" alt="[^"]* predicted as ', text)) == len(worst)
    assert len(re.findall(rf"({'|'.join(CLASSES)})/\d+\.png", text)) == len(worst)

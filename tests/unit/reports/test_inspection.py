"""What `distml inspect` notices in drawn pictures with known faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml import cli
from distml.artifacts.predictor import Predictor
from distml.config import Config
from distml.data import opening, writer
from distml.reports import inspection
from distml.storage import Storage
from tests.unit.data.test_duplicates import encoded, scene


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of two classes, with one fault of each kind."""
    root = tmp_path_factory.mktemp("inspected") / "<b>faults"
    files: dict[str, bytes] = {}
    for split, label, first, count in (
        *(("train", "a", 0, 12), ("train", "b", 100, 12)),
        *(("test", "a", 50, 4), ("test", "b", 150, 4)),
    ):
        for seed in range(first, first + count):
            files[f"{split}/{label}/{seed}.png"] = encoded(scene(seed, 96, 72), "PNG")
    files["test/a/leak.jpg"] = encoded(scene(3, 96, 72), quality=60)
    files["train/b/copy.png"] = files["train/b/101.png"]
    files["train/a/other-label.jpg"] = encoded(scene(105, 96, 72), quality=70)
    files["train/a/blank.png"] = encoded(Image.new("RGB", (96, 72), (9, 80, 200)), "PNG")
    files["train/a/dark.png"] = encoded(scene(60, 96, 72).point(lambda value: value // 12), "PNG")
    files["train/a/long.png"] = encoded(scene(61, 300, 40), "PNG")
    soft = scene(62).resize((4, 3)).resize((96, 72), Image.Resampling.BICUBIC)
    files["train/a/soft.png"] = encoded(soft, "PNG")
    noise = np.random.default_rng(0).integers(0, 255, (72, 96, 3), np.uint8)
    files["train/a/sharp.png"] = encoded(Image.fromarray(noise), "PNG")
    files["train/b/broken.jpg"] = b"\xff\xd8\xff no picture"
    files["train/b/cut.png"] = files["train/b/102.png"][:900]
    files["train/b/notes.txt"] = b"notes"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize(("differs", "expected"), [(1.0, 0), (40.0, 1)])
def test_twins_contradict_each_other_where_their_numbers_are_far_apart(
    tmp_path: Path, differs: float, expected: int
) -> None:
    lines = ["file_name,weight"]
    for seed in range(20):
        (tmp_path / f"{seed}.png").write_bytes(encoded(scene(seed, 96, 72), "PNG"))
        lines.append(f"{seed}.png,{5 * seed}")
    (tmp_path / "twin.jpg").write_bytes(encoded(scene(3, 96, 72), quality=60))
    lines.append(f"twin.jpg,{5 * 3 + differs}")
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    data = {"path": str(tmp_path), "image_size": 32, "label_column": "weight"}
    config = {"task": {"kind": "regression"}, "data": data, "storage": {"root": str(tmp_path / "root")}}
    made, _ = inspection.look(Config.model_validate(config))
    assert made.near == [["3.png", "twin.jpg"]]
    assert len(made.contradictions) == expected
    assert [said for said in made.findings() if "different numbers" in said] == (
        ["1 group of the same picture with different numbers."] * expected
    )


def configured(path: Path, root: Path) -> Config:
    data = {"name": "faults", "path": str(path), "image_size": 32}
    return Config.model_validate({"data": data, "storage": {"root": str(root)}})


def test_every_fault_is_reported_and_the_leak_first(folder: Path, storage_root: Path) -> None:
    made, pictures = inspection.look(configured(folder, storage_root))
    assert made.leaks == {"test / train": [("test/a/leak.jpg", "train/a/3.png")]}
    assert made.findings()[0].startswith("1 picture of test also in train")
    assert made.exact == [["train/b/101.png", "train/b/copy.png"]]
    assert sorted(map(sorted, made.near)) == [
        ["test/a/leak.jpg", "train/a/3.png"],
        ["train/a/other-label.jpg", "train/b/105.png"],
    ]
    assert [sorted(group) for group in made.contradictions] == [
        ["train/a/other-label.jpg", "train/b/105.png"]
    ]
    assert sorted(name for name, _ in made.damaged) == ["train/b/broken.jpg", "train/b/cut.png"]
    assert made.blank == ["train/a/blank.png"]
    blurred = made.outliers.pop("blurred")
    assert "train/a/soft.png" in blurred
    assert "train/a/sharp.png" not in blurred
    assert made.outliers == {
        "long and narrow": ["train/a/long.png"],
        "very dark": ["train/a/dark.png"],
        "little contrast": ["train/a/dark.png"],
    }
    assert (made.formats, made.sizes["96x72"]) == ({"PNG": 39, "JPEG": 2}, 40)
    assert (made.rows, made.skipped) == ({"train": 32, "test": 9}, {"no picture": 1})
    assert made.classes["train"] == {"a": 18, "b": 14}
    assert pictures["test/a/leak.jpg"].startswith("data:image/")
    assert "no run fashion-mnist is finished" in made.judged_by


def test_the_command_writes_a_page_and_json(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run("inspect", [str(folder), "--data.image_size", "32", "--to", "out.html"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["page"], result["json"]) == ("out.html", "out.json")
    assert (result["damaged"], result["leaks"]) == (2, {"test / train": 1})
    content: dict[str, Any] = json.loads((workdir / "out.json").read_text())
    assert content["findings"] == result["findings"]
    page = (workdir / "out.html").read_text()
    assert page.index("also in train") < page.index("Balance")
    assert "train/b/cut.png" in page
    assert "<b>faults" not in page
    assert cli.run("inspect", [str(folder), "--to", "nowhere/out.html"]) == 1


def test_a_class_imbalance_is_reported() -> None:
    made = inspection.Inspection("x", (8, 8, 3), {"train": 70}, {"train": {"cat": 60, "dog": 10}})
    assert made.findings() == ["Unbalanced: 60 training pictures of cat, 10 of dog."]
    assert made.summary()["findings"] == made.findings()


def test_arrays_are_inspected_too_and_only_identical_ones_are_copies(storage_root: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 12, 12, 1), np.uint8)
    images[7] = images[3]
    images[9] = images[3] // 2 * 2  # nearly the same
    labels = np.arange(40) % 2
    path = storage_root / "arrays.npz"
    np.savez(path, x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    made, pictures = inspection.look(configured(path, storage_root))
    assert made.exact == [["train row 3", "train row 7"]]
    assert (made.near, made.sizes) == ([], {})
    assert set(pictures) >= {"train row 3", "train row 7"}


class _Oracle(Predictor):
    """Predicts the class of the folder a picture came from, as its brightness tells it."""

    def __init__(self) -> None:
        pass

    def predict(self, images: Any) -> Any:
        bright = images.mean((1, 2, 3)) > 127
        return np.where(bright[:, None], [[0.02, 0.98]], [[0.97, 0.03]]).astype(np.float32)


def test_labels_that_a_model_contradicts_on_held_out_rows_are_suspect(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for label, level in (("dim", 60), ("lit", 200)):
        for number in range(40):
            values = random.integers(level - 40, level + 40, (24, 24, 3)).astype(np.uint8)
            if (label, number) == ("dim", 5):
                values = (255 - values).astype(np.uint8)
            split = "test" if number < 20 else "train"
            (tmp_path / "data" / split / label).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(tmp_path / "data" / split / label / f"{number}.png")
    config = configured(tmp_path / "data", tmp_path / "storage")
    source = opening.open_source(config, Storage(config.storage.root))
    suspects = inspection.suspects(source, writer.divide(config, source), _Oracle())
    assert [(suspect.name, suspect.split, suspect.given, suspect.predicted) for suspect in suspects] == [
        ("test/dim/5.png", "test", "dim", "lit")
    ]
    assert suspects[0].probability == pytest.approx(0.02)

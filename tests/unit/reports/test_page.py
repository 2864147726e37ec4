"""The report shows the figures of its run, whatever that was like."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml import cli
from distml.config import Config
from distml.data import image, ingestion, shards
from distml.reports import page
from distml.storage import Storage
from distml.tracking import runs
from tests import zoo
from tests.reports import history, rendered

pytestmark = pytest.mark.usefixtures("plain_logging")


class _Checked(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)


@pytest.mark.parametrize("classes", [2, 3, 40, 41, 300])
@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_report_of_every_run_is_a_complete_document(classes: int, epochs: int) -> None:
    text = rendered([f"class {label}" for label in range(classes)], epochs)
    checked = _Checked()
    checked.feed(text)
    assert not checked.open
    assert checked.seen.count("circle") == 4 * epochs + 1  # and one bin of confidence
    assert text.count('class="grid frame"') == (classes if classes <= 40 else 0)
    assert ("Confusion matrix" in text) == (classes <= 40)
    assert checked.seen.count("tr") == epochs + 1 + classes + 1 + 2 + (4 if classes > 5 else 3)  # and metrics


@pytest.mark.parametrize(("frozen", "epochs", "told"), [(0, 4, 0), (2, 4, 1), (4, 4, 0), (9, 4, 0)])
def test_the_report_explains_curves_that_jump_where_the_backbone_is_trained(
    frozen: int, epochs: int, told: int
) -> None:
    settings = {
        "model": {"name": "mobilenet_v2", "freeze_epochs": frozen},
        "train": {"epochs": max(frozen, 5)},
    }
    text = rendered(epochs=epochs, settings=settings)
    assert text.count(f"The backbone is trained from epoch {frozen + 1} on") == told
    assert "wrong predictions" not in text  # no number is predicted exactly


def test_the_report_shows_the_figures_of_the_run() -> None:
    text = rendered()
    assert "1,234" in text
    assert "5,678" in text
    assert "started 2 times" in text
    assert "4,000 train, 600 validation, 600 test" in text
    assert "training steps" in text
    assert "waiting for data" not in text  # a thousandth of a second
    accuracy = re.search(r"<b>([\d.]+) %</b><span class=\"muted\">test accuracy", text)
    assert accuracy
    assert float(accuracy[1]) > 80
    assert re.search(r"val_fraction: 0\.0833", text)


def test_names_are_escaped() -> None:
    text = rendered()
    assert "<b>bird</b>" not in text
    assert "&lt;b&gt;bird&lt;/b&gt;" in text


def test_the_report_is_self_contained() -> None:
    text = rendered()
    assert "://" not in text.replace("sqlite:///", "")
    assert text.count("data:image/png;base64,") == 7
    assert "<script" not in text


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 6, 3), (5, 5, 4)])
def test_pictures_of_any_depth_are_shown(shape: tuple[int, int, int]) -> None:
    assert rendered(shape=shape).count("data:image/png;base64,") == 7


def test_mistakes_are_shown_as_the_photographs_were_and_named(tmp_path: Path, storage_root: Path) -> None:
    for number in range(24):
        folder = tmp_path / "pictures" / ("cat" if number % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        zoo.drawn(400 + number, 100).save(folder / f"{number:02}.png")
    data = {"path": str(tmp_path / "pictures"), "image_size": 16, "fit": "stretch"}
    config, storage = Config.model_validate({"data": data}), Storage(str(storage_root))
    manifest = ingestion.prepare(config, storage)
    names = shards.names(storage, manifest, "test")
    policy, images = manifest.pictures, shards.read(storage, manifest, "test")[0]
    for name, row in zip(names, images, strict=True):
        expected = image.read((tmp_path / "pictures" / name).read_bytes(), policy)
        np.testing.assert_array_equal(expected, row)
    (tmp_path / "pictures" / names[1]).unlink()
    (tmp_path / "pictures" / names[0]).rename(tmp_path / "elsewhere.png")
    (tmp_path / "pictures" / names[0]).symlink_to(tmp_path / "elsewhere.png")
    first, gone = page.photos(config, storage, names[:2])
    assert (first.name, gone) == (names[0], page.Photo(names[1], ""))
    shown = Image.open(io.BytesIO(base64.b64decode(first.url.partition(",")[2])))
    assert shown.width == page.PHOTO
    assert shown.height == pytest.approx(page.PHOTO / 4, rel=0.1)
    worst = [[0, "cat", "dog", 2.0], [1, "dog", "cat", 1.0]]
    text = rendered(shape=(16, 16, 3), worst=worst, photos=[first, gone])
    assert (text.count('class="photo"'), text.count(first.url), names[0] in text) == (1, 1, True)
    assert text.count("data:image/png;base64,") == 1
    assert shards.names(storage, manifest, "train") == []


def test_a_run_without_mistakes_shows_none() -> None:
    assert "Worst mistakes" not in rendered(worst=[])


def test_what_ingest_left_out_is_listed_with_its_reason() -> None:
    left_out = (("cat/<broken>.jpg", "is not a readable picture."), ("dog/2.png", "is cut off."))
    about = {"left_out": left_out, "skipped": {"hidden": 3}, "warnings": ("test repeats train.",)}
    text = rendered(about=about)
    assert text.index("test repeats train.") < text.index("2 pictures left out")
    assert "<td>cat/&lt;broken&gt;.jpg</td><td>is not a readable picture.</td>" in text
    assert "3 (hidden)" in text
    assert "left out" not in rendered()


def test_an_epoch_without_a_number_is_left_out_of_the_curve() -> None:
    broken = history(3)
    broken[1]["val_loss"] = math.nan
    chart = page.curve(broken, "loss", "Loss")
    assert [len(line.points) for line in chart.lines] == [3, 2]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.71, 0.93, [0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        (5.0, 5.0, [5.0, 6.0]),
        (0.0, 0.0, [0.0, 0.2]),
    ],
)
def test_axes_have_round_numbers_around_the_values(low: float, high: float, expected: list[float]) -> None:
    assert page.ticks(low, high) == pytest.approx(expected)


def test_points_lie_where_their_values_are() -> None:
    chart = page.curve(history(3), "accuracy", "Accuracy", share=True)
    training = chart.lines[0].points
    assert [point.text for point in training] == ["epoch 1: 50.00%", "epoch 2: 75.00%", "epoch 3: 83.33%"]
    top, bottom = chart.up[-1], chart.up[0]
    share = {point.text: point.y for point in chart.up}
    assert training[0].y == pytest.approx(share["50%"])
    assert top.y < training[2].y < training[1].y < bottom.y
    assert training[0].x < training[1].x < training[2].x <= page.WIDTH


def test_precision_by_recall_has_the_area_of_its_curve() -> None:
    perfect, worse = page.tradeoffs({"cat": [(1.0, 0.5), (1.0, 1.0)], "dog": [(0.5, 1.0)], "none": []})
    assert (perfect.name, perfect.area, perfect.path) == ("cat", 1.0, "M0.0 0.0 L50.0 0.0 L100.0 0.0")
    assert (worse.name, worse.area) == ("dog", 0.5)


def test_predictions_lie_on_the_dashed_line_where_they_are_exact() -> None:
    ideal, dots = page.scatter("angle", [(10.0, 10.0), (40.0, 70.0)]).lines
    (left, bottom), (right, top) = ((point.x, point.y) for point in ideal.points)
    exact, above = dots.points
    assert (exact.x - left) / (right - left) == pytest.approx((exact.y - bottom) / (top - bottom))
    assert (above.x - left) / (right - left) < (above.y - bottom) / (top - bottom)
    assert (dots.joined, ideal.dotted, above.text) == (False, False, "true 40, predicted 70")


def test_the_table_of_classes_counts_rows_and_columns() -> None:
    cat, dog, bird = page.classes([[8, 2, 0], [1, 9, 0], [3, 2, 0]], ["cat", "dog", "bird"])
    assert (cat.rows, cat.recall) == (10, 0.8)
    assert cat.precision == pytest.approx(8 / 12)
    assert cat.mistake == "dog (20.0%)"
    assert cat.f1 == pytest.approx(2 * 0.8 * (8 / 12) / (0.8 + 8 / 12))
    assert dog.mistake == "cat (10.0%)"
    assert (bird.precision, bird.f1, bird.mistake) == (None, 0.0, "cat (60.0%)")
    assert page.classes([[5, 0], [0, 5]], ["a", "b"])[0].mistake == ""


def ask(capsys: pytest.CaptureFixture[str], root: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.run("report", [*words, "--storage.root", str(root)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_missing_report_and_an_unfinished_run_are_error_messages(
    storage_root: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(storage_root))
    run, _ = runs.begin(Config.resolve({"run": {"name": "mine"}}), storage)
    code, answer = ask(capsys, storage_root, "mine")
    assert (code, answer["error"]) == (2, "run mine is not finished. Start it again to finish it.")
    run.status, run.result = "finished", {"artifacts": storage.uri(*run.paths.folder, "export-1a")}
    run.save(storage)
    code, answer = ask(capsys, storage_root, "mine")
    assert code == 2
    assert answer["error"].startswith("run mine has no report.")
    storage.write_bytes(b"<!doctype html>", *run.paths.export, page.FOLDER, page.FILE)
    code, answer = ask(capsys, storage_root, "mine")
    assert (code, answer["report"]) == (0, storage.uri(*run.paths.export, page.FOLDER, page.FILE))
    code, answer = ask(capsys, storage_root, "mine", "--to", "here.html")
    assert (code, answer["report"]) == (0, str(workdir / "here.html"))
    assert (workdir / "here.html").read_text() == "<!doctype html>"
    code, answer = ask(capsys, storage_root, "mine", "--to", "none/here.html")
    assert (code, answer["kind"]) == (1, "StorageError")
    code, answer = ask(capsys, storage_root, "mien")
    assert (code, "Did you mean mine?" in answer["error"]) == (2, True)


def test_mistakes_are_shown_with_what_counted_and_with_the_nearest_training_pictures() -> None:
    plain = rendered()
    assert "Grad-CAM" not in plain
    heat = [[[0.0, 0.5], [0.5, 1.0]]] * 7
    shown = rendered(heat=heat, nearest=[[0, 2]] * 7)
    assert shown.count('alt="What counted for') == 7
    assert shown.count('alt="Training picture of') == 14


def test_heat_is_red_where_it_is_one_and_leaves_gray_where_it_is_zero() -> None:
    image = np.full((16, 16, 3), (40, 80, 120), np.uint8)
    mixed = page.heated(image, [[0.0, 0.0], [0.0, 1.0]])
    assert mixed[0, 0].tolist() == [80, 80, 80]
    red, green, blue = mixed[-1, -1].tolist()
    assert red > 150
    assert green < 80 > blue

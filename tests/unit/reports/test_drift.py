"""Drift as a figure: the training rows' own histograms, the index, and which files can be compared."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distml import cli
from distml.data import schema, shards, statistics
from distml.data.plausible import Usual
from distml.errors import DataError
from distml.reports import drift
from distml.serving import request_log as rows
from distml.storage import Storage
from distml.tasks import Targets, Task
from distml.tasks.classification import Classification
from distml.tasks.multilabel import Multilabel
from distml.tasks.regression import Regression

CLASSES = ("cat", "dog")
PETS = Classification(CLASSES)
LABELS = ("red", "blue")
ANGLE = Regression(("angle",)).fitted(np.arange(10.0)[:, None])
POINT = Regression(("x", "y")).fitted(np.arange(20.0).reshape(-1, 2))


@dataclass(frozen=True)
class Served:
    """A model as the log sees it."""

    name: str
    version: int
    task: Task
    predicted: tuple[int, ...] | None = None
    usual: Usual | None = None


def manifest(rows: int = 4000) -> shards.Manifest:
    return shards.Manifest(
        "pets", (8, 8, 1), CLASSES, {"train": rows}, {"train": ()}, (), 0, 0.1, 1, "data/pets"
    )


def pictures(count: int, seed: int, brighter: int = 0) -> schema.Images:
    return np.random.default_rng(seed).integers(brighter, 128 + brighter, (count, 8, 8, 1), np.uint8)


def ground(count: int = 4000) -> statistics.Reference:
    labels = np.arange(count, dtype=np.int32) % 2
    return statistics.Reference.of(manifest(count), statistics.measure(pictures(count, 0)), labels)


def log(
    storage: Storage, images: schema.Images, labels: list[int], version: int = 1, **changes: object
) -> str:
    """Write images of given answers to the log."""
    served = Served("pets", version, PETS)
    probabilities = np.eye(2, dtype=np.float32)[labels]
    entry = rows.Entry(time.time(), "a", served, images, probabilities, 0.1)
    return rows.write(storage, [dataclasses.replace(entry, **changes)], False)  # type: ignore[arg-type]


def test_the_training_rows_fill_tenths() -> None:
    actual = ground()
    assert actual.labels == (2000, 2000)
    for name, counts in zip(actual.names, actual.counts, strict=True):
        assert sum(counts) == 4000
        assert counts[0] == counts[-1] == 0  # beyond the training rows
        if name != "foreground share":  # of 64 pixels: many ties
            assert all(350 <= count <= 450 for count in counts[1:-1])


def test_a_statistic_that_never_changes_has_one_bin_between_two() -> None:
    measured = np.full((100, 13), 0.5, np.float32)
    actual = statistics.Reference.of(manifest(100), measured, np.zeros(100, np.int32))
    assert set(actual.counts) == {(0, 100, 0)}
    assert statistics.count(np.array([0.4, 0.5, 0.6], np.float32), actual.edges[0]).tolist() == [1, 1, 1]


def test_the_stability_index_matches_its_formula() -> None:
    actual = ground()
    measured = np.zeros((1000, 13), np.float32)
    logged = drift.Logged(measured, np.array([0] * 750 + [1] * 250, np.int32), (1,), 0.0, 0)
    mix = next(shift for shift in drift.compare(PETS, actual, logged) if shift.name in PETS.mixes)
    expected = 0.25 * np.log(0.75 / 0.5) - 0.25 * np.log(0.25 / 0.5)
    assert mix.psi == pytest.approx(expected, rel=0.01)
    assert mix.served == (0.75, 0.25)
    assert mix.trained == pytest.approx((0.5, 0.5))
    assert mix.chance == pytest.approx(1 / 1000 + 1 / 4000)


def test_the_chance_level_matches_resampling() -> None:
    actual = ground()
    indices, chances = [], []
    for seed in range(1, 21):
        logged = drift.Logged(
            statistics.measure(pictures(300, seed)), np.arange(300, dtype=np.int32) % 2, (1,), 0.0, 0
        )
        shifts = [shift for shift in drift.compare(PETS, actual, logged) if shift.name not in PETS.mixes]
        indices += [shift.psi for shift in shifts]
        chances += [shift.chance for shift in shifts]
    assert np.mean(indices) == pytest.approx(np.mean(chances), rel=0.35)
    assert max(indices) < 0.2


def test_brighter_images_change_mean_intensity_most(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log(storage, pictures(500, 1, brighter=60), [0, 1] * 250)
    actual = ground()
    logged = drift.read(storage, "pets", actual, None)
    shifts = {shift.name: shift.psi for shift in drift.compare(PETS, actual, logged)}
    assert next(iter(shifts)).startswith(("mean", "intensity", "foreground"))
    assert shifts["mean intensity"] > 1
    assert shifts["contrast"] < 0.2
    assert shifts["class mix"] < 0.01


def test_only_comparable_log_files_are_read(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    log(storage, pictures(3, 1), [0, 1, 1], version=4)
    log(storage, pictures(2, 2), [0, 1], version=5)
    log(storage, np.zeros((2, 8, 8, 3), np.uint8), [0, 1])
    log(storage, pictures(2, 2), [0, 1], served=Served("pets", 6, Classification(("fish", "bird"))))
    log(storage, pictures(2, 2), [0, 1], served=Served("cars", 1, PETS))
    log(storage, pictures(9, 2), [0] * 9, time_s=time.time() - 3 * 86_400)
    everything = drift.read(storage, "pets", ground(), None)
    assert (len(everything.labels), everything.versions, everything.skipped) == (14, (1, 4, 5), 2)
    lately = drift.read(storage, "pets", ground(), 2.0)
    assert (len(lately.labels), lately.versions) == (5, (4, 5))
    assert drift.read(storage, "nobody", ground(), None).labels.size == 0


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more"])
def test_a_damaged_file_is_named(storage_root: Path, content: bytes) -> None:
    storage = Storage(str(storage_root))
    path = log(storage, pictures(3, 1), [0, 1, 1])
    storage.write_bytes(content, path)
    with pytest.raises(DataError, match=rf"{path.rpartition('/')[2]} is not a file of the request log"):
        drift.read(storage, "pets", ground(), None)


def test_every_number_of_classes_can_be_drawn(tmp_path: Path) -> None:
    for classes in (2, 40):
        shift = drift.Shift("class mix", 0.3, 0.01, (1 / classes,) * classes, (1 / classes,) * classes)
        other = drift.Shift("contrast", 0.0, 0.01, (0.0, 1.0, 0.0), (0.1, 0.8, 0.1))
        task = Classification(tuple(f"class {label}" for label in range(classes)))
        seen = drift.Logged(np.zeros((500, 1), np.float32), np.zeros(500, np.int32), (1,), 0.0, 0)
        figure = drift.draw([shift, other], task, 0.2, seen, 60_000)
        figure.savefig(tmp_path / f"{classes}.png")
        assert (tmp_path / f"{classes}.png").stat().st_size > 10_000


def shifts_of(task: Task, trained: np.ndarray, served: np.ndarray) -> list[drift.Shift]:
    """Compare targets of the training rows with predictions, beside statistics that stay."""
    described = dataclasses.replace(manifest(len(trained)), classes=task.names, target=task.spec())
    measured = np.random.default_rng(0).random((len(trained), 13), np.float32)
    actual = statistics.Reference.of(described, measured, trained)
    logged = drift.Logged(measured[: len(served)], served, (1,), 0.0, 0)
    return [shift for shift in drift.compare(task, actual, logged) if shift.name in task.mixes]


def test_one_number_that_drifts_is_not_averaged_with_the_others() -> None:
    random = np.random.default_rng(1)
    trained = random.normal(size=(4000, 5))
    task = Regression(("length", "width", "red", "contrast", "x")).fitted(trained)
    served = random.normal(size=(1000, 5)) + [0, 0, 0.6, 0, 0]
    moved, *others = shifts_of(task, trained, served)
    assert (moved.name, len(others)) == ("predicted red", 4)
    assert moved.psi > 0.3
    assert max(shift.psi for shift in others) < 0.05
    assert len(moved.served) == 10
    assert sum(moved.served) == pytest.approx(1)
    statistic = drift.Shift("red", 0.0, 0.01, (0.0, 1.0), (0.1, 0.9))
    seen = drift.Logged(np.zeros((1000, 1), np.float32), served, (1,), 0.0, 0)
    figure = drift.draw([moved, statistic, *others], task, 0.2, seen, 4000)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles[1:] == ["Predicted red: true in training, predicted in serving", "Largest shift: red"]
    assert figure.axes[1].get_xticklabels()[9].get_text() == "red 10"


SHRUNK = 0.3
"""How far from the mean a model predicts that explains little."""


@pytest.mark.parametrize("kind", ["regression", "classification", "multilabel"])
def test_a_version_that_is_often_wrong_is_compared_with_its_own_predictions(
    kind: str, storage_root: Path
) -> None:
    storage, random = Storage(str(storage_root)), np.random.default_rng(5)
    trained: Targets
    held_out: Targets
    served: Targets
    if kind == "regression":
        trained = random.normal(size=(2000, 1)).astype(np.float32)
        task: Task = Regression(("angle",)).fitted(trained)
        held_out, served = SHRUNK * trained[:300], SHRUNK * random.normal(size=(600, 1)).astype(np.float32)
    elif kind == "classification":
        trained, task = random.integers(0, 2, 2000).astype(np.int32), PETS
        held_out, served = (np.zeros(count, np.int32) for count in (300, 600))  # one class is never predicted
        served[::100] = 1
    else:
        trained, task = random.integers(0, 2, (2000, 2)).astype(np.float32), Multilabel(LABELS)
        held_out, served = (np.ones((count, 2), np.float32) for count in (300, 600))
    data = dataclasses.replace(manifest(2000), classes=task.names, target=task.spec())
    actual = statistics.Reference.of(data, statistics.measure(pictures(2000, 0)), trained)

    def shifts(values: Targets, version: int, **own: Any) -> tuple[float, drift.Logged]:
        outputs = np.asarray(np.eye(2)[values] if kind == "classification" else values, np.float32)
        log(storage, pictures(600, 1), [0], served=Served("pets", version, task, **own), outputs=outputs)
        logged = drift.read(storage, "pets", actual, None)
        compared = drift.compare(task, actual, logged)
        return max(shift.psi - shift.chance for shift in compared if shift.name in task.mixes), logged

    expected = tuple(task.mix(held_out).tolist())
    shift, logged = shifts(served, 2, predicted=expected)
    assert (shift < 0.1, logged.silent) == (True, ())
    shift, logged = shifts(1 - served if kind != "regression" else served + 2, 2, predicted=expected)
    assert shift > 0.5  # half of the rows have moved
    assert logged.own[2].rows == 1200
    storage.delete("requests")
    shift, logged = shifts(served, 1)
    assert (shift > 0.2, logged.silent) == (
        True,
        (1,),
    )  # an earlier export: by the true values, and it says so


def test_versions_count_by_the_bins_of_their_own_training(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    low = Regression(("x",)).fitted(np.arange(1000, dtype=np.float32)[:, None])
    high = low.fitted(np.arange(5000, 6000, dtype=np.float32)[:, None])
    values = np.arange(600, dtype=np.float32)[:, None]
    for version, task, moved in ((1, low, values), (2, high, values + 5000)):
        own = Served("pets", version, task, tuple(task.mix(moved).tolist()))
        log(storage, pictures(600, 1), [0], served=own, outputs=moved)
    data = dataclasses.replace(manifest(2000), classes=high.names, target=high.spec())
    trained = np.arange(5000, 7000, dtype=np.float32)[:, None]
    actual = statistics.Reference.of(data, statistics.measure(pictures(2000, 0)), trained)
    compared = drift.compare(high, actual, drift.read(storage, "pets", actual, None))
    assert next(shift.psi for shift in compared if shift.name == "predicted x") < 0.01


def test_few_rows_are_no_drift_by_chance_alone() -> None:
    random, names = np.random.default_rng(3), tuple(f"x{at}" for at in range(40))
    for count, many in ((79, 5), (4000, 0)):
        trained = random.normal(size=(count, len(names)))
        task = Regression(names).fitted(trained)
        shifts = shifts_of(task, trained, random.normal(size=(count, len(names))))
        assert sum(shift.psi > 0.2 for shift in shifts) >= many  # what an index alone would call drift
        assert sum(shift.drifted(0.2) for shift in shifts) <= 1
        assert all(shift.drifted(0.2) for shift in shifts_of(task, trained, trained + 3))


def test_rows_with_more_labels_are_drift_though_the_labels_keep_their_shares() -> None:
    trained = np.eye(4, dtype=np.float32)[np.arange(400) % 4]
    served = np.ones((100, 4), np.float32)
    task = Multilabel(("red", "green", "blue", "white"))
    many, mix = shifts_of(task, trained, served)
    assert (many.name, mix.name) == ("labels per image", "label mix")
    assert (many.psi > 1, mix.psi < 0.01) == (True, True)
    assert many.served == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert task.mix_names[task.mixes["labels per image"]][-1] == "4 or more labels"


def test_labels_that_come_later_give_the_live_accuracy_of_each_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path / "storage"))
    flags = ["--storage.root", storage.root, "--tracking.registered_model", "pets"]
    served = Served("pets", 3, Classification(("cat", "dog")))
    for request, version, chosen in (("a", 3, [0, 1]), ("b", 3, [1]), ("b", 3, [1]), ("c", 4, [0])):
        outputs = np.eye(2, dtype=np.float32)[chosen] * 0.8 + 0.1
        entry = rows.Entry(
            time.time(),
            request,
            dataclasses.replace(served, version=version),
            pictures(len(chosen), 1),
            outputs,
            0.1,
        )
        rows.write(storage, [entry], False)
    file = tmp_path / "labels.csv"
    file.write_text("id,position,label\na,0,cat\na,1,cat\nb,0,1\nc,0,cat\nb,0,dog\nunknown,0,cat\n")
    assert cli.run("feedback", [str(file), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["labels"], result["joined"]) == (5, 4)
    assert (result["unknown"], result["repeated"], result["without_label"]) == (["unknown"], 1, 0)
    third, fourth = result["live_accuracy"]["3"], result["live_accuracy"]["4"]
    assert (third["rows"], third["accuracy"]) == (3, 0.6667)
    assert third["interval"] == [0.2077, 0.9385]  # Wilson's, of 2 in 3
    assert fourth == {"rows": 1, "accuracy": 1.0, "interval": [0.2065, 1.0]}
    assert drift.live(storage, "pets") == {"live_accuracy": result["live_accuracy"]}
    assert drift.live(storage, "others") == {}
    file.write_text("id,label\na,bird\n")
    assert cli.run("feedback", [str(file), *flags]) == 1
    assert "the label 'bird', which is not a class: cat, dog" in capsys.readouterr().err
    file.write_text("request,label\na,cat\n")
    assert cli.run("feedback", [str(file), *flags]) == 1
    assert "no column 'id'; its columns are request, label" in capsys.readouterr().err


def logged_request(root: Path) -> list[str]:
    """Flags of a storage with one logged request of two images, `a`."""
    storage = Storage(str(root))
    served = Served("pets", 3, Classification(("cat", "dog")))
    entry = rows.Entry(time.time(), "a", served, pictures(2, 1), np.eye(2, dtype=np.float32), 0.1)
    rows.write(storage, [entry], False)
    return ["--storage.root", storage.root, "--tracking.registered_model", "pets"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "\ufeffID; Label ;position\na;cat;0\n a ; dog;1\nb;;0\n"),
        ("LABELS.CSV", "position,label,id\n0,cat,a\n1.0,dog,a\n,,c\n"),
        ("labels.tsv", "id\tlabel\tposition\na\tcat\t\na\tdog\t1\nb\t \t1\n"),
    ],
)
def test_labels_are_read_from_tables_as_programs_write_them(
    name: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = logged_request(tmp_path / "storage")
    (tmp_path / name).write_text(text, "utf-8")
    assert cli.run("feedback", [str(tmp_path / name), *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["labels"], result["joined"], result["without_label"]) == (2, 2, 1)
    assert result["live_accuracy"]["3"]["accuracy"] == 1.0
    assert "1 lines have no label yet" in printed.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,label,position\na,cat,first\n", "has the position 'first' in row 1"),
        ("id,label,position\na,cat,0.5\n", "has the position '0.5' in row 1"),
        ("id,label,position\na,cat,-1\n", "has the position '-1' in row 1"),
        ("id,label\na,cat\n,dog\n", "has the label 'dog' without an id, in row 2"),
        ("id,label,ID\na,cat,b\n", "has the column 'id' twice"),
    ],
)
def test_a_line_that_names_no_image_is_an_error(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = logged_request(tmp_path / "storage")
    (tmp_path / "labels.csv").write_text(text, "utf-8")
    assert cli.run("feedback", [str(tmp_path / "labels.csv"), *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "outputs", "told", "metric", "reached", "wrong", "said"),
    [
        (Multilabel(LABELS), [[0.9, 0.1], [0.8, 0.7]], ["red", "red"], "macro_f1", 0.5, "red|pink", "pink"),
        (Multilabel(LABELS), [[0.1, 0.9], [0.2, 0.1]], ["blue", "none"], "macro_f1", 1.0, "gray", "gray"),
        (ANGLE, [[10.0], [20.0]], ["12", "21.0"], "mae", 1.5, "steep", "as angle"),
        (POINT, [[1.0, 2.0], [1.0, 2.0]], ["1|4", "1|2"], "mae", 0.087, "1", "and not 2"),
    ],
)
def test_labels_and_numbers_that_come_later_are_joined(
    task: Task,
    outputs: list[list[float]],
    told: list[str],
    metric: str,
    reached: float,
    wrong: str,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = Storage(str(tmp_path / "storage"))
    served = Served("pets", 2, task)
    entry = rows.Entry(time.time(), "a", served, pictures(2, 1), np.asarray(outputs, np.float32), 0.1)
    rows.write(storage, [entry], False)
    flags = ["--storage.root", storage.root, "--tracking.registered_model", "pets", "--task.kind", task.kind]
    file = tmp_path / "labels.csv"
    file.write_text("id,position,label\n" + "".join(f"a,{at},{text}\n" for at, text in enumerate(told)))
    assert cli.run("feedback", [str(file), *flags]) == 0
    line = json.loads(capsys.readouterr().out)
    live = line[f"live_{metric}"]["2"]
    assert (line["joined"], line["metric"], live["rows"], live[metric]) == (2, metric, 2, reached)
    assert live["interval"][0] <= reached <= live["interval"][1]
    assert drift.live(storage, "pets") == {f"live_{metric}": line[f"live_{metric}"]}
    file.write_text(f"id,position,label\na,0,{wrong}\n")
    assert cli.run("feedback", [str(file), *flags]) == 1
    assert said in capsys.readouterr().err
    file.write_text(f"id,position,label\na,0,{told[0]}\na,1,\n")
    assert cli.run("feedback", [str(file), *flags]) == 0
    left_out = capsys.readouterr().err
    assert "1 lines have no label yet and are left out" in left_out
    assert ("write none for an image without any" in left_out) is task.flags

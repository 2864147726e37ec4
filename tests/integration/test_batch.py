"""Batch prediction on real Ray: the offline model's answers, unreadable rows, and going on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from distml import predict
from distml.config import Config
from distml.data import schema
from distml.storage import Storage
from distml.tracking import runs
from tests.registered import FORMATS
from tests.runner import REPOSITORY

pytestmark = [
    pytest.mark.ray,
    pytest.mark.tensorflow,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("plain_logging"),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
CLASSES, SHAPE = ["cat", "dog", "bird"], (12, 12, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the finished run `mine`."""
    from distml.artifacts.export import export
    from distml.models import registry

    root = tmp_path_factory.mktemp("batch") / "storage"
    storage = Storage(str(root))
    run, _ = runs.begin(Config.resolve({"run": {"name": "mine"}}), storage)
    folder = root.joinpath(*run.paths.folder, "export-1a")
    folder.mkdir(parents=True)
    network = registry.build("convnet", SHAPE, len(CLASSES), {"filters": [4], "dense": 8}, 0)
    export(
        network,
        folder,
        {"name": "pets", "classes": CLASSES, "shape": list(SHAPE)},
        np.zeros((2, *SHAPE), np.uint8),
        FORMATS,
    )
    run.status, run.result = "finished", {"model": "pets", "version": 3, "artifacts": str(folder)}
    run.save(storage)
    return root


def offline(root: Path, images: schema.Images) -> Any:
    """What the model says without Ray."""
    from distml.artifacts.predictor import Predictor

    (folder,) = root.glob("runs/mine/*/export-1a")
    return Predictor.load(folder).predict(images)


def flags(root: Path, data: Path, output: Path) -> list[str]:
    return ["--data", str(data), "--output", str(output), "--run", "mine", "--storage.root", str(root)]


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any], str]:
    code = predict.main(list(words))
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def written(output: Path) -> Any:
    return pa.concat_tables([pq.read_table(path) for path in sorted(output.glob("part-*.parquet"))])


def test_predictions_of_tables_equal_the_offline_model(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (9000, *SHAPE), np.uint8)
    truth = np.arange(9000, dtype=np.int32) % 3
    table = schema.to_table(images, truth, np.arange(9000, dtype=np.int64))
    data, output = tmp_path / "data", tmp_path / "output"
    data.mkdir()
    pq.write_table(table, data / "pets.parquet", row_group_size=1000)
    code, result, err = ask(capsys, *flags(root, data, output))
    assert (code, result["rows"], result["failed"], result["parts"]) == (0, 9000, 0, 2)
    assert (result["model"], result["version"], result["done_before"]) == ("pets", 3, 0)
    assert "part 2/2  9,000 rows" in err
    actual = written(output)
    expected = offline(root, images)
    np.testing.assert_allclose(np.array(actual["probabilities"].to_pylist()), expected, atol=1e-4)
    assert actual["label"].to_pylist() == np.array(actual["probabilities"].to_pylist()).argmax(1).tolist()
    assert actual["class"].to_pylist()[:50] == [CLASSES[label] for label in actual["label"].to_pylist()[:50]]
    assert actual["input_label"].to_pylist() == truth.tolist()
    assert actual["row"].to_pylist() == list(range(9000))
    assert set(actual["model_version"].to_pylist()) == {3}
    manifest = json.loads((output / "manifest.json").read_text())
    assert (manifest["rows"], manifest["failed"], len(manifest["parts"])) == (9000, 0, 2)
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    again = ask(capsys, *flags(root, data, output))[1]
    assert (again["rows"], again["done_before"]) == (9000, 2)


def test_pictures_that_cannot_be_read_are_counted_and_listed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    (data / "some").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (5, 12, 12), np.uint8)
    for at, pixels in enumerate(noise):
        Image.fromarray(pixels).save(data / "some" / f"{at}.png")
    (data / "some" / "2.png").write_bytes(b"no picture")
    code, result, err = ask(capsys, *flags(root, data, output))
    assert (code, result["status"], result["rows"], result["failed"]) == (0, "finished", 5, 1)
    assert "1 unreadable" in err
    (listed,) = json.loads((output / "manifest.json").read_text())["unreadable"]
    assert listed["source"] == "some/2.png"
    assert "is not a readable picture" in listed["error"]
    actual = written(output)
    assert actual["label"].null_count == actual["probabilities"].null_count == 1
    expected = offline(root, noise[[0, 1, 3, 4], ..., None]).argmax(1).tolist()
    assert [label for label in actual["label"].to_pylist() if label is not None] == expected


@pytest.mark.fault
def test_a_killed_prediction_resumes_with_the_remaining_parts(root: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    data.mkdir()
    random = np.random.default_rng(0)
    for at in range(12):
        images = random.integers(0, 256, (4096, *SHAPE), np.uint8)
        table = schema.to_table(images, np.zeros(4096, np.int32), np.arange(4096, dtype=np.int64))
        pq.write_table(table, data / f"{at:02d}.parquet")
    command = [sys.executable, "-m", "distml.predict", *flags(root, data, output)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(list(output.glob("part-*.parquet"))) < 2:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    everything = [*psutil.Process(killed.pid).children(recursive=True), psutil.Process(killed.pid)]
    for process in everything:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(everything, 20)
    killed.wait(20)
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*.parquet")}
    assert 2 <= len(done) < 12
    assert not (output / "manifest.json").exists()
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout.splitlines()[-1])
    assert (result["rows"], result["parts"], result["done_before"]) == (12 * 4096, 12, len(done))
    assert {name: (output / name).stat().st_mtime_ns for name in done} == done
    assert len(written(output)) == 12 * 4096


def test_an_output_of_another_model_or_other_data_is_rejected(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    Image.new("L", (12, 12)).save(tmp_path / "data" / "a.png")
    output = tmp_path / "output"
    output.mkdir()
    (output / "part-00000-0123456789abcdef.parquet").write_bytes(b"")
    code, result, _ = ask(capsys, *flags(root, tmp_path / "data", output))
    assert (code, result["kind"]) == (2, "ConfigError")
    assert "holds predictions of another model or for other data" in result["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give picture files, or a data set by --data."),
        (["a.png", "--data", "x", "--output", "y"], "give picture files, or a data set by --data."),
        (["--data", "x"], "--data and --output belong together."),
        (["a.png", "--output", "y"], "--data and --output belong together."),
    ],
)
def test_mistakes_on_the_command_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    code, result, _ = ask(capsys, *words)
    assert code == 2
    assert said in result["error"]

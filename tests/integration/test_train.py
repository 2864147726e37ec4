"""The main job end to end on real Fashion-MNIST: two workers, MLflow, registry, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runner import REPOSITORY, assert_logged_once

pytestmark = [pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(500)]

FLAGS = ["--config", str(REPOSITORY / "configs" / "smoke.yaml"), "--train.epochs=2", "--run.name=first"]


def command(root: Path, *flags: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "distml.train", *FLAGS, f"--storage.root={root}", *flags],
        cwd=root.parent,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "DISTML_NO_DASHBOARD": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=480,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str, str]:
    root = tmp_path_factory.mktemp("train") / "storage"
    code, out, err = command(root)
    assert code == 0, err
    return root, json.loads(out.splitlines()[-1]), out, err


def split(root: Path, name: str) -> tuple[Any, Any]:
    from distml.config import Config
    from distml.data import ingestion, shards
    from distml.storage import Storage

    config = Config.load(FLAGS[1], storage={"root": str(root)})
    storage = Storage(config.storage.root)
    manifest = ingestion.find(config, storage)
    assert manifest is not None
    return shards.read(storage, manifest, name)


def test_the_result_line_is_all_of_standard_output(trained: tuple[Path, dict[str, Any], str, str]) -> None:
    _, result, out, err = trained
    assert len(out.splitlines()) == 1
    assert result["status"] == "finished"
    assert result["test_accuracy"] > 0.7  # two epochs of a tiny network
    assert {
        "run_id",
        "model",
        "version",
        "val_accuracy",
        "steady_samples_per_s",
        "wall_s",
        "artifacts",
    } <= set(result)
    assert "Traceback" not in err
    assert "epoch 2/2" in err
    assert "dashboard http://127.0.0.1:" in err


def test_mlflow_has_everything_once(trained: tuple[Path, dict[str, Any], str, str]) -> None:
    from mlflow import MlflowClient

    from tests.runner import recorded

    root, result, _, _ = trained
    run, steps = recorded(root, "first")
    assert run.info.run_id == result["run_id"]
    assert run.info.status == "FINISHED"
    assert_logged_once(steps, epochs=2, per_epoch=result["steps"] // 2)
    assert run.data.params["train.global_batch_size"] == "512"
    assert run.data.metrics["test_accuracy"] == pytest.approx(result["test_accuracy"])
    assert {"time/train_s", "time/checkpoint_s", "time/data_wait_s", "val_loss"} <= set(run.data.metrics)
    assert run.data.tags["version.ray"] == "2.60.0"
    assert run.data.tags["mlflow.source.name"] == "distml train"
    assert run.data.metrics["system/system_memory_usage_megabytes"] > 100
    assert 0 < run.data.metrics["system/cpu_utilization_percentage"] <= 100
    assert run.inputs.dataset_inputs[0].dataset.name == "fashion_mnist"
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    assert {file.path for file in client.list_artifacts(result["run_id"], "figures")} == {
        f"figures/{name}.png"
        for name in (
            *("learning_curves", "confusion_matrix", "worst_mistakes"),
            *("calibration", "precision_recall"),
        )
    }
    assert [file.path for file in client.list_artifacts(result["run_id"], "report")] == ["report/report.html"]
    version = client.get_model_version(result["model"], str(result["version"]))
    assert result["version"] == 1
    assert version.run_id == result["run_id"]
    assert len(version.tags["sha256"]) == 64
    assert f"val accuracy {result['val_accuracy']:.4f}" in version.description
    assert f"test accuracy {result['test_accuracy']:.4f}" in version.description


# MLflow says it of every model with a tensor signature, Keras of a reloaded model within a model.
@pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType:UserWarning")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
def test_the_registered_model_reproduces_the_measured_accuracy(
    trained: tuple[Path, dict[str, Any], str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras
    import mlflow
    import tensorflow as tf

    root, result, _, _ = trained
    images, labels = split(root, "test")
    mlflow.set_tracking_uri(f"sqlite:///{root}/mlflow.db")
    by_mlflow = mlflow.pyfunc.load_model(f"models:/{result['model']}/{result['version']}").predict(images)
    folder = Path(result["artifacts"])
    by_keras = keras.saving.load_model(folder / "data" / "model.keras").predict(images, verbose=0)
    signatures = tf.saved_model.load(folder / "saved_model").signatures
    by_signature = signatures["serving_default"](image=tf.constant(images))["probabilities"].numpy()
    encoded = [tf.io.encode_png(image).numpy() for image in images[:20]]
    by_bytes = signatures["image_bytes"](image_bytes=tf.constant(encoded))["probabilities"].numpy()
    assert np.mean(by_mlflow.argmax(1) == labels) == pytest.approx(result["test_accuracy"], abs=1e-6)
    np.testing.assert_allclose(by_keras, by_mlflow, atol=1e-6)
    np.testing.assert_allclose(by_signature, by_mlflow, atol=1e-5)
    np.testing.assert_allclose(by_bytes, by_mlflow[:20], atol=1e-5)
    np.testing.assert_allclose(by_keras.sum(1), 1, atol=1e-5)
    from distml.artifacts import layout
    from distml.data.plausible import odd

    usual = layout.verify(folder).usual
    assert usual is not None
    assert odd(images, usual).get("inverted", np.zeros(1)).mean() < 0.05


def test_every_row_is_accounted_for(trained: tuple[Path, dict[str, Any], str, str]) -> None:
    from mlflow import MlflowClient

    root, result, _, _ = trained
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    read, dropped = (
        [int(metric.value) for metric in client.get_metric_history(result["run_id"], f"rows_{what}")]
        for what in ("read", "dropped")
    )
    assert read == [55_000 // 512 * 512] * 2
    assert [sum(both) for both in zip(read, dropped, strict=True)] == [55_000] * 2


def test_the_record_and_a_checkpoint_of_each_epoch_stay(
    trained: tuple[Path, dict[str, Any], str, str],
) -> None:
    root, _, _, _ = trained
    run_folder = root / "runs" / "first" / "001"
    record = json.loads((run_folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert (
        sorted(path.name for path in run_folder.glob("attempt-001/epoch-*/manifest.json"))
        == ["manifest.json"] * 2
    )


def test_the_report_opens_by_run_name_and_by_mlflow_run(
    trained: tuple[Path, dict[str, Any], str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from distml import cli

    root, result, _, err = trained
    flags = ["--storage.root", str(root), "--tracking.registered_model", result["model"]]
    for name in ("first", result["run_id"]):
        assert cli.run("report", [name, *flags]) == 0
        out, _ = capsys.readouterr()
        path = Path(json.loads(out.splitlines()[-1])["report"])
        text = path.read_text()
        assert f"{100 * result['test_accuracy']:.2f} %" in text
        assert result["run_id"] in text
    assert f"report     {result['artifacts']}/report/report.html" in err


def test_a_finished_run_is_rejected_in_seconds(trained: tuple[Path, dict[str, Any], str, str]) -> None:
    root, result, _, _ = trained
    code, out, err = command(root)
    assert code == 2
    assert "is finished already" in err
    assert f"version {result['version']}" in err
    assert json.loads(out.splitlines()[-1])["status"] == "invalid"

"""Initial weights: what may be asked for, the copy under the storage root, and what is rejected."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from distml import cli
from distml.artifacts.layout import MODEL, write_digests
from distml.config import Config, load
from distml.errors import ConfigError, DistmlError, ModelError
from distml.storage import Storage
from distml.tracking import runs
from distml.training import pretrained

LITE = "efficientnet_lite0"


@pytest.fixture
def storage(storage_root: Path) -> Storage:
    return Storage(str(storage_root))


def config(storage: Storage, weights: str | None, name: str = LITE) -> Config:
    flat = {"model.name": name, "model.weights": weights, "storage.root": storage.root}
    return load.validate(Config, load.nest(flat))


def npz(path: Path, value: float = 1.0) -> Path:
    np.savez(path, allow_pickle=False, **{"stem/conv/kernel": np.full(3, value)})
    return path


def refused(storage: Storage, weights: str, name: str = LITE) -> DistmlError:
    with pytest.raises((ConfigError, ModelError)) as caught:
        pretrained.resolve(config(storage, weights, name), storage)
    return caught.value


@pytest.mark.parametrize("none", [None, "none"])
def test_without_weights_nothing_is_written(storage: Storage, none: str | None) -> None:
    assert pretrained.resolve(config(storage, none), storage) is None
    assert storage.names() == []


def test_a_file_is_copied_under_its_digest_and_read_back(storage: Storage, tmp_path: Path) -> None:
    path = npz(tmp_path / "mine.npz")
    weights = pretrained.resolve(config(storage, str(path)), storage)
    assert weights is not None
    assert weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (weights.file, weights.bytes) == ("mine.npz", path.stat().st_size)
    with pretrained.opened(storage, weights) as copy:
        assert copy.read_bytes() == path.read_bytes()
        assert copy.name == "mine.npz"


def test_a_relative_path_and_a_uri_are_read(
    storage: Storage, workdir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    npz(workdir / "mine.npz")
    for wanted in ("mine.npz", f"file://{workdir}/mine.npz"):
        assert pretrained.resolve(config(storage, wanted), storage)
    assert not caplog.messages


def test_a_changed_file_is_noticed(storage: Storage, tmp_path: Path) -> None:
    path = npz(tmp_path / "mine.npz")
    before = pretrained.resolve(config(storage, str(path)), storage)
    npz(path, 2.0)
    after = pretrained.resolve(config(storage, str(path)), storage)
    assert before is not None
    assert after is not None
    assert before.sha256 != after.sha256
    assert pretrained.cached(storage, str(path)) == after


def test_a_missing_file_falls_back_to_its_copy_with_a_warning(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = npz(tmp_path / "mine.npz")
    before = pretrained.resolve(config(storage, str(path)), storage)
    path.unlink()
    assert pretrained.resolve(config(storage, str(path)), storage) == before
    assert "The copy of mine.npz under the storage root is used." in caplog.text


def test_a_copy_that_was_changed_is_rejected(storage: Storage, tmp_path: Path) -> None:
    weights = pretrained.resolve(config(storage, str(npz(tmp_path / "mine.npz"))), storage)
    assert weights is not None
    storage.write_bytes(b"PK other", *weights.parts)
    with (
        pytest.raises(ModelError, match=r"mine.npz does not have the digest in its name"),
        pretrained.opened(storage, weights),
    ):
        pass


def test_an_unknown_kind_of_weights_gets_the_list_of_kinds(storage: Storage) -> None:
    for wanted in ("noisy-student", "folder/.npz", "https://x.example/w"):
        error = refused(storage, wanted)
        assert error.exit_code == 2
        assert f"model.weights = '{wanted}' is not usable" in error.message
        assert "imagenet, a .keras, .weights.h5 or .npz file" in error.remedy


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        ("model.pth", "PyTorch"),
        ("folder/model.safetensors", "PyTorch"),
        ("model.tflite", "no file that Keras or numpy.savez wrote"),
        ("MODEL.KERAS", "the ending is in lower case"),
        ("ImageNet", "Did you mean imagenet?"),
        ("None", "Did you mean none?"),
        ("saved", "It is a folder"),
    ],
)
def test_what_is_no_file_of_weights_gets_its_own_remedy(
    storage: Storage, workdir: Path, wanted: str, remedy: str
) -> None:
    (workdir / "saved").mkdir()
    error = refused(storage, wanted)
    assert error.exit_code == 2
    assert remedy in error.remedy


@pytest.mark.parametrize("file", ["a.npz", "a.keras", "a.h5", "a.weights.h5"])
@pytest.mark.parametrize("place", ["{}", "file://{}"])
def test_a_file_that_is_cut_short_is_rejected_before_it_is_copied(
    storage: Storage, tmp_path: Path, file: str, place: str
) -> None:
    path = tmp_path / file
    if file.endswith("h5"):
        with h5py.File(path, "w") as written:
            written["a"] = np.zeros(5000)
    else:
        with path.open("wb") as stream:
            np.savez(stream, allow_pickle=False, a=np.zeros(5000))
    path.write_bytes(path.read_bytes()[:-100])
    error = refused(storage, place.format(path))
    assert (error.exit_code, error.remedy) == (2, "Copy or download it again.")
    assert "is cut short or damaged" in error.message
    assert storage.names() == []


def test_an_archive_without_a_model_is_rejected(storage: Storage, tmp_path: Path) -> None:
    npz(tmp_path / "a.npz").rename(tmp_path / "a.keras")
    assert "without a model of Keras" in refused(storage, str(tmp_path / "a.keras")).message


def test_an_absent_file_is_named(storage: Storage, tmp_path: Path) -> None:
    error = refused(storage, f"{tmp_path}/nowhere.npz")
    assert error.exit_code == 2
    assert f"model.weights = '{tmp_path}/nowhere.npz'" in error.message
    assert "No such file" in error.message


@pytest.mark.parametrize("suffix", [".npz", ".keras", ".h5", ".weights.h5"])
def test_a_file_of_another_kind_than_its_name_is_rejected(
    storage: Storage, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"wrong{suffix}"
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(ConfigError, match=rf"wrong{suffix}' is not a .* file"):
        pretrained.check(config(storage, str(path)))
    assert refused(storage, str(path)).exit_code == 2


def test_imagenet_weights_need_a_backbone(storage: Storage) -> None:
    assert "convnet has no ImageNet weights" in refused(storage, "imagenet", "convnet").message
    error = refused(storage, "imagenet")
    assert "Keras publishes none for efficientnet_lite0" in error.message
    assert "distml fetch-weights efficientnet_lite0 --file FILE" in error.remedy


def test_fetched_weights_are_used_for_imagenet(
    storage: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = npz(tmp_path / "lite0.npz")
    words = [LITE, "--file", str(path), "--storage.root", storage.root]
    assert cli.run("fetch-weights", words) == 0
    put = json.loads(capsys.readouterr().out)
    assert put["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Path(put["place"]).read_bytes() == path.read_bytes()
    path.unlink()
    weights = pretrained.resolve(config(storage, "imagenet"), storage)
    assert weights is not None
    assert weights.sha256 == put["sha256"]
    assert cli.run("fetch-weights", [LITE, "--storage.root", storage.root]) == 0
    assert json.loads(capsys.readouterr().out)["place"] == put["place"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["efficientnet_lite9"], "Did you mean efficientnet_lite"),
        (["convnet"], "convnet has no ImageNet weights"),
        ([LITE, "--file", "absent.npz"], "absent.npz"),
    ],
)
def test_weights_that_cannot_be_fetched_are_an_error_message(
    storage: Storage, workdir: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert cli.run("fetch-weights", [*words, "--storage.root", storage.root]) == 2
    assert said in json.loads(capsys.readouterr().out)["error"]


class Downloader:
    """Stands in for Keras's downloader, which needs the world outside. Final.

    Args:
        content: Put below KERAS_HOME, None where the download fails.
    """

    def __init__(self, content: bytes | None) -> None:
        self.content, self.asked = content, 0

    def __call__(self, command: list[str], env: dict[str, str], **_: Any) -> Any:
        self.asked += 1
        assert command == [sys.executable, "-c", pretrained._DOWNLOAD, "MobileNetV2"]
        if self.content is None:
            return subprocess.CompletedProcess(
                command, 1, "", "Traceback\nException: URL fetch failure on http://x"
            )
        folder = Path(env["KERAS_HOME"]) / "models"
        folder.mkdir()
        (folder / "mobilenet_v2_no_top.h5").write_bytes(self.content)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_keras_own_file_is_fetched_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Downloader(b"\x89HDF\r\n\x1a\n weights")
    monkeypatch.setattr(subprocess, "run", download)
    wanted = config(storage, "imagenet", "mobilenet_v2")
    first, second = (pretrained.resolve(wanted, storage) for _ in range(2))
    assert first == second
    assert first is not None
    assert (first.source, first.file) == ("imagenet:mobilenet_v2", "mobilenet_v2_no_top.h5")
    assert download.asked == 1


def test_a_failed_download_is_an_error_with_a_remedy(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", Downloader(None))
    error = refused(storage, "imagenet", "mobilenet_v2")
    assert error.exit_code == 1
    assert "cannot be fetched: Exception: URL fetch failure" in error.message
    assert "distml fetch-weights mobilenet_v2" in error.remedy


@pytest.fixture
def trained(storage: Storage) -> Path:
    """The export of a finished run named `first`."""
    run, _ = runs.begin(
        load.validate(Config, {"run": {"name": "first"}, "storage": {"root": storage.root}}), storage
    )
    folder = Path(storage.uri(*run.paths.folder, "export-1"))
    (folder / "data").mkdir(parents=True)
    content = io.BytesIO()
    np.savez(content, a=np.zeros(2))
    (folder / MODEL).write_bytes(content.getvalue())
    digest = write_digests(folder)
    run.status, run.result = "finished", {"artifacts": str(folder), "sha256": digest}
    run.save(storage)
    return folder


def test_an_earlier_run_gives_its_verified_model(storage: Storage, trained: Path) -> None:
    weights = pretrained.resolve(config(storage, "runs:/first"), storage)
    assert weights is not None
    assert (weights.file, weights.sha256) == (
        "model.keras",
        hashlib.sha256((trained / MODEL).read_bytes()).hexdigest(),
    )


@pytest.mark.parametrize("file", [MODEL, "digests.json"])
def test_an_export_that_was_changed_gives_nothing(storage: Storage, trained: Path, file: str) -> None:
    text = (trained / file).read_bytes()
    (trained / file).write_bytes(text + b" ")
    error = refused(storage, "runs:/first")
    assert (error.exit_code, "is not what was registered" in error.message) == (1, True)
    (trained / file).unlink()
    assert "cannot be read" in refused(storage, "runs:/first").message


def test_an_unknown_run_or_a_version_without_a_number_is_named(storage: Storage, trained: Path) -> None:
    assert "no run frist" in refused(storage, "runs:/frist").message
    for wanted in ("models:/pets", "models:/pets/latest", "models:/pets@"):
        error = refused(storage, wanted)
        assert f"model.weights = '{wanted}'" in error.message
        assert "models:/NAME/VERSION" in error.remedy
    assert "has no such version" in refused(storage, "models:/pets@champion").message


def test_validate_rejects_wrong_weights(storage: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run("validate", ["--model.weights", "imagenet"]) == 2
    assert "convnet has no ImageNet weights" in json.loads(capsys.readouterr().out)["error"]

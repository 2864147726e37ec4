"""What predict does before and after TensorFlow: reading files, choosing a model, saying the answer."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml import predict
from distml.artifacts.layout import Model
from distml.batch import files, parts
from distml.config import Config, load
from distml.data.image import Policy
from distml.data.listing import Folder
from distml.errors import ConfigError, DataError, TrackingError
from distml.storage import Storage
from distml.tracking import runs
from distml.tracking.locate import choose

GRADIENT = np.arange(28 * 28, dtype=np.uint32).reshape(28, 28)
GRAY = Image.fromarray((GRADIENT % 256).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (300, 200)])
@pytest.mark.parametrize("shape", [(28, 28, 1), (12, 10, 3)])
def test_a_file_of_any_size_and_mode_fits(
    tmp_path: Path, mode: str, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    image = GRAY.resize(size)
    image = Image.fromarray(np.asarray(image, np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path)
    actual = files.read_picture(str(path), Policy(shape))[0]
    assert actual.dtype == np.uint8
    assert actual.shape == shape


def test_a_file_of_the_right_kind_is_read_as_it_is(tmp_path: Path) -> None:
    GRAY.save(tmp_path / "image.png")
    actual = files.read_picture(str(tmp_path / "image.png"), Policy((28, 28, 1)))[0]
    np.testing.assert_array_equal(actual[..., 0], np.asarray(GRAY))


def test_a_large_photograph_is_accepted(tmp_path: Path) -> None:
    Image.new("L", (4000, 3000), 77).save(tmp_path / "photo.png")
    assert set(files.read_picture(str(tmp_path / "photo.png"), Policy((28, 28, 1)))[0].flat) == {77}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.png", None, "none.png cannot be read: No such file or directory."),
        ("text.png", b"hello", "text.png is not a readable picture."),
        ("empty.png", b"", "empty.png is not a readable picture: it is empty."),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cut.png is not a readable picture"),
    ],
)
def test_a_file_that_is_no_picture_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        files.read_picture(str(tmp_path / name), Policy((28, 28, 1)))
    assert said in str(caught.value)
    assert "0x" not in str(caught.value)


def test_a_folder_and_a_huge_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        files.read_picture(str(tmp_path), Policy((28, 28, 1)))
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(files.MAX_FILE_BYTES + 1)
    with pytest.raises(DataError, match=r"huge\.png is larger than 67,108,864 bytes"):
        files.read_picture(str(tmp_path / "huge.png"), Policy((28, 28, 1)))


@pytest.fixture
def config(storage_root: Path) -> Config:
    """A storage with a finished, registered run called done and one called begun."""
    storage = Storage(str(storage_root))
    for name in ("done", "begun"):
        flat = {"run.name": name, "storage.root": str(storage_root)}
        runs.begin(Config.resolve(load.nest(flat)), storage)
    done, _ = runs.begin(Config.resolve(load.nest({**flat, "run.name": "done"})), storage)
    done.status = "finished"
    where = storage.uri(*done.paths.folder, "export-1a")
    done.result = {"model": "shoes", "version": 4, "artifacts": where}
    done.save(storage)
    return Config.resolve(load.nest({"storage.root": str(storage_root)}))


def test_a_run_name_selects_its_export_without_the_registry(config: Config, storage_root: Path) -> None:
    chosen = choose(config, "done", None, storage_root)
    assert (chosen.model, chosen.version, chosen.sha256) == ("shoes", 4, None)
    assert chosen.folder == storage_root / "runs/done/001/export-1a"


@pytest.mark.parametrize(
    ("run", "version", "said"),
    [
        ("begun", None, "run begun is not finished. Start it again to finish it."),
        ("dome", None, "there is no run dome in .* Did you mean done?"),
        ("zzz", None, "Known are begun, done."),
        ("done", 3, "--run and --version both name a model."),
    ],
)
def test_an_unknown_or_unfinished_run_is_rejected(
    config: Config, storage_root: Path, run: str, version: int | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?").replace("(", r"\(")):
        choose(config, run, version, storage_root)


@pytest.mark.parametrize("version", [None, 3])
def test_without_a_registry_there_is_no_model_and_none_is_made(
    config: Config, storage_root: Path, version: int | None
) -> None:
    with pytest.raises(TrackingError, match=r"does not have (a version of|version 3 of) fashion") as caught:
        choose(config, None, version, storage_root)
    assert "Train a model first" in caught.value.remedy
    assert not (storage_root / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give picture files, or a data set by --data."),
        (["a.png", "--url", "localhost:8000"], "--url is localhost:8000, which is not an address."),
        (["a.png", "--url", "http://x", "--version", "3"], "--url uses the model of that endpoint."),
        (["--data", "x", "--output", "y", "--url", "http://x"], "--url uses the model of that endpoint."),
        (["a.png", "--top", "0"], "argument --top: invalid number from 1 value: '0'"),
        (["a.png", "--version", "x"], "argument --version: invalid number from 1 value: 'x'"),
    ],
)
def test_an_unusable_command_line_exits_2(
    capsys: pytest.CaptureFixture[str], plain_logging: None, words: list[str], said: str
) -> None:
    assert predict.main(words) == 2
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["status"] == "invalid"
    assert said in result["error"]


def test_folders_patterns_and_standard_input_expand_to_image_files(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a/2.JPG", "a/b/1.png", "a/no_ending", "a/.hidden/3.png", "a/._2.jpg", "a/notes.txt")
    for name in (*names, "odd [1].png"):
        (workdir / name).parent.mkdir(parents=True, exist_ok=True)
        GRAY.save(workdir / name, "PNG")
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffa/2.JPG\r\n\nmissing.png\n"))
    assert files.expanded(["a"]) == (["a/2.JPG", "a/b/1.png", "a/no_ending"], {"hidden": 2, "no picture": 1})
    assert files.expanded(["a/**/*.png", "odd [1].png"]) == (["a/b/1.png", "odd [1].png"], {})
    assert files.expanded(["-", "missing.png"]) == (["a/2.JPG", "missing.png", "missing.png"], {})


@pytest.mark.parametrize("word", ["empty", "*.png", "-"])
def test_an_argument_without_images_is_rejected(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    (workdir / "empty").mkdir()
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(ConfigError, match=r"no file|no picture"):
        files.expanded([word])


@pytest.mark.parametrize(("word", "what"), [("https://site/a.jpg", "an address"), ("a.zip", "an archive")])
def test_addresses_and_archives_are_predicted_as_data(workdir: Path, word: str, what: str) -> None:
    (workdir / "a.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=rf"{word} is {what}, not a picture\. .*by --data and --output"):
        files.expanded([word])


def test_files_are_predicted_in_batches(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, plain_logging: None
) -> None:
    for number in range(5):
        GRAY.save(workdir / f"{number}.png")
    (workdir / "bad.png").write_bytes(b"bad")
    asked: list[int] = []

    def outputs(images: Any) -> Any:
        asked.append(len(images))
        return np.tile(np.array([0.25, 0.75], np.float32), (len(images), 1))

    model = Model("pets", 1, (28, 28, 1), ("cat", "dog"))
    monkeypatch.setattr(files, "_AT_ONCE", 2)
    result = files.classify(["."], 3, model, outputs)
    assert asked == [2, 2, 1]
    assert [(entry["file"], entry["class"]) for entry in result["predictions"]] == [
        (f"./{number}.png", "dog") for number in range(5)
    ]
    assert [entry["file"] for entry in result["failed"]] == ["./bad.png"]


def test_an_archive_is_unpacked_below_the_storage_root(tmp_path: Path) -> None:
    config = Config.resolve({"storage": {"root": str(tmp_path / "storage")}})
    stream = io.BytesIO()
    Image.new("L", (4, 4), 7).save(stream, "PNG")
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as packed:
        packed.writestr("some/a.png", stream.getvalue())
    folder = files._opened(config, str(tmp_path / "new.zip"), str(tmp_path / "out"))
    assert list(folder.sizes) == ["some/a.png"]
    assert folder.root.startswith(str(tmp_path / "storage" / "cache"))
    with tarfile.open(tmp_path / "new.tar", "w") as plain:
        plain.add(tmp_path / "new.zip", "b.png")
    assert list(files._opened(config, str(tmp_path / "new.tar"), str(tmp_path / "out")).sizes) == ["new.tar"]


def test_the_output_and_the_storage_root_among_the_data_are_no_data(tmp_path: Path) -> None:
    for name in ("a.png", "out/part-00000.parquet", "storage/data/x.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    config = Config.resolve({"storage": {"root": str(tmp_path / "storage")}})
    assert list(files._opened(config, str(tmp_path), str(tmp_path / "out")).sizes) == ["a.png"]


def test_pictures_of_a_folder_whose_content_is_elsewhere_are_counted(workdir: Path) -> None:
    (workdir / "a").mkdir()
    GRAY.save(workdir / "a/1.png", "PNG")
    (workdir / "a/gone.png").symlink_to("nowhere.png")
    (workdir / "a/.4.png.icloud").write_bytes(b"bplist00")
    left_out = {"a broken link": 1, "in iCloud": 1}
    assert files.expanded(["a"]) == (["a/1.png"], left_out)
    folder = Folder("a")
    parts.plan(folder, "model")
    assert folder.ledger.counts() == left_out

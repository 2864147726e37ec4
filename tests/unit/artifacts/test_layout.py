"""Nothing of an export is read for its meaning before every byte of it is known."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import pytest

from distml.artifacts import layout
from distml.artifacts.layout import DIGESTS, MODEL, write_digests
from distml.errors import ModelError


def archive(path: Path, members: dict[str, bytes], compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as stream:
        for name, content in members.items():
            stream.writestr(name, content)
    return path


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A folder laid out like an export."""
    folder = tmp_path / "export"
    for name in (
        MODEL,
        "data/keras_module.txt",
        "saved_model/saved_model.pb",
        "saved_model/variables/v.index",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)
    archive(folder / MODEL, {"config.json": b"{}" * 100})
    (folder / "classes.json").write_text('{"classes": ["a"], "shape": [1, 1, 1]}')
    write_digests(folder)
    return folder


def refusal(folder: Path, expected: str | None = None) -> str:
    with pytest.raises(ModelError) as caught:
        layout.verify(folder, expected)
    return str(caught.value)


def test_an_untouched_export_is_trusted_by_the_digest_of_its_digests(export: Path) -> None:
    own = hashlib.sha256((export / DIGESTS).read_bytes()).hexdigest()
    assert (
        layout.verify(export) == layout.verify(export, own) == layout.Export(export, own, ("a",), (1, 1, 1))
    )
    (export / "MLmodel").write_text("what the registry adds lies beside it")
    (export / "figures").mkdir()
    (export / "figures" / "curves.png").touch()
    assert layout.verify(export, own).sha256 == own


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([3, 5], None),
        ([3], "predicted has 1 counts"),
        ([3, -5], "predicted has 2"),
        ("many", "invalid literal"),
    ],
)
def test_what_the_model_predicted_is_read_where_it_fits_the_task(
    export: Path, counts: object, reason: str | None
) -> None:
    described = {"classes": ["a", "b"], "shape": [1, 1, 1], "predicted": counts}
    (export / "classes.json").write_text(json.dumps(described))
    write_digests(export)
    if reason is None:
        assert layout.verify(export).predicted == (3, 5)
    else:
        assert reason in refusal(export)


@pytest.mark.parametrize("name", [MODEL, "saved_model/variables/v.index", "classes.json"])
def test_one_changed_byte_is_named(export: Path, name: str) -> None:
    content = bytearray((export / name).read_bytes())
    content[len(content) // 2] ^= 1
    (export / name).write_bytes(content)
    said = refusal(export)
    assert str(export / name) in said
    assert hashlib.sha256(content).hexdigest() in said


def test_a_rewritten_list_of_digests_has_another_digest(export: Path) -> None:
    registered = layout.verify(export).sha256
    archive(export / MODEL, {"config.json": b"another"})
    write_digests(export)
    assert layout.verify(export).sha256 != registered
    assert refusal(export, registered).startswith(f"{export / DIGESTS} has the SHA-256 ")


@pytest.mark.parametrize("name", [MODEL, "saved_model/saved_model.pb"])
def test_a_missing_file_is_named(export: Path, name: str) -> None:
    (export / name).unlink()
    assert f"{export / name} cannot be read: No such file" in refusal(export)


@pytest.mark.parametrize("name", ["data/extra.py", "saved_model/assets/extra", "data/link"])
def test_a_file_that_a_loader_could_pick_up_is_named(export: Path, name: str) -> None:
    (export / name).parent.mkdir(exist_ok=True)
    if name.endswith("link"):
        (export / name).symlink_to("/etc/hostname")
    else:
        (export / name).touch()
    assert refusal(export).startswith(f"{export / name} does not belong to the model.")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not a list of digests"),
        ("[" * 100_000, "is not a list of digests"),
        ("[]", "does not list data/model.keras"),
        ("{}", "does not list data/model.keras"),
        (json.dumps({MODEL: "", "classes.json": "", "../x": ""}), "lists '../x', which is not below"),
        (json.dumps({MODEL: "", "classes.json": "", "/etc/passwd": ""}), "lists '/etc/passwd'"),
    ],
)
def test_a_list_that_cannot_be_used_is_rejected(export: Path, content: str, said: str) -> None:
    (export / DIGESTS).write_text(content)
    assert said in refusal(export)


def test_an_export_without_a_list_is_rejected(export: Path) -> None:
    (export / DIGESTS).unlink()
    assert "digests.json cannot be read: No such file" in refusal(export)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_within_the_limits_is_accepted(export: Path, compression: int) -> None:
    members = {"config.json": b"{}" * 1000, "model.weights.h5": bytes(range(256)) * 1000}
    archive(export / MODEL, members, compression)
    write_digests(export)
    layout.verify(export)


def test_a_zip_bomb_is_rejected_before_unpacking(export: Path) -> None:
    path = archive(export / MODEL, {"model.weights.h5": bytes(64 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    write_digests(export)
    assert f"{path} would unpack to far more" in refusal(export)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_rejected(export: Path) -> None:
    with zipfile.ZipFile(export / MODEL, "w") as stream:
        stream.writestr("config.json", "{}")
        stream.writestr("config.json", "[]")
    write_digests(export)
    assert "two files of one name" in refusal(export)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"x" * 100, b"PK\x03\x04" + b"\0" * 50])
def test_a_file_that_is_not_an_archive_is_rejected(export: Path, content: bytes) -> None:
    (export / MODEL).write_bytes(content)
    write_digests(export)
    assert "is not a Keras model" in refusal(export)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{}", '{"classes": 3, "shape": [1, 1, 1]}', '{"classes": ["a"]}'),
        '{"classes": ["a", "a"], "shape": [1, 1, 1]}',
        '{"classes": [], "shape": [1, 1, 1]}',
        '{"classes": ["a"], "shape": [8, -8, 1]}',
        '{"classes": ["a", "b"], "shape": [1, 1, 1], "confusion": []}',
        '{"classes": ["a", "b"], "shape": [1, 1, 1], "confusion": [[1, 2], [3]]}',
        '{"classes": ["a", "b"], "shape": [1, 1, 1], "confusion": [[1, 2], [3, -1]]}',
    ],
)
def test_a_model_without_a_description_is_rejected(export: Path, content: str) -> None:
    (export / "classes.json").write_text(content)
    write_digests(export)
    assert "does not describe the model" in refusal(export)


@pytest.mark.parametrize(
    "name", ["data/custom_objects.cloudpickle", "data/model.h5", "data/more/model.keras"]
)
def test_executable_files_are_rejected_even_when_listed(export: Path, name: str) -> None:
    (export / name).parent.mkdir(exist_ok=True)
    (export / name).write_bytes(b"harm")
    write_digests(export)
    assert f"{name} does not belong to the model" in refusal(export)


def test_a_second_model_is_accepted_only_when_listed(export: Path) -> None:
    (export / "data/model.tflite").write_bytes(b"lite")
    assert "model.tflite does not belong to the model" in refusal(export)
    write_digests(export)
    layout.verify(export)

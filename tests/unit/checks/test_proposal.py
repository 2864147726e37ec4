"""What `distml init` proposes for data and a machine; nothing is trained."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distml import cli, tasks
from distml.checks import machine, proposal
from distml.config import Config
from distml.models import registry
from distml.storage import Storage
from distml.training import pretrained
from tests import drawn

MACHINE = proposal.Machine(cores=4, gpus=0, memory_bytes=16 << 30, gflops=100.0, rows_per_s=300.0)
GPUS = proposal.Machine(cores=16, gpus=2, memory_bytes=64 << 30, gflops=800.0, rows_per_s=300.0)


def facts(rows: dict[str, int], side: int = 224, counts: tuple[int, ...] = (30, 30)) -> proposal.Facts:
    named = {f"class{label}": count for label, count in enumerate(counts)}
    sizes = {(side, side): 40, (side + 9, side): 2}
    return proposal.Facts("/photos", "image_folder", named, rows, sizes, (side, side, 3), 0, {})


def configured(made: proposal.Proposal) -> Config:
    return Config.resolve(proposal.nested(made.choices))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of small drawn pictures in several sizes, and a file that is none."""
    root = tmp_path / "Märchen & photos"
    random = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            values = random.integers(0, 255, (70 + number, 90, 3), np.uint8)
            Image.fromarray(values).save(root / label / f"{number}.png")
    (root / "cats" / "broken.jpg").write_bytes(b"no picture")
    return root


def test_init_writes_a_valid_file_with_a_reason_for_every_key(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run("init", [str(folder), "--train.epochs", "7"]) == 0
    result = json.loads(capsys.readouterr().out)
    path = workdir / result["config"]
    config = Config.load(path)
    assert (result["rows"], result["classes"], result["model"]) == ({"train": 24}, 2, config.model.name)
    assert result["next"] == f"distml train --config {path.name}"
    assert (config.data.path, config.data.on_error, config.train.epochs) == (str(folder), "skip", 7)
    assert config.data.max_error_fraction > 1 / 25
    registry.check_config(config.model)
    lines = path.read_text().splitlines()
    keys = [
        at for at, line in enumerate(lines) if not line.strip().startswith("#") and not line.endswith(":")
    ]
    assert len(keys) > 15
    assert all(lines[at - 1].strip().startswith("# ") for at in keys)


def test_init_overwrites_nothing(folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workdir / "mine.yaml").write_text("mine")
    assert cli.run("init", [str(folder), "--to", "mine.yaml"]) == 2
    assert "mine.yaml exists" in json.loads(capsys.readouterr().out)["error"]
    assert (workdir / "mine.yaml").read_text() == "mine"
    (workdir / "valid.yaml").write_text("run: {name: x}")
    assert cli.run("init", [str(folder), "--config", "valid.yaml", "--to", "new.yaml"]) == 2
    assert not (workdir / "new.yaml").exists()


def test_a_folder_name_that_is_not_utf_8_is_rejected_and_no_file_is_left(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = folder.rename(folder.parent / os.fsdecode(b"caf\xe9"))
    assert cli.run("init", [str(renamed)]) == 2
    assert "cannot be written as UTF-8" in json.loads(capsys.readouterr().out)["error"]
    assert not list(workdir.glob("*.yaml"))


def test_without_weights_init_works_offline_and_names_fetch_weights(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run("init", [str(folder), "--to", "a.yaml", "--storage.root", "a b"]) == 0
    shown = capsys.readouterr()
    assert Config.load("a.yaml").model.weights is None
    command = "distml fetch-weights efficientnetv2_b0 --storage.root 'a b'"
    assert json.loads(shown.out)["weights"] == command
    assert command in shown.err


def test_local_weights_are_used_with_a_frozen_backbone(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrained.put(Storage("./distml-data"), "imagenet:efficientnet_lite0", "x.npz", b"PK")
    assert cli.run("init", [str(folder)]) == 0
    result = json.loads(capsys.readouterr().out)
    config = Config.load(result["config"])
    assert (config.model.name, config.model.weights) == ("efficientnet_lite0", "imagenet")
    assert (config.model.freeze_epochs, config.data.image_size) == (config.train.epochs, 224)
    assert result["weights"] is None


def test_small_images_keep_their_size_and_need_no_weights() -> None:
    made = proposal.propose(facts({"train": 60_000, "test": 10_000}, side=28), MACHINE, ["efficientnet_b0"])
    config = configured(made)
    assert (config.model.name, config.data.image_size, made.backbone) == ("convnet", "auto", None)
    assert (config.train.global_batch_size, config.train.workers) == (256, 2)


def test_a_machine_with_gpus_gets_a_worker_each_and_a_larger_network() -> None:
    names = ["efficientnet_b0", "convnext_small", "convnext_xlarge"]
    config = configured(proposal.propose(facts({"train": 9000}), GPUS, names))
    assert (config.model.name, config.train.workers) == ("convnext_small", 2)
    assert (
        configured(proposal.propose(facts({"train": 9000}), MACHINE, names)).model.name == "efficientnet_b0"
    )


def test_unbalanced_classes_are_weighted_and_balanced_ones_not() -> None:
    uneven = configured(proposal.propose(facts({"train": 220}, counts=(200, 20)), MACHINE, []))
    assert uneven.train.class_weights == "balanced"
    assert configured(proposal.propose(facts({"train": 60}), MACHINE, [])).train.class_weights is None


@pytest.mark.parametrize("rows", [4, 9, 40, 300, 5000, 1_000_000])
@pytest.mark.parametrize("where", [MACHINE, GPUS])
def test_every_size_of_data_gives_a_file_whose_batch_fits(rows: int, where: proposal.Machine) -> None:
    made = proposal.propose(facts({"train": rows}, counts=(rows // 2, rows - rows // 2)), where, [])
    config = configured(made)
    left = rows - round(rows / 6)
    left -= round(left * config.data.val_fraction)
    assert machine.batch(config, left).status == "ok"
    assert 0 < made.minutes < 1e5


def test_cuts_are_proposed_only_where_the_data_have_no_split() -> None:
    paths = {
        choice.path for choice in proposal.propose(facts({"train": 99, "validation": 9}), MACHINE, []).choices
    }
    assert "data.val_fraction" not in paths
    few = proposal.propose(facts({"train": 99}), MACHINE, []).choices
    assert {choice.value for choice in few if choice.path == "data.val_fraction"} == {0.2}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/a/Flower photos/", "flower-photos"),
        ("s3://b/set.tar.gz", "set"),
        ("/", "photos"),
        ("ümläut", "ml-ut"),
    ],
)
def test_names_come_from_the_folder(path: str, name: str) -> None:
    assert proposal.slug(path) == name


def test_flags_win_over_the_proposal() -> None:
    given: dict[str, Any] = {
        "train": {"epochs": 2},
        "model": {"options": {"stem": 8}},
        "storage": {"root": "x"},
    }
    choices = proposal.override(proposal.propose(facts({"train": 99}), MACHINE, []).choices, given)
    config = Config.resolve(proposal.nested(choices))
    assert (config.train.epochs, config.model.options, config.storage.root) == (2, {"stem": 8}, "x")
    assert "# as given\n  epochs: 2\n" in proposal.to_yaml(choices, ["on top"])


def test_the_machine_is_measured_in_about_half_a_second(folder: Path, tmp_path: Path) -> None:
    config = Config.model_validate({"storage": {"root": str(tmp_path / "storage")}})
    _, source = proposal.examine(config, str(folder))
    measured = proposal.measure(source)
    assert measured.gflops > 0.1
    assert measured.rows_per_s > 1


def test_init_proposes_for_every_task_what_its_checks_allow(
    tmp_path: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind, draw in (("regression", drawn.bars), ("multilabel", drawn.colours)):
        place = draw(tmp_path / kind, 24)
        assert cli.run("init", [str(place), "--task.kind", kind]) == 0
        tasks.check(Config.load(workdir / json.loads(capsys.readouterr().out)["config"]))
        assert "classes" not in (workdir / f"{kind}.yaml").read_text()


def test_init_rejects_rows_that_cannot_be_divided_and_notes_small_classes(
    folder: Path, workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in ("cats", "dogs"):
        for number in range(5, 12):
            (folder / label / f"{number}.png").unlink()
    assert cli.run("init", [str(folder)]) == 0
    assert "2 of 2 classes have fewer than 10 training pictures, like cats with 5" in capsys.readouterr().err
    for label in ("cats", "dogs"):
        for number in range(1, 5):
            (folder / label / f"{number}.png").unlink()
    assert cli.run("init", [str(folder), "--to", "again.yaml"]) == 1
    assert "too few to hold any out" in json.loads(capsys.readouterr().out)["error"]
    assert not (workdir / "again.yaml").exists()

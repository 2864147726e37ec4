"""Bad configurations, given to the real command.

Measured 2026-11-24 on 2 busy cores: accepting a configuration takes 1.4 +- 0.2 s of processor time and 90 MB
(interpreter and imports), and refusing any of the hostile ones the same within 0.3 s and 1 MB.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fault

ROOT = Path(__file__).parents[2]
LIMIT_S, LIMIT_KIB = 1.0, 50 * 1024
MAXRSS_KIB = 1 if sys.platform == "linux" else 1 / 1024
"""Unit of `ru_maxrss`: KiB on Linux, bytes on macOS."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Exit code.
        result: The last line on standard output.
        err: Standard error.
        seconds: Of processor time, which does not depend on who else is at work here.
        rss_kib: Most memory it had.
    """

    code: int
    result: dict[str, Any]
    err: str
    seconds: float
    rss_kib: float


def _limit() -> None:
    """A bomb that goes off ends this command, not the machine."""
    resource.setrlimit(resource.RLIMIT_CPU, (10, 10))


def command(folder: Path, verb: str, *words: str) -> Ended:
    """Run a verb in a folder of its own."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with out.open("w") as stdout, err.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "distml", verb, *words],
            cwd=folder,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=_limit,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    result = json.loads((out.read_text().splitlines() or ["{}"])[-1])
    out.unlink()
    said = err.read_text()
    err.unlink()
    return Ended(
        process.returncode, result, said, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * MAXRSS_KIB
    )


def validate(folder: Path, text: str | bytes) -> Ended:
    """Run `validate` on a file with this content."""
    path = folder / "config.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return command(folder, "validate", "--config", str(path))


BAD = [  # content, key that must be named
    ("trian: {epochs: 3}", "trian"),
    ("train: {epohcs: 3}", "train.epohcs"),
    ("train.epochs: 3", "train.epochs"),
    ("train: {augment: {flop: true}}", "train.augment.flop"),
    ("serve: {replicas: {maximum: 3}}", "serve.replicas.maximum"),
    ("train: {epochs: 3, epochs: 4}", "train.epochs"),
    ("run: {name: a}\ntrain: {epochs: 1}\nrun: {name: b}", "run"),
    ("model: {options: {dense: 8, dense: 9}}", "model.options.dense"),
    ("train: {epochs: many}", "train.epochs"),
    ("train: {epochs: 1.5}", "train.epochs"),
    ("train: {epochs: true}", "train.epochs"),
    ("train: {workers: two}", "train.workers"),
    ("run: {name: [a]}", "run.name"),
    ("train: 3", "train"),
    ("train: {epochs: 0}", "train.epochs"),
    ("data: {val_fraction: 1.5}", "data.val_fraction"),
    ("train: {learning_rate: .nan}", "train.learning_rate"),
    ("serve: {port: 70000}", "serve.port"),
    ("model: {name: resnet, options: {widht: 3}}", "model.options.widht"),
    (
        "sweep: {candidates: [{model.name: cnn}, {train.epohcs: 3}]}",
        "sweep.candidates.1: unknown key train.epohcs",
    ),
]


def test_there_are_twenty_bad_files() -> None:
    assert len({text for text, _ in BAD}) == 20


@pytest.mark.parametrize(("text", "key"), BAD, ids=[key.replace(" ", "-") for _, key in BAD])
def test_a_bad_value_is_exit_2_with_its_key(tmp_path: Path, text: str, key: str) -> None:
    ended = validate(tmp_path, text)
    assert ended.code == 2
    assert ended.result["status"] == "invalid"
    assert key in ended.result["error"].split(str(tmp_path))[-1]
    assert ended.err.strip() == f"distml validate: {ended.result['error']}"
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml"}


@pytest.mark.parametrize("name", ["../../x", "/abs/x", "..", "a/b", "", ".hidden", "x\\..\\y"])
@pytest.mark.parametrize("key", ["run.name", "data.name"])
def test_a_name_that_leaves_the_root_is_rejected(tmp_path: Path, key: str, name: str) -> None:
    section, leaf = key.split(".")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    ended = validate(folder, json.dumps({section: {leaf: name}, "storage": {"root": str(folder / "root")}}))
    assert ended.code == 2
    assert key in ended.result["error"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / "config.yaml"]


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_a_link_that_leaves_the_root_is_rejected(tmp_path: Path, verb: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "runs").mkdir(parents=True)
    (root / "runs" / "mine").symlink_to(outside)
    ended = command(tmp_path, verb, "--storage.root", str(root), "--run.name", "mine")
    assert ended.code != 0
    assert "points outside of" in ended.result["error"]
    assert not list(outside.iterdir())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """What an accepted configuration costs: the interpreter and our imports."""
    folder = tmp_path_factory.mktemp("accepted")
    ended = [validate(folder, "run: {name: fine}") for _ in range(3)]
    assert {process.code for process in ended} == {0}
    seconds = statistics.median(process.seconds for process in ended)
    return Ended(0, {}, "", seconds, min(process.rss_kib for process in ended))


def bomb() -> str:
    """Nine levels of nine aliases: 3.5e9 strings once expanded."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10)]
    return "\n".join(lines)


CANARY = "canary.txt"
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "alias bomb": (bomb(), "aliases are not accepted"),
    "merge bomb": ("a: &a {b: 1}\nc: {<<: [*a, *a]}", "aliases are not accepted"),
    "5 MiB": ("run: {name: x}\n" + "# filler\n" * 600_000, "is larger than"),
    "object": (f"run: {{name: !!python/object/apply:os.system ['touch {CANARY}']}}", "!!python/object/apply"),
    "new": ("run: !!python/object/new:subprocess.Popen [[touch, " + CANARY + "]]", "!!python/object/new"),
    "name": ("run: {name: !!python/name:os.system }", "!!python/name"),
    "nest": ("a: " + "[" * 100_000, "nested too deeply"),
    "number": ("train: {epochs: " + "9" * 100_000 + "}", "number of 100000 digits"),
    "binary": (b"\x00" * 1000, "invalid YAML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_rejected_quickly_and_runs_nothing(
    tmp_path: Path, accepted: Ended, kind: str
) -> None:
    content, said = HOSTILE[kind]
    ended = validate(tmp_path, content)
    assert ended.code == 2
    assert said in ended.result["error"]
    assert ended.seconds - accepted.seconds < LIMIT_S
    assert ended.rss_kib - accepted.rss_kib <= LIMIT_KIB
    assert not (tmp_path / CANARY).exists()


def test_the_canary_detects_executed_code(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", f"import yaml; yaml.unsafe_load({HOSTILE['object'][0]!r})"],
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / CANARY).exists()

"""Promotion under attack: promoters at the same time, and models made to do harm."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distml import promote
from distml.artifacts.layout import MODEL, write_digests
from distml.selection import alias
from distml.tracking import registry as aliases
from tests import registered
from tests.registered import Registry
from tests.runner import REPOSITORY

pytestmark = [
    pytest.mark.fault,
    pytest.mark.tensorflow,
    pytest.mark.timeout(900),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
PROMOTERS, ROUNDS = 8, 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    result = registered.make(tmp_path_factory.mktemp("promote") / "storage")
    for threshold in range(60, 60 + 8 * (PROMOTERS + 1), 8):
        result.add(threshold)  # each version is better than the one before
    return result


@contextmanager
def promoters(registry: Registry, locked: str) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "tests.faults.promoter", registry.config.model_dump_json(), locked]
    started = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROMOTERS)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in started:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.close()
            process.wait(60)
            process.stdout.close()


def race(started: list[subprocess.Popen[str]], fields: list[list[int]]) -> list[str]:
    """Let every promoter promote the best of its field at once; returns what each decided."""
    for process, field in zip(started, fields, strict=True):
        assert process.stdin is not None
        process.stdin.write(f"{json.dumps(field)}\n")
        process.stdin.flush()
    return [process.stdout.readline().strip() for process in started if process.stdout is not None]


@pytest.mark.slow
@pytest.mark.parametrize("locked", ["locked", "unlocked"])
def test_eight_concurrent_promotions_leave_the_best_champion(registry: Registry, locked: str) -> None:
    drawn = random.Random(3)
    lowest, versions = 1, range(2, PROMOTERS + 2)
    with promoters(registry, locked) as started:
        for number in range(ROUNDS):
            registry.clear()
            registry.alias("champion", lowest)
            same = number % 2 == 0
            mine = [drawn.sample(versions, 1) for _ in started]
            fields = [list(versions)] * PROMOTERS if same else mine
            said = race(started, fields)
            assert not [line for line in said if line.startswith("failed")]
            best = max(version for field in fields for version in field)
            assert registry.aliases()["champion"] == best, (number, fields, said)
            written = alias.read(aliases.versions(registry.config))
            assert {item.decision for item in written} <= {"promoted", "kept", "overtaken"}
            won = [item for item in written if item.version == best and item.decision == "promoted"]
            if locked == "locked":
                assert len(won) == 1, written  # one record of the move, by any promoter
                assert not same or written == won
            else:
                assert won


def forge(registry: Registry, folder: Path) -> int:
    """Register a folder as an attacker who can write to registry and files would: with matching digests."""
    return registry.register(folder, write_digests(folder))


def singing(canary: Path) -> Any:
    """A network that writes a file when it is called."""
    import keras

    harm = keras.layers.Lambda(eval(f"lambda x: (open({str(canary)!r}, 'w'), x)[1]"), (4, 4, 1))
    model = keras.Sequential([keras.Input((4, 4, 1), dtype="uint8"), harm, keras.layers.Flatten()])
    canary.unlink(missing_ok=True)  # building it sang
    return model


def lambda_keras(folder: Path, canary: Path) -> None:
    singing(canary).save(folder / MODEL)


def lambda_h5(folder: Path, canary: Path) -> None:
    other = folder / "model.h5"
    singing(canary).save(other)
    os.replace(other, folder / MODEL)


def foreign_module(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / MODEL) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    harm = {
        "module": "os",
        "class_name": "function",
        "config": "system",
        "registered_name": "system",
    }
    config = json.loads(members["config.json"])
    config["config"]["layers"][1] = {
        "module": "os",
        "class_name": "system",
        "config": {"command": f"touch {canary}"},
        "registered_name": None,
        "inbound_nodes": config["config"]["layers"][1].get("inbound_nodes", []),
        "name": "harm",
        "build_config": harm,
    }
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(folder / MODEL, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def cloudpickle(folder: Path, canary: Path) -> None:
    import cloudpickle as pickler

    class Harm:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {canary}",)

    (folder / "data" / "custom_objects.cloudpickle").write_bytes(pickler.dumps(Harm()))


def bomb(folder: Path, canary: Path) -> None:
    with zipfile.ZipFile(folder / MODEL, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("assets/bomb", b"\0" * (300 << 20))


@pytest.mark.parametrize("hostile", [lambda_keras, lambda_h5, foreign_module, cloudpickle, bomb])
@pytest.mark.usefixtures("plain_logging")
def test_a_hostile_model_is_rejected_and_runs_nothing(
    registry: Registry, hostile: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry.clear()
    registry.alias("champion", 1)
    folder, _ = registry.export(240)
    canary = tmp_path / "canary"
    hostile(folder, canary)
    version = forge(registry, folder)
    code = promote.main([*registry.flags(), "--version", str(version)])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, result["kind"]) == (1, "ModelError")
    assert not canary.exists()
    assert registry.aliases() == {"champion": 1}

"""A storage root and registry that the code of 2026-11-28 04:14 wrote, read by the code of today.

`before.tar.xz` holds what commit e882da0 left behind after training two runs and promoting a model, its
configuration and its own answers to two pictures. Places of files are those of a folder `/before`, which the
fixture moves to where it is.
"""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

import pytest

from distml import cli
from distml.config import Config
from distml.data import ingestion
from distml.storage import Storage
from distml.tracking import registry
from distml.tracking.server import PLACES

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("plain_logging"),
    # Keras 3.15.1 calls np.array on TensorFlow 2.21's variables, which do not know NumPy 2's copy keyword.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]
ARCHIVE = Path(__file__).parent / "before.tar.xz"
THEN = "/before"


def resolve(root: Path, place: str) -> Config:
    """The configuration of that time, with the pictures in a place."""
    given = json.loads((root / "flags.json").read_text())
    given["data"]["path"], given["storage"] = f"{place}/pictures", {"root": str(root)}
    return Config.resolve(given)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage root, moved to a folder of this test, with its configuration."""
    root = tmp_path_factory.mktemp("before") / "root"
    with tarfile.open(ARCHIVE) as archive:
        if hasattr(tarfile, "data_filter"):  # since Python 3.11.4
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(root)
    (prepared,) = (root / "data").iterdir()
    assert ingestion.folder(resolve(root, THEN)) == f"data/{prepared.name}", "the data would be prepared anew"
    moved = root / ingestion.folder(resolve(root, str(root)))
    prepared.rename(moved)
    with sqlite3.connect(root / "mlflow.db") as connection:
        for table, column in PLACES:
            connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (THEN, str(root)))
    for path in root.rglob("*.json"):
        text = path.read_text().replace(THEN, str(root)).replace(prepared.name, moved.name)
        path.write_text(text)
    given = json.loads((root / "flags.json").read_text())
    given["data"]["path"], given["storage"] = str(root / "pictures"), {"root": str(root)}
    (root / "then.yaml").write_text(json.dumps(given))
    return root


def ran(verb: str, root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = cli.run(verb, [*words, "--config", str(root / "then.yaml")])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_data_and_champion_of_that_time_are_known(before: Path) -> None:
    config = resolve(before, str(before))
    manifest = ingestion.find(config, Storage(config.storage.root))
    assert manifest is not None
    assert manifest.rows == {"train": 24, "validation": 8, "test": 12}
    champion = registry.by_alias(config)
    assert champion is not None
    assert champion.version == 2


def test_the_champion_answers_as_it_did(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = json.loads((before / "answers.json").read_text())
    files = [str(before / answered["file"]) for answered in answers]
    code, result = ran("predict", before, capsys, *files)
    assert (code, result["version"]) == (0, 2), result
    for answered, made in zip(answers, result["predictions"], strict=True):
        assert made["class"] == answered["class"]
        assert made["probability"] == pytest.approx(answered["probability"], abs=1e-5)


def test_a_run_of_that_time_is_compared_with_its_champion(
    before: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--run.name", "second", "--promote.min_gain", "-1"]
    code, result = ran("promote", before, capsys, *words)
    assert (code, result["decision"], result["champion"]) == (0, "kept", 2), result
    assert "0.1250 worse than champion version 2 with 0.7500 on 8 validation rows" in result["why"]


def test_the_doctor_has_nothing_against_it(before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = ran("doctor", before, capsys, "--run.name", "third")
    problems = [check for check in result["checks"] if check["status"] == "problem"]
    assert (code, problems) == (0, [])

"""Every notebook runs to its last cell on the smoke configuration with fewer rows; kept outputs are small."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from nbclient import NotebookClient

nbformat: Any = importlib.import_module("nbformat")  # half of it has types
FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.rglob("*.ipynb"))
BARE = {"04_photographs"}
"""Kept without outputs: those would show photographs."""


def test_there_are_notebooks() -> None:
    names = {"01_train", "02_compare_and_promote", "03_serve_and_watch", "04_photographs"}
    assert names <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_with_small_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = any("image/png" in output.get("data", {}) for output in outputs)
    assert shown is (path.stem not in BARE)
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert all(cell.get("execution_count") is None for cell in notebook.cells)
    text = path.read_text()
    assert len(text) < 250_000
    for unwanted in ("/tmp/", "/home/", "/root/", "\\u001b"):
        assert unwanted not in text
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.cells[0].source.startswith("# ")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of all of them, as for the person who opens one after the other."""
    return tmp_path_factory.mktemp("notebooks") / "storage"


@pytest.fixture(scope="module")
def config(root: Path) -> Path:
    """The smoke configuration on a quarter of its rows: they train five networks."""
    values = yaml.safe_load((FOLDER.parent / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    values["data"] = {"name": "fashion-some", "format": "tests.fashion:some"}
    values["train"] |= {"workers": 1, "global_batch_size": 128}  # as many steps as with all rows
    values["export"] = {"formats": ["litert"]}
    values["sweep"] = {"concurrent": 2}
    file = root.parent / "smoke.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    return file


@pytest.mark.ray
@pytest.mark.tensorflow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:Proactor event loop", "ignore:Jupyter is migrating", "ignore:.*zmq")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(
    path: Path, root: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTML_ROOT", str(root))
    monkeypatch.setenv("DISTML_CONFIG", str(config))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": FOLDER}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.get("data", {}) for output in outputs]
    assert "(raylet)" not in "".join(output.get("text", "") for output in outputs)
    assert any("image/png" in data for data in shown)
    assert all("image/png" in data for data in shown if data.get("text/plain", "").startswith("<Figure"))
    assert not [output for output in outputs if output.output_type == "error"]

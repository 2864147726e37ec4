"""A stage is done once for the same inputs, as long as its result holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from distml.selection.pipeline import Stages
from distml.storage import Storage


@pytest.fixture
def done() -> list[int]:
    return []


def step(stages: Stages, done: list[int], inputs: object, holds: bool = True) -> str:
    def work() -> dict[str, int]:
        done.append(1)
        return {"times": len(done)}

    stages.do("train", inputs, work, lambda _: holds)
    return str(stages.done["train"]["status"])


def test_equal_inputs_run_once_across_processes(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    assert step(Stages("a", storage), done, {"x": 1}) == "finished"
    assert step(Stages("a", storage), done, {"x": 1}) == "skipped"
    assert step(Stages("a", storage), done, {"x": 2}) == "finished"
    assert step(Stages("b", storage), done, {"x": 2}) == "finished"
    assert len(done) == 3


def test_a_stage_whose_result_is_gone_runs_again(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    step(Stages("a", storage), done, 1)
    assert step(Stages("a", storage), done, 1, holds=False) == "finished"
    assert step(Stages("a", storage, again=True), done, 1) == "finished"


def test_a_stage_without_condition_always_runs(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    for _ in range(2):
        stages = Stages("a", storage)
        stages.do("smoke", None, dict)
        assert stages.done["smoke"]["status"] == "finished"


def test_a_failed_stage_is_reported_and_not_cached(
    storage_root: Path, done: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(storage_root))
    stages = Stages("a", storage)
    step(stages, done, 1)
    with pytest.raises(ZeroDivisionError):
        stages.do("promote", 1, lambda: {"x": 1 // 0}, lambda _: True)
    assert {name: stage["status"] for name, stage in stages.summary().items()} == {
        "train": "finished",
        "promote": "failed",
    }
    stages.show({"train": lambda item: f"{item['times']} time"})
    shown = capsys.readouterr().err
    assert "1 time" in shown
    assert "failed" in shown
    again = Stages("a", storage)
    assert step(again, done, 1) == "skipped"
    again.do("promote", 1, dict, lambda _: True)
    assert again.done["promote"]["status"] == "finished"


def test_a_damaged_cache_of_stages_is_ignored(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    storage.write_bytes(b"{", "pipelines", "a.json")
    assert step(Stages("a", storage), done, 1) == "finished"


SWALLOWING = """
import signal, sys
from pathlib import Path
from distml.cli import command
from distml.config import Config
from distml.selection import score
from distml.selection.pipeline import Stages
from distml.storage import Storage

def swallowing(*_):
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    return {}

def half_imported(*_):
    swallowing()
    raise ValueError("module has no attribute")

def interrupted(work):
    try:
        work()
    except KeyboardInterrupt:
        return True

storage = Storage(sys.argv[1])
assert interrupted(lambda: Stages("p", storage).do("promote", [], swallowing))
score.locate.verified = half_imported
assert interrupted(lambda: score.trusted(Config(), None, Path("x")))
assert command.main("ingest", half_imported, []) == 130
assert command.main("ingest", swallowing, []) == 0
"""


def test_an_interrupt_that_a_library_swallows_ends_stages_and_models(storage_root: Path) -> None:
    # In a process of its own: a worker of pytest-xdist has ended by these signals.
    subprocess.run([sys.executable, "-c", SWALLOWING, str(storage_root)], check=True, timeout=120)

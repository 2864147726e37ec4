"""A stage is done once for the same inputs, as long as its result holds."""

from __future__ import annotations

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


def test_the_same_inputs_are_done_once_even_by_another_process(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    assert step(Stages("a", storage), done, {"x": 1}) == "finished"
    assert step(Stages("a", storage), done, {"x": 1}) == "skipped"
    assert step(Stages("a", storage), done, {"x": 2}) == "finished"
    assert step(Stages("b", storage), done, {"x": 2}) == "finished"
    assert len(done) == 3


def test_what_no_longer_holds_is_done_again(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    step(Stages("a", storage), done, 1)
    assert step(Stages("a", storage), done, 1, holds=False) == "finished"
    assert step(Stages("a", storage, again=True), done, 1) == "finished"


def test_without_a_condition_a_stage_is_done_every_time(storage_root: Path) -> None:
    storage = Storage(str(storage_root))
    for _ in range(2):
        stages = Stages("a", storage)
        stages.do("smoke", None, dict)
        assert stages.done["smoke"]["status"] == "finished"


def test_a_failure_is_not_remembered_and_told(
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


def test_a_damaged_memory_is_forgotten(storage_root: Path, done: list[int]) -> None:
    storage = Storage(str(storage_root))
    storage.write_bytes(b"{", "pipelines", "a.json")
    assert step(Stages("a", storage), done, 1) == "finished"

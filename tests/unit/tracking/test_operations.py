"""Operations are typed, and a spooled operation is read back or rejected, never ignored."""

from __future__ import annotations

import json

import pytest

from distml.tracking.operations import (
    CloseRun,
    LogArtifacts,
    LogDataset,
    LogMetrics,
    LogText,
    OpenRun,
    Operation,
    RegisterModel,
)

OPERATIONS: list[Operation] = [
    OpenRun("a", {"tag": "1"}, {"param": "2"}, "key"),
    LogMetrics("loss", 3, 4, {"loss": 0.5}),
    LogDataset("pets", "0" * 40, "data/pets", {"rows": 10}),
    LogText("config.json", "{}"),
    LogArtifacts(["runs", "a"], "figures"),
    RegisterModel(["runs", "a", "export"], [8, 8, 1], 3, {"val_accuracy": 0.5}, "1" * 64),
    CloseRun("FINISHED"),
]


def test_every_kind_of_operation_is_tested() -> None:
    assert {type(operation) for operation in OPERATIONS} == set(Operation.__subclasses__())
    assert len({operation.kind for operation in OPERATIONS}) == len(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.kind)
def test_an_operation_is_read_back_from_its_line(operation: Operation) -> None:
    line = json.loads(json.dumps(operation.to_json()))
    assert Operation.from_json(line) == operation
    assert operation.at is not None
    del line["at"]  # as earlier versions spooled it
    assert Operation.from_json(line).at is None


@pytest.mark.parametrize(
    "line",
    [{"do": "opne"}, {"name": "a"}, {"do": "text", "file": "a"}, {"do": "text", "file": "a", "txt": "b"}],
)
def test_a_misspelt_operation_is_rejected(line: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not an operation of this version"):
        Operation.from_json(line)

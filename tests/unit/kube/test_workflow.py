"""When a workflow puts another pod in the place of one that ends, and when it does not."""

from __future__ import annotations

from typing import Any

import pytest

from distml.kube import submit
from tests import apiserver

STARTED = {"phase": "Running", "startedAt": "2026-11-28T13:00:00Z"}
NOW = submit.seconds("2026-11-28T14:00:00Z")


def changed(**parts: dict[str, Any]) -> dict[str, Any]:
    made = apiserver.workflow()
    for name, more in parts.items():
        made[name] |= more
    return made


@pytest.mark.parametrize(
    "found",
    [
        changed(),
        changed(spec={"shutdown": ""}),
        changed(status={"phase": ""}),
        changed(spec={"activeDeadlineSeconds": 3700}, status=STARTED),
        changed(spec={"activeDeadlineSeconds": 60}),  # not started yet
    ],
)
def test_a_workflow_goes_on(found: dict[str, Any]) -> None:
    assert submit.ending(found, "uid-1", NOW) == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (None, "was deleted"),
        (apiserver.workflow("uid-2"), "was deleted"),
        (changed(metadata={"deletionTimestamp": "2026-11-28T13:59:00Z"}), "is being deleted"),
        (apiserver.workflow(shutdown="Stop"), "shut down (Stop)"),
        (apiserver.workflow(shutdown="Terminate"), "shut down (Terminate)"),
        (changed(status={"phase": "Failed"}), "ended as Failed"),
        (changed(status={"phase": "Error"}), "ended as Error"),
        (changed(spec={"activeDeadlineSeconds": 3600}, status=STARTED), "deadline of 3600 s"),
        (
            changed(status={**STARTED, "storedWorkflowTemplateSpec": {"activeDeadlineSeconds": 3600}}),
            "deadline of 3600 s",
        ),
    ],
)
def test_a_workflow_ends(found: dict[str, Any] | None, why: str) -> None:
    assert why in submit.ending(found, "uid-1", NOW)

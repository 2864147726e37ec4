"""The step of the workflow: its rights, and which of its pods are replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distml.cli import flags as arguments
from tests.manifests import render
from tests.manifests.render import KUBERAY

OVERLAYS = [KUBERAY / "overlays" / name for name in ("k3d", "production")]


def find(folder: Path, kind: str, name: str) -> dict[str, Any]:
    return next(
        item for item in render.render(folder) if (item["kind"], item["metadata"].get("name")) == (kind, name)
    )


def step(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = find(folder, "WorkflowTemplate", "distml")["spec"]["templates"][0]
    return made


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_the_step_has_the_rights_it_uses_and_no_other(folder: Path) -> None:
    account = find(folder, "WorkflowTemplate", "distml")["spec"]["serviceAccountName"]
    bound = [
        item["roleRef"]
        for item in render.render(folder)
        if item["kind"].endswith("RoleBinding") and account in [whom["name"] for whom in item["subjects"]]
    ]
    assert [(item["kind"], item["name"]) for item in bound] == [("Role", "workflow")]
    allowed = [
        (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
        for rule in find(folder, "Role", "workflow")["rules"]
    ]
    assert allowed == [
        ("ray.io", "rayjobs", "create", "get", "list", "delete"),
        ("argoproj.io", "workflows", "get"),
        ("argoproj.io", "workflowtaskresults", "create", "patch"),
    ]


@pytest.mark.parametrize(
    ("status", "exit_code", "again"),
    [
        ("Error", -1, True),  # the pod was deleted and nothing was seen of its end
        ("Failed", -1, True),  # evicted for the node's memory or disk, or its node is gone
        ("Failed", 143, True),  # drained
        ("Failed", 137, True),
        ("Failed", 75, True),  # the API server was away
        ("Failed", 1, False),  # the job failed, and `attempts` are used up
        ("Failed", 2, False),
    ],
)
def test_a_lost_pod_is_replaced_and_a_failed_job_is_not(status: str, exit_code: int, again: bool) -> None:
    expression = step(OVERLAYS[0])["retryStrategy"]["expression"]
    values = {"lastRetry.status": repr(status), "lastRetry.exitCode": repr(str(exit_code)), "||": "or"}
    for name, value in values.items():
        assert name in expression
        expression = expression.replace(name, value)
    assert eval(expression, {"asInt": int}) is again


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_pods_of_the_step_are_replaced_after_pauses_and_the_step_knows_the_last(folder: Path) -> None:
    made = step(folder)
    retries, words = made["retryStrategy"], made["container"]["args"]
    assert f"--retry-limit={retries['limit']}" in words
    assert "--retry={{retries}}" in words
    assert {"duration", "factor", "cap"} <= set(retries["backoff"])
    parser = arguments.Parser("submit")
    arguments.submit(parser)
    known = {name.rstrip("=") for action in parser.actions() for name in action.option_strings}
    assert {word.partition("=")[0] for word in words} - known == {"--config"}


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_a_failed_workflow_stops_its_running_jobs(folder: Path) -> None:
    spec = find(folder, "WorkflowTemplate", "distml")["spec"]
    templates = {template["name"]: template for template in spec["templates"]}
    [[last]] = templates[spec["onExit"]]["steps"]
    assert (last["template"], last["when"]) == (spec["entrypoint"], "{{workflow.status}} != Succeeded")
    assert last["arguments"]["parameters"] == [{"name": "only-stop", "value": "true"}]
    given = {parameter["name"]: parameter["value"] for parameter in step(folder)["inputs"]["parameters"]}
    assert given["only-stop"] == "false"
    assert "--only-stop={{inputs.parameters.only-stop}}" in step(folder)["container"]["args"]

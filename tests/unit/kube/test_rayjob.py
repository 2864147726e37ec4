"""RayJobs as values."""

from __future__ import annotations

from typing import Any

import pytest

from distml.errors import ConfigError
from distml.kube import rayjob


def test_names_follow_from_the_workflow_and_fit_kuberay() -> None:
    assert rayjob.name("nightly-1", 1) == "nightly-1"
    assert rayjob.name("nightly-1", 2) == "nightly-1-2"
    long = [rayjob.name("distml-nightly-of-the-whole-department-" + end * 20, 99) for end in "ab"]
    assert len(set(long)) == 2
    assert all(len(name) <= rayjob.NAME_LENGTH for name in long)


@pytest.mark.parametrize("base", ["", "1st", "A", "a_b", "a/b", "a-"])
def test_names_that_kubernetes_rejects_are_rejected(base: str) -> None:
    with pytest.raises(ConfigError):
        rayjob.name(base, 1)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ({}, "waiting"),
        ({"jobDeploymentStatus": "Initializing"}, "waiting"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, "running"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "succeeded"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, "failed"),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}, "failed"),
        ({"jobDeploymentStatus": "ValidationFailed"}, "failed"),
    ],
)
def test_the_status_of_a_rayjob_is_interpreted(status: dict[str, Any], verdict: str) -> None:
    assert rayjob.verdict({"status": status}) == verdict


def test_the_message_of_kuberay_is_shown_without_its_log() -> None:
    message = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20):\nx"
    status = {
        "jobDeploymentStatus": "Failed",
        "jobStatus": "FAILED",
        "reason": "AppFailed",
        "message": message,
    }
    said = rayjob.describe({"status": status})
    assert said == "Failed, FAILED, AppFailed, Job entrypoint command failed with exit code 1"
    assert rayjob.describe({}) == "no status yet"


def test_only_the_image_called_distml_is_replaced() -> None:
    pods = [{"image": "distml"}, {"image": "distml-gpu"}, {"image": "busybox"}]
    template = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": {"rayClusterSpec": {"containers": pods}}}
    made = rayjob.manifest(template, "a", "true", "distml:7", None)
    images = [pod["image"] for pod in made["spec"]["rayClusterSpec"]["containers"]]
    assert images == ["distml:7", "distml-gpu", "busybox"]
    assert pods[0]["image"] == "distml"


@pytest.mark.parametrize(
    "template",
    [
        {"kind": "Pod", "apiVersion": "v1"},
        {"kind": "RayJob", "apiVersion": "ray.io/v1", "spec": {"jobId": "a"}},
    ],
)
def test_templates_that_cannot_work_are_rejected(template: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        rayjob.manifest(template, "a", "true", None, None)

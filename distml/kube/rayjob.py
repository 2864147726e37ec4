"""RayJobs as values: names, manifests and what a status means (driver)."""

from __future__ import annotations

import copy
import hashlib
import re
from typing import Any, Literal

from distml.errors import ConfigError

PATH = "apis/ray.io/v1/rayjobs"
NAME_LENGTH = 47
"""KubeRay 1.7.0 refuses longer names of RayJobs."""

Verdict = Literal["waiting", "running", "succeeded", "failed", "stopped"]


def name(base: str, attempt: int) -> str:
    """Name of an attempt: a function of the base alone, so that whoever comes back finds it.

    Args:
        base: Such as a workflow's name; what is too long for KubeRay is cut and told apart by a digest.
        attempt: From 1.

    Raises:
        ConfigError: The base is no name of Kubernetes.
    """
    ending = "" if attempt == 1 else f"-{attempt}"
    if not re.fullmatch(r"[a-z]([-a-z0-9.]*[a-z0-9])?", base):
        raise ConfigError(f"{base!r} cannot name a RayJob.", "Begin with a letter; use a-z, 0-9 and -.")
    plain = base.replace(".", "-")
    if len(plain) > NAME_LENGTH - 3:  # room for the attempts
        digest = hashlib.sha256(base.encode()).hexdigest()[:8]
        plain = f"{plain[: NAME_LENGTH - 12].rstrip('-')}-{digest}"
    return plain + ending


def manifest(
    template: dict[str, Any], job: str, entrypoint: str, image: str | None, owner: dict[str, Any] | None
) -> dict[str, Any]:
    """The RayJob to create.

    Args:
        template: A RayJob; its name, entrypoint and owners are replaced.
        job: Name.
        entrypoint: Command line of the driver.
        image: Takes the place of the image called `distml` in pods that the job brings itself.
        owner: Owner reference; whoever deletes the owner deletes the job.

    Raises:
        ConfigError: The template is no RayJob, or fixes `jobId`.
    """
    made = copy.deepcopy(template)
    if made.get("kind") != "RayJob" or made.get("apiVersion") != "ray.io/v1":
        raise ConfigError("the job's template is not a RayJob of ray.io/v1.")
    if made.get("spec", {}).get("jobId"):
        raise ConfigError(
            "the job's template sets jobId.",
            "Leave it out: KubeRay reports the old job's end when an id is used again.",
        )
    labels = made.get("metadata", {}).get("labels", {})
    made["metadata"] = {
        "name": job,
        "labels": {"app.kubernetes.io/managed-by": "distml-submit", "app.kubernetes.io/part-of": "distml"}
        | labels,
        "annotations": made.get("metadata", {}).get("annotations", {}),
    }
    if owner:
        made["metadata"]["ownerReferences"] = [owner]
    made["spec"]["entrypoint"] = entrypoint
    if image:
        _set_image(made["spec"], image)
    return made


def _set_image(part: Any, image: str) -> None:
    if isinstance(part, dict):
        if part.get("image") == "distml":
            part["image"] = image
        for below in part.values():
            _set_image(below, image)
    elif isinstance(part, list):
        for below in part:
            _set_image(below, image)


def owner(text: str) -> dict[str, Any]:
    """Owner reference from `Workflow/NAME/UID`.

    Raises:
        ConfigError: Something else.
    """
    parts = text.split("/")
    if len(parts) != 3 or parts[0] != "Workflow" or not all(parts):
        raise ConfigError(f"--owner is {text}; expected Workflow/NAME/UID.")
    return {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": parts[1], "uid": parts[2]}


def verdict(state: dict[str, Any]) -> Verdict:
    """What a RayJob's status means.

    `jobStatus` alone will not do: while KubeRay tries again it says FAILED, and a job that somebody stopped
    ends as Complete (KubeRay 1.7.0).
    """
    status = state.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment == "Complete":
        return "succeeded" if job == "SUCCEEDED" else "stopped" if job == "STOPPED" else "failed"
    if deployment in ("Failed", "ValidationFailed"):
        return "failed"
    return "running" if deployment == "Running" else "waiting"


def describe(state: dict[str, Any]) -> str:
    """State, reason and message of a RayJob in a few words, without the log behind KubeRay's message."""
    status = state.get("status") or {}
    parts = [status.get(key) for key in ("jobDeploymentStatus", "jobStatus", "reason")]
    parts.append(str(status.get("message") or "").partition(", last available logs")[0].partition("\n")[0])
    return ", ".join(str(part).rstrip(".\n") for part in parts if part) or "no status yet"

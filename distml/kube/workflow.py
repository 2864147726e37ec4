"""Argo's Workflow, which owns a step: whether it puts another pod in the place of one that ends (driver)."""

from __future__ import annotations

import calendar
import time
from typing import Any

PATH = "apis/argoproj.io/v1alpha1/workflows"

_EARLY_S = 30.0
"""How long before its deadline a workflow counts as being at it.

The kubelet ends the pod at a deadline that Argo 4.1.2 computed when it created the pod, in whole seconds and
by another machine's clock.
"""


def seconds(text: str) -> float:
    """Seconds since 1970 of a time as Kubernetes writes it, such as 2026-11-28T13:00:00Z."""
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def ending(workflow: dict[str, Any] | None, uid: str, now_s: float) -> str:
    """Why a workflow replaces none of its pods any more, in words; empty while it does.

    `argo stop` and `argo terminate` write `spec.shutdown` before they signal a pod, and a deletion removes or
    marks the workflow before its pods: so whoever is told to end can ask the workflow for the reason.

    Args:
        workflow: As the API server has it, None when there is none of that name.
        uid: Of the workflow that owns the asking pod; one of the same name may have come after it.
        now_s: Seconds since 1970.
    """
    if workflow is None or workflow["metadata"].get("uid") != uid:
        return "was deleted"
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    if workflow["metadata"].get("deletionTimestamp"):
        return "is being deleted"
    if spec.get("shutdown"):
        return f"is being shut down ({spec['shutdown']})"
    if status.get("phase") in ("Succeeded", "Failed", "Error"):
        return f"has ended as {status['phase']}"
    stored = status.get("storedWorkflowTemplateSpec") or {}  # what came from the WorkflowTemplate
    limit_s = spec.get("activeDeadlineSeconds", stored.get("activeDeadlineSeconds"))
    if limit_s is not None and status.get("startedAt"):
        if now_s > seconds(status["startedAt"]) + limit_s - _EARLY_S:
            return f"is at its deadline of {limit_s} s"
    return ""

"""`distml submit`: creates or re-attaches to the RayJob of an Argo step, and retries it (driver).

The RayJob's name follows from the workflow's, so that the pod that takes the place of a lost one finds it
again. A terminated pod reads the reason from the workflow: it stops the Ray job when the workflow ends, and
leaves it to the next pod when only this pod does.
"""

from __future__ import annotations

import calendar
import contextlib
import itertools
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from distml.errors import ClusterError, ConfigError, JobError
from distml.kube import rayjob
from distml.kube import server as api
from distml.kube.rayjob import Ended, Follower
from distml.kube.server import ConflictError, Server
from distml.runtime import processes

logger = logging.getLogger(__name__)

WORKFLOWS = "apis/argoproj.io/v1alpha1/workflows"
OUTPUTS = {"champion_version": "champion", "test_accuracy": "champion_test_accuracy", "endpoint": "endpoint"}
"""Files handed on to Argo and where the pipeline's result line has their content."""
_INVALID = 2  # exit code of an invalid configuration
_EVICTED = 143  # exit code of a process that SIGTERM ended; the retryStrategy of the workflow knows it
_LONGEST_PAUSE_S = 120.0
_ASK_S = 10.0
"""How long the workflow is asked why this pod is to end; the grace period must do for stopping, too."""
_BEHIND_S = 3600
"""How long after the step's deadline KubeRay's own comes, for a job whose step is gone."""
_EARLY_S = 30.0
"""How long before its deadline a workflow counts as being at it.

The kubelet ends the pod at a deadline that Argo 4.1.2 computed when it created the pod, in whole seconds and
by another machine's clock.
"""


@dataclass(frozen=True)
class Submission:
    """What is to run as a RayJob, and how it is watched.

    Attributes:
        command: Command line of the driver.
        job: Manifest of the RayJob, a file.
        job_name: Name of the RayJob, by which a later pod finds it again.
        owner: `Workflow/NAME/UID`, whose deletion deletes the RayJob; None for none.
        retry: Pods of this step before this one.
        retry_limit: Number of the pod after which there is no other; 0 for no such limit.
        attempts: RayJobs before giving up, 1 or more.
        pause_s: Seconds before the second attempt; doubled each time.
        deadline_s: Seconds from the first attempt's creation until the Ray job is stopped.
        outputs: Folder for a file of each result that Argo passes on; None for none.
        image: Of pods that the job brings; None for `DISTML_IMAGE`.
        namespace: None for the pod's own, or `distml`.
        api_server: None for that of this pod.
        dashboard: Address of Ray's, where the one in the RayJob's status cannot be reached.
        poll_s: Seconds between two looks.
    """

    command: str
    job: str
    job_name: str
    owner: str | None = None
    retry: int = 0
    retry_limit: int = 0
    attempts: int = 2
    pause_s: float = 10.0
    deadline_s: float = 7200.0
    outputs: str | None = None
    image: str | None = None
    namespace: str | None = None
    api_server: str | None = None
    dashboard: str | None = None
    poll_s: float = 3.0


def seconds(text: str) -> float:
    """Seconds since 1970 of a time as Kubernetes writes it, such as 2026-11-28T13:00:00Z."""
    return float(calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ")))


def ending(workflow: dict[str, Any] | None, uid: str, now_s: float) -> str:
    """Why a workflow replaces none of its pods any more, in words; empty while it does.

    `argo stop` and `argo terminate` write `spec.shutdown` before they signal a pod, and a deletion removes or
    marks the workflow before its pods: so a terminated pod can read the reason from the workflow.

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


def _template(path: str) -> dict[str, Any]:
    try:
        template = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the job {path}: {str(error).splitlines()[0]}.") from None
    if not isinstance(template, dict):
        raise ConfigError(f"{path} is not a RayJob.")
    return template


def _attach(server: Server, manifest: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the RayJob of that name, created when there is none, and whether it existed.

    Raises:
        ClusterError: It belongs to another workflow, or cannot be created.
    """
    name = manifest["metadata"]["name"]
    state = server.read(f"{rayjob.PATH}/{name}")
    if state is None:
        try:
            state = server.create(rayjob.PATH, manifest)
            logger.info("RayJob %s created", name)
            return state, False
        except ConflictError:  # created concurrently, as by an earlier pod of this step
            state = server.read(f"{rayjob.PATH}/{name}") or {}
    if not _owned(state or manifest, (manifest["metadata"].get("ownerReferences") or [None])[0]):
        raise ClusterError(
            f"a RayJob {name} of another workflow exists.",
            f"kubectl delete rayjob {name}, or take another name.",
        )
    logger.info("re-attached to RayJob %s: %s", name, rayjob.describe(state))
    return state, True


def _outlive(manifest: dict[str, Any], deadline_s: float) -> None:
    """Put KubeRay's own deadline behind the step's: on a cluster that stays it leaves the Ray job running."""
    limit_s = manifest["spec"].get("activeDeadlineSeconds")
    if limit_s is not None:
        manifest["spec"]["activeDeadlineSeconds"] = max(limit_s, math.ceil(deadline_s) + _BEHIND_S)


def _owned(state: dict[str, Any], owner: dict[str, Any] | None) -> bool:
    references = state["metadata"].get("ownerReferences") or [{}]
    return owner is None or references[0].get("uid") == owner["uid"]


def _created(state: dict[str, Any]) -> float:
    text = state.get("metadata", {}).get("creationTimestamp")
    return seconds(text) if text else time.time()


@dataclass(frozen=True)
class _Workflow:
    """The workflow of this pod, which says what becomes of the job when the pod ends.

    Attributes:
        server: Of the workflow.
        reference: Owner reference of its RayJobs, None for a job started manually.
        last_pod: Argo starts no other pod of this step whatever happens.
    """

    server: Server
    reference: dict[str, Any] | None
    last_pod: bool

    def replaces_this_pod(self) -> bool:
        """Whether another pod takes over the job; False when unknown, for a job must have a watcher."""
        if self.reference is None:
            return False
        if self.last_pod:
            logger.warning("this is the last pod of the step that the workflow allows (--retry-limit)")
            return False
        name = self.reference["name"]
        server = replace(
            self.server, patience_s=min(_ASK_S, self.server.patience_s), hurried=threading.Event()
        )
        try:
            why = ending(server.read(f"{WORKFLOWS}/{name}"), self.reference["uid"], time.time())
        except ClusterError as error:
            logger.warning("%s The state of the workflow %s is unknown.", error, name)
            return False
        logger.warning("the workflow %s %s", name, why or "continues: another pod replaces this one")
        return not why


def _failure(ended: Ended, name: str, attempts: int) -> JobError:
    """The error for a job that did not succeed: a sentence and the exit code of this process."""
    cause = ended.summary.get("error") or ended.status
    sentences = {
        "left": "continues; this pod received SIGTERM, and the next pod of the workflow re-attaches to it",
        "cancelled": "was cancelled; its Ray job is stopped",
        "deadline": "exceeded its deadline; its Ray job is stopped",
        "stopped": "was stopped",
    }
    resumable = ended.outcome not in sentences and ended.exit_code != _INVALID
    remedy = "Its log is above; the same run resumes from its checkpoints." if resumable else ""
    sentence = sentences.get(ended.outcome, f"failed (attempt {attempts}): {str(cause).rstrip('.')}")
    error = JobError(f"the Ray job {name} {sentence}.", remedy)
    code = ended.exit_code or 1
    # 137 and 143 mean to Argo that the step's own pod was lost; a driver that was killed is another matter.
    evicted = ended.outcome in ("cancelled", "left")
    error.exit_code = _EVICTED if evicted else code if 0 < code < 128 else 1
    return error


def _follow(submission: Submission, server: Server, told_to_end: threading.Event) -> tuple[Ended, str]:
    """Start or find RayJob after RayJob until the end of one counts; returns that end and the name.

    A job that was stopped while no pod looked is no attempt: an earlier, terminated pod of this step
    stopped it.

    Raises:
        JobError: The last one did not succeed.
    """
    template, deadline, attempts = _template(submission.job), 0.0, 0
    owner = rayjob.owner(submission.owner) if submission.owner else None
    workflow = _Workflow(server, owner, submission.retry >= submission.retry_limit > 0)
    image = submission.image or os.environ.get("DISTML_IMAGE")
    if submission.attempts < 1:
        raise ConfigError(f"--attempts is {submission.attempts}.", "Give at least 1.")
    for number in itertools.count(1):
        name = rayjob.name(submission.job_name, number)
        manifest = rayjob.manifest(template, name, submission.command, image, owner)
        _outlive(manifest, submission.deadline_s)
        state, resumed = _attach(server, manifest)
        deadline = deadline or _created(state) + submission.deadline_s
        interrupted = rayjob.verdict(state) == "stopped"
        ended = Follower(
            server=server,
            name=name,
            told_to_end=told_to_end,
            deadline=deadline,
            poll_s=submission.poll_s,
            dashboard=submission.dashboard,
            replaced=workflow.replaces_this_pod,
            resumed=resumed,
        ).follow()
        if ended.outcome == "succeeded":
            break
        attempts += not interrupted
        pause_s = 0.0 if interrupted else min(submission.pause_s * 2 ** (attempts - 1), _LONGEST_PAUSE_S)
        again = ended.outcome == "failed" and ended.exit_code != _INVALID and attempts < submission.attempts
        if not (again or interrupted) or time.time() + pause_s > deadline:
            raise _failure(ended, name, attempts)
        cause = _failure(ended, name, attempts).message.rstrip(".")
        logger.warning("%s; retrying in %g s", cause, pause_s)
        if told_to_end.wait(pause_s):
            raise _evicted(f"this pod received SIGTERM before the next attempt: {cause}.")
    return ended, name


def _evicted(message: str) -> JobError:
    error = JobError(message)
    error.exit_code = _EVICTED
    return error


def _hand_on(folder: str, results: dict[str, Any]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, value in results.items():
        (Path(folder) / name).write_text("" if value is None else str(value), encoding="utf-8")


@contextlib.contextmanager
def _server(submission: Submission) -> Iterator[tuple[Server, threading.Event]]:
    """The API server, and an event that SIGTERM and SIGINT set, which ends its patience."""
    told_to_end = threading.Event()
    set_it = processes.setter(told_to_end)
    handlers = {kind: signal.signal(kind, set_it) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield (
            replace(api.here(submission.api_server, submission.namespace), hurried=told_to_end),
            told_to_end,
        )
    except ClusterError as error:
        if told_to_end.is_set():  # for the workflow it was the pod that was lost
            error.exit_code = _EVICTED
        raise
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


def stop_running(submission: Submission) -> dict[str, Any]:
    """Stop the Ray jobs that a workflow left running when it ended while it had no pod that could.

    Returns:
        `stopped`, the names of their RayJobs.

    Raises:
        ConfigError: The owner or the name cannot be used.
        ClusterError: The API server rejects the request or is unreachable for too long.
    """
    owner, stopped = rayjob.owner(submission.owner) if submission.owner else None, list[str]()
    with _server(submission) as (server, told_to_end):
        for number in itertools.count(1):
            name = rayjob.name(submission.job_name, number)
            state = server.read(f"{rayjob.PATH}/{name}")
            if state is None or not _owned(state, owner):
                break
            if rayjob.verdict(state) in ("waiting", "running"):
                follower = Follower(server, name, told_to_end, 0.0, submission.poll_s, submission.dashboard)
                follower.stop(state, "cancelled")
                stopped.append(name)
    return {"stopped": stopped}


def run(submission: Submission) -> dict[str, Any]:
    """Start or find the Ray job, follow it to its end and pass on its results.

    Returns:
        The RayJob's name and what the pipeline's own result line says.

    Raises:
        ConfigError: The manifest, the owner or the attempts cannot be used; nothing was started.
        ClusterError: The API server rejects the request or is unreachable for too long.
        JobError: The job did not succeed; carries its exit code.
    """
    with _server(submission) as (server, told_to_end):
        ended, name = _follow(submission, server, told_to_end)
    if not ended.summary:
        raise JobError(f"the Ray job {name} succeeded, but its result line could not be read.")
    results = {output: ended.summary.get(key) for output, key in OUTPUTS.items()}
    if submission.outputs:
        _hand_on(submission.outputs, results)
    return {"job": name, **results, "pipeline": ended.summary}

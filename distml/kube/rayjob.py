"""One RayJob: its name, manifest, status, and following it and its log to the end (driver)."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TextIO

import requests

from distml.errors import ClusterError, ConfigError
from distml.kube.server import Server

PATH = "apis/ray.io/v1/rayjobs"
NAME_LENGTH = 47
"""KubeRay 1.7.0 rejects longer names of RayJobs."""

Verdict = Literal["waiting", "running", "succeeded", "failed", "stopped"]


def name(base: str, attempt: int) -> str:
    """Name of an attempt: a function of the base alone, so that a restarted pod can derive it.

    Args:
        base: Such as a workflow's name; what is too long for KubeRay is cut and made unique by a digest.
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
        owner: Owner reference: deleting the owner deletes the job.

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

    `jobStatus` alone will not do: while KubeRay tries again it says FAILED, and a job that a user stopped
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


logger = logging.getLogger(__name__)

_STOP_WAIT_S = 30.0
_TAIL_LINES = 200
"""How much of a log is shown again when a pod takes over a job that an earlier pod has followed."""
_ENDED = ("succeeded", "failed", "stopped")

Outcome = Literal["succeeded", "failed", "stopped", "deadline", "cancelled", "left"]


@dataclass(frozen=True)
class Job:
    """A job that was submitted to a Ray cluster.

    Attributes:
        url: Address of the dashboard, with or without `http://`.
        id: Submission id.
        timeout_s: For one request.
    """

    url: str
    id: str
    timeout_s: float = 15.0

    def log(self) -> str:
        """Return everything the driver has printed so far.

        Raises:
            ClusterError: It cannot be had now.
        """
        return str(self._ask("GET", f"{self.id}/logs").json().get("logs") or "")

    def exit_code(self) -> int | None:
        """Return the driver's exit code, None while it runs or when Ray lost it.

        Raises:
            ClusterError: It cannot be had now.
        """
        code = self._ask("GET", self.id).json().get("driver_exit_code")
        return None if code is None else int(code)

    def stop(self) -> None:
        """Ask Ray to end the driver; one that has ended stays as it is.

        Raises:
            ClusterError: The request did not get through.
        """
        self._ask("POST", f"{self.id}/stop")

    def _ask(self, method: str, path: str) -> requests.Response:
        base = self.url if "://" in self.url else f"http://{self.url}"
        token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            response = requests.request(
                method, f"{base.rstrip('/')}/api/jobs/{path}", headers=headers, timeout=self.timeout_s
            )
        except requests.RequestException as error:
            raise ClusterError(f"Ray's dashboard {base} does not respond ({type(error).__name__}).") from None
        if response.status_code in (401, 403):
            raise ClusterError(
                f"Ray's dashboard {base} responded {response.status_code}.",
                "RAY_AUTH_TOKEN must hold the cluster's token, from the Secret ray-token.",
            )
        if response.status_code >= 400:
            raise ClusterError(f"Ray's dashboard {base} responded {response.status_code} to {method} {path}.")
        return response


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        outcome: succeeded, failed or stopped; deadline or cancelled when this process stopped it; left when
            it runs on without this process.
        exit_code: Of the driver, None where Ray did not say.
        summary: The result line of the pipeline, empty when there was none.
        status: The RayJob's last status, in words.
    """

    outcome: Outcome
    exit_code: int | None
    summary: dict[str, Any]
    status: str


@dataclass
class Follower:
    """Watches one RayJob and prints its log.

    Attributes:
        server: Of the RayJob.
        name: Of the RayJob.
        told_to_end: Set when this process is to end.
        replaced: Asked then: whether another pod takes the place of this one, so that the job is left alone.
        resumed: An earlier pod has shown the beginning of the log.
        deadline: Seconds since 1970 at which it is to be stopped.
        poll_s: Seconds between two looks.
        dashboard: Address that replaces the one in the status, for use from outside the cluster.
        out: Where the log goes; standard error by default.
    """

    server: Server
    name: str
    told_to_end: threading.Event
    deadline: float
    poll_s: float = 3.0
    dashboard: str | None = None
    replaced: Callable[[], bool] = lambda: False
    resumed: bool = False
    out: TextIO = field(default_factory=lambda: sys.stderr)
    _shown: int = 0
    _log: str = ""
    _complaint: str = ""
    _status: str = ""
    _last: dict[str, Any] | None = None

    def follow(self) -> Ended:
        """Return when the job has ended, was stopped, or is left to the pod that comes after this one.

        Raises:
            ClusterError: The API server is unreachable for too long, or the RayJob was deleted.
        """
        while True:
            state = self._look()
            self._show(state)
            ended = verdict(state)
            if ended in ("succeeded", "failed", "stopped"):
                return self._end(state, ended)
            if self.told_to_end.is_set():
                return self._leave(state)
            if time.time() > self.deadline:
                return self.stop(state, "deadline")
            self.told_to_end.wait(min(self.poll_s, max(0.0, self.deadline - time.time())))

    def _leave(self, state: dict[str, Any]) -> Ended:
        if self.replaced():
            return Ended("left", None, {}, describe(state))
        return self.stop(state, "cancelled")

    def _look(self) -> dict[str, Any]:
        """The RayJob; as it was last seen when there is no time to wait for the API server."""
        try:
            state = self.server.read(f"{PATH}/{self.name}")
        except ClusterError:
            if not self.told_to_end.is_set() or self._last is None:
                raise
            return self._last
        if state is None:
            raise ClusterError(f"the RayJob {self.name} was deleted before it ended.")
        self._last = state
        words = describe(state)
        if words != self._status:
            self._status = words
            logger.info("RayJob %s: %s", self.name, words)
        return state

    def _job(self, state: dict[str, Any]) -> Job | None:
        status = state.get("status") or {}
        url = self.dashboard or status.get("dashboardURL")
        return Job(url, status["jobId"]) if url and status.get("jobId") else None

    def _show(self, state: dict[str, Any]) -> bool:
        """Print what the log has more than last time; False when it could not be read."""
        job = self._job(state)
        # A submitter's pod may not have started yet: only then are there a job, a status and a log.
        if job is None or verdict(state) == "waiting" or not state["status"].get("jobStatus"):
            return False
        try:
            self._log = job.log()
        except ClusterError as error:  # the status decides how the job ends, so a lost log is no failure
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("%s The job continues.", error)
            return False
        self._complaint = ""
        self._skip()
        if len(self._log) < self._shown:  # another driver's log: KubeRay tried again
            self._shown = 0
        self.out.write(self._log[self._shown :])
        self.out.flush()
        self._shown = len(self._log)
        return True

    def _skip(self) -> None:
        """Leave out what an earlier pod has shown, but for the last lines: where it ended is not known."""
        if not self.resumed or not self._log:
            return
        self.resumed, self._shown = False, tail(self._log, _TAIL_LINES)
        if self._shown:
            logger.info(
                "an earlier pod has printed the log of %s: %d lines are omitted here, and the last %d follow;"
                " Ray's dashboard has them all",
                *(self.name, self._log.count("\n", 0, self._shown), _TAIL_LINES),
            )

    def _end(self, state: dict[str, Any], verdict: Outcome) -> Ended:
        """Read the last lines and the exit code, which can lag behind the status."""
        job, code = self._job(state), None
        for _ in range(5):
            if job is None or (self._show(state) and (verdict != "succeeded" or summary(self._log))):
                break
            time.sleep(min(self.poll_s, 2.0))
        if job is not None:
            try:
                code = job.exit_code()
            except ClusterError as error:
                logger.warning("%s The exit code is not known.", error)
        return Ended(verdict, code, summary(self._log), describe(state))

    def stop(self, state: dict[str, Any], why: Literal["deadline", "cancelled"]) -> Ended:
        """End the Ray job: KubeRay's own deadline would leave it running on a cluster that stays.

        Args:
            state: The RayJob as it was last seen.
            why: The reason, which becomes the outcome.

        Raises:
            ClusterError: Neither Ray nor the API server can be asked to.
        """
        job, ended = self._job(state), Ended(why, None, {}, describe(state))
        logger.warning("%s: stopping the Ray job of %s", why, self.name)
        if job is not None and _attempted(job.stop) and self._stopped():
            return ended
        # Nothing submitted yet, or no way to the head: KubeRay stops what a deleted RayJob started.
        logger.warning("deleting the RayJob %s, which stops what it started", self.name)
        self.server.delete(f"{PATH}/{self.name}")
        return ended

    def _stopped(self) -> bool:
        """Wait until KubeRay has seen the job end; False when it has not, or cannot be asked."""
        server, deadline = replace(self.server, patience_s=0.0), time.monotonic() + _STOP_WAIT_S
        while time.monotonic() < deadline:
            try:
                state = server.read(f"{PATH}/{self.name}")
                if state is None or verdict(state) in _ENDED:
                    return True
            except ClusterError as error:  # for a moment, or for good
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    logger.warning("%s", error)
            time.sleep(min(self.poll_s, 1.0))
        return False


def _attempted(stop: Callable[[], None]) -> bool:
    try:
        stop()
    except ClusterError as error:
        logger.warning("%s", error)
        return False
    return True


def tail(log: str, lines: int) -> int:
    """Where the last lines of a log begin; 0 when it has no more than those."""
    start = len(log.rstrip("\n"))
    for _ in range(lines):
        start = log.rfind("\n", 0, start)
        if start < 0:
            return 0
    return start + 1


def summary(log: str) -> dict[str, Any]:
    """The last result line in a log: a JSON object with a `verb`; empty when there is none."""
    for line in reversed(log.splitlines()):
        if line.startswith("{") and '"verb"' in line:
            try:
                result = json.loads(line)
            except ValueError:
                continue
            if isinstance(result, dict) and "verb" in result:
                return result
    return {}

"""Following one RayJob to its end, whatever is lost on the way (driver)."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TextIO

from distml.errors import ClusterError
from distml.kube import rayjob
from distml.kube.jobs import Job
from distml.kube.server import Server

logger = logging.getLogger(__name__)

_STOP_WAIT_S = 30.0
_TAIL_LINES = 200
"""How much of a log is shown again to whoever comes back to a job that an earlier pod has followed."""
_ENDED = ("succeeded", "failed", "stopped")


@dataclass(frozen=True)
class Ended:
    """How a job ended.

    Args:
        verdict: succeeded, failed or stopped; deadline or cancelled when it was stopped by us; left when it
            goes on without us.
        exit_code: Of the driver, None where Ray did not say.
        summary: The result line of the pipeline, empty when there was none.
        status: The RayJob's last status, in words.
    """

    verdict: str
    exit_code: int | None
    summary: dict[str, Any]
    status: str


@dataclass
class Follower:
    """Watches one RayJob and prints its log.

    Args:
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
            ClusterError: The API server is away for too long, or somebody deleted the RayJob.
        """
        while True:
            found = self._look()
            self._show(found)
            verdict = rayjob.verdict(found)
            if verdict in _ENDED:
                return self._end(found, verdict)
            if self.told_to_end.is_set():
                return self._leave(found)
            if time.time() > self.deadline:
                return self.stop(found, "deadline")
            self.told_to_end.wait(min(self.poll_s, max(0.0, self.deadline - time.time())))

    def _leave(self, found: dict[str, Any]) -> Ended:
        if self.replaced():
            return Ended("left", None, {}, rayjob.describe(found))
        return self.stop(found, "cancelled")

    def _look(self) -> dict[str, Any]:
        """The RayJob; as it was last seen when there is no time to wait for the API server."""
        try:
            found = self.server.read(f"{rayjob.PATH}/{self.name}")
        except ClusterError:
            if not self.told_to_end.is_set() or self._last is None:
                raise
            return self._last
        if found is None:
            raise ClusterError(f"the RayJob {self.name} was deleted before it ended.")
        self._last = found
        words = rayjob.describe(found)
        if words != self._status:
            self._status = words
            logger.info("RayJob %s: %s", self.name, words)
        return found

    def _job(self, found: dict[str, Any]) -> Job | None:
        status = found.get("status") or {}
        url = self.dashboard or status.get("dashboardURL")
        return Job(url, status["jobId"]) if url and status.get("jobId") else None

    def _show(self, found: dict[str, Any]) -> bool:
        """Print what the log has more than last time; False when it could not be read."""
        job = self._job(found)
        # A submitter's pod may still be on its way: only then is there a job, and with it a status and a log.
        if job is None or rayjob.verdict(found) == "waiting" or not found["status"].get("jobStatus"):
            return False
        try:
            self._log = job.log()
        except ClusterError as error:  # the status decides how the job ends, so a lost log is no failure
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.warning("%s The job goes on.", error)
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
                "an earlier pod has shown the log of %s: %d lines are left out here, and the last %d follow;"
                " Ray's dashboard has them all",
                *(self.name, self._log.count("\n", 0, self._shown), _TAIL_LINES),
            )

    def _end(self, found: dict[str, Any], verdict: str) -> Ended:
        """Read the last lines and the exit code, which can lag behind the status."""
        job, code = self._job(found), None
        for _ in range(5):
            if job is None or (self._show(found) and (verdict != "succeeded" or summary(self._log))):
                break
            time.sleep(min(self.poll_s, 2.0))
        if job is not None:
            try:
                code = job.exit_code()
            except ClusterError as error:
                logger.warning("%s The exit code is not known.", error)
        return Ended(verdict, code, summary(self._log), rayjob.describe(found))

    def stop(self, found: dict[str, Any], why: str) -> Ended:
        """End the Ray job: KubeRay's own deadline would leave it running on a cluster that stays.

        Args:
            found: The RayJob as it was last seen.
            why: The verdict.

        Raises:
            ClusterError: Neither Ray nor the API server can be asked to.
        """
        job, ended = self._job(found), Ended(why, None, {}, rayjob.describe(found))
        logger.warning("%s: stopping the Ray job of %s", why, self.name)
        if job is not None and _attempted(job.stop) and self._stopped():
            return ended
        # Nothing submitted yet, or no way to the head: KubeRay stops what a deleted RayJob started.
        logger.warning("deleting the RayJob %s, which stops what it started", self.name)
        self.server.delete(f"{rayjob.PATH}/{self.name}")
        return ended

    def _stopped(self) -> bool:
        """Wait until KubeRay has seen the job end; False when it has not, or cannot be asked."""
        server, until = replace(self.server, patience_s=0.0), time.monotonic() + _STOP_WAIT_S
        while time.monotonic() < until:
            try:
                found = server.read(f"{rayjob.PATH}/{self.name}")
                if found is None or rayjob.verdict(found) in _ENDED:
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
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "verb" in found:
                return found
    return {}

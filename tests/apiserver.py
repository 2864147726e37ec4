"""An API server and a Ray dashboard on this machine, as far as `distml.submit` asks them.

A test sets how jobs run and which errors occur, and reads the recorded requests.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SUMMARY = {
    "verb": "pipeline",
    "status": "finished",
    "champion": 3,
    "champion_test_accuracy": 0.91,
    "endpoint": "http://127.0.0.1:8000",
}
WAITING = {"jobDeploymentStatus": "Initializing"}
STARTING = {"jobDeploymentStatus": "Running"}  # its submitter is on its way
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}
STOPPED = {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}
INVALID = {"jobDeploymentStatus": "ValidationFailed", "message": "The RayJob spec is invalid"}


def workflow(uid: str = "uid-1", **spec: Any) -> dict[str, Any]:
    """A workflow that runs."""
    return {"metadata": {"uid": uid}, "spec": spec, "status": {"phase": "Running"}}


@dataclass
class Course:
    """How one job goes: a status and a log for every look, the last ones for ever; then its exit code."""

    statuses: list[dict[str, str]]
    logs: list[str]
    exit_code: int | None = 0


def success() -> Course:
    """Waits, runs, prints and succeeds."""
    lines = ["epoch 1\n", "epoch 1\nepoch 2\n", f"epoch 1\nepoch 2\n{json.dumps(SUMMARY)}\n"]
    return Course([WAITING, STARTING, STARTING, RUNNING, RUNNING, SUCCEEDED], lines)


def failure(code: int = 1) -> Course:
    """Runs and fails."""
    line = json.dumps({"verb": "pipeline", "status": "failed", "error": "no data."})
    return Course([RUNNING, FAILED], [f"{line}\n"], code)


def endless() -> Course:
    """Runs until it is stopped."""
    return Course([RUNNING], ["epoch 1\n"], None)


@dataclass
class Cluster:
    """What a cluster does and how it fails.

    Args:
        courses: Of the jobs that will be created, in order.
        errors: Status codes still answered to a method on RayJobs, first one first; 0 drops the connection.
            Those of `workflows` are answered to questions for a workflow.
        token: What the API server and the dashboard want to see.
        workflows: What the API server knows of Argo's workflows, by name.
        api_away: Whether the API server drops every connection; the dashboard has `dashboard_away`.
    """

    courses: list[Course]
    errors: dict[str, list[int]] = field(default_factory=dict)
    token: str = "secret-canary"
    workflows: dict[str, dict[str, Any]] = field(default_factory=dict)
    api_away: bool = False
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    dashboard_away: bool = False
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    url: str = ""

    def looks(self, name: str) -> int:
        """How often a RayJob was looked at."""
        return self.asked.count(f"GET rayjobs/{name}")


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _any(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.cluster.token}":
            self._answer(401, {"message": "Unauthorized"})
        elif match := re.fullmatch(r"/api/jobs/([^/]+)(/logs|/stop)?", self.path):
            self._dashboard(match[1], match[2] or "")
        elif self.cluster.api_away:
            self.cluster.asked.append("nobody")
            self.close_connection = True
        elif match := re.fullmatch(
            r"/apis/argoproj\.io/v1alpha1/namespaces/distml/workflows/([^/]+)", self.path
        ):
            self._workflow(match[1])
        elif match := re.fullmatch(r"/apis/ray\.io/v1/namespaces/distml/rayjobs(?:/([^/]+))?", self.path):
            self._rayjobs(match[1] or "")
        elif self.path == "/api/v1/namespaces/distml/secrets" and self.command == "POST":
            self._secret(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        else:
            self._answer(404, {"message": f"no {self.path}"})

    do_GET = do_POST = do_DELETE = _any  # noqa: N815 # the names http.server calls

    def _workflow(self, name: str) -> None:
        self.cluster.asked.append(f"{self.command} workflows/{name}")
        if codes := self.cluster.errors.get("workflows"):
            self._answer(codes.pop(0), {"message": "workflows.argoproj.io is forbidden"})
        elif name in self.cluster.workflows:
            self._answer(200, self.cluster.workflows[name])
        else:
            self._answer(404, {"message": "not found"})

    def _secret(self, body: dict[str, Any]) -> None:
        name = body["metadata"]["name"]
        taken = name in self.cluster.secrets
        if not taken:
            self.cluster.secrets[name] = body["data"]
        self._answer(409 if taken else 201, {"message": "already exists"} if taken else body)

    def _dashboard(self, job: str, what: str) -> None:
        cluster = self.cluster
        if cluster.dashboard_away:
            self.close_connection = True
            return
        result = next((value for value in cluster.jobs.values() if value["id"] == job), None)
        if result is None:
            self._answer(404, {})
            return
        if what == "/stop":
            cluster.stopped.append(job)
            result["course"] = Course([STOPPED], result["course"].logs, None)
            self._answer(200, {"stopped": True})
        elif what == "/logs" and result["course"].statuses[0] == STARTING:
            self._answer(404, {"message": f"Job {job} does not exist"})
        elif what == "/logs":
            logs = result["course"].logs
            self._answer(200, {"logs": logs.pop(0) if len(logs) > 1 else logs[0]})
        else:
            self._answer(200, {"driver_exit_code": result["course"].exit_code})

    def _rayjobs(self, name: str) -> None:
        cluster = self.cluster
        cluster.asked.append(f"{self.command} rayjobs/{name}".rstrip("/"))
        length = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(length)) if length else {}
        if cluster.errors.get(self.command):
            code = cluster.errors[self.command].pop(0)
            if code == 0:
                self.close_connection = True
                return
            self._answer(code, {"message": f"rayjobs.ray.io is forbidden ({code})"})
        elif self.command == "POST":
            self._create(body)
        elif name not in cluster.jobs:
            self._answer(404, {"message": "not found"})
        elif self.command == "DELETE":
            cluster.deleted.append(name)
            del cluster.jobs[name]
            self._answer(200, {})
        else:
            self._answer(200, self._object(name))

    def _create(self, body: dict[str, Any]) -> None:
        cluster, name = self.cluster, body["metadata"]["name"]
        if name in cluster.jobs:
            self._answer(409, {"message": f'rayjobs.ray.io "{name}" already exists'})
            return
        body["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z" if "old" in name else None
        cluster.jobs[name] = {"body": body, "course": cluster.courses.pop(0), "id": f"{name}-x7k2p"}
        self._answer(201, body)

    def _object(self, name: str) -> dict[str, Any]:
        job = self.cluster.jobs[name]
        statuses = job["course"].statuses
        status = dict(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        if status["jobDeploymentStatus"] != "ValidationFailed":
            status |= {"jobId": job["id"], "dashboardURL": self.cluster.url.removeprefix("http://")}
        return {**job["body"], "status": status}


@contextmanager
def serving(cluster: Cluster) -> Iterator[Cluster]:
    """Serve on a free port of the loopback interface until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    cluster.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield cluster
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Performs one cell: brings the cluster to the moment, kills, and watches until everything is well again."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from distml.errors import ClusterError
from tests.chaos import load
from tests.chaos.cluster import NAMESPACE, Cluster, Object, is_ready, restarts, uids
from tests.chaos.plan import COMPONENT, MOMENTS, OF_A_RUN, SERVICE, Cell
from tests.chaos.record import Record

Request = tuple[float, int, float]
"""When it began, its status (0: no answer), and its seconds."""

ASKING = "distml-chaos"
"""Namespace of the pod that asks the endpoint, which the policies of `distml` do not bind."""
_STEP = f"{COMPONENT}=step"
_ENDED = ("Succeeded", "Failed", "Error")
_RECORDS = """
import json, os, sys
os.environ.setdefault("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
import mlflow
client = mlflow.MlflowClient()
steps = []
for experiment in client.search_experiments():
    for run in client.search_runs([experiment.experiment_id]):
        if run.info.run_name == sys.argv[1]:
            steps += [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
print(json.dumps({"steps": steps, "versions": len(client.search_model_versions())}))
"""


@dataclass(frozen=True)
class Settings:
    """How the cells are run.

    Attributes:
        limit_s: Seconds after which a wait is given up.
        epochs: Of each training.
        overrides: Further flags of the pipeline.
        requests: Requests of a cell under load, at least.
        poll_s: Seconds between two looks.
    """

    limit_s: float = 900.0
    epochs: int = 4
    overrides: str = "--sweep.candidates '[]'"
    requests: int = 600
    poll_s: float = 0.5


def perform(
    cluster: Cluster, cell: Cell, settings: Settings, number: int, say: Callable[[str], None]
) -> Record:
    """Run a cell.

    Args:
        cluster: Where.
        cell: What.
        settings: How.
        number: Of this cell among those of all times, which makes its run and its shards new.
        say: Called with a line for every event.

    Returns:
        What came of it; a wait that was given up is the record's `error`.
    """
    performer = Performer(cluster, cell, settings, number, say)
    began = time.monotonic()
    try:
        performer.run()
    except ClusterError as error:
        performer.record = replace(performer.record, error=str(error).rstrip("."))
    finally:
        performer.end()
    return replace(performer.record, seconds=round(time.monotonic() - began, 1))


class Performer:
    """One cell on its way. Final.

    Args:
        cluster: Where.
        cell: What.
        settings: How.
        number: Of this cell.
        say: Called with a line for every event.
    """

    def __init__(
        self, cluster: Cluster, cell: Cell, settings: Settings, number: int, say: Callable[[str], None]
    ) -> None:
        self.record = Record(cell, datetime.now(UTC).date().isoformat())
        self._cluster, self._cell, self._settings, self._say = cluster, cell, settings, say
        self._moment, self._number = MOMENTS[cell.moment], number
        self._run_name = f"{cell.name}-{number}"
        self._workflow, self._before = "", 0

    def run(self) -> None:
        """Do all of it."""
        self._wait("everything to be ready before the cell", self._all_ready)
        versions = self._recorded()["versions"]
        if self._moment.rate:
            self._start_asking()
            self._wait(
                "the first answers of the endpoint",
                lambda: any(status == 200 for _, status, _ in self._asked()[0]),
            )
        if self._moment.stage:
            self._workflow = self._submit()
            self._wait(f"the stage {self._moment.stage}", self._reached)
        victims, others = self._victims()
        at = time.time()
        self._say(f"{self._cell.fault}: {', '.join(pod['metadata']['name'] for pod in victims)}")
        self._fault(victims)
        self._wait("as many pods as before", lambda: self._replaced(victims))
        self.record = replace(self.record, recovery_s=round(time.time() - at, 1))
        self._say(f"ready again after {self.record.recovery_s} s")
        if self._workflow:
            self._wait("the workflow to end", lambda: self._phase() in _ENDED, polls=4)
            self.record = replace(self.record, workflow=self._phase())
        self._wait("everything to be ready afterwards", self._all_ready)
        self._wait("enough requests", lambda: self._answered_since(at))
        self._wait("the end of requests in flight", self._none_in_flight(time.time()))
        self._count(versions, victims, others)

    def end(self) -> None:
        """Take away the pod that asks."""
        if self._moment.rate:
            self._try("delete", "namespace", ASKING, "--ignore-not-found", "--wait=false")

    def _try(self, *words: str) -> str:
        try:
            return self._cluster.kubectl(*words)
        except ClusterError:
            return ""

    def _wait(self, what: str, holds: Callable[[], bool], polls: int = 1) -> None:
        """Wait for a condition; kubectl may fail meanwhile, as where the pod that it asks is gone.

        Args:
            what: It is waited for.
            holds: The condition.
            polls: Of the settings between two looks: on two cores, kubectl takes part of what trains.
        """
        deadline, why = time.monotonic() + self._settings.limit_s, ""
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except ClusterError as error:
                why = f" ({str(error).rstrip('.')})"
            time.sleep(polls * self._settings.poll_s)
        raise ClusterError(f"waited {self._settings.limit_s:g} s in vain for {what}{why}.")

    def _standing(self) -> list[Object]:
        """Pods that are there whether a workflow runs or not."""
        once = ("setup", "folder", "step", "submitter")
        runs = "training worker" in OF_A_RUN[self._cell.overlay]
        pods = [(pod, pod["metadata"].get("labels", {})) for pod in self._cluster.pods()]
        return [
            pod
            for pod, labels in pods
            if labels.get(COMPONENT) not in once
            and not (runs and labels.get("app.kubernetes.io/name") == "training")
        ]

    def _all_ready(self) -> bool:
        pods = self._standing()
        return bool(pods) and all(map(is_ready, pods))

    def _of_the_kind(self) -> list[Object]:
        """Pods of the kind; of those that a run brings, this workflow's, whose name theirs begin with.

        The Ray cluster of a job is there for minutes after the job has ended.
        """
        pods = self._cluster.pods(self._cell.selector)
        if self._cell.kind not in OF_A_RUN[self._cell.overlay]:
            return pods
        return [pod for pod in pods if pod["metadata"]["name"].startswith(f"{self._workflow}-")]

    def _victims(self) -> tuple[list[Object], list[Object]]:
        """One pod of the kind (all of its node's for a drain), and the other standing pods."""
        pods = [pod for pod in self._of_the_kind() if pod["spec"].get("nodeName")]
        if not pods:
            raise ClusterError(f"there is no pod with {self._cell.selector}.")
        self._before = sum(map(is_ready, pods))
        node = pods[0]["spec"]["nodeName"]
        drained = [pod for pod in pods if pod["spec"]["nodeName"] == node]
        victims = drained if self._cell.fault == "drain" else pods[:1]
        return victims, [pod for pod in self._standing() if pod["metadata"]["uid"] not in uids(victims)]

    def _fault(self, victims: list[Object]) -> None:
        name, node = victims[0]["metadata"]["name"], victims[0]["spec"]["nodeName"]
        delete = ["-n", NAMESPACE, "delete", "pod", name, "--wait=false"]
        match self._cell.fault:
            case "SIGTERM":
                self._cluster.kubectl(*delete)
            case "SIGKILL":
                self._cluster.kubectl(*delete, "--grace-period=0", "--force")
            case "drain":
                limit_s = self._settings.limit_s
                flags = [
                    "--ignore-daemonsets",
                    "--delete-emptydir-data",
                    "--force",
                    f"--timeout={limit_s:.0f}s",
                ]
                try:
                    self._cluster.kubectl(
                        *("drain", node, f"--pod-selector={self._cell.selector}", *flags),
                        limit_s=limit_s + 30,
                    )
                finally:
                    self._cluster.kubectl("uncordon", node)

    def _replaced(self, victims: list[Object]) -> bool:
        """Whether as many pods of the kind are ready as before, or the workflow has no more use for them."""
        if self._cell.kind in OF_A_RUN[self._cell.overlay] and self._phase() in _ENDED:
            return True
        ready = [pod for pod in self._of_the_kind() if is_ready(pod)]
        return len(uids(ready) - uids(victims)) >= self._before

    def _submit(self) -> str:
        """Start a workflow of this cell's own run; returns its name."""
        given = self._moment.overrides.format(shards=9 + self._number % 50)
        overrides = f"--run.name {self._run_name} --train.epochs {self._settings.epochs} {given}"
        manifest = {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "Workflow",
            "metadata": {"generateName": "chaos-", "namespace": NAMESPACE},
            "spec": {
                "workflowTemplateRef": {"name": "distml"},
                "arguments": {
                    "parameters": [
                        {"name": "overrides", "value": f"{overrides} {self._settings.overrides}".strip()}
                    ]
                },
            },
        }
        created = self._cluster.kubectl("create", "-o", "json", "-f", "-", given=json.dumps(manifest))
        name = str(json.loads(created)["metadata"]["name"])
        self._say(f"workflow {name}")
        return name

    def _phase(self) -> str:
        text = self._cluster.kubectl("-n", NAMESPACE, "get", "workflow", self._workflow, "-o", "json")
        return str(json.loads(text).get("status", {}).get("phase", ""))

    def _reached(self) -> bool:
        """Whether the pipeline has printed the name of the stage.

        Raises:
            ClusterError: The workflow has ended before.
        """
        mine = f"{_STEP},workflows.argoproj.io/workflow={self._workflow}"
        log = self._cluster.kubectl("-n", NAMESPACE, "logs", "-l", mine, "-c", "main", "--tail=-1")
        return str(self._moment.stage) in (line.strip() for line in log.splitlines())

    def _start_asking(self) -> None:
        """Start the pod that asks the endpoint."""
        image = self._cluster.pods(f"{COMPONENT}=mlflow")[0]["spec"]["containers"][0]["image"]
        key = self._key()
        asked = f"{SERVICE}.{NAMESPACE}:8000"
        self._try("delete", "namespace", ASKING, "--ignore-not-found")
        for each in asking(image, asked, self._moment.rate, key):
            applied = partial(self._applied, json.dumps(each))
            self._wait(f"the {each['kind']} that asks", applied)  # a pod: until its namespace has an account

    def _applied(self, text: str) -> bool:
        self._cluster.kubectl("apply", "-f", "-", given=text)
        return True

    def _key(self) -> str:
        """The endpoint's key in base64, "" where it asks for none."""
        if self._cell.overlay != "production":
            return ""
        secret = json.loads(self._cluster.kubectl("-n", NAMESPACE, "get", "secret", "api-keys", "-o", "json"))
        return str(secret["data"]["key"])

    def _asked(self) -> tuple[list[Request], list[float]]:
        """Every request that has ended, and when those began that have not."""
        if not self._moment.rate:
            return [], []
        return requests(self._cluster.kubectl("-n", ASKING, "logs", "chaos", "--tail=-1"))

    def _none_in_flight(self, before: float) -> Callable[[], bool]:
        """Whether every request has ended that began before a moment; each does, for it has a time limit."""
        return lambda: all(began >= before for began in self._asked()[1])

    def _answered_since(self, at: float) -> bool:
        """Whether there are enough requests, the last of them answered."""
        if not self._moment.rate:
            return True
        asked = [each for each in self._asked()[0] if each[0] >= at]
        wanted = self._settings.requests if self._moment.rate >= 20 else 20
        return len(asked) >= wanted and all(status == 200 for _, status, _ in asked[-5:])

    def _recorded(self) -> dict[str, Any]:
        """What MLflow knows: the steps of this cell's run, and the number of versions."""
        words = ["python", "-c", _RECORDS, self._run_name]
        told: list[dict[str, Any]] = []

        def answered() -> bool:
            text = self._cluster.inside(f"{COMPONENT}=mlflow", "mlflow", words, limit_s=180)
            told.append(json.loads(text.strip().splitlines()[-1]))
            return True

        self._wait("MLflow's records", answered)
        return told[-1]

    def _count(self, versions: int, victims: list[Object], others: list[Object]) -> None:
        """Fill the record."""
        asked, recorded = self._asked()[0], self._recorded()
        steps: list[int] = recorded["steps"]
        for at, status, took in [each for each in asked if each[1] != 200][:20]:
            moment = datetime.fromtimestamp(at, UTC).time().isoformat("milliseconds")
            self._say(f"lost: asked at {moment}, status {status} after {took:.1f} s")
        epochs = self._settings.epochs if self._workflow else 0
        self.record = replace(
            self.record,
            requests=len(asked),
            lost=sum(status != 200 for _, status, _ in asked),
            outage_s=round(longest_gap(asked), 1),
            twice=len(steps) - len(set(steps)),
            never=max(0, epochs - len(set(steps))),
            versions=recorded["versions"] - versions,
            restarts=restarts(others, self._standing(), self._came_back(victims)),
        )

    def _came_back(self, victims: list[Object]) -> int:
        return 0 if self._cell.kind in OF_A_RUN[self._cell.overlay] else len(victims)


def requests(log: str) -> tuple[list[Request], list[float]]:
    """Requests that have ended, and when those began that have not.

    Args:
        log: Of the pod that asks.
    """
    ended: list[Request] = []
    began: dict[str, float] = {}
    for line in log.splitlines():
        match line.split():
            case [number, at]:
                began[number] = float(at)
            case [number, at, status, took]:
                ended.append((float(at), int(status), float(took)))
                began.pop(number, None)
    return ended, list(began.values())


def longest_gap(asked: list[Request]) -> float:
    """Longest time between two answers of 200, from the end of one to the end of the next."""
    ends = sorted(at + took for at, status, took in asked if status == 200)
    return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)


def asking(image: str, asked: str, rate: float, key: str) -> list[Object]:
    """Objects of the pod that asks the endpoint.

    Args:
        image: With Python.
        asked: Host and port of the endpoint.
        rate: Requests a second.
        key: Of the endpoint in base64, "" for none.
    """
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ASKING, "labels": labels}}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "key", "namespace": ASKING},
        "data": {"key": key},
    }
    container = {
        "name": "asks",
        "image": image,
        "command": ["python3", "-c", Path(load.__file__).read_text(), asked, str(rate)],
        "env": [{"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "key", "key": "key"}}}],
        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "chaos", "namespace": ASKING},
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,  # a first process ignores SIGTERM
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
        },
    }
    return [namespace, secret, pod]

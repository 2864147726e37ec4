"""What `distml cluster status` says, and when it needs a person."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from distml import cli
from distml.config import Config
from distml.kube import status
from distml.kube.status import Line, Snapshot
from distml.storage import Storage
from distml.tracking import outbox
from tests.manifests.render import KUBERAY, render
from tests.unit.kube.test_cluster import Outcome, Programs, programs, ran

__all__ = ["programs", "ran"]

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)


def pod(name: str = "mlflow-1", ready: bool = True, since: str = "2026-11-28T11:58:00Z", **state: Any) -> Any:
    container = {"ready": ready, "restartCount": 0, "state": {"running": {}}} | state
    conditions = [{"type": "Ready", "status": str(ready), "lastTransitionTime": since}]
    phase = "Running" if ready else "Pending"
    told = {"phase": phase, "containerStatuses": [container], "conditions": conditions}
    return {"metadata": {"name": name, "creationTimestamp": since}, "status": told}


def waits(reason: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason}}


def examine(*pods: Any, **parts: Any) -> dict[str, Line]:
    empty: dict[str, Any] = {"services": [], "workflows": [], "backups": [], "models": {}, "spooled": 0}
    lines = status.examine(Snapshot(pods=list(pods), **empty | parts), NOW)
    return {line.what: line for line in lines}


def test_a_healthy_cluster_has_a_line_each_and_no_action() -> None:
    lines = examine(pod(), pod("postgres-0"), models={"endpoint": {"name": "fashion", "version": 3}})
    assert not [line for line in lines.values() if line.todo]
    assert lines["mlflow-1"].state == "Running  0 restarts"
    assert lines["endpoint endpoint"].state == "version 3 of fashion is served"
    assert lines["last outage"].state == "none of the pods that are there"
    assert lines["spool"].state == "all runs are sent to MLflow"
    assert lines["backups"].state == "none: the overlay makes none"


def test_a_starting_pod_needs_no_action_and_a_stuck_one_does() -> None:
    (line, *_) = examine(pod(ready=False)).values()
    assert (line.state, line.todo) == ("Pending, not ready  for 2 min  0 restarts", "")
    (line, *_) = examine(pod(ready=False, since="2026-11-28T11:40:00Z")).values()
    assert line.todo == "`kubectl -n distml describe pod mlflow-1`"
    unplaced = pod(ready=False, since="2026-11-28T11:40:00Z")
    unplaced["status"]["conditions"].append(
        {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: 3 Insufficient cpu."}
    )
    (line, *_) = examine(unplaced).values()
    assert line.todo == "no node can run it: 0/3 nodes are available: 3 Insufficient cpu"


@pytest.mark.parametrize("reason", status._STUCK)
def test_a_permanent_failure_needs_action_at_once(reason: str) -> None:
    (line, *_) = examine(pod(ready=False, state=waits(reason))).values()
    assert reason in line.state
    assert line.todo == status._STUCK[reason].format(name="mlflow-1")


def test_an_init_container_that_waits_is_seen() -> None:
    starting = pod(ready=False)
    starting["status"]["initContainerStatuses"] = [{"state": waits("CrashLoopBackOff")}]
    (line, *_) = examine(starting).values()
    assert "logs mlflow-1 --all-containers --previous" in line.todo


def test_the_last_outage_is_the_newest_end_of_a_container() -> None:
    ends = [("a", "2026-11-28T09:00:00Z", "Error", 1), ("b", "2026-11-28T11:30:00Z", "OOMKilled", 137)]
    pods = [
        pod(
            name,
            lastState={"terminated": {"finishedAt": at, "reason": why, "exitCode": code}},
            restartCount=1,
        )
        for name, at, why, code in ends
    ]
    lines = examine(*pods)
    assert lines["last outage"].state == "30 min ago: b (OOMKilled, exit code 137)"
    assert lines["b"].state == "Running  1 restarts"


@pytest.mark.parametrize(
    ("model", "said", "person"),
    [(None, "no champion is served", True), ({}, "the champion is served", False)],
)
def test_an_endpoint_without_a_champion_needs_a_person(model: Any, said: str, person: bool) -> None:
    line = examine(pod(), models={"distml": model})["endpoint distml"]
    assert (line.state, bool(line.todo)) == (said, person)


def test_a_rejected_version_and_a_missing_alias_need_action() -> None:
    refused = {"version": 4, "alias": "champion", "reason": "other classes", "at": 0.0}
    model = {"name": "fashion", "version": 3, "refused": [refused], "registry": {"missing": ["canary"]}}
    line = examine(pod(), models={"distml": model})["endpoint distml"]
    served = "version 3 of fashion is served"
    assert line.state == f"{served}; version 4 (champion) is refused; the registry has no canary"
    assert "distml status --url" in line.todo
    whole = {"name": "fashion", "version": 3, "refused": [], "registry": {"missing": []}}
    assert examine(pod(), models={"distml": whole})["endpoint distml"] == Line("endpoint distml", served)


def test_a_cluster_without_an_endpoint_needs_a_person() -> None:
    line = examine(pod())["endpoint"]
    assert line.state == "there is no RayService"
    assert "distml cluster up" in line.todo
    assert "endpoint" not in examine(pod(), models={"distml": {}})


def test_the_newest_workflow_counts() -> None:
    failed = {
        "metadata": {"name": "old", "creationTimestamp": "2026-11-28T09:00:00Z"},
        "status": {"phase": "Failed", "finishedAt": "2026-11-28T10:00:00Z", "message": "exit code 1"},
    }
    running = {
        "metadata": {"name": "new", "creationTimestamp": "2026-11-28T11:00:00Z"},
        "status": {"phase": "Running"},
    }
    line = examine(pod(), workflows=[failed])["workflow old"]
    assert (line.state, line.todo[:25]) == ("Failed  2 h ago  exit code 1", "`argo -n distml logs old`")
    lines = examine(pod(), workflows=[running, failed])
    assert (lines["workflow new"].state, lines["workflow new"].todo) == ("Running  for 60 min", "")
    assert "workflow old" not in lines


@pytest.mark.parametrize(
    ("last", "made", "suspended", "person"),
    [
        ("2026-11-28T02:17:00Z", "2026-01-01T00:00:00Z", False, False),
        ("2026-11-26T02:17:00Z", "2026-01-01T00:00:00Z", False, True),
        (None, "2026-11-28T10:00:00Z", False, False),
        (None, "2026-11-20T10:00:00Z", False, True),
        ("2026-11-28T02:17:00Z", "2026-01-01T00:00:00Z", True, True),
    ],
)
def test_a_backup_that_was_missed_needs_a_person(
    last: str | None, made: str, suspended: bool, person: bool
) -> None:
    job = {
        "metadata": {"name": "backup", "creationTimestamp": made},
        "spec": {"suspend": suspended},
        "status": {"lastSuccessfulTime": last} if last else {},
    }
    assert bool(examine(pod(), backups=[job])["backup"].todo) is person


@pytest.mark.parametrize(("spooled", "said"), [(2, "2 runs are not sent to MLflow yet"), (None, "not known")])
def test_spooled_operations_need_no_action(spooled: int | None, said: str) -> None:
    line = examine(pod(), spooled=spooled)["spool"]
    assert said in line.state
    assert not line.todo


def test_a_rejected_run_needs_action() -> None:
    line = examine(pod(), spooled=2, rejected={"mine-1.jsonl": "Invalid value 'x'"})["spool"]
    assert line.state == "2 runs are not sent to MLflow, which rejects 1: mine-1.jsonl: Invalid value 'x'"
    assert "distml sync" in line.todo


def test_a_pod_of_a_vanished_node_is_not_ready() -> None:
    unknown = pod()
    unknown["status"]["conditions"][0] |= {"status": "Unknown", "lastTransitionTime": "2026-11-28T11:00:00Z"}
    (line, *_) = examine(unknown).values()
    assert (line.state, line.todo[:8]) == ("Running, not ready  for 60 min  0 restarts", "`kubectl")


@pytest.mark.parametrize(
    ("ended", "state", "person"),
    [
        ("2026-11-28T11:59:00Z", "is being deleted", False),
        ("2026-11-28T11:30:00Z", "should have ended 30 min ago", True),
    ],
)
def test_a_deleted_pod_that_stays_needs_a_person(ended: str, state: str, person: bool) -> None:
    deleted = pod()
    deleted["metadata"]["deletionTimestamp"] = ended
    deleted["spec"] = {"nodeName": "node-7"}
    (line, *_) = examine(deleted).values()
    assert (line.state, "kubectl delete node node-7" in line.todo) == (state, person)


def owner(kind: str, **state: Any) -> dict[str, Any]:
    made = {"name": "mine", "creationTimestamp": "2026-11-28T09:00:00Z"}
    return {"kind": kind, "metadata": made, "spec": {"replicas": 2}, "status": state}


def condition(kind: str, status: str, at: str = "2026-11-28T11:00:00Z", **more: str) -> dict[str, str]:
    return {"type": kind, "status": status, "lastTransitionTime": at} | more


@pytest.mark.parametrize(
    ("given", "state", "todo"),
    [
        (owner("Deployment", replicas=2, readyReplicas=2), None, ""),
        (owner("Deployment", replicas=2, readyReplicas=1), "1 of 2 pods are ready", ""),
        (owner("Deployment"), "0 of 2 pods are ready", "`kubectl -n distml describe deployment mine`"),
        (
            owner("Deployment", conditions=[condition("Available", "False", "2026-11-28T11:59:00Z")]),
            "0 of 2 pods are ready",
            "",
        ),
        (
            owner(
                "Deployment", conditions=[condition("ReplicaFailure", "True", message="exceeded quota: q.")]
            ),
            "0 of 2 pods are ready",
            "its pods cannot be created: exceeded quota: q",
        ),
        (
            owner("RayCluster", desiredWorkerReplicas=3, readyWorkerReplicas=2),
            "2 of 3 pods are ready",
            "",
        ),
        (
            owner(
                "RayCluster",
                desiredWorkerReplicas=2,
                readyWorkerReplicas=2,
                conditions=[condition("ReplicaFailure", "True", message="forbidden")],
            ),
            "2 of 2 pods are ready",
            "its pods cannot be created: forbidden",
        ),
    ],
)
def test_what_lacks_pods_has_a_line(given: dict[str, Any], state: str | None, todo: str) -> None:
    line = examine(pod(), owners=[given]).get(f"{given['kind'].lower()} mine")
    assert (line and line.state, line.todo if line else "") == (state, todo)


@pytest.mark.parametrize(
    ("ready", "responds", "person"), [(True, True, False), (True, False, True), (False, False, False)]
)
def test_a_tracking_server_that_does_not_respond_needs_a_person(
    ready: bool, responds: bool, person: bool
) -> None:
    own = pod(ready=ready)
    own["metadata"]["labels"] = {"app.kubernetes.io/component": "mlflow"}
    line = examine(own, tracks=responds)["tracking server"]
    assert (line.state.startswith("responds"), bool(line.todo)) == (responds, person)


def test_a_registry_that_is_away_is_shown() -> None:
    model = {"name": "fashion", "version": 3, "registry": {"missing": [], "answers": False}}
    line = examine(pod(), models={"distml": model})["endpoint distml"]
    assert line.state == "version 3 of fashion is served; the registry does not respond to it"


def test_what_could_not_be_read_is_not_absent(programs: Programs, ran: Callable[..., Outcome]) -> None:
    (programs.folder / "pods").write_text(json.dumps({"items": [pod()]}))
    (programs.folder / "kubectl").write_text(
        f"""#!/bin/sh
case "$*" in
  *"get pods"*) cat {programs.folder}/pods;;
  *"get rayservices"*) echo 'Error: rayservices is forbidden: User "me" cannot list' >&2; exit 1;;
  *"get cronjobs"*) echo 'error: no response' >&2; exit 1;;
  *"get workflows"*) echo "error: the server doesn't have a resource type \\"workflows\\"" >&2; exit 1;;
  *"get --raw"*|*" exec "*) exit 1;;
esac
"""
    )
    code, result, said = ran("status", "--context", "mine")
    lines = {line["what"]: line for line in result["lines"]}
    assert code == 1, said
    assert "forbidden" in lines["rayservices"]["state"]
    assert "get rayservices" in lines["rayservices"]["todo"]
    assert "no response" in lines["cronjobs"]["state"]
    assert not {"endpoint", "backups", "workflows"} & lines.keys()


def test_an_endpoint_that_asks_for_a_key_gets_it_by_standard_input(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    head = pod("head-1")
    head["metadata"]["labels"] = {"ray.io/node-type": "head"}
    service = {"metadata": {"name": "distml", "annotations": {"distml/service": "serve"}}}
    for kind, item in {"pods": head, "rayservices": service}.items():
        (programs.folder / kind).write_text(json.dumps({"items": [item]}))
    (programs.folder / "kubectl").write_text(
        f"""#!/bin/sh
echo "kubectl $*" >> {programs.calls}
case "$*" in
  *proxy/readyz*) echo ready;;
  *"get secret api-keys"*) echo a2V5LWNhbmFyeQ==;;
  *"exec -i -n distml head-1 -c ray-head"*"http://serve:8000/model")
    test "$(cat)" = a2V5LWNhbmFyeQ== && echo '{{"name": "fashion", "version": 5}}';;
  *"get --raw"*|*" exec "*) exit 1;;
  *) cat {programs.folder}/$4 2>/dev/null;;
esac
exit 0
"""
    )
    _, _, said = ran("status", "--context", "mine")
    assert "version 5 of fashion is served" in said
    assert "a2V5LWNhbmFyeQ" not in "\n".join(programs.called()) + said


@pytest.mark.parametrize("overlay", ["k3d", "production"])
def test_the_endpoint_and_a_head_are_asked_as_the_overlay_names_them(
    programs: Programs, ran: Callable[..., Outcome], overlay: str
) -> None:
    objects: dict[str, list[Any]] = {"rayservices": [], "workflowtemplates": []}
    for each in render(KUBERAY / "overlays" / overlay):
        if f"{each['kind'].lower()}s" in objects:
            objects[f"{each['kind'].lower()}s"].append(each)
    head = pod("head-1")
    head["metadata"]["labels"] = {"ray.io/node-type": "head"}
    for kind, items in (objects | {"pods": [head]}).items():
        (programs.folder / kind).write_text(json.dumps({"items": items}))
    (programs.folder / "kubectl").write_text(
        f"""#!/bin/sh
echo "kubectl $*" >> {programs.calls}
case "$*" in
  *services/serve:8000/proxy/readyz*) echo ready;;
  *services/mlflow:5000/proxy/health*) echo OK;;
  *services/serve:8000/proxy/model*) echo '{{"name": "fashion", "version": 4}}';;
  *"exec -n distml head-1 -c ray-head -- distml sync --dry-run --config /app/configs/"*)
    echo '{{"verb": "sync", "left": 3}}';;
  *"get --raw"*|*" exec "*) exit 1;;
  *) cat {programs.folder}/$4 2>/dev/null;;
esac
exit 0
"""
    )
    code, result, said = ran("status", "--context", "mine")
    assert code == 0, said
    assert "version 4 of fashion is served" in said
    assert "3 runs are not sent to MLflow yet" in said
    assert result["ready"] is True


@pytest.mark.usefixtures("plain_logging")
def test_status_counts_spooled_operations_without_sending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    for name in ("a", "b"):
        storage.write_bytes(b"{}", outbox.FOLDER, outbox.new_name(name))
    assert outbox.waiting(Config.resolve({"storage": {"root": str(tmp_path)}})) == 2
    assert cli.run("sync", ["--dry-run", "--storage.root", str(tmp_path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["sent"], result["left"], result["rejected"]) == (0, 2, {})

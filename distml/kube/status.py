"""`distml cluster status`: pods, endpoint, workflows, spool, backups, and what needs attention (driver)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from distml.errors import ClusterError
from distml.kube.cluster import Target, attempt, output, say

Object = dict[str, Any]

_ENDED = ("Succeeded", "Failed")
_GRACE_S = 600.0
"""A pod that has not been ready for longer does not become so by itself: images are pulled, models loaded."""
_BACKUP_S = 36 * 3600.0
"""The backup is made every night; one that was missed is a reason to look."""
_NAMESPACE = ("-n", "distml")
_STUCK = {
    "ErrImagePull": "push the image, or correct its name in the overlay",
    "ImagePullBackOff": "push the image, or correct its name in the overlay",
    "InvalidImageName": "correct the image's name in the overlay",
    "CreateContainerConfigError": "a Secret or ConfigMap is missing: `kubectl -n distml describe pod {name}`",
    "CrashLoopBackOff": "`kubectl -n distml logs {name} --all-containers --previous`",
}
"""Permanent reasons, and the remedy of each."""


@dataclass(frozen=True)
class Line:
    """One line of the status.

    Attributes:
        what: A pod, or what people ask about.
        state: What it is doing.
        todo: What a person has to do, "" where it recovers by itself or is ready.
    """

    what: str
    state: str
    todo: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What the cluster says of itself, as the API server's objects.

    Attributes:
        pods: All of the namespace.
        services: RayServices.
        workflows: Of Argo.
        backups: CronJobs.
        models: What each RayService's endpoint says of its model, by name; None where it is not ready.
        spooled: Runs that wait for the tracking server, None where it could not be read.
        rejected: Why the server did not take some of them, by name.
        owners: Deployments, StatefulSets and RayClusters.
        tracks: Whether the tracking server responds, None where there is none.
        unread: Why each kind could not be read that could not, by its name in kubectl.
    """

    pods: list[Object]
    services: list[Object]
    workflows: list[Object]
    backups: list[Object]
    models: dict[str, Object | None]
    spooled: int | None
    rejected: dict[str, str] = field(default_factory=dict)
    owners: list[Object] = field(default_factory=list)
    tracks: bool | None = None
    unread: dict[str, str] = field(default_factory=dict)


def status(target: Target) -> dict[str, Any]:
    """Print what each pod and part is doing, and what a person has to do.

    Returns:
        `ready` (whether every pod that should run is ready), `pods` and `lines`; the status is failed where
        something needs a person.

    Raises:
        ClusterError: The cluster does not respond, or there are no pods.
    """
    seen = snapshot(target.kubectl)
    if not seen.pods:
        raise ClusterError("there are no pods.", "See `distml cluster up`.")
    lines = examine(seen, datetime.now(UTC))
    for line in lines:
        say(f"  {line.what:<48} {line.state}")
    todo = [line for line in lines if line.todo]
    for line in todo:
        say(f"TO DO {line.what}: {line.todo}")
    running = [pod for pod in seen.pods if pod.get("status", {}).get("phase") not in _ENDED]
    return {
        "ready": bool(running) and all(map(_is_ready, running)),
        "pods": [_summary(pod) for pod in seen.pods],
        "lines": [asdict(line) for line in lines],
    } | ({"status": "failed"} if todo else {})


def snapshot(kubectl: Sequence[str]) -> Snapshot:
    """Ask the API server, the endpoints, the tracking server and a Ray head.

    Raises:
        ClusterError: The cluster does not respond.
    """
    unread: dict[str, str] = {}
    pods = _objects(kubectl, "pods", unread)
    if unread:
        raise ClusterError(
            f"`{' '.join(kubectl)} get pods` failed: {unread['pods'].rstrip('.')}.",
            "Is the cluster up, and the context right?",
        )
    services, workflows, backups, templates, *owners = (
        _objects(kubectl, kind, unread)
        for kind in ("rayservices", "workflows", "cronjobs", "workflowtemplates", *_OWNERS)
    )
    spooled, rejected = _spooled(kubectl, pods, templates)
    return Snapshot(
        pods,
        services,
        workflows,
        backups,
        models={service["metadata"]["name"]: _model(kubectl, service, pods) for service in services},
        spooled=spooled,
        rejected=rejected,
        owners=[each for some in owners for each in some],
        tracks=_responds(kubectl, f"{_TRACKING}:5000", "health"),
        unread=unread,
    )


_OWNERS = ("deployments", "statefulsets", "rayclusters")
_TRACKING = "mlflow"
_UNKNOWN = "have a resource type"
"""How kubectl says that a cluster does not know a kind: its operator is not installed."""


def _objects(kubectl: Sequence[str], kind: str, unread: dict[str, str]) -> list[Object]:
    """All objects of a kind, [] where the cluster does not know it; `unread` gets why it is not read."""
    text, why = attempt([*kubectl, "get", kind, *_NAMESPACE, "-o", "json"])
    if text is None and _UNKNOWN not in why:
        unread[kind] = why
    return list(json.loads(text or "{}").get("items", []))


_SERVICE = "distml/service"
_ASK = """
import base64, sys, urllib.request
key = base64.b64decode(sys.stdin.read()).decode()
asked = urllib.request.Request(sys.argv[1], headers={"Authorization": f"Bearer {key}"})
print(urllib.request.urlopen(asked, timeout=20).read().decode())
"""
"""Asks an endpoint from inside; the key comes by standard input, since all can read arguments."""


def _proxy(service: str, path: str) -> str:
    return f"/api/v1/namespaces/distml/services/{service}/proxy/{path}"


def _responds(kubectl: Sequence[str], service: str, path: str) -> bool:
    return output([*kubectl, "get", "--raw", _proxy(service, path)], 20.0) is not None


def _model(kubectl: Sequence[str], service: Object, pods: list[Object]) -> Object | None:
    """What an endpoint says of its model: {} where it is ready and does not say.

    It is asked through the Service that its clients use: KubeRay's, or the one that an annotation names.
    """
    named = service["metadata"].get("annotations", {}).get(_SERVICE)
    name = f"{named or service['metadata']['name'] + '-serve-svc'}:8000"
    if not _responds(kubectl, name, "readyz"):
        return None
    text = output([*kubectl, "get", "--raw", _proxy(name, "model")], 20.0)
    try:
        described: Object = json.loads(text or _described(kubectl, name, pods) or "{}")
    except ValueError:
        return {}
    return described


def _described(kubectl: Sequence[str], name: str, pods: list[Object]) -> str | None:
    """What an endpoint says that asks for a key, with that of the Secret, from a Ray head."""
    key = output([*kubectl, "get", "secret", "api-keys", *_NAMESPACE, "-o", "jsonpath={.data.key}"])
    for head in _heads(pods) if key else ():
        words = ["exec", "-i", *_NAMESPACE, head, "-c", "ray-head", "--", "python", "-c", _ASK]
        text, _ = attempt([*kubectl, *words, f"http://{name}/model"], 60.0, given=key)
        if text:
            return text
    return None


def _heads(pods: list[Object]) -> list[str]:
    """Two Ray heads that are ready."""
    heads = [
        pod["metadata"]["name"]
        for pod in pods
        if pod["metadata"].get("labels", {}).get("ray.io/node-type") == "head" and _is_ready(pod)
    ]
    return heads[:2]


def _spooled(
    kubectl: Sequence[str], pods: list[Object], templates: list[Object]
) -> tuple[int | None, dict[str, str]]:
    """Runs that wait for the tracking server, as a Ray head sees the workflow's storage, and rejections."""
    words = [word for template in templates for word in _words(template)]
    for head in _heads(pods) if words else ():
        command = [*kubectl, "exec", *_NAMESPACE, head, "-c", "ray-head", "--", "distml", "sync", "--dry-run"]
        text = output([*command, *words], 60.0)
        if text:
            result = json.loads(text.strip().splitlines()[-1])
            return int(result["left"]), dict(result.get("rejected", {}))
    return None, {}


def _words(template: Object) -> list[str]:
    """The configuration that a workflow gives the pipeline."""
    given = {each["name"]: each.get("value", "") for each in template["spec"]["arguments"]["parameters"]}
    words = f"{given.get('cluster', '')} {given.get('overrides', '')}"
    return ["--config", given["config"], *shlex.split(words)]


def examine(seen: Snapshot, now: datetime) -> list[Line]:
    """Say what everything is doing and what needs a person.

    Args:
        seen: The cluster.
        now: Time of the snapshot.
    """
    alive = [pod for pod in seen.pods if pod.get("status", {}).get("phase") not in _ENDED]
    lines = [_pod(pod, now) for pod in alive]
    ended = len(seen.pods) - len(alive)
    if ended:
        lines.append(Line("pods that have ended", str(ended)))
    lines += [line for each in seen.owners for line in _lacking(each, now)]
    lines.append(_outage(seen.pods, now))
    if seen.tracks is not None:
        lines.append(_tracking(seen))
    lines += [_endpoint(name, model) for name, model in seen.models.items()]
    if not seen.models and "rayservices" not in seen.unread:
        lines.append(_NO_ENDPOINT)
    if seen.workflows:
        lines.append(
            _workflow(max(seen.workflows, key=lambda each: each["metadata"]["creationTimestamp"]), now)
        )
    lines.append(_spool(seen.spooled, seen.rejected))
    lines += [_backup(job, now) for job in seen.backups]
    if not seen.backups and "cronjobs" not in seen.unread:
        lines.append(Line("backups", "none: the overlay makes none"))
    lines += [_not_read(kind, why) for kind, why in seen.unread.items()]
    return lines


def _not_read(kind: str, why: str) -> Line:
    return Line(
        kind, f"not known: {why[:160]}", f"`kubectl -n distml get {kind}` must succeed for this account"
    )


def _lacking(owner: Object, now: datetime) -> list[Line]:
    """What a Deployment, StatefulSet or Ray cluster lacks: pods that do not exist have no line themselves."""
    state, spec = owner.get("status", {}), owner["spec"]
    conditions = state.get("conditions", [])
    name = f"{owner['kind'].lower()} {owner['metadata']['name']}"
    failed = [each for each in conditions if "ReplicaFailure" in each["type"] and each["status"] == "True"]
    if owner["kind"] == "RayCluster":
        wanted, ready = state.get("desiredWorkerReplicas", 0), state.get("readyWorkerReplicas", 0)
        there = wanted  # the autoscaler changes the number all the time
    else:
        wanted, ready = spec.get("replicas", 1), state.get("readyReplicas", 0)
        there = state.get("replicas", 0)
    if ready >= wanted and not failed:
        return []
    told = f"{ready} of {wanted} pods are ready"
    if failed:
        message = str(failed[0].get("message", "its pods are rejected"))[:160].rstrip(".")
        return [Line(name, told, f"its pods cannot be created: {message}")]
    moments = [each["lastTransitionTime"] for each in conditions if each.get("lastTransitionTime")]
    since = _seconds(max(moments, default=owner["metadata"].get("creationTimestamp")), now) or 0.0
    stuck = there < wanted and since > _GRACE_S
    return [Line(name, told, f"`kubectl -n distml describe {name}`" if stuck else "")]


def _tracking(seen: Snapshot) -> Line:
    """Whether the tracking server responds; that its pod is starting is said with the pod."""
    if seen.tracks:
        return Line("tracking server", "responds")
    own = [
        pod
        for pod in seen.pods
        if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == _TRACKING
    ]
    starts = own and not any(map(_is_ready, own))
    look = f"`kubectl -n distml logs deployment/{_TRACKING}`, `kubectl -n distml get endpoints {_TRACKING}`"
    return Line("tracking server", "does not respond; runs are spooled meanwhile", "" if starts else look)


def _states(pod: Object) -> list[Object]:
    return [*pod.get("status", {}).get("initContainerStatuses", []), *_own_states(pod)]


def _own_states(pod: Object) -> list[Object]:
    return list(pod.get("status", {}).get("containerStatuses") or [])


def _is_ready(pod: Object) -> bool:
    """Whether the cluster sends it requests: containers of a node that is gone stay `ready` for ever."""
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _waiting(pod: Object) -> list[str]:
    """Why containers wait."""
    reasons = (state.get("state", {}).get("waiting", {}).get("reason", "") for state in _states(pod))
    return [reason for reason in reasons if reason]


def _summary(pod: Object) -> dict[str, Any]:
    return {
        "pod": pod["metadata"]["name"],
        "phase": pod.get("status", {}).get("phase", "Unknown"),
        "ready": _is_ready(pod),
        "restarts": sum(state.get("restartCount", 0) for state in _own_states(pod)),
        "waiting": ", ".join(_waiting(pod)),
    }


def _pod(pod: Object, now: datetime) -> Line:
    told = _summary(pod)
    name, restarts = told["pod"], f"{told['restarts']} restarts"
    if told["ready"]:
        return Line(name, f"{told['phase']}  {restarts}")
    if "deletionTimestamp" in pod["metadata"]:
        return _leaving(pod, now)
    since = _since(pod, now)
    words = ["not ready", f"for {_age(since)}" if since is not None else "", told["waiting"], restarts]
    state = f"{told['phase']}, {'  '.join(filter(None, words))}"
    stuck = [_STUCK[reason].format(name=name) for reason in _waiting(pod) if reason in _STUCK]
    if stuck:
        return Line(name, state, stuck[0])
    if since is not None and since < _GRACE_S:
        return Line(name, state)
    return Line(name, state, _unready(pod))


def _leaving(pod: Object, now: datetime) -> Line:
    """A pod that is being deleted; its time stamp is the end of its grace period."""
    name, late = pod["metadata"]["name"], _seconds(pod["metadata"]["deletionTimestamp"], now) or 0.0
    if late < _GRACE_S:
        return Line(name, "is being deleted")
    node = pod.get("spec", {}).get("nodeName", "NAME")
    todo = f"`kubectl get node {node}`; if it does not come back, `kubectl delete node {node}`"
    return Line(name, f"should have ended {_age(late)} ago", todo)


def _unready(pod: Object) -> str:
    """What to do about a pod that has not been ready for too long."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return f"no node can run it: {condition.get('message', 'add a node or free one').rstrip('.')}"
    return f"`kubectl -n distml describe pod {pod['metadata']['name']}`"


def _since(pod: Object, now: datetime) -> float | None:
    """Seconds since a pod is not ready, None where it is not known."""
    times = [
        each.get("lastTransitionTime")
        for each in pod.get("status", {}).get("conditions", [])
        if each["type"] == "Ready" and each["status"] != "True"
    ]
    return _seconds(times[0] if times else pod["metadata"].get("creationTimestamp"), now)


def _seconds(moment: str | None, now: datetime) -> float | None:
    return None if not moment else (now - datetime.fromisoformat(moment)).total_seconds()


def _age(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _outage(pods: list[Object], now: datetime) -> Line:
    """The last container that ended and was started again."""
    ends = []
    for pod in pods:
        for state in _own_states(pod):
            last = state.get("lastState", {}).get("terminated")
            if last and last.get("finishedAt"):
                why = f"{last.get('reason', 'ended')}, exit code {last.get('exitCode', '?')}"
                ends.append((last["finishedAt"], f"{pod['metadata']['name']} ({why})"))
    if not ends:
        return Line("last outage", "none of the pods that are there")
    moment, what = max(ends)
    return Line("last outage", f"{_age(_seconds(moment, now) or 0.0)} ago: {what}")


_NO_ENDPOINT = Line(
    "endpoint", "there is no RayService", "apply the overlay (`distml cluster up`), and KubeRay before it"
)


def _endpoint(name: str, model: Object | None) -> Line:
    what = f"endpoint {name}"
    if model is None:
        look = f"`kubectl -n distml describe rayservice {name}`"
        return Line(
            what, "no champion is served", f"train and promote a model; if there is a champion, {look}"
        )
    if "version" not in model:
        return Line(what, "the champion is served")
    amiss = [f"version {bad['version']} ({bad['alias']}) is refused" for bad in model.get("refused", [])]
    amiss += [f"the registry has no {alias}" for alias in model.get("registry", {}).get("missing", [])]
    state = f"version {model['version']} of {model.get('name', 'the model')} is served"
    if model.get("registry", {}).get("answers") is False:
        state += "; the registry does not respond to it"
    todo = "`distml status --url` of the endpoint says why; `distml promote` moves the alias" if amiss else ""
    return Line(what, "; ".join([state, *amiss]), todo)


def _workflow(workflow: Object, now: datetime) -> Line:
    name, told = workflow["metadata"]["name"], workflow.get("status", {})
    phase = told.get("phase", "Pending")
    ended, begun = told.get("finishedAt"), workflow["metadata"]["creationTimestamp"]
    age = _age(_seconds(ended or begun, now) or 0.0)
    state = f"{phase}  {age} ago" if ended else f"{phase}  for {age}"
    if phase in ("Failed", "Error"):
        why = str(told.get("message", "")).partition("\n")[0][:120]
        return Line(
            f"workflow {name}", f"{state}  {why}".rstrip(), f"`argo -n distml logs {name}`, then submit again"
        )
    return Line(f"workflow {name}", state)


def _spool(spooled: int | None, rejected: dict[str, str]) -> Line:
    if spooled is None:
        return Line("spool", "not known: no ready Ray head to ask")
    if not spooled:
        return Line("spool", "all runs are sent to MLflow")
    if rejected:
        name, why = next(iter(rejected.items()))
        state = f"{spooled} runs are not sent to MLflow, which rejects {len(rejected)}: {name}: {why[:120]}"
        return Line("spool", state, "correct what it says, then `distml sync` in a Ray head")
    return Line(
        "spool",
        f"{spooled} runs are not sent to MLflow yet; the next run, promotion or `distml sync` sends them",
    )


def _backup(job: Object, now: datetime) -> Line:
    name, last = job["metadata"]["name"], _seconds(job.get("status", {}).get("lastSuccessfulTime"), now)
    made = _seconds(job["metadata"].get("creationTimestamp"), now) or 0.0
    state = "none has succeeded yet" if last is None else f"the last one succeeded {_age(last)} ago"
    if job["spec"].get("suspend"):
        return Line(name, f"{state}, suspended", f"`kubectl -n distml patch cronjob {name} -p '{_RESUME}'`")
    if (made if last is None else last) > _BACKUP_S:
        todo = f"`kubectl -n distml create job --from=cronjob/{name} {name}-now`, then its log"
        return Line(name, state, todo)
    return Line(name, state)


_RESUME = '{"spec": {"suspend": false}}'

"""Our own rules: what a schema cannot say."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.manifests.render import Manifest

LOCAL = {"distml", "distml-gpu", "distml-postgres"}
"""Images built here and imported or pushed: they have a version instead of a digest (kuberay/README.md)."""
OPERATED = {"ray": "KubeRay labels its pods itself"}
ROOTS = {("Job", "folder")}
"""The one root container, in a namespace of its own (overlays/k3d/folder.yaml)."""

Pod = tuple[str, dict[str, Any], dict[str, str]]


def name(manifest: Manifest) -> str:
    """Kind and name."""
    return f"{manifest['kind']}/{manifest['metadata'].get('name', '(generated)')}"


def pods(manifest: Manifest) -> Iterator[Pod]:
    """Every pod an object leads to: where it stands, its spec and its labels."""
    kind, spec = manifest["kind"], manifest.get("spec", {})
    if kind in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
        yield _pod(name(manifest), spec["template"])
    elif kind == "CronJob":
        yield _pod(name(manifest), spec["jobTemplate"]["spec"]["template"])
    elif kind == "RayCluster":
        yield from _ray(name(manifest), spec)
    elif kind == "RayService":
        yield from _ray(name(manifest), spec["rayClusterConfig"])
    elif kind == "RayJob":
        if "rayClusterSpec" in spec:
            yield from _ray(name(manifest), spec["rayClusterSpec"])
        if "submitterPodTemplate" in spec:
            yield _pod(f"{name(manifest)} submitter", spec["submitterPodTemplate"])
    elif kind == "WorkflowTemplate":
        for template in (one for one in spec["templates"] if "container" in one):
            made = {"containers": [template["container"]], "volumes": spec.get("volumes", [])}
            made |= {key: spec[key] for key in ("securityContext", "serviceAccountName") if key in spec}
            yield f"{name(manifest)} {template['name']}", made, template["metadata"]["labels"]


def _pod(where: str, template: dict[str, Any]) -> Pod:
    return where, template["spec"], template.get("metadata", {}).get("labels", {})


def _ray(where: str, cluster: dict[str, Any]) -> Iterator[Pod]:
    kinds = [("head", cluster["headGroupSpec"]), *(("worker", one) for one in cluster["workerGroupSpecs"])]
    for kind, group in kinds:
        at, spec, labels = _pod(f"{where} {group.get('groupName', kind)}", group["template"])
        yield at, spec, labels | {"ray.io/node-type": kind, "ray.io/cluster": where.partition("/")[2]}


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Init containers and containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def images(manifests: list[Manifest]) -> Iterator[str]:
    """No `latest`, and a digest unless we build it."""
    for one in manifests:
        for where, spec, _ in pods(one):
            for container in containers(spec):
                yield from _image(f"{where} {container.get('name', 'main')}", container["image"], one)


def _image(where: str, image: str, manifest: Manifest) -> Iterator[str]:
    plain = image.partition("@")[0]
    base, tag = (plain, "") if ":" not in plain.rpartition("/")[2] else plain.rsplit(":", 1)
    if base.rpartition("/")[2] in LOCAL:
        placeholder = manifest["kind"] == "RayJob" and image == "distml"  # `distml.submit` puts the image in
        if not placeholder and not re.fullmatch(r"v?\d+\.\d+\.\d+\S*", tag):
            yield f"{where}: {image} has no version"
    elif not re.search(r"@sha256:[0-9a-f]{64}$", image):
        yield f"{where}: {image} has no digest"
    if tag == "latest":
        yield f"{where}: {image} is whatever was pushed last"


def locked(manifests: list[Manifest]) -> Iterator[str]:
    """Pods that Pod Security "restricted" admits, on a root file system they cannot write."""
    for one in manifests:
        for where, spec, _ in pods(one):
            whole = spec.get("securityContext", {})
            root = (one["kind"], one["metadata"].get("name")) in ROOTS
            if not root and (not whole.get("runAsNonRoot") or not whole.get("runAsUser", 0) > 0):
                yield f"{where} may run as root"
            if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
                yield f"{where} has no seccomp profile"
            if any("hostPath" in volume for volume in spec.get("volumes", [])) and not root:
                yield f"{where} mounts a folder of its node"
            for container in containers(spec):
                own = container.get("securityContext", {})
                if own.get("allowPrivilegeEscalation") is not False or not own.get("readOnlyRootFilesystem"):
                    yield f"{where} {container.get('name', 'main')} is not locked down"
                if own.get("capabilities", {}).get("drop") != ["ALL"]:
                    yield f"{where} {container.get('name', 'main')} keeps capabilities"


def bounded(manifests: list[Manifest]) -> Iterator[str]:
    """Every container requests and is limited in CPU and memory; no limit is below its request."""
    for one in manifests:
        for where, spec, _ in pods(one):
            for container in containers(spec):
                found = container.get("resources", {})
                for kind in ("cpu", "memory"):
                    asked, limit = (found.get(key, {}).get(kind) for key in ("requests", "limits"))
                    if asked is None or limit is None:
                        yield f"{where} {container.get('name', 'main')} has no {kind} request or limit"
                    elif quantity(asked) > quantity(limit):
                        yield f"{where} {container.get('name', 'main')}: {kind} limit below the request"


def quantity(text: str | int) -> float:
    """A quantity of Kubernetes as a number."""
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|Ti|k|M|G)?", str(text))
    if not found:
        raise ValueError(f"{text} is no quantity")
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9}
    return float(found[1]) * units.get(found[2] or "", 1)


def references(manifests: list[Manifest], provided: set[tuple[str, str]]) -> Iterator[str]:
    """Every Secret, ConfigMap, PersistentVolumeClaim and ServiceAccount that is named exists.

    Args:
        manifests: All objects of an overlay.
        provided: Kind and name of what the set-up Job draws or the README asks for.
    """
    there = {(one["kind"], one["metadata"].get("name", "")) for one in manifests} | provided
    for one in manifests:
        for where, spec, _ in pods(one):
            for kind, wanted in _named(spec):
                if (kind, wanted) not in there:
                    yield f"{where} names {kind} {wanted}, which nobody makes"
            volumes = {volume["name"] for volume in spec.get("volumes", [])} | {
                claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])
            }
            for container in containers(spec):
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"{where} mounts {mount['name']}, which is no volume of it"
    for secret in _auth(manifests):
        if ("Secret", secret) not in there:
            yield f"authOptions names Secret {secret}, which nobody makes"


def _auth(manifests: list[Manifest]) -> Iterator[str]:
    for one in manifests:
        spec = one.get("spec", {})
        for cluster in (spec, spec.get("rayClusterSpec"), spec.get("rayClusterConfig")):
            if isinstance(cluster, dict) and "secretName" in cluster.get("authOptions", {}):
                yield cluster["authOptions"]["secretName"]


_PLACES: dict[str, Callable[[Any], str | None]] = {
    "secretKeyRef": lambda found: found["name"],
    "configMapKeyRef": lambda found: found["name"],
    "secretRef": lambda found: found["name"],
    "configMapRef": lambda found: found["name"],
    "secret": lambda found: found.get("secretName") or found.get("name"),
    "configMap": lambda found: found["name"],
    "persistentVolumeClaim": lambda found: found["claimName"],
}


def _named(spec: Any) -> Iterator[tuple[str, str]]:
    if isinstance(spec, list):
        for one in spec:
            yield from _named(one)
    elif isinstance(spec, dict):
        for key, below in spec.items():
            if key in _PLACES and isinstance(below, dict) and not below.get("optional"):
                kind = "PersistentVolumeClaim" if key.startswith("p") else key[:1].upper() + key[1:]
                kind = re.sub("(KeyRef|Ref)$", "", kind)
                yield kind, str(_PLACES[key](below))
            elif key == "serviceAccountName":
                yield "ServiceAccount", str(below)
            else:
                yield from _named(below)


def reachable(manifests: list[Manifest]) -> Iterator[str]:
    """Services, NetworkPolicies and PodDisruptionBudgets select a pod; their ports are open there."""
    everyone = [pod for one in manifests for pod in pods(one)]
    for one in manifests:
        kind, spec = one["kind"], one.get("spec", {})
        if kind == "Service":
            chosen = [pod for pod in everyone if _fits(spec.get("selector", {}), pod[2])]
            if not chosen:
                yield f"{name(one)} selects no pod"
            for port in spec["ports"]:
                target = port.get("targetPort", port["port"])
                if chosen and not any(_opens(pod[1], target) for pod in chosen):
                    yield f"{name(one)}: no selected pod opens {target}"
        elif kind in ("NetworkPolicy", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            selector = spec.get("podSelector", spec.get("selector", {}))
            mine = [
                pod for pod in everyone if kind not in ("Deployment", "StatefulSet") or pod[0] == name(one)
            ]
            if selector and not any(_matches(selector, pod[2]) for pod in mine):
                yield f"{name(one)} selects no pod"


def _fits(labels: dict[str, str], found: dict[str, str]) -> bool:
    return labels.items() <= found.items()


def _matches(selector: dict[str, Any], found: dict[str, str]) -> bool:
    return _fits(selector.get("matchLabels", {}), found) and all(
        rule["operator"] != "In" or found.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


def _opens(spec: dict[str, Any], port: str | int) -> bool:
    ports = [one for container in containers(spec) for one in container.get("ports", [])]
    return any(port in (one.get("name"), one["containerPort"]) for one in ports)


def versions(manifests: list[Manifest], ray: str) -> Iterator[str]:
    """Ray's version everywhere is the one of the requirements."""
    for one in manifests:
        spec = one.get("spec", {})
        for key, cluster in (
            ("", spec),
            *((key, spec.get(key)) for key in ("rayClusterSpec", "rayClusterConfig")),
        ):
            if isinstance(cluster, dict) and "headGroupSpec" in cluster:
                if cluster.get("rayVersion") != ray:
                    yield f"{name(one)} {key} has Ray {cluster.get('rayVersion')}, the requirements {ray}"
                if cluster.get("authOptions", {}).get("mode") != "token":
                    yield f"{name(one)} {key} lets everybody in: authOptions.mode is not token"


def kuberay(manifests: list[Manifest]) -> Iterator[str]:
    """What KubeRay 1.7.0 refuses although its schema allows it."""
    for one in manifests:
        spec, kind = one.get("spec", {}), one["kind"]
        longest = {"RayCluster": 53, "RayJob": 47, "RayService": 47}.get(kind)
        if longest and len(one["metadata"].get("name", "")) > longest:
            yield f"{name(one)}: the name is longer than {longest}"
        if kind == "RayJob":
            yield from (f"{name(one)}: {said}" for said in _rayjob(spec))
        for where, group in _groups(spec):
            if {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys() and group.get(
                "resources"
            ):
                yield f"{name(one)} {where}: resources in rayStartParams and in resources"
            if "labels" in group["rayStartParams"]:
                yield f"{name(one)} {where}: rayStartParams.labels"
            if where != "head" and not {"minReplicas", "maxReplicas"} <= group.keys():
                yield f"{name(one)} {where}: minReplicas and maxReplicas"


def _groups(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for cluster in (spec, spec.get("rayClusterSpec"), spec.get("rayClusterConfig")):
        if isinstance(cluster, dict) and "headGroupSpec" in cluster:
            yield "head", cluster["headGroupSpec"]
            yield from ((group["groupName"], group) for group in cluster["workerGroupSpecs"])


def _rayjob(spec: dict[str, Any]) -> Iterator[str]:
    if spec.get("jobId"):
        yield "a fixed jobId reports the old job's end"
    if "clusterSelector" in spec and (
        spec.get("backoffLimit") or spec.get("suspend") or "rayClusterSpec" in spec
    ):
        yield "clusterSelector goes with neither backoffLimit, suspend nor a cluster of its own"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes"
    if "preRunningDeadlineSeconds" not in spec or "activeDeadlineSeconds" not in spec:
        yield "pods that cannot start would be waited for for ever"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode == "SidecarMode" or (mode == "K8sJobMode" and "submitterPodTemplate" not in spec):
        yield f"{mode}: the submitter's pod does not pass Pod Security restricted"


def lasting(manifests: list[Manifest]) -> Iterator[str]:
    """A pod with a volume that outlives it does not go through all its files at every start."""
    for one in manifests:
        for where, spec, _ in pods(one):
            claimed = any("persistentVolumeClaim" in volume for volume in spec.get("volumes", []))
            whole = spec.get("securityContext", {})
            if (
                (claimed or one["spec"].get("volumeClaimTemplates"))
                and "fsGroup" in whole
                and whole.get("fsGroupChangePolicy") != "OnRootMismatch"
            ):
                yield f"{where} changes the group of every file of its volume at every start"


def confined(manifests: list[Manifest]) -> Iterator[str]:
    """Namespaces enforce "restricted", but for the one of the root container; a default deny is there."""
    for one in manifests:
        if one["kind"] == "Namespace":
            enforced = one["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if enforced != "restricted" and one["metadata"]["name"] != "distml-folder":
                yield f"{name(one)} enforces {enforced}"
    denied = [one for one in manifests if one["kind"] == "NetworkPolicy" and one["spec"]["podSelector"] == {}]
    if not any(set(one["spec"]["policyTypes"]) == {"Ingress", "Egress"} for one in denied):
        yield "no NetworkPolicy denies by default"


def secrets(manifests: list[Manifest]) -> Iterator[str]:
    """No Secret is written down."""
    for one in manifests:
        if one["kind"] == "Secret":
            yield f"{name(one)} is in git"

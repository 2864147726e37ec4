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
        for template in (item for item in spec["templates"] if "container" in item):
            made = {"containers": [template["container"]], "volumes": spec.get("volumes", [])}
            made |= {key: spec[key] for key in ("securityContext", "serviceAccountName") if key in spec}
            yield f"{name(manifest)} {template['name']}", made, template["metadata"]["labels"]


def _pod(where: str, template: dict[str, Any]) -> Pod:
    return where, template["spec"], template.get("metadata", {}).get("labels", {})


def _ray(where: str, cluster: dict[str, Any]) -> Iterator[Pod]:
    kinds = [("head", cluster["headGroupSpec"]), *(("worker", item) for item in cluster["workerGroupSpecs"])]
    for kind, group in kinds:
        at, spec, labels = _pod(f"{where} {group.get('groupName', kind)}", group["template"])
        given = {"ray.io/node-type": kind, "ray.io/cluster": where.partition("/")[2]}
        serving = {"ray.io/serve": "true"} if where.startswith("RayService/") else {}  # while it responds
        yield at, spec, labels | given | serving


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Init containers and containers of a pod."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def images(manifests: list[Manifest]) -> Iterator[str]:
    """No `latest`, and a digest unless we build it."""
    for manifest in manifests:
        for where, spec, _ in pods(manifest):
            for container in containers(spec):
                yield from _image(f"{where} {container.get('name', 'main')}", container["image"], manifest)


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
    for manifest in manifests:
        for where, spec, _ in pods(manifest):
            whole = spec.get("securityContext", {})
            root = (manifest["kind"], manifest["metadata"].get("name")) in ROOTS
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
    for manifest in manifests:
        for where, spec, _ in pods(manifest):
            for container in containers(spec):
                resources = container.get("resources", {})
                for kind in ("cpu", "memory"):
                    asked, limit = (resources.get(key, {}).get(kind) for key in ("requests", "limits"))
                    if asked is None or limit is None:
                        yield f"{where} {container.get('name', 'main')} has no {kind} request or limit"
                    elif quantity(asked) > quantity(limit):
                        yield f"{where} {container.get('name', 'main')}: {kind} limit below the request"


def quantity(text: str | int) -> float:
    """A quantity of Kubernetes as a number."""
    match = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|Ti|k|M|G)?", str(text))
    if not match:
        raise ValueError(f"{text} is no quantity")
    units = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 1e3, "M": 1e6, "G": 1e9}
    return float(match[1]) * units.get(match[2] or "", 1)


def references(manifests: list[Manifest], provided: set[tuple[str, str]]) -> Iterator[str]:
    """Every Secret, ConfigMap, PersistentVolumeClaim and ServiceAccount that is named exists.

    Args:
        manifests: All objects of an overlay.
        provided: Kind and name of what the set-up Job draws or the README asks for.
    """
    there = {(manifest["kind"], manifest["metadata"].get("name", "")) for manifest in manifests} | provided
    for manifest in manifests:
        for where, spec, _ in pods(manifest):
            for kind, wanted in _named(spec):
                if (kind, wanted) not in there:
                    yield f"{where} names {kind} {wanted}, which nobody makes"
            volumes = {volume["name"] for volume in spec.get("volumes", [])} | {
                claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])
            }
            for container in containers(spec):
                for mount in container.get("volumeMounts", []):
                    if mount["name"] not in volumes:
                        yield f"{where} mounts {mount['name']}, which is no volume of it"
    for secret in _auth(manifests):
        if ("Secret", secret) not in there:
            yield f"authOptions names Secret {secret}, which nobody makes"


def _auth(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        spec = manifest.get("spec", {})
        for cluster in (spec, spec.get("rayClusterSpec"), spec.get("rayClusterConfig")):
            if isinstance(cluster, dict) and "secretName" in cluster.get("authOptions", {}):
                yield cluster["authOptions"]["secretName"]


_PLACES: dict[str, Callable[[Any], str | None]] = {
    "secretKeyRef": lambda item: item["name"],
    "configMapKeyRef": lambda item: item["name"],
    "secretRef": lambda item: item["name"],
    "configMapRef": lambda item: item["name"],
    "secret": lambda item: item.get("secretName") or item.get("name"),
    "configMap": lambda item: item["name"],
    "persistentVolumeClaim": lambda item: item["claimName"],
}


def _named(spec: Any) -> Iterator[tuple[str, str]]:
    if isinstance(spec, list):
        for item in spec:
            yield from _named(item)
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
    everyone = [pod for manifest in manifests for pod in pods(manifest)]
    for manifest in manifests:
        kind, spec = manifest["kind"], manifest.get("spec", {})
        if kind == "Service":
            chosen = [pod for pod in everyone if _fits(spec.get("selector", {}), pod[2])]
            if not chosen:
                yield f"{name(manifest)} selects no pod"
            for port in spec["ports"]:
                target = port.get("targetPort", port["port"])
                if chosen and not any(_opens(pod[1], target) for pod in chosen):
                    yield f"{name(manifest)}: no selected pod opens {target}"
        elif kind in ("NetworkPolicy", "PodDisruptionBudget", "Deployment", "StatefulSet"):
            selector = spec.get("podSelector", spec.get("selector", {}))
            mine = [
                pod
                for pod in everyone
                if kind not in ("Deployment", "StatefulSet") or pod[0] == name(manifest)
            ]
            if selector and not any(_matches(selector, pod[2]) for pod in mine):
                yield f"{name(manifest)} selects no pod"


def _fits(labels: dict[str, str], value: dict[str, str]) -> bool:
    return labels.items() <= value.items()


def _matches(selector: dict[str, Any], value: dict[str, str]) -> bool:
    return _fits(selector.get("matchLabels", {}), value) and all(
        rule["operator"] != "In" or value.get(rule["key"]) in rule["values"]
        for rule in selector.get("matchExpressions", [])
    )


def _opens(spec: dict[str, Any], port: str | int) -> bool:
    ports = [item for container in containers(spec) for item in container.get("ports", [])]
    return any(port in (item.get("name"), item["containerPort"]) for item in ports)


def versions(manifests: list[Manifest], ray: str) -> Iterator[str]:
    """Ray's version everywhere is the one of the requirements."""
    for manifest in manifests:
        spec = manifest.get("spec", {})
        for key, cluster in (
            ("", spec),
            *((key, spec.get(key)) for key in ("rayClusterSpec", "rayClusterConfig")),
        ):
            if isinstance(cluster, dict) and "headGroupSpec" in cluster:
                if cluster.get("rayVersion") != ray:
                    yield f"{name(manifest)} {key} has Ray {cluster.get('rayVersion')}, not {ray}"
                if cluster.get("authOptions", {}).get("mode") != "token":
                    yield f"{name(manifest)} {key} lets everybody in: authOptions.mode is not token"


def kuberay(manifests: list[Manifest]) -> Iterator[str]:
    """What KubeRay 1.7.0 rejects although its schema allows it."""
    for manifest in manifests:
        spec, kind = manifest.get("spec", {}), manifest["kind"]
        longest = {"RayCluster": 53, "RayJob": 47, "RayService": 47}.get(kind)
        if longest and len(manifest["metadata"].get("name", "")) > longest:
            yield f"{name(manifest)}: the name is longer than {longest}"
        if kind == "RayJob":
            yield from (f"{name(manifest)}: {said}" for said in _rayjob(spec))
        if kind == "RayCluster" and spec.get("upgradeStrategy", {}).get("type") != "Recreate":
            yield f"{name(manifest)} keeps its pods when its image changes"
        for where, group in _groups(spec):
            if {"num-cpus", "num-gpus", "memory", "resources"} & group["rayStartParams"].keys() and group.get(
                "resources"
            ):
                yield f"{name(manifest)} {where}: resources in rayStartParams and in resources"
            if "labels" in group["rayStartParams"]:
                yield f"{name(manifest)} {where}: rayStartParams.labels"
            if where != "head" and not {"minReplicas", "maxReplicas"} <= group.keys():
                yield f"{name(manifest)} {where}: minReplicas and maxReplicas"


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
    for manifest in manifests:
        for where, spec, _ in pods(manifest):
            claimed = any("persistentVolumeClaim" in volume for volume in spec.get("volumes", []))
            whole = spec.get("securityContext", {})
            if (
                (claimed or manifest["spec"].get("volumeClaimTemplates"))
                and "fsGroup" in whole
                and whole.get("fsGroupChangePolicy") != "OnRootMismatch"
            ):
                yield f"{where} changes the group of every file of its volume at every start"


STANDING = ("Deployment", "StatefulSet", "DaemonSet", "RayCluster", "RayService")


def current(manifests: list[Manifest]) -> Iterator[str]:
    """ConfigMaps of a pod that stands have the hash of their content in their name: it keeps no old ones."""
    for manifest in (item for item in manifests if item["kind"] in STANDING):
        for where, spec, _ in pods(manifest):
            for kind, wanted in _named(spec):
                if kind == "ConfigMap" and not re.search(r"-[a-z0-9]{10}$", wanted):
                    yield f"{where} is not replaced when ConfigMap {wanted} changes"


def confined(manifests: list[Manifest]) -> Iterator[str]:
    """Namespaces enforce "restricted", but for the one of the root container; a default deny is there."""
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            enforced = manifest["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
            if enforced != "restricted" and manifest["metadata"]["name"] != "distml-folder":
                yield f"{name(manifest)} enforces {enforced}"
    denied = [
        manifest
        for manifest in manifests
        if manifest["kind"] == "NetworkPolicy" and manifest["spec"]["podSelector"] == {}
    ]
    if not any(set(item["spec"]["policyTypes"]) == {"Ingress", "Egress"} for item in denied):
        yield "no NetworkPolicy denies by default"


def secrets(manifests: list[Manifest]) -> Iterator[str]:
    """No Secret is written down."""
    for manifest in manifests:
        if manifest["kind"] == "Secret":
            yield f"{name(manifest)} is in git"

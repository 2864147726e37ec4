"""Everything under kuberay/ is what a cluster accepts and our rules ask for; and the checks bite."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distml import __version__
from distml.kube import cluster
from distml.tracking import database
from tests.manifests import render, rules, schema
from tests.manifests.render import KUBERAY, ROOT, Manifest

FOLDERS = render.kustomizations(KUBERAY)
OVERLAYS = [folder for folder in FOLDERS if folder.parent.name == "overlays"]
APPLIED = [*OVERLAYS, KUBERAY / "monitoring"]
CRDS = render.crds()
GENERATED = {("Secret", name) for name in cluster.GENERATED}
BROUGHT = {  # what a person creates first, as kuberay/README.md says
    "production": {("Secret", "s3"), ("Secret", "redis"), ("Secret", "mlflow-uri")},
}
RAY = re.search(r"^ray==([\d.]+)", (ROOT / "requirements" / "cpu.txt").read_text(), re.MULTILINE)
assert RAY


def every_rule(manifests: list[Manifest], overlay: str) -> list[str]:
    assert RAY
    provided = GENERATED | BROUGHT.get(overlay, set())
    checks: list[Callable[[list[Manifest]], Iterator[str]]] = [
        *(rules.images, rules.locked, rules.bounded, rules.reachable, rules.kuberay, rules.confined),
        rules.secrets,
        rules.lasting,
        rules.current,
        lambda item: rules.references(item, provided),
        lambda item: rules.versions(item, RAY[1]),
    ]
    return [said for check in checks for said in check(manifests)]


def everything(manifests: list[Manifest], overlay: str) -> list[str]:
    result = [said for manifest in manifests for said in schema.problems(manifest, CRDS)]
    return result + every_rule(manifests, overlay)


def test_there_are_overlays_and_no_file_is_left_out() -> None:
    assert {"k3d", "production"} <= {folder.name for folder in OVERLAYS}
    # A link into base/; what `make monitor` reads.
    seen = {"workflow.yaml", "laptop.yaml"}
    for path in KUBERAY.rglob("kustomization.yaml"):
        text = path.read_text()
        beside = {other.name for other in path.parent.glob("*.y*ml")} - {path.name}
        assert {name for name in beside - seen if name not in text} == set(), f"not part of {path}"
        seen |= beside
    elsewhere = {path.name for path in KUBERAY.rglob("*.y*ml") if "kustomization" not in path.name}
    files = {path.name for path in (KUBERAY / "monitoring").rglob("*.y*ml")}
    assert elsewhere - seen - files == set()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_can_be_rendered(folder: Path) -> None:
    assert render.render(folder)


def test_the_schemas_of_ray_and_argo_are_here() -> None:
    if CRDS is None:
        pytest.skip("DISTML_CRDS names no folder: Ray's and Argo's kinds are checked by our rules alone")
    assert list(CRDS.glob("ray.io_*.json"))
    assert list(CRDS.glob("argoproj.io_*.json"))


@pytest.mark.parametrize("folder", APPLIED, ids=lambda folder: folder.name)
def test_a_cluster_accepts_every_object(folder: Path) -> None:
    assert render.render(folder)
    assert [said for item in render.render(folder) for said in schema.problems(item, CRDS)] == []


@pytest.mark.parametrize("folder", APPLIED, ids=lambda folder: folder.name)
def test_what_is_applied_keeps_our_rules(folder: Path) -> None:
    actual = every_rule(render.render(folder), folder.name)
    if folder not in OVERLAYS:  # it is applied beside one, which has the namespace and its default deny
        actual = [said for said in actual if "denies by default" not in said]
    assert actual == []


@pytest.mark.parametrize("overlay", BROUGHT)
def test_the_readme_names_the_secrets_a_person_creates(overlay: str) -> None:
    text = (KUBERAY / "README.md").read_text()
    assert [name for _, name in BROUGHT[overlay] if f"secret generic {name} " not in text] == []


def test_checks_without_manifests_fail(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        render.kustomizations(tmp_path)


def test_a_folder_kustomize_rejects_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\nresources: [missing.yaml]\n")
    with pytest.raises(RuntimeError, match=r"missing\.yaml"):
        render.render(tmp_path)


def find(manifests: list[Manifest], kind: str, name: str | None = None) -> dict[str, Any]:
    return next(
        manifest
        for manifest in manifests
        if manifest["kind"] == kind and name in (None, manifest["metadata"].get("name"))
    )


def pod(manifests: list[Manifest], kind: str, name: str) -> dict[str, Any]:
    spec: dict[str, Any] = find(manifests, kind, name)["spec"]["template"]["spec"]
    return spec


def head(manifests: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = find(manifests, "RayCluster")["spec"]["headGroupSpec"]["template"]["spec"]
    return spec


def step(manifests: list[Manifest]) -> dict[str, Any]:
    known: dict[str, Any] = find(manifests, "WorkflowTemplate")["spec"]["templates"][0]
    return known


Break = Callable[[list[Manifest]], Any]
MUTATIONS: dict[str, tuple[Break, str]] = {
    "a wrong field": (lambda m: find(m, "Deployment")["spec"].update(replica=1), "replica"),
    "a wrong type": (lambda m: find(m, "Service", "mlflow")["spec"]["ports"][0].update(port="5000"), "5000"),
    "a wrong kind": (lambda m: find(m, "Deployment").update(kind="Deploiment"), "no such kind"),
    "a volume gone through": (
        lambda m: pod(m, "StatefulSet", "postgres")["securityContext"].pop("fsGroupChangePolicy"),
        "every file",
    ),
    "a dangling secret": (
        lambda m: pod(m, "StatefulSet", "postgres")["volumes"][0]["secret"].update(secretName="none"),
        "Secret none",
    ),
    "a dangling claim": (
        lambda m: head(m)["volumes"][0]["persistentVolumeClaim"].update(claimName="none"),
        "PersistentVolumeClaim none",
    ),
    "a dangling account": (lambda m: head(m).update(serviceAccountName="none"), "ServiceAccount none"),
    "a dangling config map": (
        lambda m: find(m, "WorkflowTemplate")["spec"]["volumes"][0]["configMap"].update(name="none"),
        "ConfigMap none",
    ),
    "a dangling token": (
        lambda m: find(m, "RayCluster")["spec"]["authOptions"].update(secretName="none"),
        "Secret none",
    ),
    "a mount of nothing": (lambda m: head(m)["volumes"].pop(0), "no volume"),
    "latest": (lambda m: head(m)["containers"][0].update(image="distml:latest"), "pushed last"),
    "no digest": (lambda m: head(m)["containers"][0].update(image="rayproject/ray:2.60.0"), "no digest"),
    "no version": (lambda m: head(m)["containers"][0].update(image="distml"), "no version"),
    "root": (lambda m: head(m)["securityContext"].update(runAsUser=0), "root"),
    "a writable root file system": (
        lambda m: step(m)["container"]["securityContext"].update(readOnlyRootFilesystem=False),
        "locked down",
    ),
    "a host folder": (
        lambda m: head(m)["volumes"].append({"name": "h", "hostPath": {"path": "/"}}),
        "folder",
    ),
    "no limit": (lambda m: head(m)["containers"][0]["resources"].pop("limits"), "request or limit"),
    "a limit too low": (
        lambda m: head(m)["containers"][0]["resources"]["limits"].update(memory="1Mi"),
        "below the request",
    ),
    "a selector that selects nothing": (
        lambda m: find(m, "Service", "dashboard")["spec"]["selector"].update(a="b"),
        "selects no pod",
    ),
    "a port nobody opens": (
        lambda m: find(m, "Service", "dashboard")["spec"]["ports"][0].update(targetPort="http"),
        "opens http",
    ),
    "another Ray": (lambda m: find(m, "RayCluster")["spec"].update(rayVersion="2.59.0"), "2.59.0"),
    "no authentication": (lambda m: find(m, "RayCluster")["spec"].pop("authOptions"), "token"),
    "pods of the old version": (
        lambda m: find(m, "RayCluster")["spec"].pop("upgradeStrategy"),
        "keeps its pods when its image changes",
    ),
    "settings that a pod would keep": (
        lambda m: find(m, "RayService")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"][
            "containers"
        ][0]["envFrom"].append({"configMapRef": {"name": "rayjob"}}),
        "is not replaced when ConfigMap rayjob changes",
    ),
    "no Pod Security": (lambda m: find(m, "Namespace", "distml")["metadata"].pop("labels"), "enforces"),
    "no default deny": (lambda m: m.remove(find(m, "NetworkPolicy", "default-deny")), "denies by default"),
    "a backoff limit": (lambda m: find(m, "RayJob")["spec"].update(backoffLimit=1), "backoffLimit"),
    "a job id": (lambda m: find(m, "RayJob")["spec"].update(jobId="a"), "jobId"),
    "a submitter": (lambda m: find(m, "RayJob")["spec"].pop("submissionMode"), "submitter"),
    "a secret": (
        lambda m: m.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {}}),
        "in git",
    ),
}
CUSTOM: dict[str, tuple[Break, str]] = {
    "a wrong field of Ray's": (lambda m: find(m, "RayCluster")["spec"].update(rayVersoin="2"), "rayVersoin"),
    "a wrong field of Argo's": (lambda m: step(m).update(contianer={}), "contianer"),
    "a wrong field in the job": (lambda m: find(m, "RayJob")["spec"].update(entryPoint="a"), "entryPoint"),
    "a wrong kind of Ray's": (lambda m: find(m, "RayJob").update(kind="RayJab"), "no such kind"),
}


@pytest.mark.parametrize("wrong", [*MUTATIONS, *CUSTOM])
def test_every_manifest_rule_rejects_a_violation(wrong: str) -> None:
    if wrong in CUSTOM and CRDS is None:
        pytest.skip("DISTML_CRDS names no folder")
    manifests = copy.deepcopy(render.render(KUBERAY / "overlays" / "k3d"))  # complete by the tests above
    damage, said = (MUTATIONS | CUSTOM)[wrong]
    damage(manifests)
    assert any(said in manifest for manifest in everything(manifests, "k3d"))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda folder: folder.name)
def test_tables_are_made_before_a_server_opens_them_in_the_same_database(overlay: Path) -> None:
    spec = pod(render.render(overlay), "Deployment", "mlflow")
    (first,), (server,) = spec["initContainers"], spec["containers"]
    assert (first["command"], first["image"]) == (["distml", "cluster", "database"], server["image"])
    uris = [[item for item in each["env"] if item["name"] == database.URI] for each in (first, server)]
    assert uris[0] == uris[1] != []


def test_cluster_up_waits_for_every_workload_of_the_overlay() -> None:
    waited = {folder.name: cluster.standing(render.render(folder)) for folder in OVERLAYS}
    assert [name for name, *_ in waited["k3d"]] == [
        "statefulset/postgres",
        "deployment/mlflow",
        "raycluster/distml",
        "rayservice/endpoint",
    ]
    assert [name for name, *_ in waited["production"]] == ["deployment/mlflow", "rayservice/distml"]
    assert {namespace for value in waited.values() for _, namespace, _ in value} == {"distml"}


def test_the_laptop_sizes_are_defined_once_and_fit_two_cores() -> None:
    manifests = render.render(KUBERAY / "overlays" / "k3d")
    cpus, memory, endpoint = 0.0, 0.0, 0.5
    for manifest in manifests:
        for where, spec, _ in rules.pods(manifest):
            times = 2 if where.endswith(" cpu") else 1
            for container in rules.containers(spec):
                asked = container["resources"]["requests"]
                most = endpoint if where == "RayService/endpoint head" else 0.2
                assert rules.quantity(asked["cpu"]) <= most, where
                cpus += times * rules.quantity(asked["cpu"])
                memory += times * rules.quantity(asked["memory"])
    assert cpus <= 1.5
    assert cpus + endpoint <= 2  # while a changed endpoint takes over
    assert memory <= 8 * 2**30


def test_the_image_the_manifests_run_is_the_one_that_is_built() -> None:
    text = (KUBERAY / "overlays" / "k3d" / "kustomization.yaml").read_text()
    images = yaml.safe_load(text)["images"]
    assert {image["name"]: image["newTag"] for image in images} == dict.fromkeys(cluster.IMAGES, __version__)
    for folder in cluster.IMAGES.values():
        dockerfile = (ROOT / folder / "Dockerfile").read_text()
        assert re.search(r"^ARG BASE_IMAGE=\S+@sha256:[0-9a-f]{64}$", dockerfile, re.MULTILINE)
        assert re.findall(r"^USER (\S+)$", dockerfile, re.MULTILINE)[-1] in ("1000:1000", "999:999")


def test_k3d_mounts_the_folder_the_volume_is_on_and_opens_the_ports_of_the_services() -> None:
    config = yaml.safe_load((ROOT / cluster.K3D_CONFIG).read_text())
    assert (config["apiVersion"], config["kind"]) == ("k3d.io/v1alpha5", "Simple")
    manifests = render.render(KUBERAY / "overlays" / "k3d")
    path = find(manifests, "PersistentVolume")["spec"]["hostPath"]["path"]
    assert [volume["volume"] for volume in config["volumes"]] == ["${DISTML_FOLDER}:" + path]
    ports = {item["port"] for item in config["ports"]}
    assert all(port.startswith("127.0.0.1:") for port in ports)
    balanced = [
        manifest
        for manifest in manifests
        if manifest["kind"] == "Service" and manifest["spec"].get("type") == "LoadBalancer"
    ]
    admitted = find(manifests, "NetworkPolicy", "browser")["spec"]["ingress"][0]["from"]
    ranges = [
        manifest["spec"].get("loadBalancerSourceRanges")
        for manifest in manifests
        if manifest["kind"] == "Service"
    ]
    assert [item for item in ranges if item] == [[config["subnet"]]] * 2
    assert config["subnet"] in [item["ipBlock"]["cidr"] for item in admitted if "ipBlock" in item]
    assert set(config["metadata"]) == {"name"}, "the schema of k3d rejects annotations"
    wanted = {port["port"] for item in balanced for port in item["spec"]["ports"]}
    assert 8000 in wanted
    assert wanted <= {int(port.rsplit(":", 1)[1]) for port in ports}

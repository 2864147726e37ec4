"""Bringing a cluster up and down, with programs that write down how they were called."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distml import __version__, cli
from distml.errors import ClusterError
from distml.kube import cluster
from distml.kube import cluster as kube
from distml.kube.server import Server
from distml.serving import keys
from tests import apiserver
from tests.manifests.render import render

ROOT = Path(__file__).parents[3]
PODS = {
    "items": [
        {
            "metadata": {"name": "mlflow-1"},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        },
        {"metadata": {"name": "setup-1"}, "status": {"phase": "Succeeded"}},
    ]
}


SERVICES = {"items": [{"metadata": {"name": "endpoint", "annotations": {"distml/service": "serve"}}}]}
RENDERED = "\n---\n".join(
    f"kind: {kind}\nmetadata: {{name: {name}, namespace: distml}}"
    for kind, name in (
        ("RayCluster", "distml"),
        ("RayService", "endpoint"),
        ("Service", "mlflow"),
        ("Deployment", "mlflow"),
        ("StatefulSet", "postgres"),
    )
)


class Programs:
    """docker, k3d and kubectl that only record their arguments, and fail where a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, folder / "calls"
        (folder / "pods").write_text(json.dumps(PODS))
        (folder / "rayservices").write_text(json.dumps(SERVICES))
        (folder / "rendered").write_text(RENDERED)
        for name in ("docker", "k3d", "kubectl"):
            path = folder / name
            path.write_text(
                f'#!/bin/sh\necho "{name} $*" >> {self.calls}\n'
                f'case "$*" in *"get pods"*) cat {folder}/pods;; kustomize*) cat {folder}/rendered;; '
                f'*"get rayservices"*) cat {folder}/rayservices;; esac\n'
                f'while read -r words; do case "{name} $*" in $words) echo "it broke" >&2; exit 1;; esac; '
                f"done < {folder}/fails\n"
            )
            path.chmod(0o755)
        self.fail("*get crd*", "*get namespace*", "k3d cluster get*")  # nothing is there yet

    def fail(self, *patterns: str) -> None:
        """Let calls that fit a shell pattern fail."""
        (self.folder / "fails").write_text("".join(f"{pattern}\n" for pattern in patterns))

    def called(self) -> list[str]:
        """Every call so far."""
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain_logging: None) -> Programs:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(ROOT)
    return Programs(folder)


Outcome = tuple[int, dict[str, Any], str]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    def execute(*words: str) -> Outcome:
        code = cli.run("cluster", words)
        said = capsys.readouterr()
        return code, json.loads(said.out.splitlines()[-1]), said.err

    return execute


def test_up_builds_creates_installs_applies_and_waits(
    programs: Programs, ran: Callable[..., Outcome], tmp_path: Path
) -> None:
    code, result, said = ran("up")
    assert (code, result["context"]) == (0, "k3d-distml")
    order = [
        f"docker build --target cpu -t distml:{__version__} .",
        f"docker build -t distml-postgres:{__version__} kuberay/postgres",
        "k3d cluster create --config kuberay/overlays/k3d/k3d.yaml",
        f"k3d image import --cluster distml distml:{__version__} distml-postgres:{__version__}",
        "kubectl --context k3d-distml apply --server-side -n default -k",
        "kubectl --context k3d-distml apply --server-side -n argo -f",
        "kubectl --context k3d-distml -n argo patch service argo-server",
        "kubectl --context k3d-distml apply --server-side --force-conflicts -k kuberay/overlays/k3d",
        "kubectl --context k3d-distml -n distml rollout status statefulset/postgres",
        "kubectl --context k3d-distml -n distml rollout status deployment/mlflow",
        "kubectl --context k3d-distml -n distml wait raycluster/distml --for=condition=RayClusterProvisioned",
        "kubectl --context k3d-distml -n distml wait rayservice/endpoint --for=condition=Ready",
    ]
    calls = programs.called()
    at = [next(place for place, call in enumerate(calls) if call.startswith(words)) for words in order]
    assert at == sorted(at)
    assert calls[-1] == order[7]  # once more, when KubeRay knows the RayService
    assert any(f"v{cluster.KUBERAY}" in call for call in calls)
    assert any(f"v{cluster.ARGO}" in call for call in calls)
    assert (tmp_path / "data" / "distml" / "k3d").is_dir()
    assert "http://127.0.0.1:8000" in said


def test_a_second_up_changes_nothing(programs: Programs, ran: Callable[..., Outcome]) -> None:
    programs.fail()
    code, _, said = ran("up")
    assert code == 0
    assert said.count("there already") == 5  # the cluster, two operators and their namespaces
    assert not [call for call in programs.called() if "cluster create" in call or "-n argo -f" in call]


def test_images_are_imported_where_a_node_lacks_them(programs: Programs, ran: Callable[..., Outcome]) -> None:
    docker = (programs.folder / "docker").read_text()
    nodes = 'case "$*" in ps*role=server) echo one;; ps*role=agent) echo two; echo three;; '
    has = '"image inspect"*) echo sha256:a;; "exec two"*" distml:"*) echo SECOND;; '
    rest = "exec*) echo sha256:a;; esac\n"
    for second, imported in (("sha256:a", 0), ("sha256:b", 1)):
        programs.calls.unlink(missing_ok=True)
        (programs.folder / "docker").write_text(docker + nodes + has.replace("SECOND", second) + rest)
        assert ran("up")[0] == 0
        assert len([call for call in programs.called() if call.startswith("k3d image import")]) == imported


def test_a_failing_step_names_its_command_and_the_remedy(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    programs.fail("docker build*")
    code, result, _ = ran("up")
    assert (code, result["kind"]) == (1, "ClusterError")
    assert "`docker build --target cpu" in result["error"]
    assert "it broke" in result["error"]
    assert "docker info" in result["error"]
    assert not [call for call in programs.called() if call.startswith("k3d")]


def test_an_image_missing_on_a_node_is_a_failure(programs: Programs, ran: Callable[..., Outcome]) -> None:
    said = "ERRO[0010] failed to import images in node 'k3d-distml-agent-1': no space left on device"
    k3d_itself = (programs.folder / "k3d").read_text()
    (programs.folder / "k3d").write_text(
        f'{k3d_itself}case "$*" in "image import"*) echo "{said}"; echo "Successfully imported";; esac\n'
    )
    code, result, _ = ran("up")
    assert code == 1
    assert "no space left on device" in result["error"]
    assert not [call for call in programs.called() if "-k kuberay/overlays/k3d" in call]


def test_another_cluster_is_not_touched_by_k3d_or_docker(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    code, result, _ = ran("up", "--context", "mine", "--operators", "false")
    assert (code, result["context"], result["urls"]) == (0, "mine", {})
    asked = [call for call in programs.called() if call != "kubectl kustomize kuberay/overlays/k3d"]
    assert all(call.startswith("kubectl --context mine ") for call in asked)
    assert not [call for call in programs.called() if "argo" in call]


def test_the_subnet_of_k3d_is_used_by_every_network_policy(
    programs: Programs, ran: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "kuberay", tmp_path / "kuberay", symlinks=True)
    config = tmp_path / cluster.K3D_CONFIG
    text = config.read_text()
    config.write_text(text.replace("subnet: 172.28.0.0/24", "subnet: 10.99.0.0/16"))
    objects = render(config.parent)
    named = {(each["kind"], each["metadata"].get("name")): each.get("spec") or {} for each in objects}
    for name in ("dashboard", "mlflow-browser"):
        assert named["Service", name]["loadBalancerSourceRanges"] == ["10.99.0.0/16"]
    browser = named["NetworkPolicy", "browser"]
    assert browser["ingress"][0]["from"][0] == {"ipBlock": {"cidr": "10.99.0.0/16"}}
    assert ("Simple", "distml") not in named, "it is k3d's own"
    assert "172.28" not in json.dumps(objects)
    monkeypatch.chdir(tmp_path)
    assert ran("up")[0] == 0
    (opened,) = [call for call in programs.called() if "patch service argo-server" in call]
    assert '"loadBalancerSourceRanges": ["10.99.0.0/16"]' in opened


@pytest.mark.parametrize("given", ["", "subnet: 172.28.0.0/33"])
def test_an_invalid_subnet_is_an_error_before_anything_is_created(
    programs: Programs,
    ran: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: str,
) -> None:
    config = tmp_path / cluster.K3D_CONFIG
    config.parent.mkdir(parents=True)
    config.write_text(f"kind: Simple\n{given}\n")
    monkeypatch.chdir(tmp_path)
    code, result, _ = ran("up")
    assert (code, result["kind"]) == (2, "ConfigError")
    assert f"{cluster.K3D_CONFIG} names no subnet" in result["error"]
    assert not programs.called()


def test_up_waits_for_the_workloads_of_an_overlay(programs: Programs, ran: Callable[..., Outcome]) -> None:
    (programs.folder / "rendered").write_text("kind: Deployment\nmetadata: {name: grafana, namespace: other}")
    assert ran("up", "--context", "mine", "--overlay", "kuberay/monitoring")[0] == 0
    waited = [call for call in programs.called() if "--timeout=600s" in call]
    assert waited == ["kubectl --context mine -n other rollout status deployment/grafana --timeout=600s"]
    assert len([call for call in programs.called() if call.endswith("-k kuberay/monitoring")]) == 1


def test_an_overlay_that_cannot_be_rendered_is_an_error_message(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    programs.fail("kubectl kustomize*")
    code, result, _ = ran("up", "--context", "mine")
    assert (code, result["kind"]) == (1, "ClusterError")
    assert "`kubectl kustomize kuberay/overlays/k3d` failed" in result["error"]
    assert not [call for call in programs.called() if " apply " in call]


def test_the_database_must_be_a_postgresql(
    ran: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, plain_logging: None
) -> None:
    for uri, said in ((None, "names nothing"), ("sqlite:///mlflow.db", "names sqlite")):
        if uri:
            monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", uri)
        code, result, _ = ran("database")
        assert (code, result["kind"]) == (2, "ConfigError")
        assert said in result["error"]
        assert "postgresql+psycopg2://" in result["error"]


def test_a_missing_program_is_an_error_message(
    programs: Programs, ran: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    (programs.folder / "k3d").unlink()
    monkeypatch.setenv("PATH", str(programs.folder))
    code, result, _ = ran("up")
    assert code == 1
    assert "k3d is not installed" in result["error"]


def test_outside_the_repository_nothing_is_started(
    programs: Programs, ran: Callable[..., Outcome], workdir: Path
) -> None:
    code, result, _ = ran("up")
    assert code == 2
    assert "kuberay/overlays/k3d" in result["error"]
    assert not programs.called()


def test_status_is_ready_when_every_standing_pod_is(programs: Programs, ran: Callable[..., Outcome]) -> None:
    code, result, said = ran("status")
    assert (code, result["ready"]) == (0, True)
    assert "mlflow-1" in said
    assert "not ready" not in said, "a job that is done is not what one waits for"
    (programs.folder / "rayservices").write_text('{"items": []}')
    code, _, said = ran("status")
    assert code == 1
    assert "TO DO endpoint: apply the overlay" in said
    waiting = {"ready": False, "restartCount": 3, "state": {"waiting": {"reason": "ErrImagePull"}}}
    pods = {
        "items": [{"metadata": {"name": "a"}, "status": {"phase": "Pending", "containerStatuses": [waiting]}}]
    }
    (programs.folder / "pods").write_text(json.dumps(pods))
    code, _, said = ran("status")
    assert code == 1
    assert "ErrImagePull" in said


def test_status_without_a_cluster_is_an_error_message(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    programs.fail("*get pods*")
    code, result, _ = ran("status")
    assert code == 1
    assert "Is the cluster up" in result["error"]


def test_down_deletes_our_cluster_and_only_our_objects_of_another(
    programs: Programs, ran: Callable[..., Outcome]
) -> None:
    assert ran("down")[0] == 0
    assert ran("down", "--context", "mine")[0] == 0
    assert programs.called() == [
        "k3d cluster delete distml",
        "kubectl --context mine -n distml delete rayjobs,rayservices,rayclusters --all",
        "kubectl --context mine delete --ignore-not-found -k kuberay/overlays/k3d",
    ]


def test_missing_secrets_are_generated_and_existing_ones_kept(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-canary")
    with apiserver.serving(apiserver.Cluster([])) as cluster:
        where = Server(cluster.url, "distml", tmp_path, patience_s=2)
        cluster.secrets["ray-token"] = {"auth_token": "old"}
        assert kube.create_secrets(where) == ["api-keys", "mlflow-database"]
        assert kube.create_secrets(where) == []
    drawn = base64.b64decode(cluster.secrets["mlflow-database"]["password"]).decode()
    assert len(drawn) == 64
    assert int(drawn, 16) > 0
    assert cluster.secrets["ray-token"] == {"auth_token": "old"}
    given = {name: base64.b64decode(value) for name, value in cluster.secrets["api-keys"].items()}
    file = tmp_path / "keys"
    file.touch(0o600)
    file.write_bytes(given["keys"])
    assert keys.read(file) == (keys.Key("cluster", keys.digest(given["key"])),)


def test_a_rejection_is_an_error_message(tmp_path: Path) -> None:
    with apiserver.serving(apiserver.Cluster([])) as cluster, pytest.raises(ClusterError, match="401"):
        kube.create_secrets(Server(cluster.url, "distml", tmp_path, patience_s=2))
    assert cluster.secrets == {}

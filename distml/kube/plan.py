"""The steps from nothing to a running cluster (driver)."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import yaml

from distml import __version__
from distml.errors import ClusterError, ConfigError
from distml.kube import steps
from distml.kube.steps import Step

KUBERAY, ARGO = "1.7.0", "4.1.2"
"""Versions of the operators."""
_KUBERAY = f"https://github.com/ray-project/kuberay/ray-operator/config/default?ref=v{KUBERAY}"
_ARGO = f"https://github.com/argoproj/argo-workflows/releases/download/v{ARGO}/install.yaml"
K3D_CONFIG = "kuberay/overlays/k3d/k3d.yaml"
"""What k3d makes the cluster from."""
IMAGES = {"distml": ".", "distml-postgres": "kuberay/postgres"}
"""Images built here, and the folder each is built from."""


def k3d(folder: Path, base_image: str | None) -> list[Step]:
    """Build the images, create the cluster and import them.

    Args:
        folder: Of this machine, shared by the nodes.
        base_image: What the images are built on, None for the Dockerfile's own.
    """
    base = ["--build-arg", f"BASE_IMAGE={base_image}"] if base_image else []
    target = {"distml": ["--target", "cpu"]}
    made = [
        Step(
            f"build the image {name}:{__version__} (minutes the first time)",
            ["docker", "build", *target.get(name, []), *base, "-t", f"{name}:{__version__}", source],
            "Is Docker running (`docker info`)? `docker build` by hand shows the whole output.",
            limit_s=3600,
        )
        for name, source in IMAGES.items()
    ]
    create = Step(
        "create the k3d cluster distml",
        ["k3d", "cluster", "create", "--config", K3D_CONFIG],
        "Are ports 8265, 8000, 5000 and 2746 free? `k3d cluster delete distml` clears a half-made one.",
        unless=lambda: steps.quiet(["k3d", "cluster", "get", "distml"]) is not None,
        environment={"DISTML_FOLDER": str(folder)},
    )
    load = Step(
        "import the images into its nodes (about two minutes)",
        ["k3d", "image", "import", "--cluster", "distml", *(f"{name}:{__version__}" for name in IMAGES)],
        "Is there room on the disk (`docker system df`)? Each node keeps its own copy.",
        unless=_imported,
        refusal="failed to import",  # k3d 5.9 tells of a node that took none and ends with 0
    )
    return [*made, create, load]


def _imported() -> bool:
    """Whether every node has the very images that Docker has."""
    listed = ["docker", "ps", "-q", "--filter", "label=k3d.cluster=distml"]
    nodes = [
        steps.quiet([*listed, "--filter", f"label=k3d.role={role}"]) or "" for role in ("server", "agent")
    ]
    here = ["docker", "image", "inspect", "-f", "{{.Id}}"]
    there = ["crictl", "inspecti", "-o", "go-template", "--template", "{{.status.id}}"]
    wanted = {image: _line([*here, image]) for image in (f"{name}:{__version__}" for name in IMAGES)}
    return all((*nodes, *wanted.values())) and all(
        _line(["docker", "exec", node, *there, image]) == digest
        for node in "".join(nodes).split()
        for image, digest in wanted.items()
    )


def _line(command: list[str]) -> str:
    return (steps.quiet(command) or "").strip()


def operators(kubectl: list[str]) -> list[Step]:
    """Install KubeRay and Argo where their definitions are missing."""

    def there(definition: str) -> bool:
        return steps.quiet([*kubectl, "get", "crd", definition]) is not None

    def applied(name: str, words: list[str], definition: str) -> list[Step]:
        space = words.pop()
        return [
            Step(
                f"namespace {space}",
                [*kubectl, "create", "namespace", space],
                "",
                unless=lambda: steps.quiet([*kubectl, "get", "namespace", space]) is not None,
            ),
            Step(
                f"install {name}",
                [*kubectl, "apply", "--server-side", "-n", space, *words],
                "It comes from the internet; without it, install it by hand and give --operators false.",
                unless=lambda: there(definition),
            ),
        ]

    return [
        *applied(f"KubeRay {KUBERAY}", ["-k", _KUBERAY, "default"], "rayjobs.ray.io"),
        *applied(f"Argo Workflows {ARGO}", ["-f", _ARGO, "argo"], "workflows.argoproj.io"),
    ]


def subnet(config: str = K3D_CONFIG) -> str:
    """Network of k3d's nodes and its load balancer, which alone may reach the dashboards.

    Raises:
        ConfigError: The configuration of k3d cannot be read or names none.
    """
    try:
        return str(ipaddress.ip_network(yaml.safe_load(Path(config).read_text())["subnet"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{config} names no subnet ({type(error).__name__}: {error}).", "Give one such as 172.28.0.0/24."
        ) from None


def argo(kubectl: list[str]) -> list[Step]:
    """Open Argo's page on the port that k3d has for it.

    Raises:
        ConfigError: The configuration of k3d names no subnet.
    """
    opened = {"type": "LoadBalancer", "loadBalancerSourceRanges": [subnet()]}
    return [
        Step(
            "open Argo's page",
            [*kubectl, "-n", "argo", "patch", "service", "argo-server", "-p", json.dumps({"spec": opened})],
            "",
            needed=False,
        )
    ]


def apply(kubectl: list[str], overlay: str) -> list[Step]:
    """Apply an overlay and wait for what it holds.

    Raises:
        ClusterError: The overlay cannot be rendered.
    """
    return [
        Step(
            "clear finished set-up jobs",
            [
                *kubectl,
                "delete",
                "job",
                "-A",
                "-l",
                "app.kubernetes.io/component=setup",
                "--ignore-not-found",
            ],
            "",
            needed=False,
        ),
        Step(
            f"apply {overlay}",
            [*kubectl, "apply", "--server-side", "--force-conflicts", "-k", overlay],
            "The last words name what was refused; with --operators false KubeRay and Argo must be there.",
        ),
        *[
            Step(
                f"wait for {name}",
                [*kubectl, "-n", namespace, *words, "--timeout=600s"],
                f"`{' '.join(kubectl)} -n {namespace} get pods,events` says why; causes: kuberay/README.md.",
            )
            for name, namespace, words in standing(rendered(overlay))
        ],
    ]


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay.

    Raises:
        ClusterError: kustomize refuses it.
    """
    command = ["kubectl", "kustomize", overlay]
    text = steps.quiet(command)
    if text is None:
        raise ClusterError(f"`{' '.join(command)}` failed.", "Run it by hand: its last words name the cause.")
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


_CONDITIONS = {"RayCluster": "RayClusterProvisioned", "RayService": "Ready"}
_FIRST = ("StatefulSet", "Deployment", "RayCluster", "RayService")
"""Kinds that are waited for, what others need first."""


def standing(manifests: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Return what is to be waited for: name, namespace and the words for kubectl."""
    found = []
    for manifest in sorted(
        (manifest for manifest in manifests if manifest["kind"] in _FIRST),
        key=lambda manifest: _FIRST.index(manifest["kind"]),
    ):
        kind, about = manifest["kind"], manifest["metadata"]
        name = f"{kind.lower()}/{about['name']}"
        words = ["rollout", "status", name]
        if kind in _CONDITIONS:
            words = ["wait", name, f"--for=condition={_CONDITIONS[kind]}"]
        found.append((name, about.get("namespace", "distml"), words))
    return found


def remove(kubectl: list[str], overlay: str) -> list[Step]:
    """Delete what an overlay holds.

    Ray's own objects go first: where the GCS is fault-tolerant, KubeRay starts a Job that clears its Redis,
    and in a namespace that is being deleted nothing can be started, so that both would wait for ever.
    """
    return [
        Step(
            "end Ray's jobs, services and clusters",
            [*kubectl, "-n", "distml", "delete", "rayjobs,rayservices,rayclusters", "--all"],
            "",
            needed=False,
        ),
        Step(
            "take it down",
            [*kubectl, "delete", "--ignore-not-found", "-k", overlay],
            "Run the command by hand.",
        ),
    ]

"""`distml cluster up` and `down`: the Kubernetes cluster, its operators and secrets (driver)."""

from __future__ import annotations

import base64
import functools
import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from distml import __version__
from distml.errors import ClusterError, ConfigError
from distml.kube.server import ConflictError, Server
from distml.runtime import environment

KUBERAY, ARGO = "1.7.0", "4.1.2"
"""Versions of the operators."""
_KUBERAY = f"https://github.com/ray-project/kuberay/ray-operator/config/default?ref=v{KUBERAY}"
_ARGO = f"https://github.com/argoproj/argo-workflows/releases/download/v{ARGO}/install.yaml"
K3D_CONFIG = "kuberay/overlays/k3d/k3d.yaml"
"""What k3d makes the cluster from."""
IMAGES = {"distml": ".", "distml-postgres": "kuberay/postgres"}
"""Images built here, and the folder each is built from."""
_CONDITIONS = {"RayCluster": "RayClusterProvisioned", "RayService": "Ready"}
_FIRST = ("StatefulSet", "Deployment", "RayCluster", "RayService")
"""Kinds that are waited for, what others need first."""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: What it does, for the person waiting.
        command: Words.
        remedy: What to do when it fails.
        unless: Whether there is nothing to do; called right before.
        needed: Whether its failure ends everything.
        environment: Variables set for it.
        limit_s: Seconds it may take.
        refusal: Text in its output that means failure whatever the exit code.
    """

    name: str
    command: Sequence[str]
    remedy: str
    unless: Callable[[], bool] = field(default=lambda: False)
    needed: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 900.0
    refusal: str = ""


def output(command: Sequence[str], limit_s: float = 60.0) -> str | None:
    """Output of a command, None when it fails or does not exist."""
    return attempt(command, limit_s)[0]


def attempt(
    command: Sequence[str], limit_s: float = 60.0, given: str | None = None
) -> tuple[str | None, str]:
    """Run a command that may fail.

    Args:
        command: Program and arguments.
        limit_s: Seconds it may take.
        given: Its standard input, nothing by default.

    Returns:
        Its output, None when it fails or does not exist, and then the last line of why.
    """
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except OSError as error:
        return None, f"{command[0]} cannot be started: {error.strerror}"
    except subprocess.TimeoutExpired:
        return None, f"no response for {limit_s:g} s"
    if done.returncode == 0:
        return done.stdout, ""
    return None, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def require(tools: Mapping[str, str]) -> None:
    """Check that programs are installed.

    Args:
        tools: What each is for, by name.

    Raises:
        ClusterError: One is missing.
    """
    for tool, purpose in tools.items():
        if shutil.which(tool) is None:
            raise ClusterError(
                f"{tool} is not installed; it {purpose}.", f"Install {tool}, or see `--context`."
            )


def perform(steps: Sequence[Step], say: Callable[[str], None], environment: Mapping[str, str]) -> None:
    """Run steps one after the other; what is done already is skipped.

    Args:
        steps: In order.
        say: Called with a line for every step, and every 15 seconds while one runs.
        environment: Of the commands.

    Raises:
        ClusterError: A needed step failed; names the command, its last words and the remedy.
    """
    for number, step in enumerate(steps, 1):
        mark = f"[{number}/{len(steps)}] {step.name}"
        if step.unless():
            say(f"{mark}: there already")
            continue
        say(mark)
        began = time.monotonic()
        error = _execute(step, say, environment)
        if error and step.needed:
            raise ClusterError(f"`{' '.join(step.command)}` failed: {error.rstrip('.')}.", step.remedy)
        say(f"{mark}: {'skipped, ' + error if error else f'{time.monotonic() - began:.0f} s'}")


def _execute(step: Step, say: Callable[[str], None], environment: Mapping[str, str]) -> str:
    """Run one command; returns the last line of its output when it failed, else nothing."""
    try:
        process = subprocess.Popen(
            step.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, **step.environment},
        )
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    deadline = time.monotonic() + step.limit_s
    while True:
        try:
            out, _ = process.communicate(timeout=15)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                process.kill()
                process.communicate()
                return f"it took more than {step.limit_s:.0f} s"
            say("    ...")
    lines = [line for line in out.splitlines() if line.strip()]
    refused = [line for line in lines if step.refusal and step.refusal in line]
    last = (refused or lines or ["it printed nothing"])[-1].strip()
    return last[:300] if process.returncode or refused else ""


def k3d_steps(folder: Path, base_image: str | None) -> list[Step]:
    """Build the images, create the cluster and import them.

    Args:
        folder: Of this machine, shared by the nodes.
        base_image: What the images are built on, None for the Dockerfile's own.
    """
    base = ["--build-arg", f"BASE_IMAGE={base_image}"] if base_image else []
    target = {"distml": ["--target", "cpu"]}
    build = [
        Step(
            f"build the image {name}:{__version__} (minutes the first time)",
            ["docker", "build", *target.get(name, []), *base, "-t", f"{name}:{__version__}", source],
            "Is Docker running (`docker info`)? `docker build` run manually shows the whole output.",
            limit_s=3600,
        )
        for name, source in IMAGES.items()
    ]
    create = Step(
        "create the k3d cluster distml",
        ["k3d", "cluster", "create", "--config", K3D_CONFIG],
        "Are ports 8265, 8000, 5000 and 2746 free? `k3d cluster delete distml` removes an incomplete one.",
        unless=lambda: output(["k3d", "cluster", "get", "distml"]) is not None,
        environment=environment.K3D.values({"DISTML_FOLDER": str(folder)}),
    )
    load = Step(
        "import the images into its nodes (about two minutes)",
        ["k3d", "image", "import", "--cluster", "distml", *(f"{name}:{__version__}" for name in IMAGES)],
        "Is there space on the disk (`docker system df`)? Each node keeps its own copy.",
        unless=_imported,
        refusal="failed to import",  # k3d 5.9 reports a node that took none and exits 0
    )
    return [*build, create, load]


def _imported() -> bool:
    """Whether every node has the very images that Docker has."""
    listed = ["docker", "ps", "-q", "--filter", "label=k3d.cluster=distml"]
    nodes = [output([*listed, "--filter", f"label=k3d.role={role}"]) or "" for role in ("server", "agent")]
    in_docker = ["docker", "image", "inspect", "-f", "{{.Id}}"]
    on_node = ["crictl", "inspecti", "-o", "go-template", "--template", "{{.status.id}}"]
    wanted = {image: _line([*in_docker, image]) for image in (f"{name}:{__version__}" for name in IMAGES)}
    return all((*nodes, *wanted.values())) and all(
        _line(["docker", "exec", node, *on_node, image]) == digest
        for node in "".join(nodes).split()
        for image, digest in wanted.items()
    )


def _line(command: list[str]) -> str:
    return (output(command) or "").strip()


def operators_steps(kubectl: list[str]) -> list[Step]:
    """Install KubeRay and Argo where their definitions are missing."""

    def installed(definition: str) -> bool:
        return output([*kubectl, "get", "crd", definition]) is not None

    def install(name: str, source: list[str], namespace: str, definition: str) -> list[Step]:
        return [
            Step(
                f"namespace {namespace}",
                [*kubectl, "create", "namespace", namespace],
                "",
                unless=lambda: output([*kubectl, "get", "namespace", namespace]) is not None,
            ),
            Step(
                f"install {name}",
                [*kubectl, "apply", "--server-side", "-n", namespace, *source],
                "It comes from the internet; without it, install it manually and give --operators false.",
                unless=lambda: installed(definition),
            ),
        ]

    return [
        *install(f"KubeRay {KUBERAY}", ["-k", _KUBERAY], "default", "rayjobs.ray.io"),
        *install(f"Argo Workflows {ARGO}", ["-f", _ARGO], "argo", "workflows.argoproj.io"),
    ]


def subnet(config: str = K3D_CONFIG) -> str:
    """Network of k3d's nodes and its load balancer, which alone may reach the dashboards.

    Raises:
        ConfigError: The configuration of k3d cannot be read or names none.
    """
    try:
        return str(ipaddress.ip_network(yaml.safe_load(Path(config).read_text("utf-8"))["subnet"]))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{config} names no subnet ({type(error).__name__}: {error}).", "Give one such as 172.28.0.0/24."
        ) from None


def argo_steps(kubectl: list[str]) -> list[Step]:
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


def apply_steps(kubectl: list[str], overlay: str) -> list[Step]:
    """Apply an overlay and wait for what it holds.

    Raises:
        ClusterError: The overlay cannot be rendered.
    """
    manifests = rendered(overlay)
    apply = [*kubectl, "apply", "--server-side", "--force-conflicts", "-k", overlay]
    # Services are applied first, and KubeRay restores one that the RayService of before still owns.
    again = [Step(f"apply {overlay} again, after KubeRay", apply, "Run the command manually.")]
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
            apply,
            "The last line names what was rejected; with --operators false KubeRay and Argo must be there.",
        ),
        *[
            Step(
                f"wait for {name}",
                [*kubectl, "-n", namespace, *words, "--timeout=600s"],
                f"`{' '.join(kubectl)} -n {namespace} get pods,events` says why; causes: kuberay/README.md.",
            )
            for name, namespace, words in standing(manifests)
        ],
        *(again if any(manifest["kind"] == "RayService" for manifest in manifests) else []),
    ]


def rendered(overlay: str) -> list[dict[str, Any]]:
    """Return the objects of an overlay.

    Raises:
        ClusterError: kustomize rejects it.
    """
    command = ["kubectl", "kustomize", overlay]
    text = output(command)
    if text is None:
        raise ClusterError(
            f"`{' '.join(command)}` failed.", "Run it manually: its last line names the cause."
        )
    return [manifest for manifest in yaml.safe_load_all(text) if manifest]


def standing(manifests: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Return what is to be waited for: name, namespace and the words for kubectl."""
    waits = []
    for manifest in sorted(
        (manifest for manifest in manifests if manifest["kind"] in _FIRST),
        key=lambda manifest: _FIRST.index(manifest["kind"]),
    ):
        kind, metadata = manifest["kind"], manifest["metadata"]
        name = f"{kind.lower()}/{metadata['name']}"
        words = ["rollout", "status", name]
        if kind in _CONDITIONS:
            words = ["wait", name, f"--for=condition={_CONDITIONS[kind]}"]
        waits.append((name, metadata.get("namespace", "distml"), words))
    return waits


def remove_steps(kubectl: list[str], overlay: str) -> list[Step]:
    """Delete what an overlay holds.

    Ray's own objects go first: where the GCS is fault-tolerant, KubeRay starts a Job that clears its Redis,
    and in a namespace that is being deleted nothing can be started, so that both would wait without end.
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
            "Run the command manually.",
        ),
    ]


_API_KEY_NAME = "cluster"


def _hexadecimal(key: str) -> dict[str, str]:
    return {key: secrets.token_hex(32)}


def _api_keys() -> dict[str, str]:
    """A keys file of the endpoint with one key, and that key alone, for the first client."""
    key = secrets.token_hex(32)
    return {"keys": f"{_API_KEY_NAME} {key}\n", "key": key}


GENERATED: dict[str, Callable[[], dict[str, str]]] = {
    "api-keys": _api_keys,
    "mlflow-database": functools.partial(_hexadecimal, "password"),
    "ray-token": functools.partial(_hexadecimal, "auth_token"),
}
"""What draws a secret: the endpoint's keys, PostgreSQL's password, the token of every Ray cluster."""
_URLS = {
    "ray": "http://127.0.0.1:8265",
    "serve": "http://127.0.0.1:8000",
    "mlflow": "http://127.0.0.1:5000",
    "argo": "https://127.0.0.1:2746",
}
_TOOLS = {"kubectl": "talks to Kubernetes"}
_K3D_TOOLS = {"docker": "builds the images and holds k3d's nodes", "k3d": "makes the cluster"}


@dataclass(frozen=True)
class Target:
    """A cluster and what is applied to it.

    Attributes:
        context: Of kubectl, None for the cluster that k3d makes here.
        overlay: Folder of a kustomization.
        folder: Shared by k3d's nodes; None for `~/.local/share/distml/k3d`.
    """

    context: str | None = None
    overlay: str = "kuberay/overlays/k3d"
    folder: str | None = None

    @property
    def kubectl(self) -> list[str]:
        """The words that every kubectl command begins with."""
        return ["kubectl", "--context", self.context or "k3d-distml"]

    @property
    def shared(self) -> Path:
        """Folder that k3d's nodes share, as an absolute path."""
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
        return Path(self.folder).absolute() if self.folder else data / "distml" / "k3d"


def say(text: str) -> None:
    """Print a line to standard error."""
    print(text, file=sys.stderr, flush=True)


def up(target: Target, operators: bool = True, base_image: str | None = None) -> dict[str, Any]:
    """Create what is missing, apply the overlay and wait until it is ready.

    Args:
        target: The cluster.
        operators: Install KubeRay and Argo where they are missing.
        base_image: What the images are built on, None for the Dockerfile's own.

    Returns:
        The context and the URLs.

    Raises:
        ConfigError: There is no such overlay, or k3d's configuration names no subnet.
        ClusterError: A step failed.
    """
    ours = target.context is None
    if not Path(target.overlay).is_dir():
        raise ConfigError(f"there is no folder {target.overlay}.", "Run this in the repository.")
    require(_TOOLS | (_K3D_TOOLS if ours else {}))
    if ours:
        target.shared.mkdir(parents=True, exist_ok=True)
    todo = k3d_steps(target.shared, base_image) if ours else []
    todo += operators_steps(target.kubectl) if operators else []
    todo += argo_steps(target.kubectl) if ours else []
    perform(todo + apply_steps(target.kubectl, target.overlay), say, os.environ)
    if ours:
        say("\n".join(f"  {name:<7} {url}" for name, url in _URLS.items()))
    return {"context": target.kubectl[2], "urls": _URLS if ours else {}}


def down(target: Target) -> dict[str, Any]:
    """Delete the k3d cluster, but not its shared folder; of another cluster, what the overlay holds.

    Raises:
        ClusterError: The command failed.
    """
    if target.context is None:
        todo = [Step("take it down", ["k3d", "cluster", "delete", "distml"], "Run the command manually.")]
    else:
        todo = remove_steps(target.kubectl, target.overlay)
    require({todo[0].command[0]: "is what takes it down"})
    perform(todo, say, os.environ)
    return {"kept": str(target.shared) if target.context is None else None}


def create_secrets(server: Server) -> list[str]:
    """Draw the secrets that do not exist (the Job `setup`); others stay as they are, and none is ever read.

    Returns:
        The names of the new ones.

    Raises:
        ClusterError: The API server rejects the request or does not respond.
    """
    new = []
    for name, draw in GENERATED.items():
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "distml"}},
            "data": {key: base64.b64encode(value.encode()).decode() for key, value in draw().items()},
        }
        try:
            server.create("api/v1/secrets", body)
        except ConflictError:
            continue
        new.append(name)
    return new

"""The Kubernetes cluster of kuberay/: brought up, shown, taken down, given its secrets (driver)."""

from __future__ import annotations

import base64
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distml.errors import ClusterError, ConfigError
from distml.kube import steps
from distml.kube.server import ConflictError, Server
from distml.kube.steps import Step

GENERATED = {"mlflow-database": "password", "ray-token": "auth_token"}
"""Secrets and their one key: PostgreSQL's password, and the token of every Ray cluster."""
_URLS = {
    "ray": "http://127.0.0.1:8265",
    "serve": "http://127.0.0.1:8000",
    "mlflow": "http://127.0.0.1:5000",
    "argo": "https://127.0.0.1:2746",
}
_ENDED = ("Succeeded", "Failed")
_TOOLS = {"kubectl": "talks to Kubernetes"}
_K3D_TOOLS = {"docker": "builds the images and holds k3d's nodes", "k3d": "makes the cluster"}


@dataclass(frozen=True)
class Target:
    """A cluster and what is applied to it.

    Args:
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


def _say(text: str) -> None:
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
    steps.require(_TOOLS | (_K3D_TOOLS if ours else {}))
    if ours:
        target.shared.mkdir(parents=True, exist_ok=True)
    todo = steps.k3d(target.shared, base_image) if ours else []
    todo += steps.operators(target.kubectl) if operators else []
    todo += steps.argo(target.kubectl) if ours else []
    steps.perform(todo + steps.apply(target.kubectl, target.overlay), _say, os.environ)
    if ours:
        _say("\n".join(f"  {name:<7} {url}" for name, url in _URLS.items()))
    return {"context": target.kubectl[2], "urls": _URLS if ours else {}}


def down(target: Target) -> dict[str, Any]:
    """Delete the k3d cluster, but not its shared folder; of another cluster, what the overlay holds.

    Raises:
        ClusterError: The command failed.
    """
    if target.context is None:
        todo = [Step("take it down", ["k3d", "cluster", "delete", "distml"], "Run the command by hand.")]
    else:
        todo = steps.remove(target.kubectl, target.overlay)
    steps.require({todo[0].command[0]: "is what takes it down"})
    steps.perform(todo, _say, os.environ)
    return {"kept": str(target.shared) if target.context is None else None}


def status(target: Target) -> dict[str, Any]:
    """Print the pods and say whether all that stand are ready.

    Raises:
        ClusterError: The cluster does not answer, there are no pods, or not every pod is ready.
    """
    pods = _pods(target.kubectl)
    for pod in pods:
        ready = pod["ready"] or pod["phase"] in _ENDED
        words = f"{pod['phase']}{'' if ready else ', not ready'} {pod['waiting']}".strip()
        _say(f"  {pod['pod']:<48} {words}  {pod['restarts']} restarts")
    standing = [pod for pod in pods if pod["phase"] not in _ENDED]
    if standing and all(pod["ready"] for pod in standing):
        return {"ready": True, "pods": pods}
    raise ClusterError(
        "not every pod is ready." if pods else "there are no pods.", "See `distml cluster up`."
    )


def _pods(kubectl: Sequence[str]) -> list[dict[str, Any]]:
    """Every pod as name, phase, ready, restarts and the reason it waits for.

    Raises:
        ClusterError: The cluster does not answer.
    """
    text = steps.output([*kubectl, "get", "pods", "-n", "distml", "-o", "json"])
    if text is None:
        raise ClusterError(
            f"`{' '.join(kubectl)} get pods` failed.", "Is the cluster up, and the context right?"
        )
    pods = []
    for pod in json.loads(text)["items"]:
        states = pod.get("status", {}).get("containerStatuses") or []
        waiting = [
            state["state"]["waiting"].get("reason", "")
            for state in states
            if "waiting" in state.get("state", {})
        ]
        pods.append(
            {
                "pod": pod["metadata"]["name"],
                "phase": pod.get("status", {}).get("phase", "Unknown"),
                "ready": bool(states) and all(state.get("ready") for state in states),
                "restarts": sum(state.get("restartCount", 0) for state in states),
                "waiting": ", ".join(filter(None, waiting)),
            }
        )
    return pods


def create_secrets(server: Server) -> list[str]:
    """Draw the secrets that do not exist (the Job `setup`); others stay as they are, and none is ever read.

    Returns:
        The names of the new ones.

    Raises:
        ClusterError: The API server refuses or does not answer.
    """
    new = []
    for name, key in GENERATED.items():
        value = base64.b64encode(secrets.token_hex(32).encode()).decode()
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "distml"}},
            "data": {key: value},
        }
        try:
            server.create("api/v1/secrets", body)
        except ConflictError:
            continue
        new.append(name)
    return new

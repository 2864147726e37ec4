"""Bring up, look at or take down the Kubernetes cluster of kuberay/ (driver)."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distml import cli
from distml.config import Config
from distml.errors import ClusterError, ConfigError
from distml.kube import plan, secrets, server, steps
from distml.kube.steps import Step
from distml.tracking import database

_URLS = {
    "ray": "http://127.0.0.1:8265",
    "serve": "http://127.0.0.1:8000",
    "mlflow": "http://127.0.0.1:5000",
    "argo": "https://127.0.0.1:2746",
}
_ENDED = ("Succeeded", "Failed")
_TOOLS = {"kubectl": "talks to Kubernetes"}
_K3D_TOOLS = {"docker": "builds the images and holds k3d's nodes", "k3d": "makes the cluster"}


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument(
        "what", choices=["up", "down", "status", "secrets", "database"], help="the last two: in the cluster"
    )
    parser.add_argument("--context", metavar="NAME", help="a cluster of yours instead of k3d's")
    parser.add_argument("--overlay", metavar="FOLDER", default="kuberay/overlays/k3d", help="what is applied")
    parser.add_argument("--folder", metavar="PATH", help="shared by k3d's nodes; ~/.local/share/distml/k3d")
    parser.add_argument("--operators", metavar="true|false", default="true", help="install KubeRay and Argo")
    parser.add_argument("--base-image", metavar="NAME", help="Debian or Ubuntu to build the images on")


def _kubectl(namespace: Namespace) -> list[str]:
    return ["kubectl", "--context", namespace.context or "k3d-distml"]


def _folder(namespace: Namespace) -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(namespace.folder).absolute() if namespace.folder else data / "distml" / "k3d"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def up(namespace: Namespace) -> dict[str, Any]:
    """Create what is missing, apply the overlay and wait until it is ready.

    Returns:
        The URLs.

    Raises:
        ClusterError: A step failed.
    """
    ours = namespace.context is None
    if not Path(namespace.overlay).is_dir():
        raise ConfigError(f"there is no folder {namespace.overlay}.", "Run this in the repository.")
    steps.require(_TOOLS | (_K3D_TOOLS if ours else {}))
    kubectl = _kubectl(namespace)
    if ours:
        _folder(namespace).mkdir(parents=True, exist_ok=True)
    todo = plan.k3d(_folder(namespace), namespace.base_image) if ours else []
    todo += plan.operators(kubectl) if namespace.operators == "true" else []
    todo += plan.argo(kubectl) if ours else []
    steps.perform(todo + plan.apply(kubectl, namespace.overlay), _say, os.environ)
    if ours:
        _say("\n".join(f"  {name:<7} {url}" for name, url in _URLS.items()))
    return {"context": kubectl[2], "urls": _URLS if ours else {}}


def down(namespace: Namespace) -> dict[str, Any]:
    """Delete the k3d cluster; its shared folder stays. Elsewhere delete what the overlay holds.

    Raises:
        ClusterError: The command failed.
    """
    if namespace.context is None:
        todo = [Step("take it down", ["k3d", "cluster", "delete", "distml"], "Run the command by hand.")]
    else:
        todo = plan.remove(_kubectl(namespace), namespace.overlay)
    steps.require({todo[0].command[0]: "is what takes it down"})
    steps.perform(todo, _say, os.environ)
    return {"kept": str(_folder(namespace)) if namespace.context is None else None}


def status(namespace: Namespace) -> dict[str, Any]:
    """Pods and whether all of them are ready.

    Raises:
        ClusterError: The cluster does not answer.
    """
    pods = steps.pods(_kubectl(namespace))
    for pod in pods:
        ready = pod["ready"] or pod["phase"] in _ENDED
        words = f"{pod['phase']}{'' if ready else ', not ready'} {pod['waiting']}".strip()
        _say(f"  {pod['pod']:<48} {words}  {pod['restarts']} restarts")
    standing = [pod for pod in pods if pod["phase"] not in _ENDED]
    ready = bool(standing) and all(pod["ready"] for pod in standing)
    if ready:
        return {"ready": True, "pods": pods}
    raise ClusterError(
        "not every pod is ready." if pods else "there are no pods.", "See `distml cluster up`."
    )


def run(config: Config, namespace: Namespace) -> dict[str, Any]:
    """Do one of the five.

    Raises:
        ClusterError: It failed; names the command and the remedy.
    """
    if namespace.what == "secrets":
        return {"created": secrets.create(server.here())}
    if namespace.what == "database":
        database.upgrade(os.environ.get(database.URI, ""))
        return {"ready": True}
    return {"up": up, "down": down, "status": status}[namespace.what](namespace)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("cluster", run, argv, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())

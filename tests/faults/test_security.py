"""Who may talk to Ray and MLflow, and that secrets stay where they were given."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from distml.serving import ingress
from tests.runner import REPOSITORY, Training

pytestmark = [pytest.mark.fault, pytest.mark.timeout(400)]


def token_of(run: Training) -> tuple[str, Path]:
    """The token that a driver's Ray wants, and its file."""
    environment = run.workers()[0].environ()
    path = Path(environment["RAY_AUTH_TOKEN_PATH"])
    return path.read_text().strip(), path


@pytest.fixture
def sessions() -> Iterator[Path]:
    """Ray's temporary folder: with a short path, for a socket's may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as name:
        yield Path(name)


@pytest.mark.ray
def test_the_jobs_api_needs_the_token_and_no_secret_is_logged(tmp_path: Path, sessions: Path) -> None:
    """One run with secrets of every kind in its environment; afterwards everything it wrote is searched."""
    secrets = {
        name: f"canary-of-{name.lower()}" for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_TOKEN")
    }
    home = tmp_path / "home"
    root = tmp_path / "storage"
    env = secrets | {
        "HOME": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or f"{Path.home()}/.cache",
    }
    env |= {"RAY_AUTH_TOKEN_PATH": "", "RAY_TMPDIR": str(sessions), "DISTML_NO_DASHBOARD": "0"}
    with Training(root, "secrets", "--train.epochs=2", "--train.workers=1", env=env) as run:
        run.wait_for("epoch 1/2")
        (board,) = {
            actual[0] for line in run.lines if (actual := re.findall(r"http://127\.0\.0\.1:\d+", line))
        }
        token, path = token_of(run)
        assert path.is_relative_to(home)
        assert path.stat().st_mode & 0o777 == 0o600
        job = {"entrypoint": "echo harmless"}
        codes = [
            requests.post(f"{board}/api/jobs/", json=job, headers=headers, timeout=60).status_code
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {token}"})
        ]
        assert codes == [401, 403, 200]
        assert requests.delete(f"{board}/api/jobs/x", timeout=10).status_code == 401  # CVE-2026-27482
        code, _ = run.finish()
        assert code == 0
    written = [item for folder in (tmp_path, sessions) for item in folder.rglob("*")]
    everything = [item for item in written if item.is_file() and item != path]
    assert len(everything) > 30
    for item in everything:
        content = item.read_bytes()
        for secret in (*secrets.values(), token):
            assert secret.encode() not in content, (item, secret[:12])
    said = "\n".join(run.lines)
    assert not [secret for secret in (*secrets.values(), token) if secret in said]


def command() -> tuple[list[str], dict[str, str]]:
    """What `kuberay/base` starts as MLflow's server."""
    documents = yaml.safe_load_all((REPOSITORY / "kuberay/base/mlflow.yaml").read_text())
    (deployment,) = [document for document in documents if document["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    env = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    return container["args"], env


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """That server, on this machine and on SQLite."""
    folder, port = tmp_path_factory.mktemp("mlflow"), ingress.free_ports()[0]
    args, env = command()
    replaced = {"--host": "127.0.0.1", "--port": str(port), "--artifacts-destination": f"file://{folder}/a"}
    args = [arg for arg in args if not arg.startswith("--expose-prometheus")]  # needs what only the image has
    flags = [f"{key}={replaced.get(key, value)}" for key, _, value in (arg.partition("=") for arg in args)]
    flags = [flag.replace("127.0.0.1:5000", f"127.0.0.1:{port}") for flag in flags]
    env |= {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db"}
    words = [sys.executable, "-m", "mlflow", "server", *flags]
    with (folder / "log").open("wb") as stream:
        process = subprocess.Popen(
            words, env=os.environ | env, stdout=stream, stderr=stream, cwd=folder, start_new_session=True
        )
        url = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 90
            while True:
                with contextlib.suppress(requests.RequestException):
                    if requests.get(f"{url}/health", timeout=2).ok:
                        break
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.3)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


API = "api/2.0/mlflow"


def test_the_tracking_server_answers_only_its_own_hosts_and_origins(server: str) -> None:
    asked = f"{server}/{API}/experiments/search"
    body = {"max_results": 1}
    for host in ("evil.example", "10.evil.example", "mlflow.evil.example", "localhost.evil.example:5000"):
        assert requests.post(asked, json=body, headers={"Host": host}, timeout=10).status_code == 403, host
    assert requests.post(asked, json=body, timeout=10).status_code == 200
    assert requests.post(asked, json=body, headers={"Host": "mlflow:5000"}, timeout=10).status_code == 200
    foreign = {"Origin": "https://evil.example"}
    assert requests.post(asked, json=body, headers=foreign, timeout=10).status_code == 403


@pytest.mark.parametrize("source", ["/etc/passwd", "file:///etc/passwd", "../../etc", "runs:/../../x"])
def test_a_model_source_cannot_name_a_file_of_the_server(server: str, source: str) -> None:
    def post(what: str, **body: Any) -> requests.Response:
        return requests.post(f"{server}/{API}/{what}", json=body, timeout=10)

    post("registered-models/create", name="pets")
    response = post("model-versions/create", name="pets", source=source)
    assert 400 <= response.status_code < 500, response.text
    assert "root:" not in response.text


def test_jobs_and_webhooks_of_mlflow_are_disabled(server: str) -> None:
    """CVE-2026-0545 and CVE-2026-2393: no job runs, and no server of ours calls a stranger's."""
    job = {"function_fullname": "os.system", "params": {"command": "true"}}
    assert requests.post(f"{server}/ajax-api/3.0/jobs/", json=job, timeout=10).status_code >= 400

"""MLflow of a test's own: a real server, which may be killed and started again, and new databases."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from distml.serving import ingress


class TrackingServer:
    """`mlflow server` on loopback over SQLite; it hands out artifacts itself.

    Args:
        folder: Holds its log.
        store: URI of the database; without it a file in the folder.
        artifacts: Folder of the artifacts; without it one in the folder.
    """

    def __init__(self, folder: Path, store: str = "", artifacts: Path | None = None) -> None:
        self._log, self._port = folder / "server.log", ingress.free_ports()[0]
        self._store = store or f"sqlite:///{folder}/server.db"
        self._artifacts = artifacts or folder / "artifacts"
        self.uri = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        """Start it on the same port and wait until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", self._store, "--workers", "1", "--serve-artifacts"]
        command += ["--artifacts-destination", str(self._artifacts)]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while not self._answers():
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL it and its workers."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)


def new_database(root: Path) -> None:
    """Put a database without runs into a storage root, as MLflow makes it there.

    It is a copy: to make one, MLflow runs dozens of migrations, which takes seconds.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "mlflow.db").write_bytes(_database())


@functools.cache
def _database() -> bytes:
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()

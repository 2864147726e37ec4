"""What every test needs: an environment that neither reads nor writes the person's own."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_HOME = Path(tempfile.mkdtemp(prefix="distml-tests-"))


def _isolate() -> None:
    """Set what Ray, Keras, MLflow and matplotlib read when they are imported, and their children after.

    Ray would turn token authentication on and write the token into the home folder; Keras writes
    `~/.keras`, matplotlib its font cache.
    """
    token = _HOME / "ray-token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ.update(
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token),
        RAY_USAGE_STATS_ENABLED="0",
        DISTML_NO_DASHBOARD="1",
        KERAS_HOME=str(_HOME / "keras"),
        KERAS_BACKEND="tensorflow",
        TF_USE_LEGACY_KERAS="0",
        TF_CPP_MIN_LOG_LEVEL="3",
        MPLBACKEND="Agg",
        MPLCONFIGDIR=str(_HOME / "matplotlib"),
        MLFLOW_DISABLE_TELEMETRY="true",
    )
    # A shell starts a background job with SIGINT ignored, and children inherit that: `make test &`.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_URI", "TF_CONFIG"):
        os.environ.pop(name, None)


_isolate()
_NICENESS = os.nice(0)
# Python's default, a collection of garbage every 700 objects, scans TensorFlow, Ray and MLflow each time.
gc.set_threshold(50_000)


def _files_with_ray() -> set[str]:
    """Test files that start Ray, below the repository."""
    here = Path(__file__).parent
    return {
        path.relative_to(here.parent).as_posix()
        for path in here.rglob("test_*.py")
        if "pytest.mark.ray" in path.read_text()
    }


_WITH_RAY = _files_with_ray()
_FAULTS = Path(__file__).parent / "faults"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the folder of faults where its mark is deselected: importing it takes seconds."""
    deselected = "not fault" in config.option.markexpr
    return True if deselected and collection_path == _FAULTS else None


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep a file's tests in one process, and all that start Ray in one: two at once are slow to start.

    pytest-xdist 3.8 has groups for that, which pytest 9.2 does not show it any more.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "ray" if file in _WITH_RAY else file

        def _assign_work_unit(self, node: Any) -> None:
            if "ray" in self.workqueue:  # takes longest
                self.workqueue.move_to_end("ray", last=False)
            super()._assign_work_unit(node)

    return ByFile(config, log)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Lower the priority of the process that does not start Ray: the other one takes longest."""
    beside = "PYTEST_XDIST_WORKER" in os.environ and os.nice(0) == _NICENESS
    if beside and nodeid.partition("::")[0] not in _WITH_RAY:
        os.nice(5)


def pytest_unconfigure() -> None:
    """Leave nothing behind."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _own_tracking_uri() -> Iterator[None]:
    """`mlflow.set_tracking_uri` writes the variable, which the tests after it would follow."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def storage_root(tmp_path: Path) -> Path:
    """An empty folder to use as `storage.root`."""
    root = tmp_path / "storage"
    root.mkdir()
    return root


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory, for what reads or writes relative paths."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def plain_logging() -> Iterator[None]:
    """Undo what `log.configure` does to this process, which has pytest's handlers."""
    root, ours = logging.getLogger(), logging.getLogger("distml")
    before = (list(root.handlers), root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])

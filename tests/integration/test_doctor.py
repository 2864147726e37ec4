"""The doctor on a real cluster: its resources, and the storage root as its nodes see it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
ROOT = Path(__file__).parents[2]


HEAD = """
import ray
found = ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
print(found.address_info["gcs_address"], flush=True)
input()
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A Ray of three CPUs that lives as long as the process that started it."""
    command, pipe = [sys.executable, "-c", HEAD], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as head:
        assert head.stdout
        line = head.stdout.readline().strip()
        assert line, head.communicate()[1]
        yield line
        head.communicate("\n", timeout=60)


def doctor(address: str, root: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]], float]:
    """Exit code, checks by name and seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": address}
    fixed = ["--storage.root", str(root), "--data.path", str(root)]
    command = [sys.executable, "-m", "distml.doctor", *fixed, *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    result = json.loads(ran.stdout.splitlines()[-1])
    return ran.returncode, {check["name"]: check for check in result["checks"]}, result["seconds"]


@pytest.fixture
def root(storage_root: Path) -> Path:
    """A storage root with something that passes for data."""
    for name in ("a", "b"):
        (storage_root / name).mkdir()
        Image.new("L", (4, 4)).save(storage_root / name / "1.png")
    return storage_root


def test_the_cluster_is_asked_and_its_node_answers_from_the_storage(address: str, root: Path) -> None:
    doctor(address, root)  # the first one starts Ray's worker process
    code, checks, seconds = doctor(address, root)
    assert code == 0, checks
    assert checks["workers"]["detail"].endswith(f"1 of 3 Ray CPUs are left for Ray Data on {address}")
    assert checks["storage from a worker"]["status"] == "ok"
    assert checks["storage from a worker"]["detail"].startswith("node ")
    assert "ports" not in checks
    assert seconds < 10
    assert [path.name for path in sorted(root.iterdir())] == ["a", "b"]


def test_a_run_larger_than_the_cluster_is_reported(address: str, root: Path) -> None:
    code, checks, _ = doctor(address, root, "--train.workers", "5")
    assert code == 1
    assert "needs 6 CPU, but the cluster has 3" in checks["workers"]["detail"]

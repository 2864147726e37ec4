"""The doctor as a command: everything is looked at in under ten seconds, and nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]


def run(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """The real command; it also prints what it imported."""
    program = (
        "import sys, time; began = time.monotonic()\n"
        "from distml import doctor\n"
        "code = doctor.main(sys.argv[1:])\n"
        "heavy = sorted({'tensorflow', 'keras', 'mlflow', 'ray'} & set(sys.modules))\n"
        "print(heavy, file=sys.stderr)\n"
        "raise SystemExit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *words]
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, json.loads(ran.stdout.splitlines()[-1]), ran.stderr


def test_doctor_checks_everything_without_heavy_imports_or_leftovers(workdir: Path) -> None:
    (workdir / "own").mkdir()
    for name in ("a", "b"):
        (workdir / "own" / name).mkdir()
        Image.new("L", (4, 4)).save(workdir / "own" / name / "1.png")
    code, result, err = run(workdir, "--data.path", "own", "--train.workers", "1")
    checks = {check["name"]: check for check in result["checks"]}
    assert checks.keys() == {
        *("tensorflow", "keras", "model", "data", "batch", "memory", "shared memory", "run", "workers"),
        *("ports", "storage", "storage from a worker", "disk", "scratch", "tracking", "shell"),
    }
    assert {name for name, check in checks.items() if check["status"] == "problem"} == set(), checks
    assert (code, result["status"]) == (0, "finished")
    assert result["seconds"] < 10
    assert err.splitlines()[-1] == "[]"
    assert [path.name for path in workdir.iterdir()] == ["own"]


def test_a_configuration_that_cannot_run_here_exits_1_with_the_reason(workdir: Path) -> None:
    code, result, _ = run(
        workdir,
        *("--train.workers", "99", "--model.name", "convnte", "--data.path", "nowhere"),
        *("--tracking.uri", "http://127.0.0.1:9", "--tracking.required", "true"),
    )
    problems = {check["name"]: check for check in result["checks"] if check["status"] == "problem"}
    assert code == 1
    assert problems.keys() >= {"workers", "model", "data", "tracking"}
    assert all(check["remedy"] for check in problems.values())
    assert "99" in problems["workers"]["detail"]

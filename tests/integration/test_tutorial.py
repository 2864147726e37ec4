"""The tutorial, typed from its first command to its last, in an empty folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from distml.serving import ingress
from tests.documents import ROOT, blocks, commands

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.tensorflow, pytest.mark.timeout(900)]

TUTORIAL = ROOT / "docs" / "tutorial.md"
SKIPPED = ("make", ".", "jq")
"""Programs that make the environment, which the tests run in, or only read the result line."""


def typed() -> list[list[str]]:
    """Every command of the tutorial that starts a program of ours."""
    shown = [
        command for block in blocks(TUTORIAL) if block.language == "sh" for command in commands(block.text)
    ]
    return [command for command in shown if command[0] not in SKIPPED]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(words: list[str], folder: Path) -> dict[str, Any]:
    """Run a command to its end; returns the result line."""
    program = [sys.executable, "-m", "distml"] if words[0] == "distml" else [sys.executable]
    done = subprocess.run(
        [*program, *words[1:]], cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr[-3000:]}"
    return dict(json.loads(done.stdout.splitlines()[-1])) if words[0] == "distml" else {}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for block in blocks(TUTORIAL):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    return tmp_path


def test_the_tutorial_runs_as_written(folder: Path) -> None:
    port = str(ingress.free_ports()[0])
    results: list[dict[str, Any]] = []
    served: subprocess.Popen[bytes] | None = None
    asked = 0
    for command in typed():
        words = [word.replace("127.0.0.1:8000", f"127.0.0.1:{port}") for word in command]
        if words[:2] in (["distml", "serve"], ["distml", "pipeline"]):
            words += ["--serve.port", port]
        if words[1] == "pipeline" and served:
            served.send_signal(signal.SIGINT)
            assert served.wait(60) == 0
            served = None
        if words[1] == "serve":
            served = subprocess.Popen(
                [sys.executable, "-m", "distml", *words[1:]], cwd=folder, env=environment(),
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            wait(f"http://127.0.0.1:{port}/readyz")
        elif words[0] == "curl":
            asked += ask(words, folder)
        else:
            results.append(run(words, folder))
    assert asked >= 2
    by_verb = {str(result.get("verb")): result for result in results}
    assert by_verb["train"]["test_accuracy"] > 0.8
    assert by_verb["promote"]["decision"] == "promoted"
    assert [prediction["class"] for prediction in by_verb["predict"]["predictions"]] == ["triangle"]
    assert by_verb["pipeline"]["stages"]["smoke"]["status"] == "finished"


def wait(url: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if requests.get(url, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    pytest.fail(f"{url} does not respond")


def ask(words: list[str], folder: Path) -> bool:
    """What the tutorial's `curl` asks, by `requests`: curl need not be installed."""
    files = [word.removeprefix("files=@") for word in words if word.startswith("files=@")]
    if files:
        response = requests.post(words[-1], files={"files": (folder / files[0]).read_bytes()}, timeout=10)
        assert [prediction["class"] for prediction in response.json()["predictions"]] == ["triangle"]
    else:
        response = requests.get(words[-1], timeout=10)
    return response.ok

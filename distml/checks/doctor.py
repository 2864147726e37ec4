"""Runs all checks of a configuration concurrently and prints them (driver).

Slow questions are asked side by side; none of them imports TensorFlow or MLflow, starts Ray or fetches data.
"""

from __future__ import annotations

import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from distml.checks import Check, failed, machine, ok, places, problem, sources, warning
from distml.config import Config
from distml.data import ingestion
from distml.errors import ConfigError, DistmlError
from distml.runtime import cluster
from distml.serving import ingress
from distml.storage import Storage
from distml.tracking import runs

LIMIT_S = 8.0
"""Longest wait for all answers together; what has not responded by then would not help a run either."""
Question = Callable[[], list[Check]]
_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def gather(questions: dict[str, Question], limit_s: float = LIMIT_S) -> list[Check]:
    """Ask questions side by side.

    Args:
        questions: By name; a check that exceeds the time limit is a problem of that name.
        limit_s: Longest wait for all of them together.

    Returns:
        The answers in the questions' order.
    """
    box: queue.Queue[tuple[str, list[Check]]] = queue.Queue()

    def ask(name: str, question: Question) -> None:
        try:
            box.put((name, question()))
        except DistmlError as error:
            box.put((name, [failed(name, error)]))
        except Exception as error:  # one broken question must not hide the other answers
            box.put((name, [problem(name, f"the check failed: {error!r}", "Please report this.")]))

    for name, question in questions.items():
        threading.Thread(target=ask, args=(name, question), daemon=True).start()
    answers: dict[str, list[Check]] = {}
    deadline = time.monotonic() + limit_s
    while len(answers) < len(questions):
        try:
            name, answer_checks = box.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        answers[name] = answer_checks
    late = f"no response within {limit_s:g} s"
    return [
        check
        for name in questions
        for check in answers.get(name, [problem(name, late, "Check what it depends on.")])
    ]


def _software(config: Config) -> list[Check]:
    # GPUs of a cluster are not this machine's, and neither is its TensorFlow.
    gpus = 0 if cluster.address() else machine.gpus()
    device = "cpu" if cluster.address() else config.train.device
    return [
        machine.tensorflow(machine.tensorflows(), gpus, device),
        machine.keras(machine.installed(("keras",))),
        machine.model(config),
        machine.shell(config, os.environ),
    ]


def _data(config: Config) -> list[Check]:
    """The data, and what a run needs for them."""
    storage = Storage(config.storage.root)
    manifest = ingestion.find(config, storage)
    data = sources.check(config, storage) if manifest is None else sources.prepared(manifest)
    checks = [data, machine.batch(config, None if manifest is None else manifest.rows["train"])]
    if cluster.address():
        return checks
    size = 0 if manifest is None else manifest.nbytes("train")
    return [
        *checks,
        machine.memory(config, machine.free_memory(), size),
        machine.shared_memory(machine.free_on(machine.SHARED) if machine.SHARED.exists() else None, size),
    ]


def _run(config: Config) -> list[Check]:
    """What starting `train` now would do."""
    try:
        existing = runs.examine(config, Storage(config.storage.root))
    except ConfigError as error:
        return [warning("run", error.message, error.remedy)]
    name = config.run.name
    return [
        ok(
            "run",
            f"{name} is new"
            if existing is None
            else f"{name} would resume after attempt {existing.attempts}",
        )
    ]


def _local(config: Config) -> list[Check]:
    resources = {"CPU": float(cluster.local_cpus(config.train)), "GPU": float(machine.gpus())}
    serve = ingress.port_refusal(config.serve.host, config.serve.port) is None
    dashboard = ingress.port_refusal("127.0.0.1", machine.DASHBOARD_PORT) is None
    return [machine.workers(config, resources, "this machine"), machine.ports(config, dashboard, serve)]


def _places(config: Config) -> list[Check]:
    """The storage, and what lies in it; one after the other, for both may make the root to look at it."""
    checks = places.storage(config.storage.root)
    root = Path(Storage(config.storage.root).root)
    if Storage(config.storage.root).local:
        checks.append(machine.disk(root, machine.free_on(root)))
    scratch = Path(tempfile.gettempdir())
    return [*checks, machine.scratch(scratch, machine.used_on(scratch)), places.tracking_check(config)]


def run(config: Config) -> dict[str, Any]:
    """Look at everything a run depends on.

    Returns:
        `checks`, each with name, status, detail and remedy, and `seconds`; the status is failed where one is
        a problem.
    """
    began = time.monotonic()
    questions: dict[str, Question] = {
        "software": lambda: _software(config),
        "data": lambda: _data(config),
        "run": lambda: _run(config),
    }
    if cluster.address():
        questions |= {
            "cluster": lambda: places.cluster_checks(config),
            "tracking": lambda: [places.tracking_check(config)],
        }
    else:
        questions |= {"machine": lambda: _local(config), "storage": lambda: _places(config)}
    checks = gather(questions)
    _show(checks)
    result = {"checks": [asdict(check) for check in checks], "seconds": round(time.monotonic() - began, 2)}
    problems = any(check.status == "problem" for check in checks)
    return {"status": "failed" if problems else "finished"} | result


def _show(checks: list[Check]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    width = max(len(check.name) for check in checks)
    for check in checks:
        colour = _COLOURS[check.status]
        line = f"[{colour}]{check.status:<8}[/{colour}] {check.name:<{width}}  {escape(check.detail)}"
        console.print(line)
        if check.remedy:
            console.print(f"{'':<8} {'':<{width}}  {escape(check.remedy)}")

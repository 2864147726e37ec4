"""Bringing up a cluster step by step: commands, what each is for, what to do when it fails (driver)."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distml.errors import ClusterError


@dataclass(frozen=True)
class Step:
    """One command.

    Args:
        name: What it does, for the person waiting.
        command: Words.
        remedy: What to do when it fails.
        unless: Whether there is nothing to do; asked right before.
        needed: Whether its failure ends everything.
        environment: Variables set for it.
        limit_s: Seconds it may take.
        refusal: Text in what it says that means failure whatever its exit code.
    """

    name: str
    command: Sequence[str]
    remedy: str
    unless: Callable[[], bool] = field(default=lambda: False)
    needed: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: float = 900.0
    refusal: str = ""


def quiet(command: Sequence[str], limit_s: float = 60.0) -> str | None:
    """Output of a command, None when it fails or does not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def require(tools: Mapping[str, str]) -> None:
    """Check that programs are installed.

    Args:
        tools: What each is for, by name.

    Raises:
        ClusterError: One is missing.
    """
    for tool, purpose in tools.items():
        if shutil.which(tool) is None:
            raise ClusterError(
                f"{tool} is not installed; it {purpose}.", f"Install {tool}, or see `--context`."
            )


def perform(steps: Sequence[Step], say: Callable[[str], None], environment: Mapping[str, str]) -> None:
    """Run steps one after the other; what is done already is passed over.

    Args:
        steps: In order.
        say: Told of every step, and every few seconds that one is still at it.
        environment: Of the commands.

    Raises:
        ClusterError: A needed step failed; names the command, its last words and the remedy.
    """
    for number, step in enumerate(steps, 1):
        mark = f"[{number}/{len(steps)}] {step.name}"
        if step.unless():
            say(f"{mark}: there already")
            continue
        say(mark)
        began = time.monotonic()
        failed = _execute(step, say, environment)
        if failed and step.needed:
            raise ClusterError(f"`{' '.join(step.command)}` failed: {failed.rstrip('.')}.", step.remedy)
        say(f"{mark}: {'skipped, ' + failed if failed else f'{time.monotonic() - began:.0f} s'}")


def _execute(step: Step, say: Callable[[str], None], environment: Mapping[str, str]) -> str:
    """Run one command; returns the last line it said when it failed, else nothing."""
    try:
        process = subprocess.Popen(
            step.command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**environment, **step.environment},
        )
    except OSError as error:
        return f"it cannot be started ({error.strerror})"
    until, said = time.monotonic() + step.limit_s, ""
    while True:
        try:
            out, _ = process.communicate(timeout=15)
            break
        except subprocess.TimeoutExpired:
            if time.monotonic() > until:
                process.kill()
                process.communicate()
                return f"it took more than {step.limit_s:.0f} s"
            say("    ...")
    lines = [line for line in out.splitlines() if line.strip()]
    refused = [line for line in lines if step.refusal and step.refusal in line]
    said = (refused or lines or ["it said nothing"])[-1].strip()
    return said[:300] if process.returncode or refused else ""


def pods(kubectl: Sequence[str], namespace: str = "distml") -> list[dict[str, Any]]:
    """Every pod of a namespace as name, phase, ready, restarts and the reason it waits for.

    Raises:
        ClusterError: The cluster does not answer.
    """
    text = quiet([*kubectl, "get", "pods", "-n", namespace, "-o", "json"])
    if text is None:
        raise ClusterError(
            f"`{' '.join(kubectl)} get pods` failed.", "Is the cluster up, and the context right?"
        )
    found = []
    for pod in json.loads(text)["items"]:
        states = pod.get("status", {}).get("containerStatuses") or []
        waiting = [
            one["state"]["waiting"].get("reason", "") for one in states if "waiting" in one.get("state", {})
        ]
        found.append(
            {
                "pod": pod["metadata"]["name"],
                "phase": pod.get("status", {}).get("phase", "Unknown"),
                "ready": bool(states) and all(one.get("ready") for one in states),
                "restarts": sum(one.get("restartCount", 0) for one in states),
                "waiting": ", ".join(filter(None, waiting)),
            }
        )
    return found

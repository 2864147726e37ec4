"""A cluster as kubectl shows it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from typing import Any

from distml.errors import ClusterError

Object = dict[str, Any]

NAMESPACE = "distml"


class Cluster:
    """Kubectl with a context.

    Args:
        context: Of kubectl.
    """

    def __init__(self, context: str) -> None:
        self._base = ["kubectl", "--context", context]

    def kubectl(self, *words: str, given: str | None = None, limit_s: float = 60.0) -> str:
        """Run a command; returns its output.

        Args:
            words: After `kubectl --context NAME`.
            given: Its standard input.
            limit_s: Seconds it may take.

        Raises:
            ClusterError: It fails, or takes too long.
        """
        command = [*self._base, *words]
        told = " ".join(word.partition("\n")[0] for word in command[:12])  # without scripts
        try:
            done = subprocess.run(
                command, input=given, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"`{told}` took more than {limit_s:g} s.") from None
        except OSError as error:
            raise ClusterError(f"kubectl cannot be started: {error.strerror}.", "Install it.") from None
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise ClusterError(f"`{told}` failed: {last}.")
        return done.stdout

    def objects(self, kind: str, selector: str = "") -> list[Object]:
        """Objects of the namespace.

        Args:
            kind: Such as pods.
            selector: Labels.

        Raises:
            ClusterError: The cluster does not respond.
        """
        chosen = ["-l", selector] if selector else []
        text = self.kubectl("-n", NAMESPACE, "get", kind, *chosen, "-o", "json")
        return list(json.loads(text)["items"])

    def pods(self, selector: str = "") -> list[Object]:
        """Pods of the namespace that have not ended.

        Args:
            selector: Labels.

        Raises:
            ClusterError: The cluster does not respond.
        """
        ended = ("Succeeded", "Failed")
        return [pod for pod in self.objects("pods", selector) if pod["status"].get("phase") not in ended]

    def inside(self, selector: str, container: str, words: Sequence[str], limit_s: float = 60.0) -> str:
        """Run a command in the first pod of some labels that is ready; returns its output.

        Args:
            selector: Labels.
            container: Of the pod.
            words: The command.
            limit_s: Seconds it may take.

        Raises:
            ClusterError: No pod is ready, or the command fails.
        """
        for pod in self.pods(selector):
            if is_ready(pod):
                name = pod["metadata"]["name"]
                command = ["-n", NAMESPACE, "exec", name, "-c", container, "--", *words]
                return self.kubectl(*command, limit_s=limit_s)
        raise ClusterError(f"no pod with {selector} is ready.")


def is_ready(pod: Object) -> bool:
    """Whether a pod is ready and is not being deleted."""
    conditions = pod["status"].get("conditions", [])
    ready = any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def uids(pods: Sequence[Object]) -> set[str]:
    """What tells these pods from all others, also of the same name."""
    return {pod["metadata"]["uid"] for pod in pods}


def restarts(before: Sequence[Object], after: Sequence[Object], expected: int) -> int:
    """How often a container was started again, or a pod was replaced that nobody had killed.

    Args:
        before: Pods of the namespace, without those that were killed.
        after: The same kinds of pods later.
        expected: Pods that took the place of those that were killed.
    """

    def counts(pods: Sequence[Object]) -> dict[str, int]:
        return {
            pod["metadata"]["uid"]: sum(
                state.get("restartCount", 0) for state in pod["status"].get("containerStatuses", [])
            )
            for pod in pods
        }

    old, new = counts(before), counts(after)
    again = sum(count - old.get(uid, 0) for uid, count in new.items())
    return again + max(0, len(new.keys() - old.keys()) - expected)

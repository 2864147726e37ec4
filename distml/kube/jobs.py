"""Ray's Jobs API on the head of a cluster: the log, the exit code, and stopping a job (driver)."""

from __future__ import annotations

import os
from dataclasses import dataclass

import requests

from distml.errors import ClusterError


@dataclass(frozen=True)
class Job:
    """A job that was submitted to a Ray cluster.

    Args:
        url: Address of the dashboard, with or without `http://`.
        id: Submission id.
        timeout_s: For one request.
    """

    url: str
    id: str
    timeout_s: float = 15.0

    def log(self) -> str:
        """Return everything the driver has printed so far.

        Raises:
            ClusterError: It cannot be had now.
        """
        return str(self._ask("GET", f"{self.id}/logs").json().get("logs") or "")

    def exit_code(self) -> int | None:
        """Return the driver's exit code, None while it runs or when Ray lost it.

        Raises:
            ClusterError: It cannot be had now.
        """
        code = self._ask("GET", self.id).json().get("driver_exit_code")
        return None if code is None else int(code)

    def stop(self) -> None:
        """Ask Ray to end the driver; one that has ended stays as it is.

        Raises:
            ClusterError: The request did not get through.
        """
        self._ask("POST", f"{self.id}/stop")

    def _ask(self, method: str, path: str) -> requests.Response:
        base = self.url if "://" in self.url else f"http://{self.url}"
        token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = requests.request(
                method, f"{base.rstrip('/')}/api/jobs/{path}", headers=headers, timeout=self.timeout_s
            )
        except requests.RequestException as error:
            raise ClusterError(f"Ray's dashboard {base} does not answer ({type(error).__name__}).") from None
        if answer.status_code in (401, 403):
            raise ClusterError(
                f"Ray's dashboard {base} answered {answer.status_code}.",
                "RAY_AUTH_TOKEN must hold the cluster's token, from the Secret ray-token.",
            )
        if answer.status_code >= 400:
            raise ClusterError(f"Ray's dashboard {base} answered {answer.status_code} to {method} {path}.")
        return answer

"""A small client of the Kubernetes API server over HTTPS, with retries (driver).

Six calls on four kinds of object do not earn a client library of thirty megabytes in every image.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from distml.errors import ClusterError

logger = logging.getLogger(__name__)

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where Kubernetes mounts the token, the certificate authority and the namespace of a pod's account."""

Object = dict[str, Any]

_AWAY = 75
"""Exit code without an answer: EX_TEMPFAIL of sysexits.h, on which Argo retries."""

_REMEDIES = {
    401: "The token of this pod's account is missing or has expired; is automountServiceAccountToken on?",
    403: "Give the pod's account that right; kuberay/base/accounts.yaml has the roles.",
}


class ConflictError(ClusterError):
    """An object of that name exists already."""


@dataclass(frozen=True)
class Server:
    """One namespace of an API server.

    Attributes:
        url: Address of the API server.
        namespace: Where everything is looked up and created.
        account: Folder with `token` and `ca.crt`; neither is needed behind `kubectl proxy`.
        patience_s: For how long an API server that does not respond is retried.
        hurried: When it is set, an API server that does not respond is not retried.
    """

    url: str
    namespace: str
    account: Path = ACCOUNT
    patience_s: float = 120.0
    hurried: threading.Event = field(default_factory=threading.Event)

    def read(self, path: str) -> Object | None:
        """Return an object, or None when there is none of that name.

        Args:
            path: Such as `apis/ray.io/v1/rayjobs/NAME`; the namespace is put in.

        Raises:
            ClusterError: The server rejects the request, or does not respond for `patience_s`.
        """
        response = self._ask("GET", path)
        document: Object | None = None if response.status_code == 404 else response.json()
        return document

    def create(self, path: str, body: Object) -> Object:
        """Create an object and return it as the server keeps it.

        Raises:
            ConflictError: One of that name exists.
            ClusterError: As `read`, and for an object that the server finds invalid.
        """
        response = self._ask("POST", path, body)
        if response.status_code == 404:
            raise ClusterError(
                f"the API server does not know {path}.", "Install the operator with its definitions first."
            )
        made: Object = response.json()
        return made

    def delete(self, path: str) -> None:
        """Delete an object; quiet when there is none.

        Raises:
            ClusterError: As `read`.
        """
        self._ask("DELETE", path)

    def _ask(self, method: str, path: str, body: Object | None = None) -> requests.Response:
        parts = path.split("/")
        group = 2 if parts[0] == "api" else 3  # api/v1/KIND, or apis/GROUP/VERSION/KIND
        version, rest = "/".join(parts[:group]), "/".join(parts[group:])
        url = f"{self.url.rstrip('/')}/{version}/namespaces/{self.namespace}/{rest}"
        response = patiently(
            lambda: requests.request(
                method, url, json=body, headers=self._headers(), verify=self._verify(), timeout=15
            ),
            f"the API server {self.url}",
            self.patience_s,
            hurried=self.hurried,
        )
        if response.status_code >= 400 and response.status_code != 404:
            self._refuse(response, method, rest)
        return response

    def _refuse(self, response: requests.Response, method: str, what: str) -> None:
        """Raise what an answer of the server means."""
        try:
            said = str(response.json().get("message", ""))
        except (ValueError, AttributeError):
            said = response.text.strip()[:300]
        message = f"the API server answered {response.status_code} to {method} {what}: {said.rstrip('.')}."
        if response.status_code == 409:
            raise ConflictError(message)
        raise ClusterError(message, _REMEDIES.get(response.status_code, ""))

    def _headers(self) -> dict[str, str]:
        try:  # every time: the kubelet writes a new token before the old one expires
            return {"Authorization": f"Bearer {(self.account / 'token').read_text('utf-8').strip()}"}
        except FileNotFoundError:
            return {}

    def _verify(self) -> str | bool:
        authority = self.account / "ca.crt"
        return str(authority) if authority.exists() else True


def here(url: str | None = None, namespace: str | None = None) -> Server:
    """The API server of the pod this runs in, or the one of the given address.

    Raises:
        ClusterError: Neither an address nor a pod's environment.
    """
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not url and not host:
        raise ClusterError(
            "this process does not run in a pod, so there is no API server.",
            "Run `kubectl proxy` and give --api-server http://127.0.0.1:8001.",
        )
    host = f"[{host}]" if host and ":" in host else host
    return Server(
        url=url or f"https://{host}:{port}",
        namespace=namespace or os.environ.get("POD_NAMESPACE") or "distml",
        account=Path(os.environ.get("DISTML_ACCOUNT") or ACCOUNT),
        patience_s=float(os.environ.get("DISTML_PATIENCE_S") or 120),
    )


def patiently(
    ask: Callable[[], requests.Response],
    whom: str,
    patience_s: float,
    first_pause_s: float = 0.5,
    hurried: threading.Event | None = None,
) -> requests.Response:
    """Retry at growing intervals while there is no answer or a server error.

    Raises:
        ClusterError: No answer within `patience_s`, or none when `hurried` was set.
    """
    began, pause_s, told = time.monotonic(), first_pause_s, False
    deadline = began + patience_s
    hurried = hurried or threading.Event()
    while True:
        try:
            response = ask()
            if response.status_code not in (429, 500, 502, 503, 504):
                return response
            cause = f"status {response.status_code}"
        except requests.RequestException as error:
            cause = type(error).__name__
        if hurried.is_set() or time.monotonic() + pause_s > deadline:
            away = ClusterError(
                f"{whom} has not responded for {time.monotonic() - began:.0f} s ({cause}).",
                "What was started keeps running; the same command re-attaches to it.",
            )
            away.exit_code = _AWAY
            raise away
        if not told:
            logger.warning("%s does not respond (%s); retrying", whom, cause)
            told = True
        hurried.wait(pause_s)
        pause_s = min(2 * pause_s, 10.0)

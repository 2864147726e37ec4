"""Files over HTTP: few tries, resumed where they broke off, and a quick no from a dead network (driver)."""

from __future__ import annotations

import http.client
import logging
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from distml.errors import DataError

_LOG = logging.getLogger(__name__)

TRIES = 3
CONNECT_TIMEOUT_S = 3.0
PATIENCE_S = 8.0
"""Longest wait, over all mirrors together, on mirrors that do not answer."""
READ_TIMEOUT_S = 10.0
FILE_TIMEOUT_S = 600.0
"""A server that drips is given up after this."""
_CHUNK_BYTES = 1 << 18
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Unavailable(DataError):
    """A place that does not have the bytes, or cannot be reached; another one may."""


class _Broken(Exception):
    """A transfer that may succeed when it is tried again."""


@dataclass
class Mirror:
    """One base URL; remembers across files how long its silence may still last.

    Args:
        base: URL of the folder that holds the files.
        deadline: `time.monotonic` after which a mirror that has not answered is given up.
    """

    base: str
    deadline: float
    _answered: bool = field(default=False, init=False)

    def get(self, name: str, limit: int) -> bytes:
        """Return one file's bytes.

        Args:
            name: File below the base URL.
            limit: Most bytes accepted.

        Raises:
            Unavailable: Unreachable, refused, or broken off `TRIES` times.
            DataError: More bytes than `limit`.
        """
        if not re.match(r"https?://", self.base):
            raise Unavailable(f"{self.base} is not an http or https URL")
        url = f"{self.base.rstrip('/')}/{name}"
        got = bytearray()
        for attempt in range(1, TRIES + 1):
            try:
                self._more(url, got, limit)
                return bytes(got)
            except _Broken as broken:
                _LOG.warning("%s: try %d of %d: %s after %d bytes", url, attempt, TRIES, broken, len(got))
                reason = str(broken)
            if attempt < TRIES:
                time.sleep(0.2 * attempt)
        raise Unavailable(f"{name}: {reason}, {TRIES} tries")

    def _more(self, url: str, got: bytearray, limit: int) -> None:
        """Append what is missing, asking only for the rest when there is a beginning."""
        request = urllib.request.Request(url, headers={"User-Agent": "distml"})  # noqa: S310 - checked above
        if got:
            request.add_header("Range", f"bytes={len(got)}-")
        with self._open(request) as answer:
            if answer.status != 206:
                got.clear()
            give_up = time.monotonic() + FILE_TIMEOUT_S
            try:
                while chunk := answer.read(_CHUNK_BYTES):
                    got += chunk
                    if len(got) > limit:
                        raise DataError(f"{url} is damaged: more than {limit:,} bytes came.")
                    if time.monotonic() > give_up:
                        raise Unavailable(f"{url} took longer than {FILE_TIMEOUT_S:.0f} s")
            except (OSError, http.client.HTTPException) as error:
                raise _Broken(_cause(error)) from None
            if answer.length:  # the server hung up early, which a sized read does not report
                raise _Broken(f"the connection closed with {answer.length:,} bytes to come")

    def _open(self, request: urllib.request.Request) -> Any:
        left = READ_TIMEOUT_S if self._answered else min(CONNECT_TIMEOUT_S, self.deadline - time.monotonic())
        if left <= 0:
            raise Unavailable(f"no answer within {PATIENCE_S:.0f} s")
        # Looking up a name has no time limit of its own, so it happens in a thread that can be left behind.
        box: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=_into, args=(box, request, left), daemon=True).start()
        try:
            answer = box.get(timeout=left + 0.5)
        except queue.Empty:
            raise Unavailable(f"no answer within {left:.0f} s") from None
        if not isinstance(answer, Exception):
            self._answered = True
            return answer
        if isinstance(answer, urllib.error.HTTPError):
            self._answered = True
            answer.close()
            if answer.code not in _AGAIN:
                raise Unavailable(f"{request.full_url}: HTTP {answer.code} {answer.reason}")
            raise _Broken(f"HTTP {answer.code} {answer.reason}")
        if isinstance(getattr(answer, "reason", answer), TimeoutError) and not self._answered:
            raise Unavailable(f"no answer within {left:.0f} s")
        raise _Broken(_cause(answer))


def _into(box: queue.Queue[Any], request: urllib.request.Request, timeout: float) -> None:
    try:
        answer = urllib.request.urlopen(request, timeout=timeout)  # noqa: S310 - the scheme is checked
        box.put(answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        box.put(error)


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__)

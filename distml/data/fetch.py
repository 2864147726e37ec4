"""Downloads over HTTP with retries and resume, and unpacking of archives with size limits (driver).

pooch would do less: read in 1.9.0, its downloaders know no `Range` (a transfer that breaks off begins anew),
no limit on the bytes of an answer, and no time limit on silence that all mirrors share; each is tested here.
What it has besides, a cache and pinned digests, `data.source` has too. Importing it takes 0.11 to 0.14 s,
this module 0.05.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.client
import io
import json
import logging
import lzma
import os
import queue
import re
import shutil
import socket
import ssl
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from distml.data.image import in_place_of_it
from distml.data.listing import Folder, elsewhere
from distml.errors import DataError
from distml.storage import Storage, folder_lock

if TYPE_CHECKING:
    import tenacity

_LOG = logging.getLogger(__name__)

TRIES = 3
CONNECT_TIMEOUT_S = 3.0
PATIENCE_S = 8.0
"""Longest wait, over all mirrors together, on mirrors that do not respond."""
READ_TIMEOUT_S = 10.0
FILE_TIMEOUT_S = 600.0
"""A server that drips is given up after this."""
_CHUNK_BYTES = 1 << 18
_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class UnavailableError(DataError):
    """A place that does not have the bytes, or cannot be reached; another one may."""


class _BrokenError(Exception):
    """A transfer that may succeed when it is tried again."""


def request_of(url: str, method: str = "GET") -> urllib.request.Request:
    """Return a request with our name; its scheme is checked by the caller."""
    return urllib.request.Request(url, method=method, headers={"User-Agent": "distml"})  # noqa: S310


@dataclass
class Patience:
    """What is left of the time to wait for mirrors that have not answered yet, shared by all of them."""

    left_s: float = PATIENCE_S


@dataclass
class Mirror:
    """One base URL.

    Args:
        base: URL of the folder that holds the files.
        patience: Used up by waiting for a first answer.
    """

    base: str
    patience: Patience
    _answered: bool = field(default=False, init=False)

    def get(self, name: str, limit: int) -> bytes:
        """Return one file's bytes.

        Args:
            name: File below the base URL.
            limit: Most bytes accepted.

        Raises:
            UnavailableError: Unreachable, refused, or broken off `TRIES` times.
            DataError: More bytes than `limit`.
        """
        if not re.match(r"https?://", self.base):
            raise UnavailableError(f"{self.base} is not an http or https URL")
        url = f"{self.base.rstrip('/')}/{name}"
        received = bytearray()
        attempts = _retrying(url, lambda: len(received))
        try:
            attempts(self._more, url, received, limit)
        except _BrokenError as broken:
            raise UnavailableError(f"{name}: {broken}, {TRIES} tries") from None
        return bytes(received)

    def _more(self, url: str, received: bytearray, limit: int) -> None:
        """Append what is missing, asking only for the rest when there is a beginning."""
        request = request_of(url)
        if received:
            request.add_header("Range", f"bytes={len(received)}-")
        with self._open(request) as answer:
            if not str(answer.headers.get("Content-Range")).startswith(f"bytes {len(received)}-"):
                received.clear()  # the server sends the whole file
            give_up = time.monotonic() + FILE_TIMEOUT_S
            try:
                while chunk := answer.read(_CHUNK_BYTES):
                    received += chunk
                    if len(received) > limit:
                        raise DataError(f"{url} is damaged: more than {limit:,} bytes were received.")
                    if time.monotonic() > give_up:
                        raise UnavailableError(f"{url} took longer than {FILE_TIMEOUT_S:.0f} s")
            except (OSError, http.client.HTTPException) as error:
                raise _BrokenError(_cause(error)) from None
            if answer.length:  # the server hung up early, which a sized read does not report
                raise _BrokenError(f"the connection closed with {answer.length:,} bytes to come")

    def _open(self, request: urllib.request.Request) -> Any:
        """Return the server's answer, or say why there is none and whether to retry."""
        wait_s = READ_TIMEOUT_S if self._answered else min(CONNECT_TIMEOUT_S, self.patience.left_s)
        if wait_s <= 0:
            raise UnavailableError(f"skipped after {PATIENCE_S:.0f} s without an answer")
        begun = time.monotonic()
        answer = _ask(request, wait_s)
        silent = isinstance(_reason(answer), OSError)
        if not self._answered:
            self.patience.left_s -= time.monotonic() - begun
        self._answered = self._answered or not silent
        if not isinstance(answer, Exception):
            return answer
        if isinstance(answer, urllib.error.HTTPError):
            answer.close()
            if answer.code not in _AGAIN:
                raise UnavailableError(f"{request.full_url}: HTTP {answer.code} {answer.reason}")
            raise _BrokenError(f"HTTP {answer.code} {answer.reason}")
        if not self._answered and isinstance(_reason(answer), TimeoutError | socket.gaierror):
            raise UnavailableError(_cause(answer))  # asking again would only wait again
        raise _BrokenError(_cause(answer))


def _retrying(url: str, so_far: Callable[[], int]) -> tenacity.Retrying:
    """Policy of transfers that broke off: `TRIES` in all, each failure logged."""
    import tenacity  # 80 to 300 ms, spent by who downloads

    def log_failure(state: tenacity.RetryCallState) -> None:
        broken = state.outcome.exception() if state.outcome else None
        _LOG.warning(
            "%s: attempt %d of %d: %s after %d bytes", url, state.attempt_number, TRIES, broken, so_far()
        )

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=tenacity.wait_incrementing(0.2, 0.2),
        retry=tenacity.retry_if_exception_type(_BrokenError),
        after=log_failure,
        reraise=True,
    )


def _ask(request: urllib.request.Request, wait_s: float) -> Any:
    """Return the answer or the exception; a name look-up has no time limit, so a thread is left behind."""
    box: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            box.put(urllib.request.urlopen(request, timeout=wait_s))  # noqa: S310 - the scheme is checked
        except (OSError, http.client.HTTPException, ValueError) as error:
            box.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return box.get(timeout=wait_s + 0.5)
    except queue.Empty:
        return TimeoutError(f"no response within {wait_s:.0f} s")


def _reason(answer: Any) -> Any:
    """What an exception of urllib wraps, another exception itself; of a response, its status in words."""
    return getattr(answer, "reason", answer)


def _cause(error: Exception) -> str:
    reason = _reason(error)
    return str(getattr(reason, "strerror", None) or reason) or type(reason).__name__


TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
"""Endings of tar files."""
_ENDINGS = (".zip", *TARS)
NO_ARCHIVE = f"Give one that ends in {', '.join(_ENDINGS)}, or download it and give the file."
"""What to do about an address of something else."""
_GROWTH, _SPARE_BYTES = 50, 1 << 30
"""An archive may unpack to so many times its size and a gibibyte more; pictures hardly compress."""
_COPY_BYTES = 1 << 20


def is_remote(path: str | None) -> bool:
    """Whether a path is the address of an HTTP server."""
    return path is not None and path.lower().startswith(("http://", "https://"))


_SHARED: tuple[tuple[str, str], ...] = (
    (r"(https?://(?:www[.])?dropbox[.]com/.*[?&]dl=)0", r"\g<1>1"),
    (r"(https?://(?:www[.])?github[.]com/[^/]+/[^/]+)/blob/(.+)", r"\1/raw/\2"),
    (r"(https?://(?:www[.])?huggingface[.]co/datasets/[^/]+/[^/]+)/blob/(.+)", r"\1/resolve/\2"),
)
"""Pages that show a file, and the address of the file itself."""


def direct(url: str) -> str:
    """Return the address of the file that a page of a known host shows, any other as it is."""
    for pattern, file in _SHARED:
        if match := re.fullmatch(pattern, url, re.IGNORECASE):
            return match.expand(file)
    return url


def version(url: str) -> str | None:
    """Return what changes when the file at an address does, None where the server does not respond or say."""
    told = _validators(direct(url))
    return _digest(direct(url), told) if any(told) else None


def _digest(url: str, told: tuple[str | None, ...]) -> str:
    """What changes with a file as far as its server tells; of the address alone where it tells nothing."""
    return hashlib.sha256((json.dumps([url, *told]) if any(told) else url).encode()).hexdigest()


def _validators(url: str) -> tuple[str | None, ...]:
    """ETag, date of change and length of the file at an address, each None where the server gives none."""
    answer = _ask(request_of(url, "HEAD"), CONNECT_TIMEOUT_S)
    if isinstance(answer, urllib.error.HTTPError) and answer.code in _NO_HEAD:
        answer.close()
        request = request_of(url)
        request.add_header("Range", "bytes=0-0")
        answer = _ask(request, CONNECT_TIMEOUT_S)
    if isinstance(answer, Exception):
        if isinstance(answer, urllib.error.HTTPError):
            answer.close()
        return None, None, None
    with answer:
        whole = str(answer.headers.get("Content-Range", "")).rpartition("/")[2]
        length = whole or answer.headers.get("Content-Length")
        return answer.headers.get("ETag"), answer.headers.get("Last-Modified"), length


_NO_HEAD = (400, 403, 405, 501)
"""What servers answer that know GET alone, and stores for addresses that are signed for GET."""


def downloaded(url: str, storage: Storage) -> tuple[str, str | None]:
    """Fetch an archive below the storage root, or into the user's cache where that is no local folder.

    Args:
        url: Of one zip or tar file.
        storage: Whose `cache` folder takes it.

    Returns:
        Its path, and what `version` says of it; what was fetched before is not fetched again unless the
        server says that it changed.

    Raises:
        DataError: It is not called like an archive, or cannot be fetched.
    """
    if (file := direct(url)) != url:
        _LOG.warning("%s shows a file; %s is fetched", url, file)
        url = file
    if not is_archive(url):
        raise DataError(f"{url} is not an archive.", elsewhere(url) or NO_ARCHIVE)
    told = _validators(url)
    digest = _digest(url, told)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(url.partition("?")[0]).name)[-60:]
    target = Path(_cache(storage, "downloads"), f"{digest[:16]}-{name}")
    part = target.with_name(f".{target.name}.part")
    try:
        with folder_lock(str(target.parent)):  # one process fetches, the others wait
            if target.exists() and not any(told[:2]):
                _LOG.warning(
                    "%s: the server gives neither an ETag nor a date, so that a change is noticed only by "
                    "another length; remove %s to fetch it anew",
                    *(url, target),
                )
            if not target.exists():
                _LOG.info("fetching %s", url)
                _retrying(url, lambda: _size(part))(_resume, url, part)
                _require_archive(url, part)
                part.rename(target)
    except _BrokenError as error:
        raise DataError(f"{url} cannot be fetched: {error}.", "Check the address, or retry.") from None
    except OSError as error:
        raise DataError(f"{url} cannot be saved: {error.strerror or error}.", "Free space there.") from None
    return str(target), digest if any(told) else None


def _require_archive(url: str, part: Path) -> None:
    """Remove what was received and is no archive, so that it is fetched anew; a page to log in, mostly."""
    if zipfile.is_zipfile(part) or tarfile.is_tarfile(part):
        return
    with part.open("rb") as stream:
        known = in_place_of_it(stream.read(512))
    part.unlink()
    what = known[0] if known else "no zip or tar file, or one that is cut off"
    raise DataError(
        f"{url} gave no archive: what was received is {what}.",
        "Give the address of the file itself, without a login, or fetch it manually and give the file.",
    )


_UNACCEPTED = {
    9: "Check this machine's clock.",
    10: "Check this machine's clock, or have the server's certificate renewed.",
    62: "Give the host's name as it stands in the certificate.",
    64: "Give the host's name as it stands in the certificate.",
}
"""What to do about a certificate, by OpenSSL's code: not yet valid, expired, another name or address."""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _resume(url: str, part: Path) -> None:
    """Append what is missing of a file, asking only for the rest when there is a beginning."""
    have = _size(part)
    request = request_of(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    answer = _ask(request, READ_TIMEOUT_S)
    if isinstance(answer, urllib.error.HTTPError):
        answer.close()
        if answer.code in _AGAIN:
            raise _BrokenError(f"HTTP {answer.code} {answer.reason}")
        remedy = "Check data.path."
        if answer.code in (401, 403):
            remedy = "Give an address that needs no login and has not expired, or fetch the file manually."
        raise DataError(f"{url} cannot be fetched: HTTP {answer.code} {answer.reason}.", remedy)
    reason = _reason(answer)
    if isinstance(reason, ssl.SSLCertVerificationError):
        raise DataError(
            f"{url} cannot be fetched: its certificate is not accepted, {reason.verify_message.rstrip('.')}.",
            _UNACCEPTED.get(
                reason.verify_code, "Set SSL_CERT_FILE to the file of the certificates that you trust."
            ),
        )
    if isinstance(answer, Exception):
        raise _BrokenError(_cause(answer))
    goes_on = str(answer.headers.get("Content-Range")).startswith(f"bytes {have}-")
    with answer, part.open("ab" if goes_on else "wb") as into:
        try:
            while chunk := answer.read(_COPY_BYTES):
                into.write(chunk)
        except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
            raise _BrokenError(_cause(error)) from None
        if answer.length:  # the server hung up early, which a sized read does not report
            raise _BrokenError(f"the connection closed with {answer.length:,} bytes to come")


def _cache(storage: Storage, name: str) -> str:
    """A folder for what is fetched once: in the storage root, or in the user's cache where that is remote."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return storage.uri("cache", name) if storage.local else os.path.join(home, "distml", name)


def is_archive(path: str) -> bool:
    """Whether a path or URI is called like an archive."""
    return path.partition("?")[0].lower().endswith(_ENDINGS)


def unpacked(path: str, storage: Storage, keeps: Callable[[Folder], bool] = lambda _: False) -> str:
    """Unpack an archive below the storage root, or in the user's cache where that is no local folder.

    An archive that holds one archive and nothing else is unpacked with it.

    Args:
        path: Of the archive.
        storage: Whose `cache` folder takes the files.
        keeps: Whether the only archive within it stays one, for a format that reads archives.

    Returns:
        The folder; the same archive is unpacked once, a changed one anew.

    Raises:
        DataError: Not an archive, damaged, members that lead out of it, or implausibly much content.
    """
    given = Folder(path)
    (name,) = given.sizes
    key = hashlib.sha256(f"{given.root} {given.fingerprint()}".encode()).hexdigest()[:16]
    above = _cache(storage, "unpacked")
    stem = re.sub(r"[^A-Za-z0-9_-]", "_", PurePosixPath(name).name.partition(".")[0])[:40]
    target = Path(above, f"{stem}-{key}")
    if target.exists():
        return str(target)
    Path(above).mkdir(parents=True, exist_ok=True)
    into = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=above))
    try:
        limit = _GROWTH * given.sizes[name] + _SPARE_BYTES
        with given.open(name) as stream:
            limit = _unpack(stream, name, into, limit)
        within = Folder(str(into))
        if len(within.sizes) == 1 and is_archive(inner := next(iter(within.sizes))) and not keeps(within):
            with within.open(inner) as stream:
                _unpack(stream, f"{name}/{inner}", into, limit)
            into.joinpath(inner).unlink()
        into.rename(target)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DataError(
            f"{name} cannot be unpacked: {error.strerror or error}.",
            "Free space there." if full else "Unpack it manually and check it.",
        ) from None
    finally:
        shutil.rmtree(into, ignore_errors=True)
    return str(target)


def _unpack(stream: Any, name: str, into: Path, limit: int) -> int:
    """Write the files of an archive into a folder; returns how many bytes are left of the limit.

    Raises:
        DataError: There are none, or too many bytes.
    """
    empty = True
    for member, content in _members(stream, name):
        limit -= _write(content, into / _safe(member, name), limit, name)
        empty = False
    if empty:
        raise DataError(f"{name} is an archive without files.", "Fetch it again.")
    return limit


def _members(stream: Any, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file of an archive; the content decides which kind it is."""
    with _said(name):
        known = in_place_of_it(stream.read(512))
        if known and known[0] not in _PACKED:
            raise DataError(f"{name} is no archive: it is {known[0]}.", known[1])
        stream.seek(0)
        if not tarfile.is_tarfile(stream):
            yield from _of_zip(stream, name)
            return
        stream.seek(0)
        left: list[str] = []
        with tarfile.open(fileobj=stream, mode="r:*") as archive:
            for member in archive:
                try:  # of a link, the file in the archive that it means; none elsewhere is read
                    regular = archive.extractfile(member)
                except KeyError:
                    regular = None
                if regular is not None:
                    yield member.name, regular
                elif not member.isdir():  # a device, or a link that leads out of it
                    left.append(member.name)
            require_end(archive)
        if left:
            _LOG.warning("%d entries of %s are no files in it, like %s; left out", len(left), name, left[0])


def _of_zip(stream: Any, name: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file of a zip; a name is UTF-8 also where nothing says so, if it can be."""
    unknown: list[str] = []
    with zipfile.ZipFile(stream) as packed:
        for info in packed.infolist():
            called = info.filename
            if not (info.flag_bits & _UTF8 or called.isascii()):
                try:
                    called = called.encode("cp437").decode("utf-8")
                except UnicodeError:
                    unknown.append(called)
            if info.flag_bits & _ENCRYPTED:
                raise DataError(f"{called} in {name} is encrypted.", "Unpack it with its password.")
            if not info.is_dir():
                with packed.open(info) as content:
                    yield called, content
    if unknown:
        _LOG.warning(
            "%s does not say how %d of its names are written; they are read as code page 437, like %s",
            *(name, len(unknown), unknown[0]),
        )


SINGLE = (".gz", ".bz2", ".xz", ".zip")
"""Endings of what may hold a single file."""


def only_file(data: bytes, name: str) -> bytes:
    """Return the one file that is packed in another, as a table in `labels.csv.gz` or `labels.csv.zip`.

    Raises:
        DataError: Damaged, locked, none or several, or implausibly large.
    """
    limit = _GROWTH * len(data) + _SPARE_BYTES
    held: list[bytes] = []
    try:
        with _said(name):
            if name.lower().endswith(".zip"):
                for member, content in _of_zip(io.BytesIO(data), name):
                    held += (
                        [] if member.startswith("__MACOSX/") or len(held) > 1 else [content.read(limit + 1)]
                    )
            else:
                opened: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
                with opened[Path(name).suffix.lower()](io.BytesIO(data)) as stream:
                    held = [stream.read(limit + 1)]
    except OSError as error:  # which bz2 raises
        raise DataError(f"{name} cannot be unpacked: {error}.", "Fetch it again.") from None
    if len(held) != 1:
        raise DataError(f"{name} holds {'several files' if held else 'no file'}, not one.", "Unpack it.")
    if len(held[0]) > limit:
        raise DataError(f"{name} unpacks to far more than its own size.", "Unpack it manually and check it.")
    return held[0]


_PACKED = ("a zip archive", "packed by gzip")
_ENCRYPTED = 0x1
"""Flag of a member of a zip that needs a password."""
_UTF8 = 0x800
"""Flag of a member of a zip whose name is UTF-8."""


def require_end(archive: tarfile.TarFile) -> None:
    """Check that a tar file ends where its members do; `tarfile` takes a header that is cut off for the end.

    Args:
        archive: All of its members were listed. What is left is read, for the checksums of compression.

    Raises:
        tarfile.ReadError: It ends within the header of a member, or goes on behind its end.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if len(archive.fileobj.read(tarfile.BLOCKSIZE)) % tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it is cut off after {len(archive.getmembers())} members")
    while more := archive.fileobj.read(_COPY_BYTES):
        if more.strip(b"\0"):
            raise tarfile.ReadError("more follows behind its end, as where several were joined")


_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, lzma.LZMAError),
    *(EOFError, NotImplementedError, RuntimeError),
)
"""What reading a damaged archive raises."""


@contextmanager
def _said(name: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        remedy = "Fetch it again."
        if isinstance(error, NotImplementedError):  # such as the Deflate64 of Windows for large files
            remedy = "Unpack it manually and give the folder."
        raise DataError(f"{name} cannot be read as an archive: {error}.", remedy) from None


def _safe(member: str, name: str) -> Path:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    if not parts or ".." in parts or parts[0] == "/" or re.match(r"[A-Za-z]:", member):
        raise DataError(
            f"{name} holds {member!r}, whose path is outside of it.", "Unpack it manually and check it."
        )
    return Path(*parts)


def _write(content: IO[bytes], path: Path, limit: int, name: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    if path.exists():
        _LOG.warning("%s holds %s twice; the last one is used", name, path.name)
    with _said(name), path.open("wb") as into:
        while chunk := content.read(_COPY_BYTES):
            written += len(chunk)
            if written > limit:
                raise DataError(
                    f"{name} unpacks to far more than its own size.", "Unpack it manually and check it."
                )
            into.write(chunk)
    return written

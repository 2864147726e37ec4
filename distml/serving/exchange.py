"""Reads bodies within the limits that `config.schema` sets, writes responses: encodings, JSON (replica).

Strict JSON has no key twice in one object, no NaN and a bounded depth. The limits on a body and on what it
unpacks to are enforced here; their values are `serve.max_body_bytes` and its neighbours (`config.schema`).
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
import zlib
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Header = tuple[bytes, bytes]

JSON = b"application/json"
OCTETS = b"application/octet-stream"
_LENGTH, _KIND = b"content-length", b"content-type"
_NOSNIFF: Final[Header] = (b"x-content-type-options", b"nosniff")
_IDENTITY = 200
_ARRIVING_BYTES = 512 << 20
_SLOWEST_BYTES_PER_S, _LONGEST = 64_000, 6
_WORTH_COMPRESSING_BYTES = 2048
"""One packet or two are not worth the time."""
_WINDOWS = {b"gzip": zlib.MAX_WBITS | 16, b"deflate": zlib.MAX_WBITS}
"""Encodings of answers, the preferred one first, and zlib's parameter for each."""
_VARY: Final[Header] = (b"vary", b"accept-encoding")
_QUALITY = re.compile(rb"0(\.\d{0,3})?|1(\.0{0,3})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may cost.

    Args:
        body_bytes: Largest body, as sent and after decompression.
        read_timeout_s: Time in which a body must arrive; a large one has more, see `_Patience`.
    """

    body_bytes: int
    read_timeout_s: float


class RejectedError(Exception):
    """A request that is answered with a status of 4xx or 5xx and one sentence.

    Args:
        status: HTTP status.
        sentence: What is wrong, with the offending value.
        headers: Sent along.
    """

    def __init__(self, status: int, sentence: str, *headers: Header) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


class Answer(Response):
    """A complete answer. Final.

    Starlette's own constructor spends ten times as long on what is known beforehand.

    Args:
        body: As sent.
        status: HTTP status.
        kind: Content type.
        headers: Further headers.
        version: Of the model that answered, for the metrics and the header `x-model-version`.
        images: How many were classified, for the metrics.
    """

    def __init__(
        self,
        body: bytes,
        status: int = 200,
        kind: bytes = JSON,
        headers: tuple[Header, ...] = (),
        version: int | None = None,
        images: int = 0,
    ) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        self.version = version
        self.images = images
        self.raw_headers = [(_LENGTH, b"%d" % len(body)), (_KIND, kind), _NOSNIFF, *headers]
        if version is not None:
            self.raw_headers.append((b"x-model-version", b"%d" % version))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        await send(start)
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


def options(allowed: str) -> Answer:
    """Answer OPTIONS with the methods that a path takes."""
    answer = Answer(b"", 204)
    answer.raw_headers = [(b"allow", allowed.encode())]
    return answer


def answer(document: Any, version: int | None = None, status: int = 200, images: int = 0) -> Answer:
    """Answer with JSON; NumPy arrays become lists."""
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return Answer(text, status, version=version, images=images)


def reject(rejection: RejectedError) -> Answer:
    """Answer with the sentence of a rejection, in the form that all three protocols share."""
    return Answer(orjson.dumps({"error": rejection.sentence}), rejection.status, headers=rejection.headers)


def header(request: Request, name: bytes) -> bytes:
    """Return a request's header by its lower-case name, empty where it is not sent."""
    for key, value in request.scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def identity(request: Request) -> str | None:
    """Return the request's identity, which Ray gives to those whose client gave none and sends back."""
    return header(request, b"x-request-id").decode("latin-1")[:_IDENTITY] or None


def kind(request: Request) -> str:
    """Return the content type without its parameters, in lower case; empty where none is sent."""
    return header(request, _KIND).partition(b";")[0].strip().lower().decode("latin-1")


async def body(request: Request, limits: Limits) -> bytes:
    """Read the whole body, decompressed.

    Raises:
        RejectedError: Too large (413, before a byte of it is read where the length is declared), too slow
            (408), in an unknown encoding (415) or not what its encoding says (400).
        ClientDisconnect: The client has gone.
    """
    declared = header(request, _LENGTH)
    if declared and int(declared) > limits.body_bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.read_timeout_s) as timer:
            sent = await _collect(request, limits, _Patience(timer, limits.read_timeout_s))
    except TimeoutError:
        sentence = f"the body did not arrive within {limits.read_timeout_s:g} seconds, and one more for each"
        sentence += f" {_SLOWEST_BYTES_PER_S // 1000} kB of it; scale the picture down, or retry"
        raise RejectedError(408, sentence, (b"connection", b"close")) from None
    encoding = header(request, b"content-encoding").strip().lower()
    return decompress(sent, encoding, limits) if encoding not in (b"", b"identity") else sent


class _Patience:
    """How long a body may take. Final.

    A phone on a slow line sends a photograph for a minute; what nobody sends any more ends soon. So a body
    has the time limit and as much longer as its bytes take on a line of `_SLOWEST_BYTES_PER_S`, but never
    longer than `_LONGEST` limits, and no part may take longer than one.
    """

    def __init__(self, timer: asyncio.Timeout, limit_s: float) -> None:
        self._timer, self._limit_s = timer, limit_s
        self._began = asyncio.get_running_loop().time()

    def arrived(self, size: int) -> None:
        """Wait for the next part, after so many bytes in all."""
        whole_s = min(self._limit_s + size / _SLOWEST_BYTES_PER_S, _LONGEST * self._limit_s)
        next_part = asyncio.get_running_loop().time() + self._limit_s
        self._timer.reschedule(min(self._began + whole_s, next_part))


async def _collect(request: Request, limits: Limits, patience: _Patience) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            if size > limits.body_bytes:
                raise _too_large(limits)
            if not message.get("more_body", False):
                return b"".join([*parts, part]) if parts else bytes(part)
            patience.arrived(size)
            parts.append(part)
            _arriving.add(len(part))
    finally:
        _arriving.add(-sum(map(len, parts)))


class _Arriving:
    """Bytes of bodies that have arrived in part: many slow large bodies must not fill the memory. Final."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, count: int) -> None:
        self._bytes += count
        if count > 0 and self._bytes > _ARRIVING_BYTES:
            sentence = "too many large requests are arriving at once; retry later"
            raise RejectedError(429, sentence, (b"retry-after", b"1"), (b"connection", b"close"))


_arriving = _Arriving()


def _too_large(limits: Limits) -> RejectedError:
    limit = f"{limits.body_bytes:,} bytes"
    remedy = "scale the picture down, send fewer at a time, or raise serve.max_body_bytes"
    return RejectedError(413, f"the body is larger than {limit}; {remedy}")


def decompress(sent: bytes, encoding: bytes, limits: Limits) -> bytes:
    """Unpack gzip or zlib, never more than the limit.

    Raises:
        RejectedError: In an unknown encoding (415), not what its encoding says (400), or too large (413).
    """
    name = encoding.decode("latin-1")
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise RejectedError(415, f"the content encoding {name!r} is not known; send gzip, deflate or none")
    parts: list[bytes] = []
    left, rest = limits.body_bytes, sent
    while True:
        try:
            unpacker, part = _unpack(rest, left + 1, bare=encoding == b"deflate")
        except zlib.error:
            raise RejectedError(400, f"the body is not {name} data") from None
        parts.append(part)
        left, rest = left - len(part), unpacker.unused_data
        if left < 0:
            raise _too_large(limits)
        if not unpacker.eof or (rest and (rest[:2] != _GZIP or len(parts) == _MEMBERS)):
            raise RejectedError(400, f"the body is not one complete {name} stream")
        if not rest:
            return b"".join(parts)


_GZIP, _MEMBERS = b"\x1f\x8b", 16
"""What a member of gzip begins with (RFC 1952, 2.2), and how many a body may have: each is copied again."""


def _unpack(sent: bytes, most: int, bare: bool) -> tuple[Any, bytes]:
    """Unpack one stream with either header, or with none, as many clients send what they call deflate."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        return unpacker, unpacker.decompress(sent, most)
    except zlib.error:
        if not bare:
            raise
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        return unpacker, unpacker.decompress(sent, most)


def compress(request: Request, given: Answer) -> Answer:
    """Compress a large answer in the encoding that the client prefers; gzip before deflate where it has none.

    A large answer says that it depends on `Accept-Encoding`, compressed or not: a cache would otherwise give
    the form of one client to another.
    """
    if len(given.body) < _WORTH_COMPRESSING_BYTES:
        return given
    given.raw_headers.append(_VARY)
    name = _preferred(header(request, b"accept-encoding"))
    if name:
        packer = zlib.compressobj(1, zlib.DEFLATED, _WINDOWS[name])
        given.body = packer.compress(bytes(given.body)) + packer.flush()
        given.raw_headers[0] = (_LENGTH, b"%d" % len(given.body))
        given.raw_headers.append((b"content-encoding", name))
    return given


def _preferred(accepted: bytes) -> bytes | None:
    """Return the encoding with the highest weight in `Accept-Encoding`, None for none (RFC 9110, 12.5.3)."""
    weights: dict[bytes, float] = {}
    for part in accepted.lower().split(b","):
        name, *parameters = (word.strip() for word in part.split(b";"))
        weights[name] = _weight(parameters)
    rest = weights.get(b"*", 0.0)
    best = max(_WINDOWS, key=lambda name: weights.get(name, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get(b"identity", 0.0) else None


def _weight(parameters: list[bytes]) -> float:
    """Return the weight among an encoding's parameters: 1 where there is none, 0 where it is not a number."""
    for parameter in parameters:
        key, _, value = parameter.partition(b"=")
        if key.strip() == b"q":
            match = _QUALITY.fullmatch(value.strip())
            return float(match[0]) if match else 0.0
    return 1.0


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed JSON object.

    Args:
        members: Its members.
        booleans: Whether `true` or `false` stands anywhere in it. Python takes them for 1 and 0, so numbers
            need a closer look then.
    """

    members: dict[str, Any]
    booleans: bool


MAX_VALUES = 2_000_000
"""In one body of JSON: 13 images of 224x224 in colour. That many take 50 ms."""


def parse_json(text: bytes | memoryview) -> Document:
    """Parse a JSON object.

    Raises:
        RejectedError: Too many numbers, not JSON, not an object, nested without end, or a key twice in one
            object.
    """
    plain = bytes(text).removeprefix(codecs.BOM_UTF8)  # .NET and PowerShell begin with it
    if plain.count(b",") > MAX_VALUES:  # parsing them holds up every other request
        limit = f"{MAX_VALUES:,} numbers"
        raise RejectedError(413, f"the body holds more than {limit}; send fewer images at a time, or files")
    try:
        members = orjson.loads(plain)
    except orjson.JSONDecodeError as error:
        raise RejectedError(400, f"the body is not JSON: {_cause(error, plain)}") from None
    if not isinstance(members, dict):
        raise RejectedError(400, f"the body is {json_type(members)}, not a JSON object")
    # Every member has one colon outside strings, so fewer members than colons means a colon inside a string
    # or a member that was overwritten; only then is it worth finding out which.
    if _members(members) != plain.count(b":"):
        _require_unique(plain)
    return Document(members, b"true" in plain or b"false" in plain)


def _cause(error: orjson.JSONDecodeError, text: bytes) -> str:
    if not text:
        return "it is empty"
    if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in text[:2]:
        return "it is UTF-16; send UTF-8"  # as Windows PowerShell writes files
    if constant := _CONSTANT.match(text, len(text.decode("utf-8", "replace")[: error.pos].encode())):
        return f"{constant[0].decode()} is not a JSON number, at line {error.lineno} column {error.colno}"
    if re.search("depth|recursion|allocate", error.msg, re.IGNORECASE):  # as versions of orjson put it
        return f"it is nested too deeply at line {error.lineno} column {error.colno}"
    return str(error).rpartition(" (char")[0]


_CONSTANT = re.compile(rb"-?(?:NaN|Infinity)")
"""As Python and JavaScript libraries write them."""


def _members(value: Any) -> int:
    """Count the members of objects in objects and in lists that begin with an object."""
    if isinstance(value, dict):
        return len(value) + sum(map(_members, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sum(map(_members, value))
    return 0


def _require_unique(text: bytes) -> None:
    def unique(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise RejectedError(400, f"the key {key[:80]!r} appears twice in one object")
            seen.add(key)

    try:
        json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise RejectedError(400, "the body is not JSON: it is nested too deeply") from None


def json_type(value: Any) -> str:
    """Name the JSON type of a value, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    kinds = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")

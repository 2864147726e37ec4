"""JSON without surprises: no duplicate keys, no NaN, no depth without end (replica)."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import orjson

from distml.serving.exchange import RejectedError


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


def parse(text: bytes | memoryview) -> Document:
    """Parse a JSON object.

    Raises:
        RejectedError: Too many numbers, not JSON, not an object, nested without end, or a key twice in one
            object.
    """
    plain = bytes(text)
    if plain.count(b",") > MAX_VALUES:  # parsing them holds up every other request
        limit = f"{MAX_VALUES:,} numbers"
        raise RejectedError(413, f"the body holds more than {limit}; send fewer images at a time, or files")
    try:
        members = orjson.loads(plain)
    except orjson.JSONDecodeError as error:
        raise RejectedError(400, f"the body is not JSON: {_cause(error, not len(text))}") from None
    if not isinstance(members, dict):
        raise RejectedError(400, f"the body is {kind(members)}, not a JSON object")
    # Every member has one colon outside strings, so fewer members than colons means a colon inside a string
    # or a member that was overwritten; only then is it worth finding out which.
    if _members(members) != plain.count(b":"):
        _require_unique(plain)
    return Document(members, b"true" in plain or b"false" in plain)


def _cause(error: orjson.JSONDecodeError, empty: bool) -> str:
    if empty:
        return "it is empty"
    if re.search("depth|recursion|allocate", error.msg, re.IGNORECASE):  # as versions of orjson put it
        return f"it is nested too deeply at line {error.lineno} column {error.colno}"
    return str(error).rpartition(" (char")[0]


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
                raise RejectedError(400, f"the key {key[:80]!r} stands twice in one object")
            seen.add(key)

    try:
        json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise RejectedError(400, "the body is not JSON: it is nested too deeply") from None


def kind(value: Any) -> str:
    """Name the JSON type of a value, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    kinds = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")

"""Checks of `distml doctor` (`Check`, its outcomes), and what `distml init` learns of data and machine."""

from dataclasses import dataclass
from typing import Literal

from distml.errors import DistmlError

GIB = 1 << 30


@dataclass(frozen=True)
class Check:
    """One answer.

    Args:
        name: What was checked.
        status: A problem will stop a run; a warning may make it slow or incomplete.
        detail: The state, with the value.
        remedy: What to do about it; empty where nothing is to be done.
    """

    name: str
    status: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""


def ok(name: str, detail: str) -> Check:
    """All is well."""
    return Check(name, "ok", detail)


def warning(name: str, detail: str, remedy: str) -> Check:
    """A run will work, but not as well as it could."""
    return Check(name, "warning", detail, remedy)


def problem(name: str, detail: str, remedy: str) -> Check:
    """A run would fail."""
    return Check(name, "problem", detail, remedy)


def failed(name: str, error: DistmlError) -> Check:
    """What a run would say here, said now."""
    return Check(name, "problem", error.message, error.remedy)


def size(number: float) -> str:
    """Bytes as a person reads them."""
    return f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / (1 << 20):.0f} MiB"

"""Which loaded version a path asks for (replica)."""

from __future__ import annotations

from starlette.requests import Request

from distml.serving.exchange import RejectedError
from distml.serving.service import Served, Service

_DIGITS = 18


def champion(service: Service) -> Served:
    """Return the version that answers by default.

    Raises:
        RejectedError: 503, none is loaded.
    """
    if not (served := service.served()):
        raise RejectedError(503, "no model has been loaded yet", (b"retry-after", b"1"))
    return served[0]


def number(service: Service, request: Request) -> int | None:
    """Return the version in the path, or the one that its label stands for; None where it names neither.

    Raises:
        RejectedError: 404, it is no number, or no label that is followed.
    """
    if "label" in request.path_params:
        return _labelled(service, request.path_params["label"])
    word = request.path_params.get("version")
    if word is None:
        return None
    if not (word.isascii() and word.isdigit() and len(word) <= _DIGITS):
        raise RejectedError(404, f"the version {word[:80]!r} is no number")
    return int(word)


def _labelled(service: Service, label: str) -> int:
    aliases = service.aliases()
    if label not in aliases:
        known = ", ".join(aliases) or "none"
        raise RejectedError(404, f"there is no label {label[:80]!r}; the labels are {known}")
    return aliases[label]


def choose(service: Service, request: Request, version: int | None) -> Served:
    """Return the version that the path asks for.

    Raises:
        RejectedError: 404, no model or version of that name is loaded; 503, none at all.
    """
    first, name = champion(service), request.path_params["name"]
    if name != first.name:
        raise RejectedError(404, f"there is no model {name[:80]!r}; {first.name!r} is served")
    if version in (None, first.version):
        return first
    for served in service.served():
        if served.version == version:
            return served
    loaded = ", ".join(str(one.version) for one in service.served())
    raise RejectedError(404, f"version {version} of {name!r} is not loaded; loaded: {loaded}")

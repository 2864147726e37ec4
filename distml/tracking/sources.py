"""Where a registered model's files may come from (driver, replica).

Whoever may write to a registry may name any place as the source of a version. What is loaded from there
is still checked against its SHA-256, but asking a stranger's server, or reading any file of this machine,
is harm enough. So a place is accepted only when it is one that this product writes to.
"""

from __future__ import annotations

import os
from urllib.parse import unquote, urlsplit

from distml.config import Config
from distml.errors import TrackingError
from distml.storage import Storage
from distml.tracking.server import uri


def require_own(config: Config, location: str, what: str) -> None:
    """Refuse files that lie elsewhere than below the storage root, in the tracking server, or where allowed.

    Args:
        config: Names the storage root, the server and `tracking.artifact_roots`.
        location: URI or path that the registry gave.
        what: Said in the error.

    Raises:
        TrackingError: Another place, or a way out of an accepted one.
    """
    roots = [Storage(config.storage.root).root, *config.tracking.artifact_roots]
    if _proxied(location, uri(config)) or any(_below(location, root) for root in roots):
        return
    raise TrackingError(
        f"{what} says that its files are at {location[:200]!r}, which is neither below {roots[0]} "
        "nor kept by the tracking server.",
        "If you put them there, add the place to tracking.artifact_roots; else delete the version.",
    )


def _proxied(location: str, server: str) -> bool:
    """Whether the tracking server hands the files out itself; a host in such a URI is asked, so it counts."""
    parts = urlsplit(location)
    own = parts.netloc in ("", urlsplit(server).netloc)
    return parts.scheme == "mlflow-artifacts" and own and _climbless(parts.path) and not parts.query


def _below(location: str, root: str) -> bool:
    there, base = _path(location), _path(root)
    if "\0" in there:
        return False
    if "://" in there or "://" in base:
        inside = there == base or there.startswith(base.rstrip("/") + "/")
        return inside and _climbless(there)
    there, base = os.path.realpath(there), os.path.realpath(base)
    return os.path.commonpath([there, base]) == base


def _path(place: str) -> str:
    """A path of this machine as an absolute path, any other place as its URI without options."""
    parts = urlsplit(place)
    if parts.scheme in ("", "file") and parts.netloc in ("", "localhost"):
        return os.path.abspath(os.path.expanduser(unquote(parts.path) if parts.scheme else place))
    return place.partition("?")[0] if "://" in place else f"unknown://{place}"


def _climbless(path: str) -> bool:
    """Whether no part of a path climbs, however often it is percent-encoded."""
    while (plain := unquote(path)) != path:
        path = plain
    return not {".", ".."} & set(path.replace("\\", "/").split("/"))

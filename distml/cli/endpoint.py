"""The verbs around a running endpoint: keys (driver)."""

from __future__ import annotations

import sys
from argparse import Namespace
from datetime import UTC, datetime
from typing import Any

from distml.config import Config
from distml.errors import ConfigError
from distml.serving import keys as api_keys


def keys(config: Config, own: Namespace) -> dict[str, Any]:
    """Draw an API key, list the names that have one, or take a name's keys away.

    distml keys new alice --config configs/fashion_mnist.yaml --serve.auth.keys_file keys.txt

    Returns:
        `file`, and the new `key` with its `name`, or all `keys` by name and end, or how many were `removed`.

    Raises:
        ConfigError: No keys file is configured, it cannot be used, or the name is missing or not there.
    """
    path = config.serve.auth.keys_file
    if path is None:
        raise ConfigError(
            "serve.auth.keys_file is not set.", "Name the file, as --serve.auth.keys_file keys.txt."
        )
    if own.what == "list":
        listed = [{"name": key.name, "expires": _moment(key.expires)} for key in api_keys.read(path)]
        return {"file": path, "keys": listed}
    if own.name is None:
        raise ConfigError(f"keys {own.what} takes a name.", f"Write distml keys {own.what} NAME.")
    if own.what == "remove":
        return {"file": path, "name": own.name, "removed": api_keys.remove(path, own.name)}
    key = api_keys.new(path, own.name, own.expires)
    print(
        "The key is shown this once; the file has its hash. Keep it where secrets are kept.", file=sys.stderr
    )
    return {"file": path, "name": own.name, "expires": own.expires, "key": key}


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()

"""Put a backbone's ImageNet weights under the storage root, for machines without a network (driver).

distml fetch-weights NAME [--file FILE]
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config
from distml.models import registry
from distml.storage import Storage
from distml.training import pretrained, weight_sources


def _arguments(parser: cli.Parser) -> None:
    parser.add_argument("name", nargs="?", help="a backbone of `distml models`; without it model.name")
    parser.add_argument("--file", metavar="FILE", help="take this file or URI instead of Keras's own")


def run(config: Config, namespace: Namespace) -> dict[str, Any]:
    """Fetch, or do nothing where they are already.

    Returns:
        `name`, `file`, `sha256`, `bytes` and `place`.

    Raises:
        ConfigError: No backbone of that name, or no such file.
        ModelError: Keras's file cannot be fetched.
        StorageError: The storage cannot be written.
    """
    name = namespace.name or config.model.name
    registry.check(name, {})
    model = config.model.model_copy(update={"name": name, "weights": pretrained.IMAGENET})
    wanted = config.model_copy(update={"model": model})
    storage = Storage(config.storage.root)
    if namespace.file:
        weight_sources.check(wanted)
        source = f"{pretrained.IMAGENET}:{name}"
        resolved_file = pretrained.put(storage, source, *weight_sources.read(namespace.file))
    else:
        resolved = weight_sources.resolve(wanted, storage)
        assert resolved is not None
        resolved_file = resolved
    place = storage.uri(*resolved_file.parts)
    return {
        "name": name,
        "file": resolved_file.file,
        "sha256": resolved_file.sha256,
        "bytes": resolved_file.bytes,
        "place": place,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("fetch-weights", run, argv, _arguments)


if __name__ == "__main__":
    raise SystemExit(main())

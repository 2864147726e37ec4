"""The command `distml ingest`: prepare the configured data in the storage, by `data.ingestion` (driver).

python -m distml.ingest --config configs/fashion_mnist.yaml
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distml import cli
from distml.config import Config


def run(config: Config) -> dict[str, Any]:
    """Prepare the data, or find them prepared.

    Returns:
        What `Manifest.summary` says, the manifest's URI, and cached, whether the data had been prepared.
    """
    from distml.data import ingestion
    from distml.storage import Storage

    storage = Storage(config.storage.root)
    cached = ingestion.find(config, storage) is not None
    manifest = ingestion.prepare(config, storage)
    place = storage.uri(manifest.folder, "manifest.json")
    return manifest.summary() | {"manifest": place, "cached": cached}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return cli.main("ingest", run, argv)


if __name__ == "__main__":
    cli.exit_with(main)

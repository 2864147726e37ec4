"""Verb: bring the configured data into the storage, once (driver).

python -m distml.ingest --config configs/fashion_mnist.yaml
"""

from __future__ import annotations

from typing import Any

from distml import cli
from distml.config import Config
from distml.data import shards
from distml.storage import Storage


def run(config: Config) -> dict[str, Any]:
    """Prepare the data, or find them prepared.

    Returns:
        name, rows by split, classes (their number), shape, manifest (its URI), digest, skipped (entries of
        the folder that were left out, by reason), left_out (pictures that could not be used), warnings (their
        number), and cached, whether the data had been prepared before.

    Raises:
        DistmlError: The data cannot be had, or not be written; nothing was published.
    """
    storage = Storage(config.storage.root)
    cached = shards.find(config, storage) is not None
    manifest = shards.prepare(config, storage)
    return {
        "name": manifest.name,
        "rows": manifest.rows,
        "classes": manifest.num_classes,
        "shape": list(manifest.shape),
        "manifest": storage.uri(manifest.folder, "manifest.json"),
        "digest": manifest.digest,
        "skipped": manifest.skipped,
        "left_out": len(manifest.left_out),
        "warnings": len(manifest.warnings),
        "cached": cached,
    }


def main() -> int:
    """Run from the command line and return the exit code."""
    return cli.main("ingest", run)


if __name__ == "__main__":
    raise SystemExit(main())

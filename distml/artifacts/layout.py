"""Layout of an export: the names of its files and the list of their digests (any process)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

MODEL = "data/model.keras"
SAVED_MODEL = "saved_model"
LITE = "data/model.tflite"
"""For LiteRT; absent where the network has an operation that it lacks."""
DIGESTS = "digests.json"
CLASSES = "classes.json"
EXAMPLE = "example.json"


def write_digests(folder: Path) -> str:
    """Write the SHA-256 of every file below a folder; returns the SHA-256 of that list."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS)
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }
    text = json.dumps(digests, indent=1, sort_keys=True)
    (folder / DIGESTS).write_text(text)
    return hashlib.sha256(text.encode()).hexdigest()

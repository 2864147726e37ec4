"""What a finished run leaves behind: the layout of its export and its evaluation (rank 0, driver)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from distml.training.events import Evaluation

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


def evaluate(labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, classes: list[str]) -> Evaluation:
    """Summarise predictions on a split.

    Args:
        labels: int32 (N,).
        predicted: int32 (N,), the most probable class.
        losses: float32 (N,).
        classes: Name of each class.
    """
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    recall = np.diag(confusion) / np.maximum(1, confusion.sum(1))
    return Evaluation(
        {"accuracy": float(np.mean(labels == predicted)), "loss": float(np.mean(losses))},
        {name: float(share) for name, share in zip(classes, recall, strict=True)},
        confusion.tolist(),
    )


def worst(labels: np.ndarray, predicted: np.ndarray, losses: np.ndarray, count: int = 25) -> np.ndarray:
    """Positions of the most confident mistakes, worst first: int64 (at most `count`,)."""
    wrong = np.flatnonzero(labels != predicted)
    return wrong[np.argsort(-losses[wrong], kind="stable")][:count]

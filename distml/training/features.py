"""Features that a frozen backbone computes once, in memory or on disk (worker)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Tensor = Any


class FeatureStore:
    """Features and labels of a rank's training rows. Final.

    They are kept in memory up to a limit, beyond it in a file among the temporary files of the machine.

    Args:
        limit_bytes: Memory that features may take.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._whole: tuple[Any, Any] | None = None

    def add(self, features: np.ndarray, labels: np.ndarray) -> None:
        """Append rows.

        Args:
            features: (rows, F).
            labels: (rows, ...).
        """
        self._labels.append(labels)
        self._parts.append(features)
        if self._folder or sum(part.nbytes for part in self._parts) > self._limit_bytes:
            self._spill()

    def _spill(self) -> None:
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="distml-features-")
        with self._file.open("ab") as file:
            for part in self._parts:
                file.write(np.ascontiguousarray(part).tobytes())
        self._parts = [part[:0] for part in self._parts[:1]]  # remembers width and type

    def close(self) -> None:
        """Delete the file."""
        self._whole = None
        if self._folder:
            self._folder.cleanup()

    @property
    def _file(self) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / "features"

    @property
    def on_disk(self) -> bool:
        """Whether the limit was too low."""
        return self._folder is not None

    @property
    def labels(self) -> np.ndarray:
        """Targets of all rows, in their order."""
        return np.concatenate(self._labels)

    def __len__(self) -> int:
        """Rows."""
        return sum(len(labels) for labels in self._labels)

    def block(self, order: np.ndarray) -> tuple[Tensor, Tensor, np.ndarray]:
        """What `Step.train` takes for some steps.

        Args:
            order: int32 (steps, batch), positions among all rows.

        Returns:
            Features and labels, and the positions among those.
        """
        features, labels = self._opened()
        if not self.on_disk:
            return features, labels, order
        rows, positions = np.unique(order, return_inverse=True)  # ascending, as a file is read best
        return (
            tf.constant(features[rows]),
            tf.constant(labels[rows]),
            positions.reshape(order.shape).astype(np.int32),
        )

    def _opened(self) -> tuple[Any, Any]:
        if self._whole is None:
            labels = np.concatenate(self._labels)
            if self.on_disk:
                like = self._parts[0]
                shape = (len(labels), *like.shape[1:])
                self._whole = np.memmap(self._file, like.dtype, "r", shape=shape), labels
            else:
                self._whole = tf.constant(np.concatenate(self._parts)), tf.constant(labels)
                self._parts = []
        return self._whole

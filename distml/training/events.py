"""TensorBoard event files beside the run (rank 0)."""

from __future__ import annotations

import tempfile
from typing import Any

import tensorflow as tf

from distml.storage import Storage

FOLDER = "tensorboard"


class Events:
    """Writes an epoch's numbers as TensorBoard scalars. Final.

    Args:
        storage: The storage root; event files are written there directly when it is a path, and copied
            there after each epoch when it is an object store, which cannot append.
        run: The run's folder.
    """

    def __init__(self, storage: Storage, run: tuple[str, ...]) -> None:
        self._storage, self._parts = storage, (*run, FOLDER)
        self._folder = storage.uri(*self._parts) if storage.local else tempfile.mkdtemp()
        self._writer = tf.summary.create_file_writer(self._folder)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write one epoch."""
        with self._writer.as_default(step=metrics["epoch"]):
            for key, value in metrics.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(key, value)
        self._writer.flush()
        if not self._storage.local:
            self._storage.upload(self._folder, *self._parts)

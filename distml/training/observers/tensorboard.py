"""TensorBoard event files beside the run (driver)."""

from __future__ import annotations

import tempfile
from typing import Any

from distml.storage import Storage

FOLDER = "tensorboard"


class Events:
    """Writes the numbers of an epoch as TensorBoard scalars. Final.

    Args:
        storage: The storage root; event files are written there directly when it is a path, and copied
            there after each epoch when it is an object store, which cannot append.
        run: The run's folder.
    """

    def __init__(self, storage: Storage, run: tuple[str, ...]) -> None:
        # TensorFlow's own writer needs the tensorboard package and TensorFlow in the driver.
        from tensorboardX import SummaryWriter

        self._storage, self._parts = storage, (*run, FOLDER)
        self._folder = storage.uri(*self._parts) if storage.local else tempfile.mkdtemp()
        self._writer = SummaryWriter(self._folder)

    def write(self, metrics: dict[str, Any]) -> None:
        """Write one epoch."""
        for key, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(key, value, metrics["epoch"], metrics["time"])
        self._writer.flush()
        if not self._storage.local:
            self._storage.upload(self._folder, *self._parts)

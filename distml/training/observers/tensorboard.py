"""The observer that writes TensorBoard event files beside the run (driver)."""

from __future__ import annotations

import tempfile

from distml.storage import Storage
from distml.training import metrics as catalogue
from distml.training.events import EpochFinished, Event, Resumed

FOLDER = "tensorboard"


class TensorBoard:
    """Writes the metrics of each epoch as TensorBoard scalars. Final; an observer.

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

    def __call__(self, event: Event) -> None:
        """Write one epoch, or those completed before a run was resumed."""
        match event:
            case EpochFinished():
                self._write(event)
            case Resumed():
                for epoch in event.history:
                    self._write(epoch)

    def _write(self, epoch: EpochFinished) -> None:
        for name, value in epoch.metrics.items():
            self._writer.add_scalar(catalogue.record_name(name), value, epoch.epoch, epoch.time)
        self._writer.flush()
        if not self._storage.local:
            self._storage.upload(self._folder, *self._parts)
